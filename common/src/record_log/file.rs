//! The disk under a record log: the few operations it needs, each named in its error, each able to be made to fail.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::record_log::LogError;
use crate::record_log::segment;

/// Most slices given to one `writev`.
const WRITEV_SLICES: usize = 512;

/// Bytes of a recovered segment that are written over themselves at once.
const REWRITE_BYTES: u64 = 1024 * 1024;

/// A storage operation, for the fault hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageOp {
    /// A new segment file.
    Create,
    /// Bytes into it.
    Write,
    /// fdatasync after appends.
    SyncData,
    /// fsync of a new or a sealed file.
    SyncAll,
    /// fsync of the directory.
    SyncDir,
    /// Bytes of a recovered segment over themselves.
    Rewrite,
    /// Cutting a torn tail.
    Truncate,
    /// Unlinking a segment.
    Remove,
}

/// Called before each storage operation; its error takes the operation's place.
pub type FaultHook = Arc<dyn Fn(StorageOp) -> io::Result<()> + Send + Sync>;

#[derive(Clone, Default)]
struct Faults(Option<FaultHook>);

impl Faults {
    fn before(&self, op: StorageOp) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |hook| hook(op))
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Faults(hook)" } else { "Faults(none)" })
    }
}

/// The directory of a log.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    handle: File,
    faults: Faults,
}

/// A segment file open for appending.
#[derive(Debug)]
pub(super) struct SegmentFile {
    path: PathBuf,
    file: File,
    faults: Faults,
}

impl Disk {
    pub(super) fn open(dir: &Path) -> Result<Self, LogError> {
        make_dir(dir).map_err(|e| LogError::storage("creating", dir, e))?;
        let handle = File::open(dir).map_err(|e| LogError::storage("opening", dir, e))?;
        Ok(Self { dir: dir.to_owned(), handle, faults: Faults::default() })
    }

    pub(super) fn set_hook(&mut self, hook: FaultHook) {
        self.faults = Faults(Some(hook));
    }

    pub(super) fn path(&self, id: u64) -> PathBuf {
        self.dir.join(segment::file_name(id))
    }

    /// Ids of the segment files, ascending. Other names are left alone.
    pub(super) fn segment_ids(&self) -> Result<Vec<u64>, LogError> {
        let failed = |e| LogError::storage("listing", &self.dir, e);
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            ids.extend(entry.map_err(failed)?.file_name().to_str().and_then(segment::parse_file_name));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    pub(super) fn create(&self, id: u64) -> Result<SegmentFile, LogError> {
        let path = self.path(id);
        let mut options = OpenOptions::new();
        options.append(true).create_new(true).mode(0o600);
        let opened = self.faults.before(StorageOp::Create).and_then(|()| options.open(&path));
        let file = opened.map_err(|e| LogError::storage("creating", &path, e))?;
        Ok(SegmentFile { path, file, faults: self.faults.clone() })
    }

    /// Opens an existing file for appending.
    pub(super) fn reopen(&self, id: u64) -> Result<SegmentFile, LogError> {
        let path = self.path(id);
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| LogError::storage("opening", &path, e))?;
        Ok(SegmentFile { path, file, faults: self.faults.clone() })
    }

    /// Cuts a file, durably.
    pub(super) fn truncate(&self, id: u64, bytes: u64) -> Result<(), LogError> {
        let file = self.reopen(id)?;
        let cut = self.faults.before(StorageOp::Truncate).and_then(|()| file.file.set_len(bytes));
        cut.map_err(|e| LogError::storage("truncating", &file.path, e))?;
        file.sync(StorageOp::SyncAll)
    }

    /// Writes the first `bytes` bytes of a file over themselves, durably. After a failed fsync a system may hold bytes as
    /// clean that never reached the disk: reading gives them, and a later fsync alone proves nothing.
    pub(super) fn rewrite(&self, id: u64, bytes: u64) -> Result<(), LogError> {
        let path = self.path(id);
        let write = || {
            let file = File::options().read(true).write(true).open(&path)?;
            let mut part = vec![0; REWRITE_BYTES.min(bytes) as usize];
            let mut at = 0;
            while at < bytes {
                part.truncate((bytes - at).min(REWRITE_BYTES) as usize);
                file.read_exact_at(&mut part, at)?;
                self.faults.before(StorageOp::Rewrite)?;
                file.write_all_at(&part, at)?;
                at += part.len() as u64;
            }
            self.faults.before(StorageOp::SyncData)?;
            file.sync_data()
        };
        write().map_err(|e| LogError::storage("rewriting", &path, e))
    }

    /// Unlinks a file, durably; one that is gone already is fine.
    pub(super) fn remove(&self, id: u64) -> Result<(), LogError> {
        let path = self.path(id);
        let removed = self.faults.before(StorageOp::Remove).and_then(|()| match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        });
        removed.map_err(|e| LogError::storage("removing", &path, e))?;
        self.sync_dir()
    }

    /// Gives a file in which nothing can be read a name that is no segment's, durably.
    pub(super) fn set_aside(&self, id: u64) -> Result<(), LogError> {
        let path = self.path(id);
        let aside = path.with_extension("seg.damaged");
        std::fs::rename(&path, aside).map_err(|e| LogError::storage("renaming", &path, e))?;
        self.sync_dir()
    }

    pub(super) fn sync_dir(&self) -> Result<(), LogError> {
        let synced = self.faults.before(StorageOp::SyncDir).and_then(|()| self.handle.sync_all());
        synced.map_err(|e| LogError::storage("syncing", &self.dir, e))
    }
}

impl SegmentFile {
    pub(super) fn set_hook(&mut self, hook: FaultHook) {
        self.faults = Faults(Some(hook));
    }

    /// Writes all parts, in order, with as few calls as possible.
    pub(super) fn write_all(&mut self, parts: &mut [Bytes]) -> Result<(), LogError> {
        let written = self.faults.before(StorageOp::Write).and_then(|()| write_parts(&mut self.file, parts));
        written.map_err(|e| LogError::storage("writing", &self.path, e))
    }

    /// Takes back what a write that failed has left behind `bytes`.
    pub(super) fn cut(&self, bytes: u64) -> Result<(), LogError> {
        self.file.set_len(bytes).map_err(|e| LogError::storage("truncating", &self.path, e))
    }

    pub(super) fn sync(&self, op: StorageOp) -> Result<(), LogError> {
        let synced = self.faults.before(op).and_then(|()| match op {
            StorageOp::SyncData => self.file.sync_data(),
            _ => self.file.sync_all(),
        });
        synced.map_err(|e| LogError::storage("syncing", &self.path, e))
    }
}

fn write_parts(file: &mut File, parts: &[Bytes]) -> io::Result<()> {
    for group in parts.chunks(WRITEV_SLICES) {
        let mut slices: Vec<IoSlice<'_>> = group.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = slices.as_mut_slice();
        while !left.is_empty() {
            match file.write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Makes the directory and its missing parents, each entry durable.
fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(parent)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}
