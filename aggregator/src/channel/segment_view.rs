//! One segment file, looked at without a change: its batches, which of them cannot be read, and what would set it right.

use std::path::Path;
use std::sync::Arc;

use common::record_log::survey::{RECORD_BYTES, Seal, Survey, claimed_records, segment_file_name};
use common::record_log::{LoadedRecord, LogError, ReadError, Record, RecordAt};
use proto::ids::BatchId;

use super::bitmap::Bitmap;
use super::finding::{Fate, Finding, Kind};
use super::index::{Entry, IndexBuilder, SegmentIndex};
use super::survey::Depth;
use super::{meta, recover, salvage};

/// Length of a segment file without any record.
pub const EMPTY_BYTES: u64 = Survey::BEGIN;

/// Ending of a segment's file that a start kept as it found it.
pub const AT_START: &str = ".at-start.seg.damaged";
/// Ending of a segment's file in which a batch was given up.
pub const GIVEN_UP: &str = ".given-up.seg.damaged";

/// The newest segment that holds anything.
pub fn newest(files: &[(u64, std::path::PathBuf)]) -> Option<u64> {
    let begun = |path: &Path| std::fs::metadata(path).is_ok_and(|file| file.len() > EMPTY_BYTES);
    files.iter().rev().find(|(_, path)| begun(path)).map(|(id, _)| *id)
}

/// Where a segment is, and what is known of it before it is read.
#[derive(Debug)]
pub struct Place<'a> {
    /// Its id.
    pub id: u64,
    /// Its file.
    pub path: &'a Path,
    /// No newer segment holds anything.
    pub newest: bool,
    /// A process may be writing to it.
    pub moving: bool,
}

/// What sets a segment right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing is wrong.
    None,
    /// Cut the file here.
    CutTail {
        /// Its new length.
        to: u64,
    },
    /// Write what is held and good anew, set the file aside.
    Rewrite,
}

/// One segment.
#[derive(Debug)]
pub struct SegmentView {
    /// Its id.
    pub id: u64,
    /// Length of its file.
    pub bytes: u64,
    /// Its first bytes are intact.
    pub sound: bool,
    /// It has a good footer.
    pub sealed: bool,
    /// End of its last valid record; of the file, when it is sealed.
    pub end: u64,
    /// Its batches: those of the footer, or those that can be read.
    pub index: Arc<SegmentIndex>,
    /// Bits of batches that cannot be read.
    pub bad: Bitmap,
    /// Positions in `index` are those that the ledger means.
    pub ordinals_sure: bool,
    /// What sets it right.
    pub remedy: Remedy,
}

impl SegmentView {
    /// How many batches lie in it.
    pub fn batches(&self) -> u64 {
        self.index.entries.len() as u64
    }
}

/// The name of a segment's file, from the data directory.
pub fn file_of(id: u64) -> String {
    format!("seg/{}", segment_file_name(id))
}

/// The segment behind such a name.
pub fn id_of(file: &str) -> Option<u64> {
    u64::from_str_radix(file.strip_prefix("seg/")?.strip_suffix(".seg")?, 16).ok()
}

/// Reads a record back.
pub type ReadRecord<'a> = dyn Fn(RecordAt) -> Result<Record, ReadError> + 'a;

/// Looks at one segment. Where the system cannot read some of it, at the rest; an error means that nothing can be said.
pub fn look(place: &Place<'_>, read: &ReadRecord<'_>, depth: Depth) -> Result<(SegmentView, Vec<Finding>), LogError> {
    let error = match look_whole(place, read, depth) {
        Err(error @ LogError::Storage { .. }) => error,
        other => return other,
    };
    let Some((copy, unreadable)) = salvage::readable_copy(place.path) else { return Err(error) };
    let place = Place { path: copy.path(), ..*place };
    let (mut view, mut findings) = look_whole(&place, read, depth)?;
    findings.splice(0..0, unreadable.iter().map(|&(from, to)| unreadable_range(place.id, from, to)));
    if !findings.is_empty() {
        view.remedy = Remedy::Rewrite;
    }
    Ok((view, findings))
}

fn unreadable_range(id: u64, from: u64, to: u64) -> Finding {
    let what = "the system cannot read these bytes; the rest of the segment was looked at";
    Finding::new(Kind::Unreadable, file_of(id), what).at(from, to - from).fate(Fate::Unknown)
}

/// What a file that a start kept as it found it has lost: by batch, as far as it still says which.
pub fn look_aside(path: &Path, name: &str) -> Result<Vec<Finding>, LogError> {
    let digits = name.strip_prefix("seg/").unwrap_or(name).split('.').next().unwrap_or_default();
    let Ok(id) = u64::from_str_radix(digits, 16) else { return Ok(Vec::new()) };
    let place = Place { id, path, newest: true, moving: false };
    // Records are read for their CRCs; one by one they would be looked for in the segment's own file.
    let nowhere = |at: RecordAt| Err(ReadError::NotFound { segment: at.segment });
    let (_, findings) = look(&place, &nowhere, Depth::Footers)?;
    let lost = findings.into_iter().filter(|finding| finding.fate.is_loss());
    Ok(lost.map(|finding| Finding { file: name.to_owned(), ..finding }).collect())
}

fn look_whole(place: &Place<'_>, read: &ReadRecord<'_>, depth: Depth) -> Result<(SegmentView, Vec<Finding>), LogError> {
    let survey = Survey::of(place.path, place.id, false)?;
    let Seal::Good { footer, offset } = &survey.seal else {
        return Ok(unsealed(place, read, depth, &survey, Vec::new()));
    };
    match SegmentIndex::decode(footer) {
        Ok(index) => Ok(sealed(place, read, depth, survey.bytes, index)),
        Err(error) => {
            let finding = Finding::new(Kind::Footer, file_of(place.id), error.to_string());
            let finding = finding.at(*offset, survey.bytes - offset);
            let survey = Survey::of(place.path, place.id, true)?;
            Ok(unsealed(place, read, depth, &survey, vec![finding]))
        }
    }
}

fn sealed(
    place: &Place<'_>,
    read: &ReadRecord<'_>,
    depth: Depth,
    bytes: u64,
    index: SegmentIndex,
) -> (SegmentView, Vec<Finding>) {
    let len = index.entries.len() as u32;
    let (mut bad, mut findings) = (Bitmap::new(len), Vec::new());
    if depth == Depth::Everything {
        for (ordinal, entry) in (0u32..).zip(&index.entries) {
            if let Some(finding) = check(place.id, (entry.offset, bytes_of(&index, entry)), index.id(ordinal), read) {
                bad.set(ordinal);
                findings.push(finding);
            }
        }
    }
    let remedy = if findings.is_empty() { Remedy::None } else { Remedy::Rewrite };
    let index = Arc::new(index);
    let view = SegmentView {
        id: place.id,
        bytes,
        sound: true,
        sealed: true,
        end: bytes,
        index,
        bad,
        ordinals_sure: true,
        remedy,
    };
    (view, findings)
}

/// A segment whose records say what lies in it.
fn unsealed(
    place: &Place<'_>,
    read: &ReadRecord<'_>,
    depth: Depth,
    survey: &Survey,
    mut findings: Vec<Finding>,
) -> (SegmentView, Vec<Finding>) {
    let mut builder = IndexBuilder::new(0);
    let mut unread = Vec::new();
    let mut sure = true;
    for record in &survey.records {
        match recover::entry_of(&record.meta, record.body_bytes, record.at.offset) {
            Ok(entry) => {
                let ordinal = builder.push(&entry);
                if depth == Depth::Everything
                    && let Some(finding) =
                        check(place.id, (entry.offset, record.end() - record.at.offset), entry.id, read)
                {
                    unread.push(ordinal);
                    findings.push(finding);
                }
            }
            Err(error) => {
                sure = false;
                findings.push(batch_header(place.id, record, &error.to_string()));
            }
        }
    }
    let holes = holes(survey);
    sure &= holes.is_empty();
    findings.extend(holes.iter().flat_map(|&(from, to)| damaged_range(place, from, to)));
    findings.extend(ending(place, survey));
    if !survey.sound && survey.bytes > EMPTY_BYTES {
        let what = "the first bytes of the segment file are damaged";
        findings.insert(0, Finding::new(Kind::FileHeader, file_of(place.id), what).at(0, EMPTY_BYTES));
    }
    let index = Arc::new(builder.finish());
    let mut bad = Bitmap::new(index.entries.len() as u32);
    unread.into_iter().for_each(|ordinal| {
        bad.set(ordinal);
    });
    let only_torn = findings.iter().all(|finding| finding.kind == Kind::TornTail);
    let remedy = match findings.is_empty() {
        true => Remedy::None,
        false if only_torn && !index.entries.is_empty() => Remedy::CutTail { to: survey.end },
        false => Remedy::Rewrite,
    };
    let view = SegmentView {
        id: place.id,
        bytes: survey.bytes,
        sound: survey.sound,
        sealed: false,
        end: survey.end,
        index,
        bad,
        ordinals_sure: sure,
        remedy,
    };
    (view, findings)
}

/// Ranges without a valid record that valid records, or a footer, follow.
fn holes(survey: &Survey) -> Vec<(u64, u64)> {
    let mut holes = Vec::new();
    let mut from = EMPTY_BYTES;
    for record in &survey.records {
        if record.at.offset > from {
            holes.push((from, record.at.offset));
        }
        from = record.end();
    }
    if let Seal::FooterDamaged { offset } | Seal::TrailerDamaged { offset } | Seal::Good { offset, .. } = survey.seal
        && offset > from
    {
        holes.push((from, offset));
    }
    holes
}

/// Findings for a range in which valid records should lie: one per record that still says what it was.
fn damaged_range(place: &Place<'_>, from: u64, to: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut at = from;
    let unknown = |from: u64, to: u64| {
        let what = "no valid record lies here, though valid ones follow; which batch it was is not known";
        Finding::new(Kind::RecordHeader, file_of(place.id), what).at(from, to - from).fate(Fate::Unknown)
    };
    for claim in claimed_records(place.path, place.id, from, to).unwrap_or_default() {
        if claim.offset > at {
            findings.push(unknown(at, claim.offset));
        }
        at = claim.end;
        let what = "the contents of this record do not match their CRC";
        let finding = Finding::new(Kind::RecordContents, file_of(place.id), what);
        let finding = finding.at(claim.offset, claim.end - claim.offset).fate(Fate::Unknown);
        findings.push(match claimed_id(&claim.meta) {
            Some(id) => finding.of(id),
            None => finding,
        });
    }
    if at < to {
        findings.push(unknown(at, to));
    }
    findings
}

/// Which batch a record claims to be whose contents are damaged.
fn claimed_id(meta: &bytes::Bytes) -> Option<BatchId> {
    let (agent, header) = meta::decode_header(meta).ok()?;
    Some(BatchId { agent, origin: header.origin, seq: header.seq })
}

/// What is wrong with the end of a segment without a good footer.
fn ending(place: &Place<'_>, survey: &Survey) -> Option<Finding> {
    let file = || file_of(place.id);
    match survey.seal {
        Seal::Good { .. } => None,
        Seal::FooterDamaged { offset } => {
            let what = "the footer is damaged; every record was read instead";
            Some(Finding::new(Kind::Footer, file(), what).at(offset, survey.bytes - offset))
        }
        // The seal is being written.
        Seal::TrailerDamaged { .. } if place.moving && place.newest => None,
        Seal::TrailerDamaged { offset } => {
            let what = "the last bytes of the segment are missing or damaged; its footer and records are whole";
            Some(Finding::new(Kind::Trailer, file(), what).at(offset, survey.bytes - offset))
        }
        // Left by a start that made a newer one; it goes by itself.
        Seal::None if survey.bytes <= EMPTY_BYTES => None,
        // It is being written anew by a process that starts.
        Seal::None if place.moving && survey.end >= survey.bytes => None,
        Seal::None if !place.newest => {
            let (claim, first) = claims(place, survey);
            let what = format!("the segment has no footer though a newer one exists: its end is missing{claim}");
            let finding = Finding::new(Kind::CutShort, file(), what);
            let finding = finding.at(survey.end, survey.bytes - survey.end).fate(Fate::Unknown);
            Some(unsettled(first.into_iter().fold(finding, Finding::of)))
        }
        Seal::None if survey.end >= survey.bytes || place.moving => None,
        Seal::None => Some(torn_tail(place, survey)),
    }
}

/// What the bytes behind the last valid record still say, and the first batch that they claim to be.
fn claims(place: &Place<'_>, survey: &Survey) -> (String, Option<BatchId>) {
    let whole = claimed_records(place.path, place.id, survey.end, survey.bytes).unwrap_or_default();
    let first = whole.first().and_then(|claim| claimed_id(&claim.meta));
    match whole.len() {
        0 => (String::new(), None),
        some => (format!("; {some} that claim to be whole do not match their CRC"), first),
    }
}

/// Not settled by who it claims to be: it may be several.
fn unsettled(mut finding: Finding) -> Finding {
    finding.id = None;
    finding
}

fn torn_tail(place: &Place<'_>, survey: &Survey) -> Finding {
    let bytes = survey.bytes - survey.end;
    let (claim, first) = claims(place, survey);
    let what = match claim.is_empty() {
        true => "an unfinished write: no valid record lies behind the last one".to_owned(),
        false => format!("no valid record lies behind the last one{claim}"),
    };
    let finding = Finding::new(Kind::TornTail, file_of(place.id), what).at(survey.end, bytes);
    let finding = first.into_iter().fold(finding, Finding::of);
    unsettled(finding.means(
        Fate::Unknown,
        "after a crash this is usual and nothing is lost: nobody was told that these bytes are stored; if the machine did \
         not crash, or the disk is bad, they may have been acknowledged, and only an agent with ack = \"committed\" still has them",
    ))
}

fn batch_header(segment: u64, record: &LoadedRecord, error: &str) -> Finding {
    let what = format!("the record is intact and is no batch that this release can use: {error}");
    let finding = Finding::new(Kind::BatchHeader, file_of(segment), what);
    finding.at(record.at.offset, record.end() - record.at.offset).fate(Fate::Unknown)
}

/// Length of the record of an entry.
fn bytes_of(index: &SegmentIndex, entry: &Entry) -> u64 {
    RECORD_BYTES + meta::OVERHEAD_BYTES + index.origin_of(entry).0.as_str().len() as u64 + entry.bytes()
}

/// Reads one record whole. None: it is what it should be.
fn check(segment: u64, (offset, bytes): (u32, u64), id: BatchId, read: &ReadRecord<'_>) -> Option<Finding> {
    let offset = u64::from(offset);
    let finding = |kind, what: String| {
        let finding = Finding::new(kind, file_of(segment), what).fate(Fate::Unknown);
        Some(finding.of(id.clone()).at(offset, bytes))
    };
    let record = match read(RecordAt { segment, offset }) {
        Ok(record) => record,
        // It was delivered and removed while we looked.
        Err(ReadError::NotFound { .. }) => return None,
        Err(ReadError::Corrupt { detail, .. }) => {
            let kind = if detail.contains("header") { Kind::RecordHeader } else { Kind::RecordContents };
            return finding(kind, format!("the record is damaged: {detail}"));
        }
        Err(ReadError::Io { reason, .. }) => {
            return finding(Kind::Unreadable, format!("the record cannot be read: {reason}"));
        }
    };
    let (agent, header) = match meta::decode_header(&record.meta) {
        Ok(found) => found,
        Err(error) => {
            return finding(Kind::BatchHeader, format!("the record is intact, its batch header is not: {error}"));
        }
    };
    let found = BatchId { agent, origin: header.origin, seq: header.seq };
    if found != id {
        return finding(Kind::BatchHeader, format!("the record holds batch {found}, the footer names another"));
    }
    match header.check_payload(&record.body) {
        Ok(()) => None,
        Err(error) => finding(Kind::Payload, error.to_string()),
    }
}
