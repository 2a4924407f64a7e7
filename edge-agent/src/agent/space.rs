//! A full file system under the state directory. What was read is not given up for it, and no file that is held open is
//! let go by an end of the process: what was appended stays in memory, nothing is appended behind it, and it is tried
//! again at each step until there is room.
//!
//! Invariants: nothing that is not stored is handed over for sending; while something waits for room, nothing is read
//! into chunks, noted as complete, or replaced by a void.

use std::fmt;
use std::time::Instant;

use common::reserve::Reserve;

use super::owner::{Owner, OwnerError};
use crate::outbox::room::{RESERVE_BYTES, has_reserve, may_take_reserve};
use crate::outbox::{Outbox, OutboxError};
use crate::ship::messages::FromShip;

/// Why something is not appended now.
pub(super) const NO_ROOM: &str = "the file system of the state directory is full";

/// What the owner knows of the space under its state directory.
#[derive(Debug)]
pub(super) struct Space {
    /// Something waits for room.
    pub full: bool,
    /// Less than the reserve is free.
    low: bool,
    /// Given up before that.
    pub reserve: Reserve,
    /// Batches that become voids when their bytes can be kept.
    postponed: Vec<FromShip>,
    /// That some wait was said, and they still do.
    said_postponed: bool,
}

impl Space {
    pub(super) fn new(reserve: Reserve) -> Self {
        Self { full: false, low: false, reserve, postponed: Vec::new(), said_postponed: false }
    }

    /// A void waits. True if that is to be said: it is tried again each second, which is nothing new.
    fn postpone(&mut self, void: FromShip) -> bool {
        self.postponed.push(void);
        !std::mem::replace(&mut self.said_postponed, true)
    }

    /// All that waited was tried again. True if nothing waits any more, for the first time.
    fn is_rid(&mut self) -> bool {
        self.postponed.is_empty() && std::mem::take(&mut self.said_postponed)
    }
}

impl Owner {
    /// Stores what was appended and hands it over for sending; without room it waits.
    pub(super) fn commit(&mut self) -> Result<(), OwnerError> {
        if let Some(stored) = self.attempt(Outbox::commit)? {
            self.send(stored);
        }
        Ok(())
    }

    /// May something be appended now? Only if everything before it is stored and the segment has begun.
    pub(super) fn has_space(&mut self) -> Result<bool, OwnerError> {
        Ok(!self.space.full && self.attempt(Outbox::begin_if_needed)?.is_some())
    }

    /// The same for what can wait: it does, while less than the reserve is free.
    pub(super) fn has_space_to_spare(&mut self, now: Instant) -> Result<bool, OwnerError> {
        let spare = self.probe.get(&self.state_dir.outbox(), now).map_or(true, has_reserve);
        Ok(spare && self.has_space()?)
    }

    /// Writes down releases and gives back space. Little free space is spent only to give back more.
    pub(super) fn tidy(&mut self, now: Instant) -> Result<(), OwnerError> {
        if !self.space.full && (self.outbox.gives_back() || self.has_space_to_spare(now)?) {
            self.attempt(Outbox::tidy)?;
        }
        Ok(())
    }

    /// Tries again what waits for room.
    pub(super) fn look_for_space(&mut self) -> Result<(), OwnerError> {
        if !self.space.full {
            return Ok(());
        }
        let Some(stored) = self.attempt(Outbox::commit)? else { return Ok(()) };
        self.send(stored);
        if self.run.is_some() && self.state_dir.is_restored() {
            // The open that says so is durable only now.
            self.state_dir.adopt()?;
        }
        if self.attempt(Outbox::begin_if_needed)?.is_some() {
            // Whether little is free is said anew.
            (self.space.full, self.space.low) = (false, false);
            tracing::info!("the file system of the state directory has room again");
            self.say_space(None);
        }
        Ok(())
    }

    /// About once per second: voids that wait, and the reserve.
    pub(super) fn upkeep_space(&mut self, now: Instant) -> Result<(), OwnerError> {
        if let Ok(fs) = self.probe.get(&self.state_dir.outbox(), now) {
            if may_take_reserve(fs) {
                self.space.reserve.refill();
            }
            self.say_low(!has_reserve(fs));
        }
        for message in std::mem::take(&mut self.space.postponed) {
            self.message(message, now)?;
        }
        if self.space.is_rid() {
            tracing::info!("no rejected or damaged batch waits any more");
        }
        Ok(())
    }

    /// A void waits: its bytes cannot be read or kept, or it cannot be appended.
    pub(super) fn postpone(&mut self, void: FromShip, why: &dyn fmt::Display) {
        if self.space.postpone(void) {
            tracing::error!(%why, "a rejected or damaged batch waits for its void, it is tried again each second");
        }
    }

    /// None: there is no room, also without the reserve.
    pub(super) fn attempt<T>(
        &mut self,
        work: impl Fn(&mut Outbox) -> Result<T, OutboxError>,
    ) -> Result<Option<T>, OwnerError> {
        let mut done = work(&mut self.outbox);
        if done.as_ref().is_err_and(OutboxError::is_full) && self.space.reserve.release() {
            done = work(&mut self.outbox);
        }
        match done {
            Err(error) if error.is_full() => {
                self.say_full(&error);
                Ok(None)
            }
            done => Ok(Some(done?)),
        }
    }

    fn say_low(&mut self, low: bool) {
        if std::mem::replace(&mut self.space.low, low) == low || self.space.full {
            return;
        }
        let text = low.then(|| {
            let path = self.state_dir.outbox();
            tracing::error!("the file system of the state directory is nearly full: no marks are made");
            format!(
                "less than {RESERVE_BYTES} bytes are free on the file system of {}: make room on it; until then no marks \
                 are made, and days wait for this agent",
                path.display()
            )
        });
        self.say_space(text);
    }

    fn say_space(&self, text: Option<String>) {
        self.health.set_part("space", text.is_none(), text.clone().unwrap_or_default());
        self.gauges.say("no_space", text);
    }

    fn say_full(&mut self, error: &OutboxError) {
        if std::mem::replace(&mut self.space.full, true) {
            return;
        }
        tracing::error!(error = %error, "the file system of the state directory is full: nothing is stored until it has room");
        let path = self.state_dir.outbox();
        let text = format!(
            "the file system of {} is full ({error}): make room on it; until then nothing more is read or sent, log files \
             are held open, and a restart would give up those that are deleted",
            path.display()
        );
        self.say_space(Some(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_void_that_waits_is_said_once_until_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        let mut space = Space::new(Reserve::at(dir.path().join("reserve"), RESERVE_BYTES));
        let mut said = Vec::new();
        for _ in 0..3 {
            // As each second does: taken out, tried, and put back.
            space.postponed.clear();
            said.push(space.postpone(FromShip::Drained));
            said.push(space.postpone(FromShip::Drained));
            assert!(!space.is_rid());
        }
        assert_eq!(said, [true, false, false, false, false, false]);
        space.postponed.clear();
        assert!(space.is_rid() && !space.is_rid());
        assert!(space.postpone(FromShip::Drained), "another time");
    }
}
