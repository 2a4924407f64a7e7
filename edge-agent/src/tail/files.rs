//! The files a source knows: cursors by id and inode, with a bounded number of open descriptors.
//!
//! Invariant: an inode that is listed, open or waiting belongs to exactly one cursor; a cursor that is dropped with unread
//! bytes has them counted as destroyed; only files that a path leads back to are closed to make room.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};

use super::cursor::{Cursor, Moment, Standing, Verdict};
use super::listing::{Inode, Look};
use super::reading;

/// Why bytes could not be read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DestroyedBy {
    /// The file was truncated or overwritten, and no copy of the bytes was found.
    Truncation,
    /// The file was deleted, or moved out of reach, before it was opened.
    Removal,
    /// It was held open after its deletion up to the limit in bytes or age.
    HoldLimit,
}

/// Bytes that were seen in a file and are gone without having been read; they were never events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destroyed {
    /// The file's last known path.
    pub path: Arc<str>,
    /// How many bytes.
    pub bytes: u64,
    /// How they were lost.
    pub by: DestroyedBy,
}

/// A cursor with its descriptor.
#[derive(Debug)]
pub struct Entry {
    /// Position and identity.
    pub cursor: Cursor,
    /// Open descriptor.
    pub file: Option<File>,
    used: u64,
}

/// All files of a source.
#[derive(Debug, Default)]
pub struct Files {
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) by_inode: HashMap<Inode, u64>,
    /// Ids of waiting files that turned out to continue another.
    pub(super) moved: BTreeMap<u64, u64>,
    /// Saved records that are not needed any more.
    pub(super) forgotten: Vec<u64>,
    /// Not yet taken.
    pub(super) destroyed: Vec<Destroyed>,
    /// How many times unread bytes at an end were cut off.
    pub(super) shrinks: u64,
    /// Ids to visit, from events outside the regular look.
    pub(super) woken: Vec<u64>,
    next_id: u64,
    max_open: usize,
    open: usize,
    clock: u64,
}

/// Opens a regular file for reading without ever blocking on it.
pub fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

impl Files {
    /// Keeps about `max_open` descriptors at most; new records are numbered from `next_id`.
    pub fn new(max_open: usize, next_id: u64) -> Self {
        Self { max_open, next_id, ..Self::default() }
    }

    /// Adds a file seen for the first time.
    pub fn add(&mut self, path: &Path, look: Look, grown: Instant, file: Option<File>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.insert(Cursor::new(id, path, look, grown), file);
        self.by_inode.insert(look.inode, id);
        id
    }

    /// Adds a cursor as it is.
    pub fn insert(&mut self, cursor: Cursor, file: Option<File>) {
        self.open += usize::from(file.is_some());
        self.clock += 1;
        self.entries.insert(cursor.id, Entry { cursor, file, used: self.clock });
    }

    /// Makes sure the descriptor is open; false if no path leads to the file any more.
    pub fn ensure_open(&mut self, id: u64) -> io::Result<bool> {
        self.clock += 1;
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(false) };
        entry.used = self.clock;
        if entry.file.is_some() {
            return Ok(true);
        }
        if matches!(entry.cursor.standing, Standing::Lost { .. }) {
            return Ok(false);
        }
        let (path, inode) = (entry.cursor.path.clone(), entry.cursor.look.inode);
        self.make_room(1);
        let file = match open_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        if Look::of(&file.metadata()?).inode != inode {
            return Ok(false);
        }
        self.set_file(id, Some(file));
        Ok(true)
    }

    /// Replaces the descriptor.
    pub fn set_file(&mut self, id: u64, file: Option<File>) -> Option<File> {
        let entry = self.entries.get_mut(&id)?;
        self.open += usize::from(file.is_some());
        let earlier = std::mem::replace(&mut entry.file, file);
        self.open -= usize::from(earlier.is_some());
        earlier
    }

    /// Closes the descriptors used longest ago, of files that a path leads back to, if `more` would not fit.
    pub fn make_room(&mut self, more: usize) {
        if self.open + more <= self.max_open {
            return;
        }
        let closable = |entry: &&Entry| {
            entry.file.is_some() && matches!(entry.cursor.standing, Standing::Listed | Standing::Waiting)
        };
        let mut oldest: Vec<_> =
            self.entries.values().filter(closable).map(|entry| (entry.used, entry.cursor.id)).collect();
        oldest.sort_unstable();
        // A batch at once, so that a walk over many files does not sort at each step.
        let excess = self.open + more - self.max_open;
        for (_, id) in oldest.into_iter().take(excess + self.max_open / 8) {
            self.set_file(id, None);
        }
    }

    /// Looks at the bytes of a file, which is open, and takes over what is found short of a replacement.
    pub fn verify(&mut self, id: u64, wall: i128, now: Instant) -> io::Result<Verdict> {
        let Some(Entry { cursor, file: Some(file), .. }) = self.entries.get_mut(&id) else {
            return Ok(Verdict::Same);
        };
        let checked = reading::check(cursor, file)?;
        cursor.observe(checked.look, wall, now);
        match checked.verdict {
            Verdict::Replaced => {}
            Verdict::Shrunk => {
                self.shrinks += 1;
                let bytes = cursor.shrink(self.shrinks, checked.look.len);
                self.destroyed.push(Destroyed { path: cursor.name.clone(), bytes, by: DestroyedBy::Truncation });
                cursor.confirm(&checked.head);
            }
            // The first bytes of a file that was empty may be another's, copied into it.
            Verdict::Same if cursor.head.is_empty() && !checked.head.is_empty() => cursor.standing = Standing::Waiting,
            Verdict::Same => cursor.confirm(&checked.head),
        }
        Ok(checked.verdict)
    }

    /// The file holds other bytes now: what it held is lost unless a copy turns up, what it holds waits as a new file.
    pub fn replace(&mut self, id: u64, at: Moment) {
        let Some(file) = self.set_file(id, None) else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let cursor = &mut entry.cursor;
        let (path, mut look, standing) = (cursor.path.clone(), cursor.look, cursor.standing);
        cursor.lose(false, at);
        cursor.overwritten = true;
        if let Ok(metadata) = file.metadata() {
            look = Look::of(&metadata);
        }
        let was_copy = standing == Standing::Waiting;
        if was_copy || (cursor.head.is_empty() && cursor.known_len == 0) {
            self.drop_entry(id);
        }
        let fresh = self.add(&path, look, at.now, Some(file));
        if let Some(entry) = self.entries.get_mut(&fresh) {
            entry.cursor.standing = match standing {
                _ if look.len > 0 => Standing::Waiting,
                Standing::Gone { .. } => standing,
                _ => Standing::Listed,
            };
        }
        self.woken.push(fresh);
    }

    /// Counts what is unread as destroyed and forgets the file.
    pub fn give_up(&mut self, id: u64, by: DestroyedBy) {
        let Some(entry) = self.entries.get(&id) else { return };
        let (path, bytes) = (entry.cursor.name.clone(), entry.cursor.unread());
        if bytes > 0 {
            self.destroyed.push(Destroyed { path, bytes, by });
        }
        self.drop_entry(id);
    }

    /// Forgets the file.
    pub fn drop_entry(&mut self, id: u64) {
        self.set_file(id, None);
        let Some(entry) = self.entries.remove(&id) else { return };
        let inode = entry.cursor.look.inode;
        if self.by_inode.get(&inode) == Some(&id) {
            self.by_inode.remove(&inode);
        }
        if entry.cursor.saved {
            self.forgotten.push(id);
        }
    }

    /// Descriptors that are open now.
    pub fn open_count(&self) -> usize {
        self.open
    }
}
