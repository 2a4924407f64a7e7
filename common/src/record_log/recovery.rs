//! Looks at the segment files of a directory at start and tells three cases apart: a sealed file (footer and length
//! agree, nothing else is read), a torn tail (bad bytes with no valid record behind them: a write that never was
//! acknowledged; cut off), and damage (a bad record *followed by* valid ones, or a bad footer: reported, the rest kept).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

use crate::record_log::segment::{
    self, FILE_HEADER_BYTES, FileHeader, Kind, RECORD_HEADER_BYTES, RECORD_MAGIC, RecordHeader, TRAILER_BYTES,
};
use crate::record_log::survey::ClaimedRecord;
use crate::record_log::{Corruption, LoadedRecord, LogError, RecordAt};

/// How much of a file is in memory at once while it is scanned.
const WINDOW_BYTES: usize = 1024 * 1024;

/// What one file holds.
pub(super) enum Found {
    Sealed { footer: Bytes, bytes: u64 },
    Unsealed(Scan),
}

/// A file without a (good) footer, read to its end.
#[derive(Default)]
pub(super) struct Scan {
    pub records: Vec<LoadedRecord>,
    /// Where the file is to be cut: the end of the last valid record.
    pub end: u64,
    /// Bytes behind `end`.
    pub torn_bytes: u64,
    pub corrupt: Vec<Corruption>,
    /// Length of the file.
    pub bytes: u64,
    /// The first bytes of the file are intact.
    pub sound: bool,
    /// A good trailer names a footer here that is none.
    pub bad_footer: Option<u64>,
    /// A footer is intact here; the trailer behind it is not.
    pub footer_at: Option<u64>,
}

/// Looks at one file. Changes nothing.
pub(super) fn inspect(path: &Path, id: u64) -> Result<Found, LogError> {
    let failed = |reason| LogError::storage("reading", path, reason);
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let mut window = Window::new(&file, len);
    let header = window.get(0, FILE_HEADER_BYTES as usize).map_err(failed)?;
    if let FileHeader::Newer(found) = segment::decode_file_header(header, id) {
        return Err(LogError::NewerFormat { path: path.to_owned(), found, newest: segment::VERSION });
    }
    let sound = segment::decode_file_header(header, id) == FileHeader::Good;
    let mut bad_footer = None;
    if sound && let Some(offset) = trailer(&mut window, id).map_err(failed)? {
        match footer(&mut window, id, offset).map_err(failed)? {
            Some(footer) => return Ok(Found::Sealed { footer, bytes: len }),
            None => bad_footer = Some(offset),
        }
    }
    let mut scan = scan(&mut window, id, sound, bad_footer).map_err(failed)?;
    if let Some(offset) = bad_footer {
        scan.corrupt.push(Corruption {
            segment: id,
            offset,
            maybe_unsynced: false,
            detail: "the footer is damaged; every record was checked instead".into(),
        });
    }
    Ok(Found::Unsealed(scan))
}

fn trailer(window: &mut Window<'_>, id: u64) -> io::Result<Option<u64>> {
    let Some(at) = window.len.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    let len = window.len;
    Ok(segment::decode_trailer(window.get(at, TRAILER_BYTES)?, id, len))
}

fn footer(window: &mut Window<'_>, id: u64, offset: u64) -> io::Result<Option<Bytes>> {
    let at = RecordAt { segment: id, offset };
    let Some(header) = RecordHeader::decode(window.get(offset, RECORD_HEADER_BYTES)?, at) else { return Ok(None) };
    if header.kind != Kind::Footer || offset + header.total() + TRAILER_BYTES as u64 != window.len {
        return Ok(None);
    }
    let bytes = window.get(offset + RECORD_HEADER_BYTES as u64, header.meta_bytes as usize)?;
    Ok((crc32c::crc32c(bytes) == header.crc).then(|| Bytes::copy_from_slice(bytes)))
}

/// Reads every record. `bad_footer`: a good trailer says that the records end there.
fn scan(window: &mut Window<'_>, id: u64, sound: bool, bad_footer: Option<u64>) -> io::Result<Scan> {
    let mut scan = Scan { end: FILE_HEADER_BYTES, bytes: window.len, sound, bad_footer, ..Scan::default() };
    let stop = bad_footer.unwrap_or(window.len);
    let mut offset = FILE_HEADER_BYTES;
    // Damage with the valid record behind it, and how far the records found prove the file to have been durable.
    let (mut gaps, mut synced) = (Vec::new(), 0);
    // Damage that is not yet known to have a valid record behind it.
    let mut bad: Option<u64> = (!sound).then_some(0);
    if !sound {
        offset = 0;
    }
    while offset < stop {
        let valid = match bad {
            Some(_) => next_valid(window, id, offset + 1, stop)?,
            None => record_at(window, id, offset, stop)?.map(|header| (offset, header)),
        };
        let Some((at, header)) = valid else {
            if bad.is_some() {
                break;
            }
            bad = Some(offset);
            continue;
        };
        if let Some(bad) = bad.take() {
            gaps.push((bad, at));
        }
        synced = header.synced.max(synced);
        if header.kind == Kind::Footer {
            // The trailer behind it is missing or torn: the seal was never answered and is made again.
            scan.footer_at = Some(at);
            break;
        }
        let meta = window.get(at + RECORD_HEADER_BYTES as u64, header.meta_bytes as usize)?;
        let meta = Bytes::copy_from_slice(meta);
        scan.records.push(LoadedRecord {
            at: RecordAt { segment: id, offset: at },
            meta,
            body_bytes: header.body_bytes,
        });
        offset = at + header.total();
        scan.end = offset;
    }
    // What was sealed had been synced whole before.
    let synced = bad_footer.unwrap_or(synced);
    scan.corrupt.extend(gaps.into_iter().map(|(bad, next)| damage(id, bad, next, synced)));
    if let (Some(bad), Some(footer)) = (bad, bad_footer) {
        scan.corrupt.push(Corruption {
            segment: id,
            offset: bad,
            maybe_unsynced: false,
            detail: format!("bytes {bad} to {footer} of a sealed segment hold no valid record"),
        });
    }
    if !sound && scan.records.is_empty() && window.len >= FILE_HEADER_BYTES + RECORD_HEADER_BYTES as u64 {
        scan.corrupt.push(Corruption {
            segment: id,
            offset: 0,
            maybe_unsynced: false,
            detail: "the first bytes of the file, synced before any other, are damaged, and no valid record follows"
                .into(),
        });
    }
    scan.torn_bytes = window.len.saturating_sub(scan.end);
    Ok(scan)
}

/// Reads the records of a file up to `stop`, whatever its footer says. Changes nothing.
pub(super) fn scan_to(path: &Path, id: u64, stop: u64) -> Result<Scan, LogError> {
    let failed = |reason| LogError::storage("reading", path, reason);
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    scan(&mut Window::new(&file, len.min(stop)), id, true, None).map_err(failed)
}

/// Records between `from` and `to` whose fixed part is intact.
pub(super) fn claimed(file: &File, id: u64, from: u64, to: u64) -> io::Result<Vec<ClaimedRecord>> {
    let mut window = Window::new(file, file.metadata()?.len().min(to));
    let (mut found, mut at) = (Vec::new(), from);
    while at < to {
        let fixed = window.get(at, RECORD_HEADER_BYTES)?;
        let header = RecordHeader::decode(fixed, RecordAt { segment: id, offset: at });
        let Some(header) = header.filter(|header| header.kind == Kind::Record && at + header.total() <= to) else {
            let part = window.get(at + 1, WINDOW_BYTES)?;
            let Some(next) = memchr::memmem::find(part, RECORD_MAGIC) else {
                // The magic may lie across the end of this part.
                at += (part.len() as u64 + 1).saturating_sub(RECORD_MAGIC.len() as u64 - 1).max(1);
                continue;
            };
            at += 1 + next as u64;
            continue;
        };
        let meta = window.get(at + RECORD_HEADER_BYTES as u64, header.meta_bytes as usize)?;
        found.push(ClaimedRecord { offset: at, meta: Bytes::copy_from_slice(meta), end: at + header.total() });
        at += header.total();
    }
    Ok(found)
}

/// `synced`: what any record behind the damage, not just the next one, knew to be durable.
fn damage(id: u64, bad: u64, next: u64, synced: u64) -> Corruption {
    let maybe_unsynced = synced <= bad;
    let why = if maybe_unsynced { "perhaps torn by a power failure" } else { "it had been synced" };
    Corruption {
        segment: id,
        offset: bad,
        maybe_unsynced,
        detail: format!("bytes {bad} to {next} hold no valid record, but one follows ({why})"),
    }
}

/// The record at exactly this offset, header and contents checked.
fn record_at(window: &mut Window<'_>, id: u64, offset: u64, stop: u64) -> io::Result<Option<RecordHeader>> {
    let at = RecordAt { segment: id, offset };
    let Some(header) = RecordHeader::decode(window.get(offset, RECORD_HEADER_BYTES)?, at) else { return Ok(None) };
    let end = offset + header.total();
    if end > stop {
        return Ok(None);
    }
    let (mut crc, mut next) = (0, offset + RECORD_HEADER_BYTES as u64);
    while next < end {
        let part = window.get(next, WINDOW_BYTES.min((end - next) as usize))?;
        crc = crc32c::crc32c_append(crc, part);
        next += part.len() as u64;
    }
    Ok((crc == header.crc).then_some(header))
}

/// The first valid record at or behind `from`.
fn next_valid(window: &mut Window<'_>, id: u64, mut from: u64, stop: u64) -> io::Result<Option<(u64, RecordHeader)>> {
    while from < stop {
        let part = window.get(from, WINDOW_BYTES)?;
        // All of a part first: looking at each candidate may move the window, and hostile bytes may hold many.
        let candidates: Vec<u64> =
            memchr::memmem::find_iter(part, RECORD_MAGIC).map(|distance| from + distance as u64).collect();
        let searched = part.len() as u64;
        for at in candidates {
            if let Some(header) = record_at(window, id, at, stop)? {
                return Ok(Some((at, header)));
            }
        }
        if searched < WINDOW_BYTES as u64 {
            return Ok(None);
        }
        // The magic may lie across the end of this part.
        from += searched - (RECORD_MAGIC.len() as u64 - 1);
    }
    Ok(None)
}

/// A file, seen through one buffer.
struct Window<'a> {
    file: &'a File,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(file: &'a File, len: u64) -> Self {
        Self { file, len, start: 0, bytes: Vec::new() }
    }

    /// `wanted` bytes from `offset`, or as many as the file has there.
    fn get(&mut self, offset: u64, wanted: usize) -> io::Result<&[u8]> {
        let wanted = (wanted as u64).min(self.len.saturating_sub(offset)) as usize;
        let held = self.start..self.start + self.bytes.len() as u64;
        if wanted > 0 && !(held.contains(&offset) && offset + wanted as u64 <= held.end) {
            let fill = (self.len - offset).min(WINDOW_BYTES.max(wanted) as u64) as usize;
            self.bytes.resize(fill, 0);
            self.start = offset;
            if let Err(error) = self.file.read_exact_at(&mut self.bytes, offset) {
                self.bytes.clear();
                return Err(error);
            }
        }
        let from = (offset.saturating_sub(self.start) as usize).min(self.bytes.len());
        Ok(&self.bytes[from..from + wanted])
    }
}
