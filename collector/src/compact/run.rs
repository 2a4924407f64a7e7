//! Carries a plan out: checks the inputs, writes the outputs, and says what the commit record must say.
//!
//! Invariants: nothing published is changed; every name that is created is used once; an output is named only if every
//! byte of its inputs was as the log says. An input that is not gives up the output it is in, which is begun anew without
//! it, once; a second one gives that output up. When all is written the inputs are looked at once more: what users deleted
//! meanwhile must not come back in an output, which is given up.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use proto::wire;
use tokio_util::sync::CancellationToken;

use super::input::{Reader, Source, Tools};
use super::output::{Output, named};
use super::parquet::{Join, fits, footer, newest};
use super::plan::{Kind, Plan, PlannedFile};
use super::progress::{Progress, Running};
use super::{Budget, CompactError, Trouble, text};
use crate::log::Layout;
use crate::store::{Store, StoreError};

/// Inputs that are looked at at once.
const CHECKS: usize = 8;
/// Between two lines of the log about one compaction.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Longest time for deleting what a compaction leaves behind when it ends early.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// Joins the files of a plan and says what to commit; the new files stay staged, closed and durable, until the record is
/// finished. An error leaves nothing to commit. `numbers` gives numbers of groups, each used once in this incarnation.
///
/// After a draft with the result has died for certain, [`abandon`] deletes the staged files.
pub async fn run(
    store: &Arc<dyn Store>,
    layout: &Layout,
    plan: Plan,
    numbers: impl FnMut() -> u64 + Send,
    budget: &Budget,
    progress: &Progress,
    stop: CancellationToken,
) -> Result<wire::Compact, CompactError> {
    let partition = plan.key.dir();
    let task = progress.begin(Running {
        partition: partition.clone(),
        inputs: plan.inputs() as u64,
        bytes: plan.bytes(),
        since_unix_ms: common::clock::unix_ms(),
        ..Running::default()
    });
    tracing::info!(partition, files = plan.inputs(), bytes = plan.bytes(), "compaction begins");
    let tools = Tools { store: &**store, budget, task: &task };
    let staged = Mutex::new(Vec::new());
    let job = Job { tools, layout, plan: &plan, staged: &staged };
    let ended = tokio::select! {
        ended = joined(job, Mutex::new(numbers)) => ended.map_err(|source| {
            CompactError::Store { partition: partition.clone(), source }
        }),
        () = stop.cancelled() => Err(CompactError::Stopped { partition: partition.clone() }),
        never = report(tools) => match never {},
    };
    let compact = ended.map(|joined| compact(&plan, joined));
    let kept: &[wire::PublishedFile] = compact.as_ref().map_or(&[], |compact| &compact.files);
    let mut left = staged.into_inner().unwrap_or_else(PoisonError::into_inner);
    left.retain(|path| kept.iter().all(|file| file.staged != *path));
    clean_up(tools.store, left).await;
    match compact {
        Ok(compact) => {
            let (replaced, new) = (compact.replaced.len(), compact.files.len());
            tracing::info!(partition, replaced, new, missing = compact.missing.len(), "compaction is written");
            task.ended(Some((replaced as u64, new as u64)));
            if new == 0 && compact.missing.is_empty() {
                return Err(CompactError::Nothing { partition });
            }
            Ok(compact)
        }
        Err(error) => {
            tracing::info!(%error, "compaction ends early");
            task.ended(None);
            Err(error)
        }
    }
}

/// Deletes the staged files of a compaction that is not committed and never will be.
pub async fn abandon(store: &dyn Store, compact: &wire::Compact) {
    clean_up(store, compact.files.iter().map(|file| file.staged.clone()).collect()).await;
}

#[derive(Clone, Copy)]
struct Job<'a> {
    tools: Tools<'a>,
    layout: &'a Layout,
    plan: &'a Plan,
    /// Every path for which a create was sent.
    staged: &'a Mutex<Vec<String>>,
}

/// What became of one planned file.
#[derive(Default)]
struct Joined {
    replaced: Vec<String>,
    missing: Vec<String>,
    file: Option<wire::PublishedFile>,
}

fn compact(plan: &Plan, joined: Vec<Joined>) -> wire::Compact {
    let mut compact = wire::Compact {
        dataset: plan.key.dataset.to_string(),
        partition: Some(plan.key.partition.into()),
        ..Default::default()
    };
    for Joined { replaced, missing, file } in joined {
        compact.replaced.extend(replaced);
        compact.missing.extend(missing);
        compact.files.extend(file);
    }
    compact
}

async fn joined(job: Job<'_>, numbers: Mutex<impl FnMut() -> u64 + Send>) -> Result<Vec<Joined>, StoreError> {
    let mut all = outputs(job, numbers).await?;
    // At the end, for all: the longest of them may take hours.
    for (planned, joined) in job.plan.outputs.iter().zip(&mut all).filter(|(_, joined)| joined.file.is_some()) {
        let mut sources = Source::all(&job.plan.key.dir(), planned);
        sources.retain(|source| joined.replaced.contains(&source.path));
        if !look_again(job, sources, &mut joined.missing).await? {
            joined.file = None;
            joined.replaced.clear();
        }
    }
    Ok(all)
}

/// Are these inputs of an output still all there, as they were?
async fn look_again(job: Job<'_>, sources: Vec<Source>, missing: &mut Vec<String>) -> Result<bool, StoreError> {
    let all = sources.len();
    Ok(checked(job, sources, missing).await?.len() == all)
}

async fn outputs(job: Job<'_>, numbers: Mutex<impl FnMut() -> u64 + Send>) -> Result<Vec<Joined>, StoreError> {
    let next = || numbers.lock().unwrap_or_else(PoisonError::into_inner)();
    let works: Vec<_> = job.plan.outputs.iter().map(|planned| join(job, planned, &next)).collect();
    futures::stream::iter(works).buffered(job.tools.budget.parallel()).try_collect().await
}

async fn join(job: Job<'_>, planned: &PlannedFile, numbers: &(dyn Fn() -> u64 + Sync)) -> Result<Joined, StoreError> {
    let mut joined = Joined::default();
    let mut sources = check(job, planned, &mut joined.missing).await?;
    for last in [false, true] {
        if sources.len() < 2 {
            break;
        }
        let schema = match planned.kind {
            Kind::Parquet => Some(newest_of(job, &mut sources, &mut joined.missing).await?),
            _ => None,
        };
        if sources.len() < 2 {
            break;
        }
        let attempt = write(job, planned.kind, &sources, schema, numbers()).await?;
        sources.retain(|source| !attempt.bad.iter().any(|(bad, _)| bad == source));
        let clean = !attempt.dirty && sources.len() >= 2;
        for (source, trouble) in attempt.bad {
            report_trouble(job, source, trouble, &mut joined.missing)?;
        }
        if clean && let Some(file) = attempt.file {
            joined.replaced = sources.into_iter().map(|source| source.path).collect();
            joined.file = Some(file);
            break;
        }
        if !last {
            sources.iter().for_each(|source| job.tools.task.again(source.entry.bytes));
        }
    }
    Ok(joined)
}

/// The inputs that are there, as long as the log says, and were not refused before.
async fn check(job: Job<'_>, planned: &PlannedFile, missing: &mut Vec<String>) -> Result<Vec<Source>, StoreError> {
    let mut sources = Source::all(&job.plan.key.dir(), planned);
    sources.retain(|source| !job.tools.task.is_refused(&source.path));
    checked(job, sources, missing).await
}

/// Those that are there, as long as the log says.
async fn checked(job: Job<'_>, sources: Vec<Source>, missing: &mut Vec<String>) -> Result<Vec<Source>, StoreError> {
    let checks: Vec<_> = sources
        .into_iter()
        .map(|source| async move {
            let checked = source.check(job.tools).await;
            (source, checked)
        })
        .collect();
    let mut good = Vec::new();
    let mut checks = futures::stream::iter(checks).buffered(CHECKS);
    while let Some((source, checked)) = checks.next().await {
        match checked {
            Ok(()) => good.push(source),
            Err(trouble) => report_trouble(job, source, trouble, missing)?,
        }
    }
    Ok(good)
}

/// The schema of a Parquet output; inputs that cannot be read, or whose rows do not fit in it, are left out.
async fn newest_of(
    job: Job<'_>,
    sources: &mut Vec<Source>,
    missing: &mut Vec<String>,
) -> Result<arrow_schema::SchemaRef, StoreError> {
    let footers: Vec<_> = std::mem::take(sources)
        .into_iter()
        .map(|source| async move {
            // The footer itself is let go of: one after the other they would be most of the memory.
            let schema = footer(job.tools, &source).await.map(|footer| footer.schema().clone());
            (source, schema)
        })
        .collect();
    let mut readable = Vec::new();
    let mut footers = futures::stream::iter(footers).buffered(CHECKS);
    while let Some((source, schema)) = footers.next().await {
        match schema {
            Ok(schema) => readable.push((source, schema)),
            Err(trouble) => report_trouble(job, source, trouble, missing)?,
        }
    }
    let newest = newest(&job.plan.dataset, readable.iter().map(|(_, schema)| schema));
    for (source, schema) in readable {
        match fits(&schema, &newest) {
            Ok(()) => sources.push(source),
            Err(reason) => report_trouble(job, source, Trouble::Refused(reason), missing)?,
        }
    }
    Ok(newest)
}

/// One try to write an output.
struct Attempt {
    /// None if it is of no use.
    file: Option<wire::PublishedFile>,
    bad: Vec<(Source, Trouble)>,
    /// It holds something of a bad input.
    dirty: bool,
}

async fn write(
    job: Job<'_>,
    kind: Kind,
    sources: &[Source],
    schema: Option<arrow_schema::SchemaRef>,
    number: u64,
) -> Result<Attempt, StoreError> {
    let tools = job.tools;
    let published = named(job.plan, kind, job.layout.incarnation(), number);
    job.staged.lock().unwrap_or_else(PoisonError::into_inner).push(published.staged.clone());
    let mut rows = schema.map(Join::new).transpose().map_err(|e| StoreError::Other {
        op: "encode",
        path: published.staged.clone(),
        detail: e.to_string(),
    })?;
    let mut output = Output::create(tools, published).await?;
    let (mut good, mut bad, mut dirty) = (Vec::new(), Vec::new(), false);
    for source in sources {
        let added = match &mut rows {
            // Nothing is written any more; the rest is looked at, so that the next try is the last one.
            _ if dirty => look(tools, source).await,
            Some(rows) => rows.append(tools, source, &mut output, &mut dirty).await,
            None => text::append(tools, source, &mut output, &mut dirty).await,
        };
        match added {
            Ok(()) => good.push(source.clone()),
            Err(Trouble::Store(error)) => return Err(error),
            Err(trouble) => bad.push((source.clone(), trouble)),
        }
    }
    if dirty || good.len() < 2 {
        return Ok(Attempt { file: None, bad, dirty });
    }
    if let Some(rows) = rows {
        rows.finish(tools, &mut output).await?;
    }
    Ok(Attempt { file: Some(output.close(&good).await?), bad, dirty })
}

async fn look(tools: Tools<'_>, source: &Source) -> Result<(), Trouble> {
    Reader::new(tools, source).finish().await
}

/// Says what is wrong with an input, once; an error of the store ends everything.
fn report_trouble(job: Job<'_>, source: Source, trouble: Trouble, missing: &mut Vec<String>) -> Result<(), StoreError> {
    match trouble {
        Trouble::Store(error) => return Err(error),
        Trouble::Refused(reason) => job.tools.task.refuse(&source.path, &reason),
        Trouble::Missing => {
            job.tools.task.missing(&source.path);
            missing.push(source.path);
        }
    }
    Ok(())
}

async fn report(tools: Tools<'_>) -> Infallible {
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        let Running { partition, inputs_done, inputs, bytes_done, bytes, .. } = tools.task.now();
        let waits = tools.budget.is_waiting();
        tracing::info!(partition, inputs_done, inputs, bytes_done, bytes, waits, "compaction goes on");
    }
}

/// Deletes staged files that nothing will ever name. What cannot be deleted now goes with the incarnation's directory.
async fn clean_up(store: &dyn Store, paths: Vec<String>) {
    let deleting = async {
        for path in &paths {
            if let Err(error) = store.delete(path, false).await {
                tracing::info!(path, %error, "staged file of a compaction is left");
            }
        }
    };
    if tokio::time::timeout(CLEAN_UP, deleting).await.is_err() {
        tracing::info!(files = paths.len(), "staged files of a compaction are left: the store does not answer in time");
    }
}
