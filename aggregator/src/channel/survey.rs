//! Looks at a data directory without changing anything in it: every segment, the ledger (a copy of it), and the two
//! against each other. Safe beside a running aggregator.
//!
//! Invariant: what is called held here is what a start would hold, apart from batches that cannot be read.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::record_log::survey::{ASIDE_SUFFIX, segment_files};
use common::record_log::{LogError, ReadError, Record, RecordAt, RecordReader};

use super::bitmap::Bitmap;
use super::describe::{self, Description, Part};
use super::finding::{Fate, Finding, Kind};
use super::ledger_copy::{self, LedgerView};
use super::lock::{DirLock, LockError};
use super::segment_view::{self, ReadRecord, SegmentView};
use super::state::State;

/// How long a segment that is being written is left alone before it is looked at again.
const SETTLE: Duration = Duration::from_millis(200);

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Footers; records only where there is no good footer.
    Footers,
    /// Every byte.
    Everything,
}

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// Another directory.
    #[error("there is no channel in {0}: give the `data_dir` of an aggregator's configuration")]
    NoChannel(PathBuf),
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The file system.
    #[error("{path} cannot be read: {source}; look as the user that owns the data directory")]
    Io {
        /// What was read.
        path: PathBuf,
        /// The fact.
        source: io::Error,
    },
}

/// A channel as it lies on disk.
#[derive(Debug)]
pub struct ChannelSurvey {
    /// The data directory.
    pub dir: PathBuf,
    /// The process that has it open.
    pub running: Option<String>,
    /// Segments in order.
    pub segments: Vec<SegmentView>,
    /// What has been answered.
    pub ledger: LedgerView,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// Files that could not be read at all: the look is not complete. What lies around an unreadable place was looked at.
    pub unreadable: u64,
    /// Bits by segment of what needs no delivery: answered, or held elsewhere, or damaged.
    done: HashMap<u64, Bitmap>,
}

impl ChannelSurvey {
    /// Looks at a data directory.
    pub fn of(dir: &Path, depth: Depth) -> Result<Self, SurveyError> {
        is_channel(dir)?;
        let running = DirLock::holder(dir)?;
        let found = Self::look(dir, depth, running.clone(), &reader(dir))?;
        match DirLock::holder(dir)? {
            // It was started while we looked: what was moving then is no damage.
            Some(holder) if running.is_none() => Self::look(dir, depth, Some(holder), &reader(dir)),
            _ => Ok(found),
        }
    }

    /// Looks at every byte of a data directory whose lock the caller has: nobody else changes anything meanwhile.
    pub(super) fn of_locked(dir: &Path, _lock: &DirLock, read: &ReadRecord<'_>) -> Result<Self, SurveyError> {
        Self::look(dir, Depth::Everything, None, read)
    }

    fn look(dir: &Path, depth: Depth, running: Option<String>, read: &ReadRecord<'_>) -> Result<Self, SurveyError> {
        let failed = |path: PathBuf| move |source| SurveyError::Io { path, source };
        let ledger = dir.join("ledger");
        // The ledger first: it is never ahead of the segments then.
        let view = ledger_copy::read(&ledger, running.is_some()).map_err(failed(ledger))?;
        let mut survey = Self {
            dir: dir.to_owned(),
            running,
            segments: Vec::new(),
            ledger: view,
            findings: Vec::new(),
            unreadable: 0,
            done: HashMap::new(),
        };
        let seg = dir.join("seg");
        let files = match segment_files(&seg) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(failed(seg.clone()))?,
        };
        survey.look_at_segments(&files, depth, read);
        survey.look_for_files_aside(&seg, depth);
        survey.take_answers();
        survey.look_at_ledger();
        Ok(survey)
    }

    fn look_at_segments(&mut self, files: &[(u64, PathBuf)], depth: Depth, read: &ReadRecord<'_>) {
        let newest = segment_view::newest(files);
        for (id, path) in files {
            let place = segment_view::Place {
                id: *id,
                path,
                // One that was begun while we looked is as new.
                newest: newest.is_none_or(|newest| *id >= newest),
                moving: self.running.is_some(),
            };
            let mut seen = segment_view::look(&place, read, depth);
            if place.moving && place.newest && seen.as_ref().is_ok_and(|seen| !seen.1.is_empty()) {
                // It may have been written to while we looked.
                std::thread::sleep(SETTLE);
                seen = segment_view::look(&place, read, depth);
            }
            match seen {
                Ok((view, findings)) => {
                    self.segments.push(view);
                    self.findings.extend(findings);
                }
                Err(_) if self.running.is_some() && !path.exists() => {}
                Err(error) => self.cannot_read(*id, &error),
            }
        }
    }

    fn cannot_read(&mut self, id: u64, error: &LogError) {
        let kind = match error {
            LogError::NewerFormat { .. } => Kind::NewerFormat,
            _ => Kind::Unreadable,
        };
        self.unreadable += 1;
        let finding = Finding::new(kind, segment_view::file_of(id), error.to_string());
        self.findings
            .push(finding.means(Fate::Unknown, "nothing is known of the batches in it, and nothing of it is touched"));
    }

    fn look_for_files_aside(&mut self, seg: &Path, depth: Depth) {
        for entry in std::fs::read_dir(seg).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(ASIDE_SUFFIX) {
                let bytes = entry.metadata().map_or(0, |file| file.len());
                let name = format!("seg/{name}");
                let (what, fate) = match () {
                    () if name.ends_with(segment_view::AT_START) => (
                        "a start found damage in this segment, wrote what is good in it anew and kept the file",
                        Fate::NothingLost,
                    ),
                    () if name.ends_with(segment_view::GIVEN_UP) => (
                        "a batch of this segment could not be read and was given up, as the log says by name; the file was kept",
                        Fate::Unknown,
                    ),
                    () => ("a start found nothing readable in this segment and set it aside", Fate::Unknown),
                };
                let mut finding = Finding::new(Kind::SetAside, name.clone(), what).fate(fate);
                finding.bytes = Some(bytes);
                self.findings.push(finding);
                if depth == Depth::Everything && name.ends_with(segment_view::AT_START) {
                    match segment_view::look_aside(&entry.path(), &name) {
                        Ok(findings) => self.findings.extend(findings),
                        Err(error) => {
                            let finding = Finding::new(Kind::SetAside, name, error.to_string()).fate(Fate::Unknown);
                            self.findings.push(finding);
                        }
                    }
                }
            }
        }
    }

    /// Which batches need no delivery, by the rules of a start; then what became of the damaged ones.
    fn take_answers(&mut self) {
        let mut state = State::new(u64::MAX, HashMap::new());
        let rows = self.ledger.rows();
        let mut answered: HashMap<u64, Bitmap> = HashMap::new();
        // As a start does: of a batch that lies in two segments the copy counts that is not in doubt.
        let (sealed, unsealed): (Vec<_>, Vec<_>) = self.segments.iter().partition(|view| view.sealed);
        for view in sealed.into_iter().chain(unsealed) {
            for (agent, origin) in &view.index.origins {
                let key = (view.index.agents[*agent as usize].clone(), *origin);
                let row = rows.and_then(|rows| rows.origins.get(&key)).cloned().unwrap_or_default();
                state.know_origin(key, row);
            }
            let len = view.index.entries.len() as u32;
            let row = rows.and_then(|rows| rows.segments.get(&view.id)).and_then(Option::as_ref);
            let bits = row.filter(|row| view.ordinals_sure && row.len() <= len).cloned();
            let mut bits = bits.unwrap_or_else(|| Bitmap::new(len));
            while bits.len() < len {
                bits.push();
            }
            answered.insert(view.id, bits.clone());
            (0..len).filter(|ordinal| view.bad.get(*ordinal)).for_each(|ordinal| {
                bits.set(ordinal);
            });
            state.add_sealed(view.id, Arc::clone(&view.index), Some(bits), view.bytes, 0);
        }
        let delivered = |segment: u64, finding: &Finding| {
            let Some(id) = &finding.id else { return false };
            let bit = answered.get(&segment).zip(finding_ordinal(&self.segments, segment, finding));
            bit.is_some_and(|(bits, ordinal)| bits.get(ordinal))
                || state.committed(&(id.agent.clone(), id.origin)).is_some_and(|seqs| seqs.contains(id.seq))
        };
        for finding in self.findings.iter_mut().filter(|finding| finding.id.is_some()) {
            let Some(id) = &finding.id else { continue };
            let segment = segment_view::id_of(&finding.file).unwrap_or(u64::MAX);
            let copy = state.held(&(id.agent.clone(), id.origin)).is_some_and(|held| held.contains(id.seq));
            let fate = match () {
                () if copy => Fate::CopyHeld,
                () if delivered(segment, finding) => Fate::Delivered,
                () if rows.is_none() => Fate::Unknown,
                () => Fate::Lost,
            };
            *finding = finding.clone().fate(fate);
        }
        self.done = state.segments().map(|(id, segment)| (id, segment.answered().clone())).collect();
    }

    fn look_at_ledger(&mut self) {
        let rows = match &self.ledger {
            LedgerView::Read(rows) => rows,
            // A copy of what another process writes may be torn: that is no damage.
            LedgerView::Unreadable(_) if self.running.is_some() => return,
            LedgerView::Unreadable(reason) => {
                let what = format!("the ledger cannot be opened: {reason}");
                self.findings.push(no_ledger(Kind::LedgerUnreadable, what));
                return;
            }
            LedgerView::Missing if self.segments.iter().all(|view| view.index.entries.is_empty()) => return,
            LedgerView::Missing => {
                self.findings.push(no_ledger(Kind::LedgerMissing, "there is no ledger".into()));
                return;
            }
        };
        let mut found = Vec::new();
        if rows.unreadable > 0 {
            let what = format!("{} rows of the ledger cannot be read", rows.unreadable);
            found.push(redelivery(Finding::new(Kind::LedgerRow, "ledger".into(), what)));
        }
        for (id, row) in &rows.segments {
            let view = self.segments.iter().find(|view| view.id == *id);
            found.extend(segment_row(*id, row.as_ref(), view, self.running.is_some()));
        }
        if self.running.is_none() && self.segments.iter().all(|view| view.ordinals_sure) && self.unreadable == 0 {
            found.extend(self.missing_bytes(&rows.agents));
        }
        self.findings.extend(found);
    }

    /// Held bytes that the ledger counts and no segment has: the only trace of a segment of which nothing was answered.
    fn missing_bytes(&self, counted: &BTreeMap<proto::ids::AgentName, u64>) -> Vec<Finding> {
        let held: HashMap<String, u64> =
            self.describe().agents.into_iter().map(|held| (held.name, held.bytes)).collect();
        let mut damaged: HashMap<&str, u64> = HashMap::new();
        for view in &self.segments {
            for ordinal in (0..view.bad.len()).filter(|ordinal| view.bad.get(*ordinal)) {
                let entry = &view.index.entries[ordinal as usize];
                *damaged.entry(view.index.origin_of(entry).0.as_str()).or_default() += entry.bytes();
            }
        }
        let missing = |agent: &str, counted: u64| {
            let found = held.get(agent).copied().unwrap_or(0) + damaged.get(agent).copied().unwrap_or(0);
            counted.checked_sub(found).filter(|missing| *missing > 0)
        };
        let found = counted.iter().filter_map(|(agent, &bytes)| Some((agent, missing(agent.as_str(), bytes)?)));
        let finding = |(agent, bytes): (&proto::ids::AgentName, u64)| {
            let what = format!("the ledger counts {bytes} held bytes of agent {agent} that lie in no segment");
            let mut finding = Finding::new(Kind::MissingBytes, "seg".into(), what).means(
                Fate::Lost,
                "batches that had been stored are in no segment any more (a file is missing, or its end is); with ack = \
                 \"committed\" their agent still has them and appends them again, with ack = \"durable\" it may have let \
                 them go",
            );
            finding.agent = Some(agent.to_string());
            finding.bytes = Some(bytes);
            finding
        };
        found.map(finding).collect()
    }

    /// Counts what is held.
    pub fn describe(&self) -> Description {
        let known = self.answers_known();
        let none = Bitmap::default();
        describe::describe(self.segments.iter().map(|view| Part {
            id: view.id,
            bytes: view.bytes,
            sealed: view.sealed,
            index: &view.index,
            answered: self.done.get(&view.id).unwrap_or(&none),
            known,
        }))
    }

    /// Is it known which batches were answered?
    pub fn answers_known(&self) -> bool {
        self.ledger.rows().is_some()
    }

    /// Does this batch need delivery, and can it be read? If answers are not known, every readable one does.
    pub fn is_held(&self, segment: u64, ordinal: u32) -> bool {
        self.done.get(&segment).is_some_and(|done| !done.get(ordinal))
    }
}

/// Is there a channel at all?
pub(super) fn is_channel(dir: &Path) -> Result<(), SurveyError> {
    match dir.join("seg").is_dir() || dir.join("ledger").is_dir() {
        true => Ok(()),
        false => Err(SurveyError::NoChannel(dir.to_owned())),
    }
}

/// Reads from the segments of a data directory.
pub(super) fn reader(dir: &Path) -> impl Fn(RecordAt) -> Result<Record, ReadError> + use<> {
    let reader = RecordReader::new(dir.join("seg"));
    move |at| reader.read(at)
}

fn finding_ordinal(segments: &[SegmentView], segment: u64, finding: &Finding) -> Option<u32> {
    let view = segments.iter().find(|view| view.id == segment)?;
    let offset = u32::try_from(finding.offset?).ok()?;
    // In the order in which they were appended.
    view.index.entries.binary_search_by_key(&offset, |entry| entry.offset).ok().map(|ordinal| ordinal as u32)
}

fn no_ledger(kind: Kind, what: String) -> Finding {
    redelivery(Finding::new(kind, "ledger".into(), what))
}

fn redelivery(finding: Finding) -> Finding {
    finding.means(
        Fate::NothingLost,
        "nothing is lost: what was answered is delivered again, and the collectors know it; the aggregator starts all the same",
    )
}

fn segment_row(id: u64, row: Option<&Bitmap>, view: Option<&SegmentView>, moving: bool) -> Option<Finding> {
    let file = segment_view::file_of(id);
    let named = format!("{id:016x}");
    match (row, view) {
        (None, _) => {
            let what = format!("the ledger's row of segment {named} cannot be read");
            Some(redelivery(Finding::new(Kind::LedgerRow, "ledger".into(), what)))
        }
        // Segments go while we look, and their rows later.
        (_, None) if moving => None,
        (Some(bits), None) => {
            let held = u64::from(bits.len() - bits.count());
            let what = format!(
                "the file is missing; the ledger says that {held} of its {} batches were not answered",
                bits.len()
            );
            (held > 0).then(|| Finding::new(Kind::MissingSegment, file, what).fate(Fate::Lost))
        }
        (Some(bits), Some(view)) if view.ordinals_sure && bits.len() as usize > view.index.entries.len() => {
            let missing = bits.len() as usize - view.index.entries.len();
            let what =
                format!("the ledger knows {} batches of this segment, {missing} more than lie in it", bits.len());
            Some(Finding::new(Kind::LedgerRow, file, what).fate(Fate::Unknown))
        }
        _ => None,
    }
}
