//! Reads complete events out of one open file.
//!
//! Invariant: a piece is only made of bytes that directly follow the bytes before the cursor's offset in the same read, so a
//! file that was truncated and refilled under our hands is noticed. An event longer than the limit is searched through in
//! a fixed buffer and never held.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memrchr};
use rustix::fs::SeekFrom;

use super::chunk::{Chunk, Piece, PieceKind, TOO_LONG_KEPT};
use super::cursor::{Cursor, Verdict};
use super::fingerprint::{HEAD_MAX, TAIL_MAX};
use super::listing::Look;
use super::split::{Part, is_too_long, split};

/// How far a read came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing more is there now.
    AtEnd,
    /// There is more.
    More,
    /// The chunk has no room for the next event.
    Full,
    /// The file does not hold the cursor's content any more.
    Replaced,
}

/// Reads with one scratch buffer; owned by the source.
#[derive(Debug)]
pub struct Reader {
    max_event: u64,
    quantum: usize,
    scratch: Vec<u8>,
}

/// What a look at the bytes of an open file gave.
#[derive(Debug)]
pub struct Checked {
    /// The file's state.
    pub look: Look,
    /// Whether the cursor's content is there.
    pub verdict: Verdict,
    /// The first bytes, up to 1 KiB.
    pub head: Vec<u8>,
}

/// Compares `file` with what `cursor` knows.
pub fn check(cursor: &Cursor, file: &File) -> io::Result<Checked> {
    let look = Look::of(&file.metadata()?);
    let head = read_range(file, 0, HEAD_MAX.min(look.len as usize))?;
    let before = read_range(file, cursor.offset - cursor.tail.len(), cursor.tail.len() as usize)?;
    Ok(Checked { verdict: cursor.judge(look.len, &head, &before), look, head })
}

/// Up to `len` bytes at `offset`; fewer at the end of the file.
pub fn read_range(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let read = read_full(file, offset, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// The end of the last complete line before `len`, searched at most `bound` bytes back; `len` if there is none.
pub fn last_line_end(file: &File, len: u64, bound: u64) -> io::Result<u64> {
    let (mut end, lowest) = (len, len.saturating_sub(bound));
    while end > lowest {
        let start = lowest.max(end.saturating_sub(64 * 1024));
        let block = read_range(file, start, (end - start) as usize)?;
        if let Some(lf) = memrchr(b'\n', &block) {
            return Ok(start + lf as u64 + 1);
        }
        end = start;
    }
    Ok(if lowest == 0 { 0 } else { len })
}

/// Moves a cursor at the beginning of a file behind the hole there, if there is one: what a truncated file begins with whose writer does
/// not append. Nobody wrote these bytes.
pub fn skip_hole(cursor: &mut Cursor, file: &File) -> io::Result<()> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(0)) {
        Ok(data) if data > 0 && data < cursor.look.len => data,
        _ => return Ok(()),
    };
    // Data begins with a block; the writer began somewhere in it.
    let block = read_range(file, data, 64 * 1024)?;
    let zeros = block.iter().take_while(|byte| **byte == 0).count();
    let start = data + zeros as u64;
    let from = start.saturating_sub(TAIL_MAX as u64);
    let before = read_range(file, from, (start - from) as usize)?;
    cursor.advance(start, &before);
    Ok(())
}

fn read_full(file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < into.len() {
        match file.read_at(&mut into[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

impl Reader {
    /// Reads up to `quantum` bytes per step; events longer than `max_event` bytes are cut short.
    pub fn new(max_event: u64, quantum: usize) -> Self {
        Self { max_event, quantum, scratch: Vec::new() }
    }

    /// Hands out complete events from the cursor's offset on, one quantum at most.
    pub fn step(
        &mut self,
        cursor: &mut Cursor,
        file: &File,
        chunk: &mut Chunk,
        budget: usize,
        now: Instant,
    ) -> io::Result<Step> {
        let room = budget.saturating_sub(chunk.raw_bytes);
        let (offset, len) = (cursor.offset, cursor.look.len);
        if cursor.scanned >= len {
            return Ok(Step::AtEnd);
        }
        if room == 0 {
            return Ok(Step::Full);
        }
        let mut want = self.quantum.min(room) as u64;
        if cursor.has_unfinished() {
            let Some((end, ends_in_cr)) = self.find_end(cursor, file)? else {
                return Ok(if cursor.scanned < len { Step::More } else { Step::AtEnd });
            };
            if is_too_long(end - 1 - offset, ends_in_cr, self.max_event) {
                return self.emit_one(cursor, file, chunk, (end - 1, end), budget, now);
            }
            if end - offset > room as u64 && !chunk.pieces.is_empty() {
                return Ok(Step::Full);
            }
            want = want.max(end - offset);
        }
        self.read_lines(cursor, file, chunk, want.min(len - offset) as usize, now)
    }

    fn read_lines(
        &mut self,
        cursor: &mut Cursor,
        file: &File,
        chunk: &mut Chunk,
        want: usize,
        now: Instant,
    ) -> io::Result<Step> {
        let (offset, before) = (cursor.offset, cursor.tail.len() as usize);
        let mut buffer = BytesMut::zeroed(before + want);
        let read = read_full(file, offset - before as u64, &mut buffer)?;
        buffer.truncate(read);
        if read < before || !cursor.tail.matches(&buffer[..before]) {
            return Ok(Step::Replaced);
        }
        let searched = offset + (read - before) as u64;
        if let Some(lf) = memrchr(b'\n', &buffer[before..]) {
            let end = before + lf + 1;
            cursor.advance(offset + lf as u64 + 1, &buffer[end.saturating_sub(TAIL_MAX)..end]);
            // A long unfinished rest must not be kept in memory by a few complete lines before it.
            let lines = match end < buffer.len() / 2 {
                true => Bytes::copy_from_slice(&buffer[before..end]),
                false => buffer.freeze().slice(before..end),
            };
            self.push_lines(cursor, lines, offset, chunk, now);
        }
        cursor.scanned = cursor.scanned.max(searched);
        let short = read < before + want;
        Ok(if !short && cursor.scanned < cursor.look.len { Step::More } else { Step::AtEnd })
    }

    fn push_lines(&self, cursor: &Cursor, lines: Bytes, offset: u64, chunk: &mut Chunk, now: Instant) {
        for part in split(&lines, self.max_event as usize) {
            let (range, kind) = match part {
                Part::Lines(range) => (range, PieceKind::Lines),
                Part::TooLong(range) => {
                    let total_bytes = range.len() as u64;
                    (range.start..range.end.min(range.start + TOO_LONG_KEPT), PieceKind::TooLong { total_bytes })
                }
            };
            let at = offset + range.start as u64;
            chunk.push(Piece { path: cursor.name.clone(), offset: at, bytes: lines.slice(range), kind }, now);
        }
    }

    /// Emits the unfinished event at the end of the file, all of which has been searched.
    pub fn emit_partial(
        &mut self,
        cursor: &mut Cursor,
        file: &File,
        chunk: &mut Chunk,
        budget: usize,
        now: Instant,
    ) -> io::Result<Step> {
        let end = cursor.scanned;
        self.emit_one(cursor, file, chunk, (end, end), budget, now)
    }

    /// Emits one event alone: its body ends at `ends.0`, the next begins at `ends.1`.
    fn emit_one(
        &mut self,
        cursor: &mut Cursor,
        file: &File,
        chunk: &mut Chunk,
        ends: (u64, u64),
        budget: usize,
        now: Instant,
    ) -> io::Result<Step> {
        let (offset, total_bytes) = (cursor.offset, ends.0 - cursor.offset);
        let (kind, kept) = match total_bytes > self.max_event {
            true => (PieceKind::TooLong { total_bytes }, total_bytes.min(TOO_LONG_KEPT as u64) as usize),
            false => (PieceKind::Partial, total_bytes as usize),
        };
        if chunk.raw_bytes + kept > budget && !chunk.pieces.is_empty() || budget == 0 {
            return Ok(Step::Full);
        }
        let before = cursor.tail.len() as usize;
        let buffer = read_range(file, offset - before as u64, before + kept)?;
        let tail_from = ends.1.saturating_sub(TAIL_MAX as u64);
        let tail = read_range(file, tail_from, (ends.1 - tail_from) as usize)?;
        let is_short = buffer.len() < before + kept || tail_from + (tail.len() as u64) < ends.1;
        if is_short || !cursor.tail.matches(&buffer[..before]) {
            return Ok(Step::Replaced);
        }
        let bytes = Bytes::from(buffer).slice(before..);
        cursor.advance(ends.1, &tail);
        chunk.push(Piece { path: cursor.name.clone(), offset, bytes, kind }, now);
        Ok(if cursor.scanned < cursor.look.len { Step::More } else { Step::AtEnd })
    }

    /// Searches on for the end of the unfinished event, one quantum at most: the position behind its LF, and whether a CR is in
    /// front of that.
    fn find_end(&mut self, cursor: &mut Cursor, file: &File) -> io::Result<Option<(u64, bool)>> {
        let from = cursor.scanned - 1;
        let want = self.quantum.min((cursor.look.len - cursor.scanned) as usize);
        self.scratch.resize(want + 1, 0);
        let read = read_full(file, from, &mut self.scratch)?;
        let fresh = self.scratch.get(1..read).unwrap_or_default();
        match memchr(b'\n', fresh) {
            Some(lf) => {
                cursor.scanned += lf as u64;
                Ok(Some((cursor.scanned + 1, self.scratch[lf] == b'\r')))
            }
            None => {
                cursor.scanned += fresh.len() as u64;
                Ok(None)
            }
        }
    }
}
