//! Looks at an outbox without its lock and without changing anything: for `status`, `outbox show`, `check` and `export`,
//! beside a running agent or after it.
//!
//! A segment that vanishes between two looks was released by the running agent: everything is looked at again. Bytes at
//! the end of the newest segment that are no whole record are being written, or were torn by a crash.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use common::record_log::survey::{self, Seal, Survey};
use common::record_log::{LogError, RecordAt};
use prost::Message;
use proto::header::Header;
use proto::ids::Origin;
use serde::Serialize;

use super::OutboxError;
use super::entry::{Entry, Footer};
use super::index::{Index, Place};

/// Looks before giving up on an outbox whose files keep vanishing.
const ATTEMPTS: u32 = 5;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// No outbox.
    #[error("{path} holds no outbox: check `state_dir`; the first start of an agent makes one")]
    NotThere {
        /// The directory.
        path: PathBuf,
    },
    /// Not allowed, or the disk failed.
    #[error("{path} cannot be read: {reason}; the outbox belongs to the agent's user, run this command as that user")]
    Denied {
        /// File or directory.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// Written by another release, or not by us.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// It changes too fast.
    #[error("the segment files in {path} vanished while they were read, {ATTEMPTS} times: try again")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Stored bytes are not what was written.
    Damage,
    /// An end that was never completed: nobody was told that it is stored.
    Torn,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file, in the outbox directory.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// What is wrong, and which batches it touches as far as can be told.
    pub what: String,
}

/// One segment file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// Its file name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// It has its footer, nothing is appended to it any more.
    pub sealed: bool,
    /// Records that were read and checked; of a sealed segment only by a deep look.
    pub records: u64,
}

/// What lies in an outbox.
#[derive(Debug, Default)]
pub struct Look {
    /// Its state, as the next start would find it.
    pub index: Index,
    /// Its files.
    pub segments: Vec<Segment>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Seqs that lie in no file and were not released.
    pub holes: Vec<(Origin, u64)>,
    /// Records by place; of sealed segments only after a deep look.
    pub records: HashMap<RecordAt, Entry>,
}

/// Looks at the outbox in `dir`. `deep`: every record is read and its CRC checked, else only what the state needs.
pub fn look(dir: &Path, deep: bool) -> Result<Look, LookError> {
    let mut sealed = HashMap::new();
    for _ in 0..ATTEMPTS {
        if let Some(look) = attempt(dir, deep, &mut sealed)? {
            return Ok(look);
        }
    }
    Err(LookError::Busy { path: dir.to_owned() })
}

/// None: a file has vanished.
///
/// `sealed`: what was found in sealed segments before, which change no more.
fn attempt(dir: &Path, deep: bool, sealed: &mut HashMap<u64, Survey>) -> Result<Option<Look>, LookError> {
    let files = survey::segment_files(dir).map_err(|reason| match reason.kind() {
        io::ErrorKind::NotFound => LookError::NotThere { path: dir.to_owned() },
        _ => LookError::Denied { path: dir.to_owned(), reason },
    })?;
    let mut look = Look::default();
    let newest = files.last().map(|(id, _)| *id);
    for (id, path) in files {
        let survey = match sealed.get(&id).cloned().map_or_else(|| Survey::of(&path, id, deep), Ok) {
            Ok(survey) => survey,
            Err(LogError::Storage { reason, .. }) if reason.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(LogError::Storage { reason, .. }) => {
                let reason = io::Error::new(reason.kind(), reason.to_string());
                return Err(LookError::Denied { path, reason });
            }
            Err(other) => return Err(OutboxError::from(other).into()),
        };
        if matches!(survey.seal, Seal::Good { .. }) {
            sealed.insert(id, survey.clone());
        }
        look.take(id, &path, survey, Depth { deep, newest: newest == Some(id) })?;
    }
    look.holes = look.index.settle();
    Ok(Some(look))
}

/// How a segment is looked at.
#[derive(Debug, Clone, Copy)]
struct Depth {
    /// Its records were read even if it is sealed.
    deep: bool,
    /// It is the one that was begun last.
    newest: bool,
}

impl Look {
    fn take(&mut self, id: u64, path: &Path, survey: Survey, depth: Depth) -> Result<(), OutboxError> {
        let file = survey::segment_file_name(id);
        self.segments.push(Segment {
            file: file.clone(),
            bytes: survey.bytes,
            sealed: matches!(survey.seal, Seal::Good { .. }),
            records: survey.records.len() as u64,
        });
        if depth.deep || !matches!(survey.seal, Seal::Good { .. }) {
            self.gaps(id, path, &file, &survey, depth.newest);
        }
        let sealed = match &survey.seal {
            Seal::Good { footer, .. } => Some(Footer::decode(footer.clone()).map_err(undecodable)?),
            _ => None,
        };
        for record in &survey.records {
            let entry = Entry::decode(record.meta.clone()).map_err(undecodable)?;
            // As a start does: behind bytes that were perhaps never synced nothing counts as stored.
            if sealed.is_none() && record.at.offset < survey.stored_end {
                self.index.apply(record.at, &entry)?;
            }
            self.records.insert(record.at, entry);
        }
        match sealed {
            Some(footer) => self.index.apply_footer(id, &footer),
            None => Ok(()),
        }
    }

    /// Says which bytes of a file are no valid records.
    fn gaps(&mut self, id: u64, path: &Path, file: &str, survey: &Survey, newest: bool) {
        if !survey.sound {
            self.find(Severity::Damage, file, 0, "the first bytes, which name the file, are damaged".to_owned());
        }
        let mut next = Survey::BEGIN;
        for record in &survey.records {
            if record.at.offset > next {
                self.gap(id, path, file, next, record.at.offset);
            }
            next = record.end();
        }
        match survey.seal {
            Seal::Good { offset, .. } if next < offset => self.gap(id, path, file, next, offset),
            Seal::Good { .. } => {}
            Seal::FooterDamaged { offset } => {
                if next < offset {
                    self.gap(id, path, file, next, offset);
                }
                self.find(Severity::Damage, file, offset, "the footer is damaged".to_owned());
            }
            Seal::TrailerDamaged { offset } => {
                let severity = if newest { Severity::Torn } else { Severity::Damage };
                self.find(
                    severity,
                    file,
                    offset,
                    "the footer is whole, the bytes that end the file are not".to_owned(),
                );
            }
            Seal::None if next < survey.bytes => self.tail(id, path, file, next, survey.bytes),
            Seal::None => {}
        }
    }

    fn gap(&mut self, id: u64, path: &Path, file: &str, from: u64, to: u64) {
        let touched = claimed(path, id, from, to);
        self.find(Severity::Damage, file, from, format!("bytes {from} to {to} hold no valid record{touched}"));
    }

    /// The end of a segment that was never sealed.
    fn tail(&mut self, id: u64, path: &Path, file: &str, from: u64, to: u64) {
        let whole = survey::claimed_records(path, id, from, to).unwrap_or_default();
        if whole.iter().any(|record| record.end <= to) {
            let touched = claimed(path, id, from, to);
            let what =
                format!("a record in bytes {from} to {to} has its full length, but its CRC does not match{touched}");
            self.find(Severity::Damage, file, from, what);
        } else {
            let what = format!(
                "the last {} bytes are no whole record: being written now, or torn by a crash before anybody was told \
                 that they are stored (the next start cuts them off)",
                to - from
            );
            self.find(Severity::Torn, file, from, what);
        }
    }

    fn find(&mut self, severity: Severity, file: &str, offset: u64, what: String) {
        self.findings.push(Finding { severity, file: file.to_owned(), offset, what });
    }

    /// The stored header of a kept batch, after a deep look; none: its record is damaged.
    pub fn header(&self, place: Place) -> Option<Header> {
        let batch = self.records.get(&place.at)?.batches.get(place.part as usize)?;
        Header::decode(batch.header.clone()).ok()
    }
}

fn undecodable(error: prost::DecodeError) -> OutboxError {
    OutboxError::Undecodable(error.to_string())
}

/// Batches that damaged bytes claim to hold, in words.
fn claimed(path: &Path, id: u64, from: u64, to: u64) -> String {
    let records = survey::claimed_records(path, id, from, to).unwrap_or_default();
    let entries = records.iter().filter_map(|record| Entry::decode(record.meta.clone()).ok());
    let batches: Vec<String> = entries
        .flat_map(|entry| entry.batches)
        .filter_map(|batch| Header::decode(batch.header).ok())
        .map(|header| format!("{} seq {}", header.origin, header.seq))
        .collect();
    match batches.len() {
        0 => String::new(),
        1..=8 => format!("; they held {}", batches.join(", ")),
        many => format!("; they held {many} batches, {} to {}", batches[0], batches[many - 1]),
    }
}
