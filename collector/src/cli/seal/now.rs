//! `seal now`: seals by hand what is due, or one partition. What is not complete is left and named, unless it may be
//! sealed as incomplete. Everything is checked against the log, and again after every record that came between.

use std::ops::RangeFrom;

use anyhow::bail;
use proto::ids::DatasetName;
use proto::wire;
use proto::wire::commit_record::Action;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::super::findings::Refused;
use super::acts::begin;
use super::status::For;
use super::{Now, Site, user};
use crate::commit::solo::{Solo, SoloError};
use crate::compact::{self, Budget, Progress};
use crate::housekeeping;
use crate::log::View;
use crate::log::view::PartitionKey;
use crate::seal::marker::{text, time};
use crate::seal::wait::word;
use crate::seal::{Wait, assess};

/// Rounds of compaction before a seal.
const COMPACTIONS: usize = 2;

/// Everything, as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    partitions: &'a [Outcome],
    notes: &'a [String],
}

/// What became of one partition.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// Its dataset and partition.
    #[serde(rename = "partition")]
    name: String,
    /// It is sealed now; with `--dry-run`: it would be.
    sealed: bool,
    /// The record; absent if nothing was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<u64>,
    what: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<For>,
    /// It is not open to a seal at all, as `what` says.
    #[serde(skip)]
    refused: bool,
}

/// This process as one that writes to the log.
struct Tool {
    solo: Solo,
    /// Numbers of what it stages, each used once.
    groups: RangeFrom<u64>,
}

/// What the log says of one partition.
enum Found {
    /// It may be sealed.
    Sealable(Box<wire::PartitionSeal>, Vec<Wait>),
    /// Its counts do not close, and nobody asked for a seal all the same.
    Incomplete(String, Vec<Wait>),
}

/// Does it.
pub(super) async fn now(mut site: Site, now: &Now, print: impl Fn(&str)) -> anyhow::Result<()> {
    let view = site.read().await?;
    let (keys, notes) = asked(&mut site, &view, now)?;
    if !now.how.json {
        notes.iter().for_each(|note| print(note));
    }
    let by = now.by.clone().unwrap_or_else(user);
    let (mut outcomes, mut tool, mut failed) = (Vec::new(), None, None);
    for key in &keys {
        match one(&site, &view, &mut tool, key, now, &by).await {
            Ok(outcome) => {
                if !now.how.json {
                    outcome.print(&print);
                }
                outcomes.push(outcome);
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let end = match tool {
        Some(tool) => tool.solo.end().await,
        None => Ok(()),
    };
    if now.how.json {
        print(&serde_json::to_string_pretty(&Report { partitions: &outcomes, notes: &notes })?);
    } else if keys.is_empty() {
        print("nothing is due: `seal status` shows what is open and until when");
    }
    if let Some(error) = failed {
        return Err(error);
    }
    end?;
    match left(&outcomes) {
        None => Ok(()),
        Some(left) => Err(Refused(left).into()),
    }
}

/// What was not sealed, and why.
fn left(outcomes: &[Outcome]) -> Option<String> {
    let names = |refused: bool| {
        let left = outcomes.iter().filter(|outcome| !outcome.sealed && outcome.refused == refused);
        let names: Vec<&str> = left.map(|outcome| outcome.name.as_str()).collect();
        let are = if names.len() == 1 { "is" } else { "are" };
        (!names.is_empty()).then(|| format!("{} {are} not sealed", names.join(", ")))
    };
    let open = names(false)
        .map(|left| format!("{left}: the counts do not close. --incomplete seals all the same, as _INCOMPLETE"));
    let refused = names(true).map(|left| format!("{left}: see above"));
    let said: Vec<String> = open.into_iter().chain(refused).collect();
    (!said.is_empty()).then(|| said.join("; "))
}

impl Outcome {
    fn print(&self, print: impl Fn(&str)) {
        self.missing.iter().for_each(|missing| print(&missing.to_string()));
        print(&match self.record {
            Some(n) => format!("{} (record {n})", self.what),
            None => self.what.clone(),
        });
    }
}

/// The partitions that are meant, in order, and what is to be said of those that are not.
fn asked(site: &mut Site, view: &View, now: &Now) -> anyhow::Result<(Vec<PartitionKey>, Vec<String>)> {
    let mut notes = Vec::new();
    let assumed = match (site.declared, &now.zone) {
        (true, None) => None,
        (true, Some(_)) => bail!("--zone is for where no configuration is given: the configuration says the zone"),
        (false, Some(zone)) => {
            notes
                .push("no configuration: small files are not joined, and markers get the modes of defaults".to_owned());
            Some((zone.as_str(), now.lateness))
        }
        (false, None) => bail!(
            "without a configuration nobody knows when a day is over: give --config FILE of the collectors, or --zone and \
             --lateness of the dataset (`--zone UTC --lateness 4h`)"
        ),
    };
    if let Some(dataset) = &now.dataset {
        site.declare(dataset, assumed)?;
        if let Some(partition) = now.partition {
            return Ok((vec![PartitionKey { dataset: dataset.clone(), partition }], notes));
        }
    }
    let meant = |key: &PartitionKey| {
        now.dataset.as_ref().is_none_or(|dataset| *dataset == key.dataset)
            && now.partition.is_none_or(|partition| partition == key.partition)
    };
    let open: Vec<PartitionKey> = view.partitions().open().map(|(key, ..)| key.clone()).filter(meant).collect();
    let mut datasets: Vec<DatasetName> = open.iter().map(|key| key.dataset.clone()).collect();
    datasets.dedup();
    let mut left_out = Vec::new();
    for dataset in datasets {
        if let Err(error) = site.declare(&dataset, assumed) {
            notes.push(format!("left out: {error:#}"));
            left_out.push(dataset);
        }
    }
    let due = |key: &PartitionKey| {
        let judged = assess(&site.rule(), view, key, site.now_unix_ms());
        // Of one that is named it is an answer that it is not over.
        judged.is_some_and(|(seal, _)| now.partition.is_some() || site.now_unix_ms() >= seal.due_unix_ms)
    };
    let keys: Vec<PartitionKey> = open.into_iter().filter(|key| !left_out.contains(&key.dataset) && due(key)).collect();
    if keys.is_empty()
        && let Some(partition) = now.partition
    {
        bail!("no dataset has an open partition {}; `seal status` shows what is there", partition.path());
    }
    Ok((keys, notes))
}

async fn one(
    site: &Site,
    view: &View,
    tool: &mut Option<Tool>,
    key: &PartitionKey,
    now: &Now,
    by: &str,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome { name: key.to_string(), ..Outcome::default() };
    let (seal, waits) = match check(site, view, key, now, by, site.now_unix_ms()) {
        Ok(Found::Sealable(seal, waits)) => (seal, waits),
        Ok(Found::Incomplete(gaps, waits)) => {
            outcome.missing = waits.iter().map(For::from).collect();
            outcome.what = format!("{key}: {gaps}");
            return Ok(outcome);
        }
        // Of several, the others are looked at all the same.
        Err(refused) if now.names_many() => {
            outcome.what = refused;
            outcome.refused = true;
            return Ok(outcome);
        }
        Err(refused) => return Err(Refused(refused).into()),
    };
    outcome.missing = waits.iter().map(For::from).collect();
    outcome.sealed = true;
    if now.how.dry_run {
        let word = if seal.complete { "complete" } else { "incomplete" };
        outcome.what = format!("would seal {key} as {word}: {} events in {} files", seal.events, seal.files);
        return Ok(outcome);
    }
    if tool.is_none() {
        *tool = Some(Tool { solo: begin(site).await?, groups: 0.. });
    }
    let tool = tool.as_mut().expect("it has begun");
    outcome.record = match seal_by(tool, site, key, now, by).await {
        Ok(n) => Some(n),
        // Collectors run, and seal what is due as well. Nothing else that goes wrong is passed over.
        Err(error)
            if now.names_many()
                && matches!(error.downcast_ref(), Some(SoloError::Refused(_)))
                && tool.solo.view().partitions().sealed(key).is_some() =>
        {
            None
        }
        Err(error) => return Err(error),
    };
    if let Some(sealed) = tool.solo.view().partitions().sealed(key) {
        let by_others = if outcome.record.is_none() { " meanwhile by a collector" } else { "" };
        outcome.what = format!("sealed {key}{by_others}: {}", text(key, sealed).message);
    }
    Ok(outcome)
}

/// What the log says of it; `Err` where it cannot be sealed at all.
fn check(site: &Site, view: &View, key: &PartitionKey, now: &Now, by: &str, now_unix_ms: i64) -> Result<Found, String> {
    if let Some(sealed) = view.partitions().sealed(key) {
        let text = text(key, sealed);
        return Err(format!("{key} was sealed at {}, record {}: {}", text.sealed_at, text.seal, text.message));
    }
    let Some((seal, waits)) = assess(&site.rule(), view, key, now_unix_ms) else {
        return Err(format!("{key} cannot be sealed: the log has no file in it; `seal status` shows what is there"));
    };
    let seal = wire::PartitionSeal { by: by.to_owned(), ..seal };
    if now_unix_ms < seal.due_unix_ms && !now.incomplete {
        let due = time(seal.due_unix_ms);
        return Err(format!("{key} is not over: its lateness ends at {due}. --incomplete seals it all the same"));
    }
    if !seal.complete && !now.incomplete {
        return Ok(Found::Incomplete(gaps(&seal), waits));
    }
    Ok(Found::Sealable(Box::new(seal), waits))
}

async fn seal_by(tool: &mut Tool, site: &Site, key: &PartitionKey, now: &Now, by: &str) -> anyhow::Result<u64> {
    finish_files(&tool.solo, key).await?;
    if site.declared {
        compact_first(tool, site, key).await?;
    }
    let solo = &mut tool.solo;
    let committed = solo.commit(|view, now_unix_ms| match check(site, view, key, now, by, now_unix_ms)? {
        Found::Sealable(seal, _) => Ok(Action::Seal(wire::Seal { partitions: vec![*seal] })),
        Found::Incomplete(..) => Err(format!("{key} is not sealed: the counts do not close any more, look again")),
    });
    let n = committed.await?;
    // Records that came between are in the seal: readers of the marker must find their files, and none that they replaced.
    if let Err(left) = solo.finish_files(key).await {
        return Err(SoloError::Unfinished { n, left }.into());
    }
    solo.finish_marker(n, key, |marker| site.readable(key, marker)).await?;
    Ok(n)
}

async fn finish_files(solo: &Solo, key: &PartitionKey) -> anyhow::Result<()> {
    match solo.finish_files(key).await {
        Ok(()) => Ok(()),
        Err(reason) => {
            Err(Refused(format!("{key} is not sealed: {reason}; try again when its collector has finished")).into())
        }
    }
}

/// Joins small files. What cannot be joined stays as it is: that holds no seal back.
async fn compact_first(tool: &mut Tool, site: &Site, key: &PartitionKey) -> anyhow::Result<()> {
    let Tool { solo, groups } = tool;
    let budget = Budget::alone(&site.compaction);
    let dataset = &site.datasets[&key.dataset];
    for _ in 0..COMPACTIONS {
        let open = solo.view().partitions().open().find(|(open, ..)| *open == key).map(|(_, _, open)| open);
        let Some(plan) = open.and_then(|open| compact::plan(dataset, key, open, &site.compaction)) else {
            return Ok(());
        };
        let next = || groups.next().unwrap_or_default();
        let (progress, stop) = (Progress::default(), CancellationToken::new());
        let layout = solo.layout().clone();
        let joining = compact::run(&site.store, &layout, plan, next, &budget, &progress, stop);
        let compact = match solo.while_alive(joining).await? {
            Ok(compact) => compact,
            Err(error) => {
                tracing::warn!(%error, "sealed without joining its small files");
                return Ok(());
            }
        };
        let committed = solo.commit(|view, _| match housekeeping::compact_holds(&compact, view) {
            true => Ok(Action::Compact(compact.clone())),
            false => Err("another run replaced some of the files".into()),
        });
        match committed.await {
            Ok(_) => {}
            Err(SoloError::Refused(reason)) => {
                tracing::info!(reason, "small files are not joined here");
                compact::abandon(&*site.store, &compact).await;
                // The files of the run that was faster come to their places before the seal, as do its deletions.
                return finish_files(solo, key).await;
            }
            Err(error) => return Err(error.into()),
        }
        finish_files(solo, key).await?;
    }
    Ok(())
}

fn gaps(seal: &wire::PartitionSeal) -> String {
    let abandoned: Vec<String> =
        seal.gaps.iter().map(|gap| format!("{} ({})", gap.agent, word(gap.reason()))).collect();
    format!("missing: {}", abandoned.join(", "))
}
