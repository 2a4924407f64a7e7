//! How much the outbox may take: the configured bytes and a tenth of its file system, whichever is less, and nothing
//! more while the file system is nearly full. The last part is kept for seqs without data (open, mark, void, close).

use std::path::Path;
use std::time::{Duration, Instant};

/// Kept for seqs without data, in bytes.
pub const RESERVE_BYTES: u64 = 1024 * 1024;
/// Batches kept at most, so that the index in memory stays bounded.
pub const MAX_BATCHES: u64 = 100_000;

/// The limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Configured bytes.
    pub max_bytes: u64,
    /// Bytes of the file system that stay free.
    pub min_free_bytes: u64,
    /// Per cent of the file system that stay free.
    pub min_free_percent: u64,
}

/// Size and free bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Its size.
    pub total_bytes: u64,
    /// Free for this user.
    pub free_bytes: u64,
}

/// May a chunk be appended?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    Free,
    /// The outbox has reached its size.
    OutboxFull,
    /// The file system has too little left.
    DiskLow,
}

impl Limits {
    /// The size the outbox may reach on this file system.
    pub fn capacity(&self, fs: FileSystem) -> u64 {
        self.max_bytes.min(fs.total_bytes / 10)
    }

    /// Is there room for `wanted` more bytes of data? While no batch is kept (`batches` is 0) there is, whatever the
    /// size allows: else one chunk larger than that would stop an agent for good.
    pub fn room(&self, fs: FileSystem, used_bytes: u64, batches: u64, wanted: u64) -> Room {
        let floor = self.min_free_bytes.max(fs.total_bytes / 100 * self.min_free_percent);
        if fs.free_bytes < floor.saturating_add(wanted) {
            return Room::DiskLow;
        }
        if batches == 0 {
            return Room::Free;
        }
        let capacity = self.capacity(fs);
        let reserve = RESERVE_BYTES.min(capacity / 8);
        if used_bytes.saturating_add(wanted) > capacity - reserve || batches >= MAX_BATCHES {
            return Room::OutboxFull;
        }
        Room::Free
    }
}

/// Asks the file system, at most once per second.
#[derive(Debug, Default)]
pub struct FileSystemProbe {
    last: Option<(Instant, FileSystem)>,
}

impl FileSystemProbe {
    /// Size and free bytes of the file system that holds `dir`.
    pub fn get(&mut self, dir: &Path, now: Instant) -> std::io::Result<FileSystem> {
        if let Some((_, fs)) = self.last.filter(|(at, _)| now.duration_since(*at) < Duration::from_secs(1)) {
            return Ok(fs);
        }
        let stat = rustix::fs::statvfs(dir)?;
        let fs = FileSystem {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        };
        self.last = Some((now, fs));
        Ok(fs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_least_limit_counts_and_the_reserve_stays() {
        let limits = Limits { max_bytes: 1024 * MIB, min_free_bytes: 1024 * MIB, min_free_percent: 10 };
        let big = FileSystem { total_bytes: 100_000 * MIB, free_bytes: 50_000 * MIB };
        assert_eq!(limits.room(big, 0, 1, MIB), Room::Free);
        assert_eq!(limits.room(big, 1022 * MIB, 1, MIB), Room::Free);
        assert_eq!(limits.room(big, 1023 * MIB, 1, MIB), Room::OutboxFull);
        assert_eq!(limits.room(big, 0, MAX_BATCHES, MIB), Room::OutboxFull);
        let small = FileSystem { total_bytes: 5_000 * MIB, free_bytes: 4_000 * MIB };
        assert_eq!(limits.capacity(small), 500 * MIB);
        let low = FileSystem { total_bytes: 100_000 * MIB, free_bytes: 9_999 * MIB };
        assert_eq!(limits.room(low, 0, 0, MIB), Room::DiskLow);
    }

    #[test]
    fn one_chunk_always_fits_into_an_empty_outbox() {
        let limits = Limits { max_bytes: 4 * MIB, min_free_bytes: 0, min_free_percent: 10 };
        let fs = FileSystem { total_bytes: 100_000 * MIB, free_bytes: 50_000 * MIB };
        assert_eq!(limits.room(fs, 0, 0, 8 * MIB), Room::Free);
        assert_eq!(limits.room(fs, 0, 1, 8 * MIB), Room::OutboxFull);
    }
}
