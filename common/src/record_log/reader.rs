//! Reads single records back, checked. Any number of clones on any thread; they share a bounded cache of open files.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;

use crate::record_log::RecordAt;
use crate::record_log::segment::{self, Kind, RECORD_HEADER_BYTES, RecordHeader};

/// Most files that stay open for readers of one log.
const OPEN_FILES: usize = 64;

/// A record as it was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The small part.
    pub meta: Bytes,
    /// The payload.
    pub body: Bytes,
}

/// Why a record cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// Its segment is gone: it was removed.
    #[error("segment {segment:016x} does not exist any more")]
    NotFound {
        /// The segment asked for.
        segment: u64,
    },
    /// What lies there is not the record: damage, or a position that never was one.
    #[error("the record at offset {offset} of segment {segment:016x} is damaged: {detail}")]
    Corrupt {
        /// The segment.
        segment: u64,
        /// Where the record begins.
        offset: u64,
        /// What is wrong.
        detail: &'static str,
    },
    /// The operating system says no.
    #[error("segment {segment:016x} cannot be read: {reason}")]
    Io {
        /// The segment.
        segment: u64,
        /// Its reason.
        reason: Arc<io::Error>,
    },
}

/// Is it the disk, or its file system, that does not give the bytes back? Too many open files, or no memory, pass; this
/// mostly does not.
pub fn is_of_medium(error: &io::Error) -> bool {
    let of_medium = [Errno::IO, Errno::NODATA, Errno::BADMSG, Errno::UCLEAN].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|errno| of_medium.contains(&errno))
}

/// A handle for reading; cheap to clone.
#[derive(Debug, Clone)]
pub struct RecordReader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    open: Mutex<OpenFiles>,
    read_well: AtomicU64,
}

#[derive(Debug, Default)]
struct OpenFiles {
    files: HashMap<u64, (u64, Arc<File>)>,
    clock: u64,
}

impl RecordReader {
    /// Reads from the segments in `dir`, whoever owns them.
    pub fn new(dir: PathBuf) -> Self {
        Self { shared: Arc::new(Shared { dir, open: Mutex::default(), read_well: AtomicU64::new(0) }) }
    }

    /// Reads one record that was synced before, and checks its CRCs. Blocks on the disk.
    pub fn read(&self, at: RecordAt) -> Result<Record, ReadError> {
        let corrupt = |detail| ReadError::Corrupt { segment: at.segment, offset: at.offset, detail };
        let file = self.file(at.segment)?;
        let read = |buffer: &mut [u8], offset| match file.read_exact_at(buffer, offset) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(corrupt("the file ends before it")),
            Err(error) => Err(ReadError::Io { segment: at.segment, reason: Arc::new(error) }),
        };
        let mut fixed = [0; RECORD_HEADER_BYTES];
        read(&mut fixed, at.offset)?;
        let header = RecordHeader::decode(&fixed, at).ok_or_else(|| corrupt("its header does not match its CRC"))?;
        if header.kind != Kind::Record {
            return Err(corrupt("it is a footer"));
        }
        let mut bytes = BytesMut::zeroed(header.meta_bytes as usize + header.body_bytes as usize);
        read(&mut bytes, at.offset + RECORD_HEADER_BYTES as u64)?;
        if crc32c::crc32c(&bytes) != header.crc {
            return Err(corrupt("its contents do not match their CRC"));
        }
        self.shared.read_well.fetch_add(1, Ordering::Relaxed);
        let meta = bytes.split_to(header.meta_bytes as usize).freeze();
        Ok(Record { meta, body: bytes.freeze() })
    }

    /// How many records this handle and its clones have read well.
    pub fn read_well(&self) -> u64 {
        self.shared.read_well.load(Ordering::Relaxed)
    }

    fn file(&self, segment: u64) -> Result<Arc<File>, ReadError> {
        let mut guard = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = &mut *guard;
        open.clock += 1;
        if let Some((used, file)) = open.files.get_mut(&segment) {
            *used = open.clock;
            return Ok(file.clone());
        }
        let file = match File::open(self.shared.dir.join(segment::file_name(segment))) {
            Ok(file) => Arc::new(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadError::NotFound { segment }),
            Err(error) => return Err(ReadError::Io { segment, reason: Arc::new(error) }),
        };
        if open.files.len() >= OPEN_FILES
            && let Some(oldest) = open.files.iter().min_by_key(|(_, (used, _))| *used).map(|(&id, _)| id)
        {
            open.files.remove(&oldest);
        }
        open.files.insert(segment, (open.clock, file.clone()));
        Ok(file)
    }

    /// Lets go of a file that is about to be removed.
    pub(super) fn forget(&self, segment: u64) {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).files.remove(&segment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_not_the_medium() {
        assert!(is_of_medium(&Errno::IO.into()));
        for passes in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::ACCESS] {
            assert!(!is_of_medium(&passes.into()), "{passes}");
        }
    }
}
