//! One file's position and the decisions about it: pure functions of stat results, bytes at hand and `now`.
//!
//! Invariant: `offset <= scanned <= seen length`; bytes before `offset` were handed out exactly once, and between `offset` and
//! `scanned` there is no LF. A content is continued only where its known first bytes and the bytes before the offset are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fingerprint::{HEAD_MAX, Head, HeadMatch, Tail};
use super::listing::Look;
use super::position::Position;

/// A look at a file this soon after its last change may have missed a later change with the same time stamp.
const RACY_NANOS: i128 = 100_000_000;

/// One look at the world: monotonic and wall-clock time.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Monotonic.
    pub now: Instant,
    /// Nanoseconds since 1970, comparable with change times of files.
    pub wall: i128,
}

impl Moment {
    /// Wall-clock time in seconds.
    fn seconds(self) -> u64 {
        u64::try_from(self.wall / 1_000_000_000).unwrap_or(0).max(1)
    }

    /// The monotonic time of a wall-clock second in the past; now for 0 and for the future.
    fn since(self, seconds: u64) -> Instant {
        let ago = if seconds == 0 { 0 } else { self.seconds().saturating_sub(seconds) };
        self.now.checked_sub(Duration::from_secs(ago)).unwrap_or(self.now)
    }
}

/// Where a cursor's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Seen for the first time; it may be a copy that is being made, so it is not read yet.
    Waiting,
    /// A matched path leads to it.
    Listed,
    /// No matched path leads to it any more; it is open.
    Gone {
        /// Since when.
        since: Instant,
    },
    /// It was truncated, deleted or replaced and is in no known file; a copy of it may still turn up.
    Lost {
        /// Since when, or when a copy that is not complete yet grew last.
        since: Instant,
    },
}

/// What a look at the bytes says about a cursor's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is there.
    Same,
    /// It is there up to the offset, but unread bytes at its end are gone.
    Shrunk,
    /// Other bytes are in their place.
    Replaced,
}

/// Position and identity of one content.
#[derive(Debug)]
pub struct Cursor {
    /// Names the saved record.
    pub id: u64,
    /// Last known path.
    pub path: Arc<Path>,
    /// The path as text, shared by all pieces.
    pub name: Arc<str>,
    /// Where the path leads if there is a symbolic link in it.
    pub target: Option<PathBuf>,
    /// The latest look at the file.
    pub look: Look,
    /// Length up to which the file was seen while it certainly held this content.
    pub known_len: u64,
    /// The next byte to hand out.
    pub offset: u64,
    /// First byte behind `offset` that has not been searched for an LF.
    pub scanned: u64,
    /// Known first bytes.
    pub head: Head,
    /// Bytes before `offset`.
    pub tail: Tail,
    /// When it was last seen to grow.
    pub grown: Instant,
    /// Where the content is.
    pub standing: Standing,
    /// Since when no path leads to it, in seconds since 1970 (0: one does), as saved.
    pub absent_since: u64,
    /// It still existed, out of reach of the globs, when it was closed: no other file can be its copy.
    pub elsewhere: bool,
    /// Other bytes took the place of its content.
    pub overwritten: bool,
    /// The saved record is out of date.
    pub dirty: bool,
    /// A record of it was given out.
    pub saved: bool,
    /// Its content has to be verified although no new bytes are there.
    pub suspect: bool,
    /// At its end and closed for good (`finish`).
    pub done: bool,
    /// The shrink that cut off unread bytes last: its number and the length it left.
    pub shrunk: Option<(u64, u64)>,
    /// Place of its update in the current chunk.
    pub slot: usize,
}

impl Cursor {
    /// A file seen for the first time, with nothing read.
    pub fn new(id: u64, path: &Path, look: Look, grown: Instant) -> Self {
        Self {
            id,
            path: path.into(),
            name: path.to_string_lossy().into(),
            target: None,
            look,
            known_len: 0,
            offset: 0,
            scanned: 0,
            head: Head::of(b""),
            tail: Tail::of(b""),
            grown,
            standing: Standing::Waiting,
            absent_since: 0,
            elsewhere: false,
            overwritten: false,
            dirty: false,
            saved: false,
            suspect: true,
            done: false,
            shrunk: None,
            slot: usize::MAX,
        }
    }

    /// A file of an earlier run; where its content is now is not known yet.
    pub fn restore(id: u64, saved: Position, at: Moment) -> Self {
        let inode = super::listing::Inode { ino: saved.ino, dev: saved.dev };
        let look = Look { inode, len: saved.seen_len.max(saved.offset), ctime: 0, links: 1 };
        Self {
            known_len: look.len,
            offset: saved.offset,
            scanned: saved.offset,
            head: saved.head,
            tail: saved.tail,
            standing: Standing::Lost { since: at.since(saved.absent_since) },
            absent_since: saved.absent_since,
            elsewhere: saved.elsewhere,
            saved: true,
            ..Self::new(id, &PathBuf::from(saved.path), look, at.now)
        }
    }

    /// The file is found under `path` now; true if that is another one than before.
    pub fn rename(&mut self, path: &Path) -> bool {
        let renamed = *self.path != *path;
        if renamed {
            self.path = path.into();
            self.name = path.to_string_lossy().into();
            self.dirty |= self.saved;
        }
        renamed
    }

    /// No path and no descriptor leads to the content any more.
    pub fn lose(&mut self, elsewhere: bool, at: Moment) {
        self.standing = Standing::Lost { since: at.now };
        self.look.len = self.known_len;
        self.elsewhere = elsewhere;
        self.absent_since = at.seconds();
        self.dirty |= self.saved;
    }

    /// The content goes on in the file that was found as `found`.
    pub fn continue_as(&mut self, found: &Cursor) {
        let moved = found.look.inode.ino != self.look.inode.ino || self.absent_since > 0;
        self.dirty |= moved && self.saved;
        self.rename(&found.path);
        self.target.clone_from(&found.target);
        self.look = Look { len: found.look.len.max(self.known_len), ..found.look };
        self.scanned = self.offset;
        self.grown = found.grown.max(self.grown);
        self.standing = Standing::Listed;
        (self.absent_since, self.elsewhere, self.overwritten) = (0, false, false);
        (self.suspect, self.done) = (true, false);
    }

    /// Remembers since when it is missing, if that is not known from an earlier run.
    pub fn stamp(&mut self, at: Moment) {
        if self.absent_since == 0 {
            self.absent_since = at.seconds();
            self.dirty |= self.saved;
        }
    }

    /// The record to save.
    pub fn position(&self) -> Position {
        Position {
            ino: self.look.inode.ino,
            dev: self.look.inode.dev,
            offset: self.offset,
            seen_len: self.known_len,
            absent_since: self.absent_since,
            elsewhere: self.elsewhere,
            head: self.head,
            tail: self.tail,
            path: self.name.to_string(),
        }
    }

    /// Bytes known to be there and not handed out.
    pub fn unread(&self) -> u64 {
        self.look.len.saturating_sub(self.offset)
    }

    /// True if there are bytes at the end that have no LF and have not been handed out.
    pub fn has_unfinished(&self) -> bool {
        self.scanned > self.offset
    }

    /// True if its bytes may be read.
    pub fn is_readable(&self) -> bool {
        !self.done && matches!(self.standing, Standing::Listed | Standing::Gone { .. })
    }

    /// True if nothing is to be done but wait for growth.
    pub fn is_quiet(&self) -> bool {
        !self.suspect && self.scanned >= self.look.len
    }

    /// Takes a new look, at wall-clock time `wall` in nanoseconds; the length is kept while it is smaller than what was
    /// known, so that [`Cursor::judge`] can tell what is missing.
    pub fn observe(&mut self, look: Look, wall: i128, now: Instant) {
        let changed = look.ctime != self.look.ctime || look.len != self.look.len;
        // Within the granularity of time stamps a second change may not show: look at the bytes again.
        let racy = wall - look.ctime < RACY_NANOS;
        self.suspect |= changed || racy;
        if look.len > self.look.len {
            self.grown = now;
        }
        self.look = Look { len: self.look.len.max(look.len), ..look };
    }

    /// Compares with a file of `len` bytes that begins with `head` (up to 1 KiB) and has `before` in front of the offset.
    pub fn judge(&self, len: u64, head: &[u8], before: &[u8]) -> Verdict {
        let replaced = len < self.offset
            || len < self.head.len()
            || self.head.compare(head) != HeadMatch::Same
            || !self.tail.matches(before);
        match replaced {
            true => Verdict::Replaced,
            false if len < self.look.len => Verdict::Shrunk,
            false => Verdict::Same,
        }
    }

    /// The content was verified on `head`: remembers more of it if there is more.
    pub fn confirm(&mut self, head: &[u8]) {
        self.suspect = false;
        self.known_len = self.look.len;
        if head.len() as u64 > self.head.len() && self.head.len() < HEAD_MAX as u64 {
            self.head = Head::of(head);
            self.dirty |= self.saved;
        }
    }

    /// Unread bytes at the end are gone: `number` is the count of such events, `len` what is left. Returns the bytes destroyed.
    pub fn shrink(&mut self, number: u64, len: u64) -> u64 {
        let destroyed = self.look.len - len;
        (self.look.len, self.known_len) = (len, len);
        self.scanned = self.scanned.min(len);
        self.shrunk = Some((number, len));
        destroyed
    }

    /// Everything before `offset` is handed out; `before` are bytes in front of it, as many as are at hand (256 suffice).
    pub fn advance(&mut self, offset: u64, before: &[u8]) {
        debug_assert!(offset >= self.offset);
        self.offset = offset;
        self.scanned = self.scanned.max(offset);
        self.look.len = self.look.len.max(offset);
        self.known_len = self.known_len.max(offset);
        self.tail = Tail::of(before);
        self.dirty = true;
    }

    /// True if the unfinished event at the end is to be emitted now: at `finish`, or once nobody has written for `idle` to a file
    /// that was renamed away or deleted, or to any file unless `only_gone`.
    pub fn partial_is_due(&self, finishing: bool, idle: Duration, only_gone: bool, now: Instant) -> bool {
        if !self.has_unfinished() || self.scanned < self.look.len {
            return false;
        }
        let waited = |since: Instant| now.saturating_duration_since(since.max(self.grown)) >= idle;
        finishing
            || match self.standing {
                Standing::Gone { since } => waited(since),
                Standing::Listed => !only_gone && waited(self.grown),
                Standing::Waiting | Standing::Lost { .. } => false,
            }
    }

    /// True if every byte before `end`, noted when `shrinks` shrink events had happened, was handed out or destroyed, or belongs to an
    /// event that has no end yet.
    pub fn is_cut(&self, end: u64, shrinks: u64) -> bool {
        let end = match self.shrunk {
            Some((number, len)) if number > shrinks => end.min(len),
            _ => end,
        };
        self.scanned >= end
    }
}

/// How a content that is known relates to a file that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The known content is nowhere else any more, and the file holds it up to the offset at least.
    Continues {
        /// How far it was read.
        offset: u64,
        /// The file lies where the content was last seen.
        same_path: bool,
    },
    /// The known content is nowhere else any more; the file agrees so far and is shorter: a copy that is being made?
    Coming,
    /// The known content is still where it was, and the file agrees with it: two equal files, or a copy before its original is
    /// truncated?
    Twin,
}

/// What a waiting file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It continues the content with this id.
    Continue(u64),
    /// It cannot be told yet.
    Wait,
    /// A file of its own, read from its beginning.
    Fresh,
}

/// Decides what a waiting file is that has not changed for `quiet`.
pub fn decide(relations: &[(u64, Relation)], quiet: Duration, copy_wait: Duration) -> Decision {
    let best = relations.iter().filter_map(|(id, relation)| match relation {
        Relation::Continues { offset, same_path } => Some((*same_path, *offset, *id)),
        Relation::Coming | Relation::Twin => None,
    });
    match best.max() {
        Some((_, _, id)) => Decision::Continue(id),
        None if relations.is_empty() || quiet >= copy_wait => Decision::Fresh,
        None => Decision::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::listing::Inode;

    fn cursor(content: &[u8], offset: usize, now: Instant) -> Cursor {
        let look = Look { inode: Inode { ino: 1, dev: 1 }, len: content.len() as u64, ctime: 0, links: 1 };
        let mut cursor = Cursor::new(1, Path::new("/a"), look, now);
        cursor.standing = Standing::Listed;
        cursor.confirm(&content[..content.len().min(HEAD_MAX)]);
        cursor.advance(offset as u64, &content[..offset]);
        cursor
    }

    fn judged(cursor: &Cursor, content: &[u8]) -> Verdict {
        let end = (cursor.offset as usize).min(content.len());
        let before = &content[end.saturating_sub(cursor.tail.len() as usize)..end];
        cursor.judge(content.len() as u64, &content[..content.len().min(HEAD_MAX)], before)
    }

    #[test]
    fn content_is_told_from_what_took_its_place() {
        let now = Instant::now();
        let old: Vec<u8> = (0..300).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        let read = cursor(&old, 2000, now);
        assert_eq!(judged(&read, &old), Verdict::Same);
        assert_eq!(judged(&read, &[old.clone(), b"more\n".to_vec()].concat()), Verdict::Same);
        assert_eq!(judged(&read, &old[..2000]), Verdict::Shrunk);
        assert_eq!(judged(&read, &old[..1999]), Verdict::Replaced);
        assert_eq!(judged(&read, b""), Verdict::Replaced);
        let mut same_head = old.clone();
        same_head[1990] ^= 1;
        assert_eq!(judged(&read, &same_head), Verdict::Replaced, "refilled behind an equal first KiB");
        let mut same_tail = old;
        same_tail[3] ^= 1;
        assert_eq!(judged(&read, &same_tail), Verdict::Replaced, "refilled with equal bytes before the offset");
    }

    #[test]
    fn unread_content_that_is_truncated_away_is_replaced() {
        let unread = cursor(b"one\ntwo\n", 0, Instant::now());
        assert_eq!(judged(&unread, b""), Verdict::Replaced);
        assert_eq!(judged(&unread, b"three\nfour\n"), Verdict::Replaced);
    }

    #[test]
    fn partial_events_wait_for_the_writer() {
        let now = Instant::now();
        let idle = Duration::from_secs(5);
        let mut unfinished = cursor(b"one\ntw", 4, now);
        assert!(!unfinished.partial_is_due(true, idle, false, now), "not searched yet");
        unfinished.scanned = 6;
        assert!(!unfinished.partial_is_due(false, idle, false, now));
        assert!(unfinished.partial_is_due(true, idle, false, now));
        assert!(unfinished.partial_is_due(false, idle, false, now + idle));
        assert!(!unfinished.partial_is_due(false, idle, true, now + idle));
        unfinished.standing = Standing::Gone { since: now + idle };
        assert!(!unfinished.partial_is_due(false, idle, true, now + idle));
        assert!(unfinished.partial_is_due(false, idle, true, now + idle * 2));
    }

    #[test]
    fn a_copy_counts_only_when_the_original_is_nowhere_else() {
        let wait = Duration::from_secs(5);
        let fresh = Duration::ZERO;
        let continues = |offset, same_path| Relation::Continues { offset, same_path };
        assert_eq!(decide(&[], fresh, wait), Decision::Fresh);
        assert_eq!(decide(&[(1, Relation::Twin)], fresh, wait), Decision::Wait);
        assert_eq!(decide(&[(1, Relation::Twin)], wait, wait), Decision::Fresh);
        assert_eq!(decide(&[(1, Relation::Coming)], fresh, wait), Decision::Wait);
        assert_eq!(decide(&[(1, Relation::Twin), (2, continues(3, false))], wait, wait), Decision::Continue(2));
        assert_eq!(decide(&[(1, continues(9, false)), (2, continues(3, true))], wait, wait), Decision::Continue(2));
    }

    #[test]
    fn a_note_is_cut_by_reading_or_by_destruction() {
        let mut noted = cursor(b"one\ntwo\n", 4, Instant::now());
        assert!(noted.is_cut(4, 0) && !noted.is_cut(8, 0));
        assert_eq!(noted.shrink(1, 4), 4);
        assert!(noted.is_cut(8, 0), "the rest was destroyed after the note");
        assert!(!noted.is_cut(8, 1), "but not before it");
    }
}
