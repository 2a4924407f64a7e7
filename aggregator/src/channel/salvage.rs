//! What a start does about damage before the log opens the segments: it is named, and the bytes in which it lies are
//! kept, since the log cuts torn ends, and the owner writes what is good anew and unlinks the rest.
//!
//! Invariants: nothing that may have been a batch goes without a name in the log, a count, and a copy of its file
//! (`*.at-start.seg.damaged`, which `channel check` reads); a segment's file is there, whole, at every moment.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use common::record_log::RecordReader;
use common::record_log::survey::segment_files;
use tempfile::NamedTempFile;

use super::ChannelError;
use super::finding::{Finding, Kind};
use super::segment_view::{self, AT_START, Place, SegmentView};
use super::survey::Depth;

/// Read in one go where nothing is wrong.
const CHUNK_BYTES: usize = 1024 * 1024;
/// What is given up together where something is: the page in which the system reads.
const BLOCK_BYTES: usize = 4096;
/// How often a block is read until it counts as unreadable.
const TRIES: usize = 3;

/// Damage that a start found in one segment.
#[derive(Debug)]
pub struct Damage {
    /// What is wrong.
    pub finding: Finding,
    /// More than a write that a crash cut off, and not found by an earlier start: it is counted.
    pub counts: bool,
}

/// Looks at every segment before the log opens them, and keeps what would be cut or unlinked.
pub fn before_open(data_dir: &Path) -> Result<Vec<Damage>, ChannelError> {
    let seg = data_dir.join("seg");
    let files = match segment_files(&seg) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| ChannelError::Dir { path: seg.clone(), source })?,
    };
    let reader = RecordReader::new(seg);
    let newest = segment_view::newest(&files);
    let mut found = Vec::new();
    for (id, path) in &files {
        let place = Place { id: *id, path, newest: newest.is_none_or(|newest| *id >= newest), moving: false };
        let (view, findings) = segment_view::look(&place, &|at| reader.read(at), Depth::Footers)?;
        let aside = aside_name(path);
        let known = aside.exists();
        let unreadable = findings.iter().any(|finding| finding.kind == Kind::Unreadable);
        let kept = match () {
            () if unreadable => replace_by_readable(path, &aside),
            () if known || !findings.iter().any(may_be_lost) || goes_aside_whole(&view) => Ok(()),
            // Without room for it the channel goes on all the same: it is named in any case.
            () => keep(path, &aside, &view).or_else(|error| {
                tracing::error!(path = %path.display(), %error, "a damaged segment could not be kept");
                Ok(())
            }),
        };
        kept.map_err(|source| ChannelError::Dir { path: path.clone(), source })?;
        let damage = |finding: Finding| Damage { counts: !known && !is_usual(&finding), finding };
        found.extend(findings.into_iter().map(damage));
    }
    Ok(found)
}

/// What a crash leaves: a write that nobody was told is stored (a record that claims to be whole may be another thing:
/// damage to what was acknowledged), or a seal that was not finished. A segment that ends with
/// a whole record although a newer one exists was being written anew by a start that did not come to its end.
fn is_usual(finding: &Finding) -> bool {
    match finding.kind {
        Kind::TornTail => finding.agent.is_none(),
        Kind::Trailer => true,
        Kind::CutShort => finding.bytes == Some(0),
        _ => false,
    }
}

fn may_be_lost(finding: &Finding) -> bool {
    finding.fate.is_loss() && !is_usual(finding)
}

/// The log itself sets a file aside of which it can read nothing.
fn goes_aside_whole(view: &SegmentView) -> bool {
    !view.sound && view.index.entries.is_empty() && view.ordinals_sure
}

fn aside_name(segment: &Path) -> PathBuf {
    segment.with_extension(AT_START.trim_start_matches('.'))
}

/// A second name where the file will not be changed, else a copy.
fn keep(path: &Path, aside: &Path, view: &SegmentView) -> io::Result<()> {
    if view.end < view.bytes || fs::hard_link(path, aside).is_err() {
        let unfinished = path.with_extension("seg.copy");
        fs::copy(path, &unfinished)?;
        File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, aside)?;
    }
    sync_parent(path)
}

/// What can be read takes the file's place, with zeros for the rest, which the log takes for damage.
fn replace_by_readable(path: &Path, aside: &Path) -> io::Result<()> {
    let unfinished = path.with_extension("seg.copy");
    let mut copy = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    copy_file(&File::open(path)?, &mut copy)?;
    copy.sync_all()?;
    if !aside.exists() && fs::hard_link(path, aside).is_err() {
        fs::rename(path, aside)?;
    }
    fs::rename(&unfinished, path)?;
    sync_parent(path)
}

/// What can be read of a file, durably, under another name, with zeros for the rest.
pub fn copy_aside(path: &Path, aside: &Path) -> io::Result<()> {
    let unfinished = path.with_extension("seg.copy");
    let mut copy = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    copy_file(&File::open(path)?, &mut copy)?;
    copy.sync_all()?;
    fs::rename(&unfinished, aside)
}

/// Makes the names in a file's directory durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// What can be read of a file that can be opened, zeros for the rest, in a temporary file; and what the rest is.
pub fn readable_copy(path: &Path) -> Option<(NamedTempFile, Vec<(u64, u64)>)> {
    let file = File::open(path).ok()?;
    let mut copy = NamedTempFile::new().ok()?;
    let unreadable = copy_file(&file, copy.as_file_mut()).ok()?;
    Some((copy, unreadable))
}

fn copy_file(file: &File, to: &mut File) -> io::Result<Vec<(u64, u64)>> {
    copy_readable(|buffer, at| file.read_exact_at(buffer, at), file.metadata()?.len(), to)
}

/// Copies `len` bytes; the ranges that cannot be read become zeros and are given back.
fn copy_readable(
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    len: u64,
    to: &mut impl Write,
) -> io::Result<Vec<(u64, u64)>> {
    let mut unreadable: Vec<(u64, u64)> = Vec::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < len {
        let chunk = &mut buffer[..CHUNK_BYTES.min((len - at) as usize)];
        if read(chunk, at).is_err() {
            for (number, block) in chunk.chunks_mut(BLOCK_BYTES).enumerate() {
                let from = at + (number * BLOCK_BYTES) as u64;
                if (0..TRIES).any(|_| read(block, from).is_ok()) {
                    continue;
                }
                block.fill(0);
                let end = from + block.len() as u64;
                match unreadable.last_mut() {
                    Some((_, last)) if *last == from => *last = end,
                    _ => unreadable.push((from, end)),
                }
            }
        }
        to.write_all(chunk)?;
        at += chunk.len() as u64;
    }
    Ok(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_is_copied_and_the_rest_is_named() {
        let bytes: Vec<u8> = (0..3 * CHUNK_BYTES as u32 + 777).map(|at| (at % 251) as u8 + 1).collect();
        let bad = [(5 * 4096, 7 * 4096), (CHUNK_BYTES as u64 - 4096, CHUNK_BYTES as u64 + 4096)];
        let mut once = true;
        let read = |buffer: &mut [u8], at: u64| {
            let end = at + buffer.len() as u64;
            // One block fails once.
            let passing = (at..end).contains(&(2 * CHUNK_BYTES as u64)) && std::mem::take(&mut once);
            if passing || bad.iter().any(|(from, to)| at < *to && end > *from) {
                return Err(io::Error::from_raw_os_error(5));
            }
            buffer.copy_from_slice(&bytes[at as usize..end as usize]);
            Ok(())
        };
        let mut copy = Vec::new();
        assert_eq!(copy_readable(read, bytes.len() as u64, &mut copy).unwrap(), bad);
        let mut wanted = bytes.clone();
        bad.iter().for_each(|(from, to)| wanted[*from as usize..*to as usize].fill(0));
        assert!(copy == wanted);
    }
}
