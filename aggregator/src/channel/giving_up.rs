//! Letting go of a batch that cannot be read back.
//!
//! Invariant: the file in which it lies has another name before, so that nothing that may be read again, by other means
//! or on another day, is unlinked because of it.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::{fs, io};

use common::record_log::survey::segment_file_name;
use proto::ids::BatchId;

use super::owner::Owner;
use super::{ChannelEvent, Location, recover, salvage, segment_view};

impl Owner {
    /// Gives a batch up, or tries again at the next tick: the forward side asks once. One that was read well and copied in
    /// between is not given up.
    pub(super) fn give_up_or_later(&mut self, at: Location, id: BatchId) {
        if self.opened.as_ref().is_some_and(|opened| opened.state.is_moved(at)) {
            self.tell_anew();
        } else if !self.give_up(at, &id) {
            self.giving_up.push((at, id));
        }
    }

    /// The forward side has taken a batch out that is to be delivered all the same: it hears everything again.
    fn tell_anew(&mut self) {
        // Only of what is sealed can all be told.
        if let Some((id, _)) = self.opened.as_ref().and_then(|opened| opened.log.active())
            && let Err(error) = self.seal(id)
        {
            return self.fail(&error);
        }
        if let Some(opened) = &self.opened {
            let snapshot = recover::snapshot(&opened.state, opened.log.reader());
            self.tell(ChannelEvent::Reset(Box::new(snapshot)));
        }
    }

    /// What could not be given up before.
    pub(super) fn give_up_again(&mut self) {
        for (at, id) in std::mem::take(&mut self.giving_up) {
            self.give_up_or_later(at, id);
        }
    }

    /// Gives a batch up. False: its segment's file cannot be kept now, so it stays held.
    pub(super) fn give_up(&mut self, at: Location, id: &BatchId) -> bool {
        let path = self.options.data_dir.join("seg").join(segment_file_name(at.segment));
        if let Err(error) = keep(&path) {
            tracing::error!(batch = %id, path = %path.display(), %error, "a segment cannot be kept under another name, so a batch in it that cannot be read stays held");
            return false;
        }
        let now = self.now();
        if let Some(opened) = &mut self.opened
            && opened.state.give_up(at, id, now)
        {
            self.stats.given_up_batches.fetch_add(1, Ordering::Relaxed);
            tracing::error!(batch = %id, segment = at.segment, "a payload is damaged on disk or cannot be read: only its agent can give it again; the segment's file is kept");
        }
        true
    }
}

/// A second name; where the file system has none, a copy of what can be read.
fn keep(path: &Path) -> io::Result<()> {
    let aside = path.with_extension(segment_view::GIVEN_UP.trim_start_matches('.'));
    match fs::hard_link(path, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        // Nothing is left of it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => salvage::copy_aside(path, &aside)?,
    }
    salvage::sync_parent(path)
}
