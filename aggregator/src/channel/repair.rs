//! Sets a channel right that nobody has open, losing only what is damaged.
//!
//! Invariants: the bytes of everything that is taken out are kept under `damaged/`; what is good lies durably in a new
//! segment before the file it came from is moved; a repair that was cut off is simply made again (a batch that lies in
//! two segments is held once).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use common::record_log::{LogError, Options, ReadError, RecordAt, RecordLog};
use serde::Serialize;

use super::finding::Kind;
use super::index::{IndexBuilder, SegmentIndex};
use super::ledger::{Ledger, LedgerError};
use super::ledger_copy::LedgerView;
use super::lock::{self, DirLock, LockError};
use super::segment_view::{ReadRecord, Remedy, SegmentView, file_of};
use super::survey::{self, ChannelSurvey, Depth, SurveyError};
use super::{MetaError, recover};

/// Where what is taken out goes.
pub const DAMAGED: &str = "damaged";

/// Why a repair stopped.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// An aggregator runs.
    #[error(
        "nothing is repaired while process {0} has the channel open: stop that aggregator first (`channel check` works beside it)"
    )]
    Running(String),
    /// A release without a lock of its own runs.
    #[error("the ledger is open in another process: stop the aggregator that has it first")]
    LedgerInUse,
    /// Files that the aggregator could not open afterwards.
    #[error(
        "the data directory belongs to user {owner}, this is user {own}: repair as that user, or the aggregator cannot open what is written"
    )]
    User {
        /// Owner of the data directory.
        owner: u32,
        /// Who asks.
        own: u32,
    },
    /// Something cannot be read at all.
    #[error(
        "{0} files cannot be opened, or were written by a newer release; nothing was changed: see the findings of `channel check`"
    )]
    Unreadable(u64),
    /// The look before.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The new segment.
    #[error("the repair stopped, and can be made again: {0}")]
    Log(#[from] LogError),
    /// A good record that cannot be read now.
    #[error("the repair stopped, and can be made again: {0}")]
    Read(#[from] ReadError),
    /// A good record that is none.
    #[error("the repair stopped, and can be made again: {0}")]
    Meta(#[from] MetaError),
    /// The ledger.
    #[error("the repair stopped, and can be made again: {0}")]
    Ledger(#[from] LedgerError),
    /// The file system.
    #[error("the repair stopped, and can be made again: {path}: {source}")]
    Io {
        /// What was worked on.
        path: PathBuf,
        /// The fact.
        source: io::Error,
    },
}

/// One thing to do, or done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// Bytes behind the last record go.
    CutTail {
        /// The segment's file.
        file: String,
        /// Its new length.
        to: u64,
        /// Bytes that are cut off and kept.
        bytes: u64,
    },
    /// The segment that was written last gets the footer that a start would give it, since newer ones follow.
    Seal {
        /// The segment's file.
        file: String,
    },
    /// What is held and good goes to a new segment, the file is set aside.
    Rewrite {
        /// The segment's file.
        file: String,
        /// Batches that go on.
        kept_batches: u64,
        /// Batches in it that need no delivery: answered, or held elsewhere.
        answered_batches: u64,
    },
    /// A file is set aside.
    SetAside {
        /// It.
        file: String,
    },
    /// The ledger is set aside; an empty one takes its place.
    NewLedger,
    /// Rows of the ledger that fit no segment go.
    SweepLedger,
}

/// Batches of one origin that are lost here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// Its agent.
    pub agent: String,
    /// The origin.
    pub origin: String,
    /// Ranges of seqs, both ends included.
    pub seqs: Vec<(u64, u64)>,
    /// It is not known whether they were delivered.
    pub perhaps_delivered: bool,
}

/// What a repair does and what it cannot bring back. Pure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// By origin, as far as the batches are known.
    pub losses: Vec<Loss>,
    /// Damaged bytes of which nobody can say whose they were.
    pub unknown_bytes: u64,
}

/// Decides what is to be done.
pub fn plan(survey: &ChannelSurvey) -> Plan {
    let mut plan = Plan::default();
    let rewritten = survey.segments.iter().any(|view| view.remedy == Remedy::Rewrite);
    for view in &survey.segments {
        let file = file_of(view.id);
        if let Remedy::CutTail { to } = view.remedy {
            plan.steps.push(Step::CutTail { file: file.clone(), to, bytes: view.bytes - to });
        }
        if view.remedy == Remedy::Rewrite {
            let kept_batches = held(survey, view).count() as u64;
            let answered_batches = view.batches() - u64::from(view.bad.count()) - kept_batches;
            plan.steps.push(Step::Rewrite { file, kept_batches, answered_batches });
        } else if rewritten && needs_seal(view) {
            plan.steps.push(Step::Seal { file });
        }
    }
    for finding in survey.findings.iter().filter(|finding| finding.kind == Kind::SetAside) {
        plan.steps.push(Step::SetAside { file: finding.file.clone() });
    }
    let rows = [Kind::LedgerRow, Kind::MissingSegment, Kind::MissingBytes];
    let stale = survey.findings.iter().any(|finding| rows.contains(&finding.kind));
    match &survey.ledger {
        LedgerView::Unreadable(_) => plan.steps.push(Step::NewLedger),
        LedgerView::Missing if !survey.findings.is_empty() => plan.steps.push(Step::NewLedger),
        LedgerView::Read(_) if stale || rewritten => plan.steps.push(Step::SweepLedger),
        LedgerView::Missing | LedgerView::Read(_) => {}
    }
    count_losses(survey, &mut plan);
    plan
}

fn count_losses(survey: &ChannelSurvey, plan: &mut Plan) {
    let mut known: BTreeMap<(String, String), (BTreeSet<u64>, bool)> = BTreeMap::new();
    for finding in survey.findings.iter().filter(|finding| finding.fate.is_loss()) {
        match (&finding.agent, &finding.origin, finding.seq) {
            (Some(agent), Some(origin), Some(seq)) => {
                let entry = known.entry((agent.clone(), origin.clone())).or_default();
                entry.0.insert(seq);
                entry.1 |= finding.fate == super::finding::Fate::Unknown;
            }
            _ => plan.unknown_bytes += finding.bytes.unwrap_or(0),
        }
    }
    plan.losses = known
        .into_iter()
        .map(|((agent, origin), (seqs, perhaps_delivered))| Loss {
            agent,
            origin,
            seqs: ranges(&seqs),
            perhaps_delivered,
        })
        .collect();
}

fn ranges(seqs: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &seq in seqs {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == seq => *last = seq,
            _ => ranges.push((seq, seq)),
        }
    }
    ranges
}

/// Whole, and without a footer.
fn needs_seal(view: &SegmentView) -> bool {
    !view.sealed && view.remedy != Remedy::Rewrite && !view.index.entries.is_empty()
}

/// Batches of a segment that need delivery and can be read.
fn held<'a>(survey: &'a ChannelSurvey, view: &'a SegmentView) -> impl Iterator<Item = u32> + 'a {
    (0..view.index.entries.len() as u32).filter(|&ordinal| survey.is_held(view.id, ordinal))
}

/// Looks, and says what a repair would do. Changes nothing.
pub fn prepare(dir: &Path) -> Result<(ChannelSurvey, Plan), RepairError> {
    let survey = ChannelSurvey::of(dir, Depth::Everything)?;
    if let Some(holder) = &survey.running {
        return Err(RepairError::Running(holder.clone()));
    }
    if lock::ledger_in_use(&dir.join("ledger")) {
        return Err(RepairError::LedgerInUse);
    }
    let plan = plan_for(&survey)?;
    Ok((survey, plan))
}

/// Looks, and sets right what is wrong; `unix_ms`: now. What was found before, and what was done.
pub fn repair(dir: &Path, unix_ms: u64) -> Result<(ChannelSurvey, Plan), RepairError> {
    repair_reading(dir, unix_ms, &survey::reader(dir))
}

/// The lock comes before the look: what is done rests on what was seen, so nobody may change it in between.
pub(super) fn repair_reading(
    dir: &Path,
    unix_ms: u64,
    read: &ReadRecord<'_>,
) -> Result<(ChannelSurvey, Plan), RepairError> {
    survey::is_channel(dir)?;
    let owner = fs::metadata(dir).map_err(|source| RepairError::Io { path: dir.to_owned(), source })?.uid();
    let own = rustix::process::geteuid().as_raw();
    if owner != own {
        // The lock would be a file that the aggregator cannot open.
        let (survey, plan) = prepare(dir)?;
        return if plan.steps.is_empty() { Ok((survey, plan)) } else { Err(RepairError::User { owner, own }) };
    }
    let lock = match DirLock::take(dir) {
        Err(LockError::Held { holder, .. }) => return Err(RepairError::Running(holder)),
        other => other?,
    };
    if lock::ledger_in_use(&dir.join("ledger")) {
        return Err(RepairError::LedgerInUse);
    }
    let survey = ChannelSurvey::of_locked(dir, &lock, read)?;
    let plan = plan_for(&survey)?;
    if !plan.steps.is_empty() {
        carry_out(dir, &survey, &plan, unix_ms)?;
    }
    Ok((survey, plan))
}

fn plan_for(survey: &ChannelSurvey) -> Result<Plan, RepairError> {
    match survey.unreadable {
        0 => Ok(plan(survey)),
        some => Err(RepairError::Unreadable(some)),
    }
}

fn carry_out(dir: &Path, survey: &ChannelSurvey, plan: &Plan, unix_ms: u64) -> Result<(), RepairError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir.join(DAMAGED))
        .map_err(|source| RepairError::Io { path: dir.join(DAMAGED), source })?;
    let work = Work { dir, survey, unix_ms };
    for view in &survey.segments {
        if let Remedy::CutTail { to } = view.remedy {
            work.cut_tail(view, to)?;
        }
    }
    let mut rewritten = survey.segments.iter().filter(|view| view.remedy == Remedy::Rewrite).peekable();
    if rewritten.peek().is_some() {
        let mut log = work.open_log()?;
        rewritten.try_for_each(|view| work.rewrite(&mut log, view))?;
    }
    for step in &plan.steps {
        match step {
            Step::SetAside { file } => work.set_aside(&dir.join(file))?,
            Step::NewLedger => work.new_ledger()?,
            Step::SweepLedger => work.sweep_ledger()?,
            Step::CutTail { .. } | Step::Seal { .. } | Step::Rewrite { .. } => {}
        }
    }
    Ok(())
}

struct Work<'a> {
    dir: &'a Path,
    survey: &'a ChannelSurvey,
    unix_ms: u64,
}

impl Work<'_> {
    fn io<T>(&self, path: &Path, result: io::Result<T>) -> Result<T, RepairError> {
        result.map_err(|source| RepairError::Io { path: path.to_owned(), source })
    }

    /// The bytes first, durably, then the cut.
    fn cut_tail(&self, view: &SegmentView, to: u64) -> Result<(), RepairError> {
        let path = self.dir.join(file_of(view.id));
        let kept = self.free_name(&format!("{:016x}.seg.tail-{to}", view.id));
        let copied = (|| {
            let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
            file.seek(SeekFrom::Start(to))?;
            let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&kept)?;
            io::copy(&mut (&mut file).take(view.bytes - to), &mut copy)?;
            copy.sync_all()?;
            sync_dir(&self.dir.join(DAMAGED))?;
            file.set_len(to)?;
            file.sync_all()
        })();
        self.io(&path, copied)
    }

    /// A log that writes behind all segments. What has no footer gets one first: only the newest may be without.
    fn open_log(&self) -> Result<RecordLog, RepairError> {
        // A segment of exactly what is taken over: no limit of its own.
        let options =
            Options { dir: self.dir.join("seg"), segment_bytes: u64::MAX, max_record_bytes: u64::from(u32::MAX) };
        let mut log = RecordLog::beside(options)?;
        for view in self.survey.segments.iter().filter(|view| needs_seal(view)) {
            let mut index = SegmentIndex::clone(&view.index);
            index.created_unix_ms = self.begun(view);
            log.seal_recovered(view.id, &index.encode())?;
        }
        Ok(log)
    }

    /// What is held and good goes to a new segment; the file goes when that is durable. Without a batch to keep, the
    /// log's empty file carries the next id over the restart.
    fn rewrite(&self, log: &mut RecordLog, view: &SegmentView) -> Result<(), RepairError> {
        let mut builder = IndexBuilder::new(self.begun(view));
        for ordinal in held(self.survey, view) {
            let offset = u64::from(view.index.entries[ordinal as usize].offset);
            let record = log.reader().read(RecordAt { segment: view.id, offset })?;
            let at = log.append_parts(&record.meta, std::slice::from_ref(&record.body))?;
            builder.push(&recover::entry_of(&record.meta, record.body.len() as u32, at.offset)?);
        }
        if !builder.index().entries.is_empty() {
            log.seal(&builder.finish().encode())?;
        }
        self.set_aside(&self.dir.join(file_of(view.id)))
    }

    /// Nothing says when a segment without footer was begun.
    fn begun(&self, view: &SegmentView) -> u64 {
        if view.index.created_unix_ms == 0 { self.unix_ms } else { view.index.created_unix_ms }
    }

    fn set_aside(&self, path: &Path) -> Result<(), RepairError> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let target = self.free_name(&name);
        let moved = fs::rename(path, &target)
            .and_then(|()| sync_dir(&self.dir.join(DAMAGED)))
            .and_then(|()| path.parent().map_or(Ok(()), sync_dir));
        self.io(path, moved)
    }

    fn new_ledger(&self) -> Result<(), RepairError> {
        let ledger = self.dir.join("ledger");
        if ledger.exists() {
            self.set_aside(&ledger)?;
        }
        Ledger::open(&ledger)?;
        Ok(())
    }

    /// The start counts held bytes anew; rows of segments that are gone or do not fit would be ignored by it.
    fn sweep_ledger(&self) -> Result<(), RepairError> {
        let whole = |view: &&SegmentView| view.remedy != Remedy::Rewrite;
        let misfit: BTreeSet<&str> = self.survey.findings.iter().map(|finding| finding.file.as_str()).collect();
        let live: BTreeSet<u64> = self.survey.segments.iter().filter(whole).map(|view| view.id).collect();
        let (ledger, _) = Ledger::open(&self.dir.join("ledger"))?;
        let unreadable = |id: u64| self.survey.ledger.rows().is_some_and(|rows| rows.segments.get(&id) == Some(&None));
        ledger.sweep(|id| live.contains(&id) && !unreadable(id) && !misfit.contains(file_of(id).as_str()), 0)?;
        Ok(())
    }

    /// A name in `damaged/` that is not taken.
    fn free_name(&self, name: &str) -> PathBuf {
        let damaged = self.dir.join(DAMAGED);
        let numbered = (1..).map(|number| damaged.join(format!("{name}.{number}")));
        let mut names = std::iter::once(damaged.join(name)).chain(numbered);
        names.find(|path| !path.exists()).unwrap_or_else(|| damaged.join(name))
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
