//! What a start does about damage before the log opens the segments: it is named, and the bytes in which it lies are
//! kept, since the log cuts torn ends, and the owner writes what is good anew and unlinks the rest.
//!
//! Invariants: nothing that may have been a batch goes without a name in the log, a count, and a copy of its file
//! (`*.at-start.seg.damaged`, which `channel check` reads); a segment's file is there, whole, at every moment. What the
//! disk does not give back now it may give back later: a segment is replaced by what can be read of it only after every
//! opening of the channel has failed on it for a minute.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::record_log::survey::segment_files;
use common::record_log::{RecordReader, is_of_medium};
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
/// Ending of a copy that is being written.
const UNFINISHED: &str = "seg.copy";

/// Damage that a start found in one segment.
#[derive(Debug)]
pub struct Damage {
    /// What is wrong.
    pub finding: Finding,
    /// More than a write that a crash cut off, and not found by an earlier start: it is counted.
    pub counts: bool,
}

/// What the openings of one process have seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Files of which the disk does not give all back, and since when.
    failing: HashMap<PathBuf, Instant>,
    /// Damage that was found, by file, kind and place: it is named and counted once.
    found: HashSet<(String, Kind, Option<u64>)>,
    /// Found and not named yet.
    new: Vec<Damage>,
}

impl Seen {
    /// Damage that is to be named now.
    pub fn take_new(&mut self) -> Vec<Damage> {
        std::mem::take(&mut self.new)
    }

    fn add(&mut self, damage: Damage) {
        let finding = &damage.finding;
        if self.found.insert((finding.file.clone(), finding.kind, finding.offset)) {
            self.new.push(damage);
        }
    }

    /// Has every look at the file failed for so long?
    fn fails_for(&mut self, path: &Path, long: Duration, now: Instant) -> bool {
        now.saturating_duration_since(*self.failing.entry(path.to_owned()).or_insert(now)) >= long
    }
}

/// Looks at every segment before the log opens them, and keeps what would be cut or unlinked. An error, and no change to
/// them, for segments that cannot be read and have not been so for `unreadable_for`.
pub fn before_open(data_dir: &Path, unreadable_for: Duration, seen: &mut Seen) -> Result<(), ChannelError> {
    let seg = data_dir.join("seg");
    let files = match segment_files(&seg) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|source| ChannelError::Dir { path: seg.clone(), source })?,
    };
    remove_unfinished(&seg);
    let reader = RecordReader::new(seg);
    let newest = segment_view::newest(&files);
    let mut waits = None;
    for (id, path) in &files {
        let place = Place { id: *id, path, newest: newest.is_none_or(|newest| *id >= newest), moving: false };
        let (view, findings) = segment_view::look(&place, &|at| reader.read(at), Depth::Footers)?;
        let aside = aside_name(path);
        let known = aside.exists();
        let unreadable = findings.iter().any(|finding| finding.kind == Kind::Unreadable);
        if !unreadable {
            seen.failing.remove(path);
        } else if !seen.fails_for(path, unreadable_for, Instant::now()) {
            waits.get_or_insert_with(|| path.clone());
            continue;
        }
        let kept = match () {
            () if unreadable => match replace_by_readable(path, &aside) {
                Ok(true) => Ok(()),
                // The disk gives it back after all: it is looked at anew.
                Ok(false) => {
                    seen.failing.remove(path);
                    waits.get_or_insert_with(|| path.clone());
                    continue;
                }
                Err(error) => Err(error),
            },
            () if known || !findings.iter().any(may_be_lost) || goes_aside_whole(&view) => Ok(()),
            // Without room for it the channel goes on all the same: it is named in any case.
            () => keep(path, &aside, &view).or_else(|error| {
                tracing::error!(path = %path.display(), %error, "a damaged segment could not be kept");
                Ok(())
            }),
        };
        kept.map_err(|source| ChannelError::Dir { path: path.clone(), source })?;
        let damage = |finding: Finding| Damage { counts: !known && !is_usual(&finding), finding };
        findings.into_iter().map(damage).for_each(|damage| seen.add(damage));
    }
    waits.map_or(Ok(()), |path| Err(ChannelError::Unreadable { path }))
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
        let unfinished = path.with_extension(UNFINISHED);
        let copy = || {
            fs::copy(path, &unfinished)?;
            File::open(&unfinished)?.sync_all()?;
            fs::rename(&unfinished, aside)
        };
        or_remove(&unfinished, copy())?;
    }
    sync_parent(path)
}

/// What can be read takes the file's place, with zeros for the rest, which the log takes for damage. False, and nothing is
/// changed: all of it can be read by now.
fn replace_by_readable(path: &Path, aside: &Path) -> io::Result<bool> {
    let unfinished = path.with_extension(UNFINISHED);
    let replace = || {
        let unreadable = write_readable(path, &unfinished)?;
        if unreadable > 0 {
            if !aside.exists() && fs::hard_link(path, aside).is_err() {
                fs::rename(path, aside)?;
            }
            fs::rename(&unfinished, path)?;
        } else {
            fs::remove_file(&unfinished)?;
        }
        Ok(unreadable > 0)
    };
    let replaced = or_remove(&unfinished, replace())?;
    sync_parent(path)?;
    Ok(replaced)
}

/// What can be read of a file, durably, under another name, with zeros for the rest.
pub fn copy_aside(path: &Path, aside: &Path) -> io::Result<()> {
    let unfinished = path.with_extension(UNFINISHED);
    let copied = write_readable(path, &unfinished).and_then(|_| fs::rename(&unfinished, aside));
    or_remove(&unfinished, copied)
}

/// Writes what can be read, durably; what cannot is read once more at the end. How many bytes stay unread.
fn write_readable(path: &Path, unfinished: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let mut copy = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(unfinished)?;
    let unreadable = copy_file(&file, &mut copy)?;
    let left = read_again(|buffer, at| file.read_exact_at(buffer, at), &unreadable, &copy)?;
    copy.sync_all()?;
    Ok(left)
}

/// Reads ranges once more into their places in the copy. How many bytes still cannot be read.
fn read_again(
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    ranges: &[(u64, u64)],
    copy: &File,
) -> io::Result<u64> {
    let mut left = 0;
    let mut block = [0; BLOCK_BYTES];
    for &(from, to) in ranges {
        for at in (from..to).step_by(BLOCK_BYTES) {
            let part = &mut block[..BLOCK_BYTES.min((to - at) as usize)];
            match read(part, at) {
                Ok(()) => copy.write_all_at(part, at)?,
                Err(_) => left += part.len() as u64,
            }
        }
    }
    Ok(left)
}

/// A copy that is not finished takes space, perhaps the last.
fn or_remove<T>(unfinished: &Path, done: io::Result<T>) -> io::Result<T> {
    if done.is_err() {
        // What stays, the next opening removes.
        let _ = fs::remove_file(unfinished);
    }
    done
}

/// Removes copies that an earlier process did not finish.
fn remove_unfinished(seg: &Path) {
    for entry in fs::read_dir(seg).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().ends_with(&format!(".{UNFINISHED}"))
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "an unfinished copy of a segment cannot be removed");
        }
    }
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
                let Err(error) = (1..TRIES).fold(read(block, from), |last, _| last.or_else(|_| read(block, from)))
                else {
                    continue;
                };
                // Of no other error can it be said that these bytes are at fault.
                if !is_of_medium(&error) && error.kind() != io::ErrorKind::IsADirectory {
                    return Err(error);
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
    #[test]
    fn what_cannot_be_read_is_read_once_more_at_the_end() {
        let mut copy = NamedTempFile::new().unwrap();
        copy.as_file_mut().write_all(&[0; 4 * 4096]).unwrap();
        let ranges = [(0, 2 * 4096), (3 * 4096, 4 * 4096)];
        let read = |buffer: &mut [u8], at: u64| match at {
            4096 => Err(io::Error::from_raw_os_error(5)),
            _ => {
                buffer.fill(7);
                Ok(())
            }
        };
        assert_eq!(read_again(read, &ranges, copy.as_file()).unwrap(), 4096);
        let read = fs::read(copy.path()).unwrap();
        let whole: Vec<bool> = read.chunks(4096).map(|block| block.iter().all(|byte| *byte == 7)).collect();
        assert_eq!(whole, [true, false, false, true]);
    }

    #[test]
    fn a_lack_of_memory_is_no_damage() {
        let read = |_: &mut [u8], _: u64| Err(io::Error::from_raw_os_error(12));
        assert!(copy_readable(read, 10_000, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_failed_copy_leaves_nothing_and_what_an_earlier_process_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, unfinished) = (dir.path().join("0.seg"), dir.path().join("0.seg.copy"));
        fs::write(&path, b"some").unwrap();
        // A directory that is not empty cannot be renamed over.
        let aside = dir.path().join("aside");
        fs::create_dir_all(aside.join("full")).unwrap();
        let view = |end| SegmentView { end, ..view_of(&path) };
        assert!(keep(&path, &aside, &view(0)).is_err());
        assert!(!unfinished.exists() && path.exists());
        fs::write(&unfinished, b"some").unwrap();
        remove_unfinished(dir.path());
        assert!(!unfinished.exists() && path.exists());
    }

    fn view_of(path: &Path) -> SegmentView {
        let place = Place { id: 0, path, newest: true, moving: false };
        let nowhere =
            |at: common::record_log::RecordAt| Err(common::record_log::ReadError::NotFound { segment: at.segment });
        segment_view::look(&place, &nowhere, Depth::Footers).unwrap().0
    }

    #[test]
    fn damage_is_named_once() {
        let mut seen = Seen::default();
        let damage =
            |at| Damage { finding: Finding::new(Kind::Trailer, "seg/0.seg".into(), "torn").at(at, 1), counts: true };
        [1, 1, 2].into_iter().for_each(|at| seen.add(damage(at)));
        assert_eq!(seen.take_new().len(), 2);
        seen.add(damage(2));
        assert!(seen.take_new().is_empty());
    }
}
