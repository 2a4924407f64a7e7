//! How much the outbox may take: the configured bytes and a tenth of its file system, whichever is less, and nothing
//! more while the file system is nearly full. The last part is kept for seqs without data (open, mark, void, close).

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Kept for seqs without data, in bytes.
pub const RESERVE_BYTES: u64 = 1024 * 1024;
/// The reserve is taken only where so many times its size are free.
const PLENTY: u64 = 8;
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
    /// No, for this limit.
    Full(Full),
}

/// The limit that holds, with its figures. As a text: the fact and the way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// `outbox.max_bytes`.
    MaxBytes {
        /// Bytes of the outbox.
        used_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// A tenth of the file system.
    Tenth {
        /// Bytes of the outbox.
        used_bytes: u64,
        /// Size of the file system.
        total_bytes: u64,
    },
    /// [`MAX_BATCHES`].
    Batches,
    /// `outbox.min_free` or `outbox.min_free_percent`.
    FreeSpace {
        /// Free bytes of the file system.
        free_bytes: u64,
        /// What has to stay free.
        floor_bytes: u64,
        /// That is so many per cent; none: it is `outbox.min_free`.
        percent: Option<u64>,
    },
    /// What lies under `rejected/` is as large as the outbox may be.
    Rejected {
        /// Bytes under `rejected/`.
        rejected_bytes: u64,
        /// The size the outbox may reach.
        capacity_bytes: u64,
    },
    /// The file system does not say how much is free.
    Unknown,
    /// The file system is full, and what was read last waits to be stored.
    NoSpace,
}

impl Full {
    /// The limit's name, the same while only figures change.
    pub fn limit(&self) -> &'static str {
        match self {
            Self::MaxBytes { .. } => "outbox.max_bytes",
            Self::Tenth { .. } => "a tenth of the file system",
            Self::Batches => "batches in the outbox",
            Self::FreeSpace { percent: Some(_), .. } => "outbox.min_free_percent",
            Self::FreeSpace { percent: None, .. } => "outbox.min_free",
            Self::Rejected { .. } => "bytes under rejected/",
            Self::Unknown => "free space unknown",
            Self::NoSpace => "no space",
        }
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MaxBytes { used_bytes, max_bytes } => write!(
                f,
                "the outbox has {used_bytes} bytes, outbox.max_bytes is {max_bytes}: check that aggregators answer, or raise \
                 outbox.max_bytes"
            ),
            Self::Tenth { used_bytes, total_bytes } => write!(
                f,
                "the outbox has {used_bytes} bytes, a tenth of its file system of {total_bytes} bytes is the limit: check \
                 that aggregators answer, or put state_dir on a larger file system (outbox.max_bytes is not what holds)"
            ),
            Self::Batches => write!(
                f,
                "the outbox keeps {MAX_BATCHES} batches, which is the limit: check that aggregators answer, or let \
                 batches grow (batch.linger, batch.max_raw_bytes)"
            ),
            Self::FreeSpace { free_bytes, floor_bytes, percent } => {
                write!(f, "the outbox's file system has {free_bytes} bytes free, {floor_bytes} have to stay free (")?;
                match percent {
                    Some(percent) => write!(f, "outbox.min_free_percent = {percent}")?,
                    None => f.write_str("outbox.min_free")?,
                }
                f.write_str("): make room on it, or lower that limit")
            }
            Self::Rejected { rejected_bytes, capacity_bytes } => write!(
                f,
                "rejected/ holds {rejected_bytes} bytes, as much as the outbox may take ({capacity_bytes}): look why \
                 aggregators answered wrong (the log says it), then move those files away"
            ),
            Self::NoSpace => f.write_str("the outbox's file system is full: make room on it"),
            Self::Unknown => {
                f.write_str("the outbox's file system does not say how much is free: see the log for its error")
            }
        }
    }
}

impl Limits {
    /// The size the outbox may reach on this file system.
    pub fn capacity(&self, fs: FileSystem) -> u64 {
        self.max_bytes.min(fs.total_bytes / 10)
    }

    /// Is there room for `wanted` more bytes of data? While no batch is kept (`batches` is 0) there is, whatever the
    /// size allows: else one chunk larger than that would stop an agent for good.
    pub fn room(&self, fs: FileSystem, used_bytes: u64, batches: u64, wanted: u64) -> Room {
        let share = fs.total_bytes / 100 * self.min_free_percent;
        let floor_bytes = self.min_free_bytes.max(share);
        if fs.free_bytes < floor_bytes.saturating_add(wanted) {
            let percent = (share > self.min_free_bytes).then_some(self.min_free_percent);
            return Room::Full(Full::FreeSpace { free_bytes: fs.free_bytes, floor_bytes, percent });
        }
        if batches == 0 {
            return Room::Free;
        }
        let capacity = self.capacity(fs);
        let reserve = RESERVE_BYTES.min(capacity / 8);
        if batches >= MAX_BATCHES {
            return Room::Full(Full::Batches);
        }
        if used_bytes.saturating_add(wanted) > capacity - reserve {
            return Room::Full(match capacity < self.max_bytes {
                true => Full::Tenth { used_bytes, total_bytes: fs.total_bytes },
                false => Full::MaxBytes { used_bytes, max_bytes: self.max_bytes },
            });
        }
        Room::Free
    }
}

/// Is the reserve free? Else marks and the writing down of releases wait.
pub fn has_reserve(fs: FileSystem) -> bool {
    fs.free_bytes >= RESERVE_BYTES
}

/// Is there so much room that the reserve may be taken out of it?
pub fn may_take_reserve(fs: FileSystem) -> bool {
    fs.free_bytes >= PLENTY * RESERVE_BYTES
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
        let full = Full::MaxBytes { used_bytes: 1023 * MIB, max_bytes: 1024 * MIB };
        assert_eq!(limits.room(big, 1023 * MIB, 1, MIB), Room::Full(full));
        assert_eq!(limits.room(big, 0, MAX_BATCHES, MIB), Room::Full(Full::Batches));
        let small = FileSystem { total_bytes: 5_000 * MIB, free_bytes: 4_000 * MIB };
        assert_eq!(limits.capacity(small), 500 * MIB);
        let low = FileSystem { total_bytes: 100_000 * MIB, free_bytes: 9_999 * MIB };
        let full = Full::FreeSpace { free_bytes: 9_999 * MIB, floor_bytes: 10_000 * MIB, percent: Some(10) };
        assert_eq!(limits.room(low, 0, 0, MIB), Room::Full(full));
    }

    #[test]
    fn the_limit_that_holds_is_named_with_its_figures() {
        let limits = Limits { max_bytes: 1024 * MIB, min_free_bytes: 1024 * MIB, min_free_percent: 10 };
        let text = |limits: Limits, fs, used| match limits.room(fs, used, 1, MIB) {
            Room::Free => panic!("there is room"),
            Room::Full(full) => (full.limit(), full.to_string()),
        };
        let small = FileSystem { total_bytes: 5_000 * MIB, free_bytes: 4_000 * MIB };
        let (limit, said) = text(limits, small, 500 * MIB);
        assert_eq!(limit, "a tenth of the file system");
        assert!(said.contains(&(500 * MIB).to_string()) && said.contains("larger file system"), "{said}");
        let (limit, said) = text(limits, FileSystem { free_bytes: 600 * MIB, ..small }, 0);
        assert_eq!(limit, "outbox.min_free");
        assert!(said.contains(&(600 * MIB).to_string()) && said.contains(&(1024 * MIB).to_string()), "{said}");
        let percent = Limits { min_free_bytes: 0, ..limits };
        assert_eq!(text(percent, FileSystem { free_bytes: 400 * MIB, ..small }, 0).0, "outbox.min_free_percent");
        let (limit, said) = text(Limits { max_bytes: 4 * MIB, ..limits }, small, 4 * MIB);
        assert_eq!(limit, "outbox.max_bytes");
        assert!(said.contains("raise outbox.max_bytes"), "{said}");
    }

    #[test]
    fn little_space_is_kept_for_what_cannot_wait() {
        let fs = |free_bytes| FileSystem { total_bytes: 1 << 40, free_bytes };
        assert!(!has_reserve(fs(0)) && !has_reserve(fs(RESERVE_BYTES - 1)));
        assert!(has_reserve(fs(RESERVE_BYTES)) && !may_take_reserve(fs(RESERVE_BYTES)));
        assert!(may_take_reserve(fs(PLENTY * RESERVE_BYTES)));
        // Once taken, it leaves more than itself.
        assert!(has_reserve(fs((PLENTY - 1) * RESERVE_BYTES)));
    }

    #[test]
    fn one_chunk_always_fits_into_an_empty_outbox() {
        let limits = Limits { max_bytes: 4 * MIB, min_free_bytes: 0, min_free_percent: 10 };
        let fs = FileSystem { total_bytes: 100_000 * MIB, free_bytes: 50_000 * MIB };
        assert_eq!(limits.room(fs, 0, 0, 8 * MIB), Room::Free);
        assert!(matches!(limits.room(fs, 0, 1, 8 * MIB), Room::Full(Full::MaxBytes { .. })));
    }
}
