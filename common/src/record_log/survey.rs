//! Looks at the segment files of a directory without changing anything: for tools that say what is wrong, beside a
//! running owner or after it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::record_log::recovery::{self, Found, Scan};
use crate::record_log::segment::{self, RECORD_HEADER_BYTES, TRAILER_BYTES};
use crate::record_log::{Corruption, LoadedRecord, LogError};

/// Ending of a segment file that recovery set aside because nothing in it could be read.
pub const ASIDE_SUFFIX: &str = ".seg.damaged";

/// Length of the fixed part of a record.
pub const RECORD_BYTES: u64 = RECORD_HEADER_BYTES as u64;

/// How a segment file ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seal {
    /// Footer and trailer are intact.
    Good {
        /// What was given at the seal.
        footer: Bytes,
        /// Where the footer's record begins.
        offset: u64,
    },
    /// The trailer is intact, the footer that it names is not.
    FooterDamaged {
        /// Where the footer's record begins.
        offset: u64,
    },
    /// The footer is intact, the trailer behind it is missing or damaged.
    TrailerDamaged {
        /// Where the footer's record begins.
        offset: u64,
    },
    /// Neither: the segment was being written, or its end is gone.
    None,
}

/// One segment file as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Length of the file.
    pub bytes: u64,
    /// Its first bytes are intact.
    pub sound: bool,
    /// How it ends.
    pub seal: Seal,
    /// Valid records in order. Not read (empty) when the seal is good, unless they were asked for.
    pub records: Vec<LoadedRecord>,
    /// End of the last valid record.
    pub end: u64,
    /// Records from here on stand behind bytes that were perhaps never synced: nobody was told that they are stored.
    pub stored_end: u64,
}

/// A record whose fixed part is intact and whose contents are not: what it claims to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedRecord {
    /// Where it begins.
    pub offset: u64,
    /// Its small part, perhaps damaged itself.
    pub meta: Bytes,
    /// Exclusive end of its bytes.
    pub end: u64,
}

impl LoadedRecord {
    /// Exclusive end of its bytes in the file.
    pub fn end(&self) -> u64 {
        self.at.offset + RECORD_HEADER_BYTES as u64 + self.meta.len() as u64 + u64::from(self.body_bytes)
    }
}

impl Survey {
    /// Where the first record begins.
    pub const BEGIN: u64 = segment::FILE_HEADER_BYTES;

    /// Looks at segment `id` in the file `path`. With `records` these are read even where a good footer names them.
    pub fn of(path: &Path, id: u64, records: bool) -> Result<Self, LogError> {
        let footer_of =
            |bytes: u64, footer: &Bytes| bytes - (TRAILER_BYTES + RECORD_HEADER_BYTES) as u64 - footer.len() as u64;
        let (bytes, footer) = match recovery::inspect(path, id)? {
            Found::Sealed { footer, bytes } => (bytes, footer),
            Found::Unsealed(scan) => {
                let seal = match (scan.bad_footer, scan.footer_at) {
                    (Some(offset), _) => Seal::FooterDamaged { offset },
                    (None, Some(offset)) => Seal::TrailerDamaged { offset },
                    (None, None) => Seal::None,
                };
                let unsynced = scan.corrupt.iter().filter(|damage| damage.maybe_unsynced).map(|damage| damage.offset);
                let stored_end = unsynced.min().unwrap_or(u64::MAX);
                let Scan { bytes, sound, records, end, .. } = scan;
                return Ok(Self { bytes, sound, seal, records, end, stored_end });
            }
        };
        let offset = footer_of(bytes, &footer);
        let mut survey = Self {
            bytes,
            sound: true,
            seal: Seal::Good { footer, offset },
            records: Vec::new(),
            end: offset,
            stored_end: u64::MAX,
        };
        if records {
            let scan = recovery::scan_to(path, id, offset)?;
            (survey.records, survey.end) = (scan.records, scan.end);
        }
        Ok(survey)
    }
}

/// Ids and files of the segments in `dir`, ascending.
pub fn segment_files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(id) = entry.file_name().to_str().and_then(segment::parse_file_name) {
            files.push((id, entry.path()));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The damage that an opening of the log in `dir` would report, before it cuts or seals anything.
pub fn damage(dir: &Path) -> Result<Vec<Corruption>, LogError> {
    let files = match segment_files(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files.map_err(|error| LogError::storage("listing", dir, error))?,
    };
    let mut damage = Vec::new();
    for (id, path) in files {
        if let Found::Unsealed(scan) = recovery::inspect(&path, id)? {
            damage.extend(scan.corrupt);
        }
    }
    Ok(damage)
}

/// The name of a segment's file.
pub fn segment_file_name(id: u64) -> String {
    segment::file_name(id)
}

/// Records between `from` and `to` of a file whose fixed part is intact, whatever their contents are like.
pub fn claimed_records(path: &Path, id: u64, from: u64, to: u64) -> io::Result<Vec<ClaimedRecord>> {
    recovery::claimed(&File::open(path)?, id, from, to)
}
