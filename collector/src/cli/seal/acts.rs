//! What changes the log by hand: `seal now`, `forget`, `abandon`. Each says what it does and what that costs, checks it
//! against the log, and checks it again after every record that came between.

use anyhow::bail;
use proto::ids::{AgentName, Origin};
use proto::intervals::IntervalSet;
use proto::wire;
use proto::wire::commit_record::Action;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::status::For;
use super::{Abandon, Forget, How, Now, Site, user};
use crate::commit::solo::{Solo, SoloError, System};
use crate::compact::{self, Budget, Progress};
use crate::config::dataset::DatasetConfig;
use crate::housekeeping;
use crate::log::View;
use crate::log::view::PartitionKey;
use crate::log::view::origins::complement;
use crate::seal::assess;
use crate::seal::marker::{text, time};
use crate::seal::rule::DOUBT_MS;
use crate::seal::wait::{ranges, word};

/// Rounds of compaction before a seal.
const COMPACTIONS: usize = 2;

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct Outcome {
    /// The record; absent if nothing was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<u64>,
    what: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<For>,
}

fn say(outcome: &Outcome, how: How, print: impl Fn(&str)) -> anyhow::Result<()> {
    if how.json {
        print(&serde_json::to_string_pretty(outcome)?);
        return Ok(());
    }
    outcome.missing.iter().for_each(|missing| print(&missing.to_string()));
    print(&match outcome.record {
        Some(n) => format!("{} (record {n})", outcome.what),
        None => outcome.what.clone(),
    });
    Ok(())
}

async fn begin(site: &Site) -> anyhow::Result<Solo> {
    let waiting = |reason: &str| tracing::warn!(reason, "waiting for the destination");
    Ok(Solo::begin(std::sync::Arc::clone(&site.store), "seal-tool", site.modes(), Box::new(System), waiting).await?)
}

/// `seal now`.
pub(super) async fn now(mut site: Site, now: &Now, print: impl Fn(&str)) -> anyhow::Result<()> {
    if let Some(said) = site.with_defaults_for(&now.dataset)?
        && !now.how.json
    {
        print(&said);
    }
    let key = PartitionKey { dataset: now.dataset.clone(), partition: now.partition };
    let view = site.read().await?;
    let by = now.by.clone().unwrap_or_else(user);
    let (seal, waits) = match check(&site, &view, &key, now, &by, site.now_unix_ms()) {
        Ok(found) => found,
        Err(refused) => bail!(refused),
    };
    let mut outcome = Outcome { record: None, what: String::new(), missing: waits.iter().map(For::from).collect() };
    if !seal.complete && !now.incomplete {
        say(&Outcome { what: gaps(&seal), ..outcome }, now.how, print)?;
        bail!("{key} is not sealed: the counts do not close. --incomplete seals it all the same, as _INCOMPLETE");
    }
    let word = if seal.complete { "complete" } else { "incomplete" };
    if now.how.dry_run {
        outcome.what = format!("would seal {key} as {word}: {} events in {} files", seal.events, seal.files);
        return say(&outcome, now.how, print);
    }
    let dataset = std::sync::Arc::clone(&site.datasets[&now.dataset]);
    let mut solo = begin(&site).await?;
    let sealed = seal_by(&mut solo, &site, &key, now, &by, &dataset).await;
    let ended = solo.view().clone();
    let end = solo.end().await;
    outcome.record = Some(sealed?);
    end?;
    if let Some(sealed) = ended.partitions().sealed(&key) {
        outcome.what = format!("sealed {key}: {}", text(&key, sealed).message);
    }
    say(&outcome, now.how, print)
}

/// What the seal says and what is missing; `Err` where it cannot be sealed at all.
fn check(
    site: &Site,
    view: &View,
    key: &PartitionKey,
    now: &Now,
    by: &str,
    now_unix_ms: i64,
) -> Result<(wire::PartitionSeal, Vec<crate::seal::Wait>), String> {
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
    Ok((seal, waits))
}

async fn seal_by(
    solo: &mut Solo,
    site: &Site,
    key: &PartitionKey,
    now: &Now,
    by: &str,
    dataset: &DatasetConfig,
) -> anyhow::Result<u64> {
    if let Err(reason) = solo.finish_files(key).await {
        bail!("{key} is not sealed: {reason}; try again when its collector has finished");
    }
    compact_first(solo, site, key, dataset).await?;
    let committed = solo.commit(|view, now_unix_ms| {
        let (seal, _) = check(site, view, key, now, by, now_unix_ms)?;
        if !seal.complete && !now.incomplete {
            return Err(format!("{key} is not sealed: the counts do not close any more, look again"));
        }
        Ok(Action::Seal(wire::Seal { partitions: vec![seal] }))
    });
    let n = committed.await?;
    solo.finish_marker(n, key, |marker| marker.readable_as(dataset)).await?;
    Ok(n)
}

/// Joins small files. What cannot be joined stays as it is: that holds no seal back.
async fn compact_first(
    solo: &mut Solo,
    site: &Site,
    key: &PartitionKey,
    dataset: &DatasetConfig,
) -> anyhow::Result<()> {
    let budget = Budget::new(&site.compaction, watch::channel(false).1);
    let mut numbers = 0..;
    for _ in 0..COMPACTIONS {
        let open = solo.view().partitions().open().find(|(open, ..)| *open == key).map(|(_, _, open)| open);
        let Some(plan) = open.and_then(|open| compact::plan(dataset, key, open, &site.compaction)) else {
            return Ok(());
        };
        let next = || numbers.next().unwrap_or_default();
        let (progress, stop) = (Progress::default(), CancellationToken::new());
        let compact = match compact::run(&site.store, solo.layout(), plan, next, &budget, &progress, stop).await {
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
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        if let Err(reason) = solo.finish_files(key).await {
            bail!("{key} is not sealed: {reason}; the collectors finish that");
        }
    }
    Ok(())
}

fn gaps(seal: &wire::PartitionSeal) -> String {
    let abandoned: Vec<String> =
        seal.gaps.iter().map(|gap| format!("{} ({})", gap.agent, word(gap.reason()))).collect();
    format!("missing: {}", abandoned.join(", "))
}

/// `seal forget`.
pub(super) async fn forget(site: Site, forget: &Forget, print: impl Fn(&str)) -> anyhow::Result<()> {
    let Forget { agent, reason, how, .. } = forget;
    let how = *how;
    let view = site.read().await?;
    let said = match what_forget_does(&view, agent) {
        Ok(said) => said,
        Err(refused) => bail!(refused),
    };
    if how.dry_run {
        return say(&Outcome { record: None, what: format!("would forget {said}"), missing: Vec::new() }, how, print);
    }
    let mut solo = begin(&site).await?;
    let forgotten = solo.commit(|view, _| {
        what_forget_does(view, agent)?;
        Ok(Action::Forget(wire::Forget { agent: agent.to_string(), reason: reason.clone() }))
    });
    let n = forgotten.await;
    let end = solo.end().await;
    let n = n?;
    end?;
    say(&Outcome { record: Some(n), what: format!("forgot {said}"), missing: Vec::new() }, how, print)
}

fn what_forget_does(view: &View, agent: &AgentName) -> Result<String, String> {
    let row = view.origins().agent(agent).filter(|row| row.is_in_the_log());
    let Some(row) = row else {
        return Err(format!("the log has no agent {agent}; `seal status` shows the names"));
    };
    if let Some(at) = row.forgotten_unix_ms {
        return Err(format!("{agent} was forgotten at {} and sent nothing since", time(at)));
    }
    let standing = row.standing(agent, view.committed());
    let runs = standing.waited_for().filter(|leaf| !leaf.left).count();
    Ok(format!(
        "{agent}: its last record is of {}, {runs} run(s) of it were waited for. No day waits for it until its next \
         record. If it comes back with its directory, all it had counts as before; if with an empty one, no day that \
         begins before then and 24 h is complete while something of its old runs is missing",
        time(row.last_record_unix_ms)
    ))
}

/// `seal abandon`.
pub(super) async fn abandon(site: Site, abandon: &Abandon, print: impl Fn(&str)) -> anyhow::Result<()> {
    let (agent, origin, how) = (&abandon.agent, abandon.origin, abandon.how);
    let seqs = match abandon.seqs.as_deref().map(parse_seqs) {
        None => IntervalSet::new(),
        Some(Some(seqs)) => seqs,
        Some(None) => bail!("--seqs are numbers and ranges, both ends included: 3-9,12"),
    };
    let view = site.read().await?;
    let said = match what_abandon_does(&view, agent, origin, &seqs, site.now_unix_ms()) {
        Ok(said) => said,
        Err(refused) => bail!(refused),
    };
    if how.dry_run {
        return say(&Outcome { record: None, what: format!("would abandon {said}"), missing: Vec::new() }, how, print);
    }
    let mut solo = begin(&site).await?;
    let abandoned = solo.commit(|view, time_unix_ms| {
        what_abandon_does(view, agent, origin, &seqs, time_unix_ms)?;
        Ok(Action::Abandon(wire::Abandon {
            agent: agent.to_string(),
            origin: origin.to_bytes(),
            ranges: (!seqs.is_empty()).then(|| (&seqs).into()),
            time_unix_ms,
            reason: format!("{} ({})", abandon.reason, user()),
        }))
    });
    let n = abandoned.await;
    let end = solo.end().await;
    let n = n?;
    end?;
    say(&Outcome { record: Some(n), what: format!("abandoned {said}"), missing: Vec::new() }, how, print)
}

fn what_abandon_does(
    view: &View,
    agent: &AgentName,
    origin: Origin,
    seqs: &IntervalSet,
    now_unix_ms: i64,
) -> Result<String, String> {
    let Some(row) = view.origins().agent(agent).filter(|row| row.is_in_the_log()) else {
        return Err(format!("the log has no agent {agent}; `seal status` shows the names"));
    };
    let committed = view.committed().origin(agent, origin);
    let named = row.origins.values().any(|row| row.begin.names(origin));
    if committed.is_none() && !named {
        return Err(format!("the log has no run {origin} of {agent}, and no later run names it; see `seal status`"));
    }
    let what = if seqs.is_empty() {
        if row.origins.get(&origin).is_some_and(|row| row.is_abandoned()) {
            return Err(format!("run {origin} of {agent} was abandoned already"));
        }
        "all that is missing and all that it would still send".to_owned()
    } else {
        let missing = complement(committed, seqs.iter().last().map_or(0, |(_, end)| end));
        if !seqs.iter().all(|(start, end)| missing.contains_range(start, end)) {
            return Err(format!(
                "some of the batches {} of run {origin} are in the log: they are not lost",
                ranges(seqs, None)
            ));
        }
        format!("its batches {}", ranges(seqs, None))
    };
    let doubt = time(now_unix_ms.saturating_add(DOUBT_MS));
    Ok(format!(
        "run {origin} of {agent}: {what}. Nobody waits for that any more, and no day that begins before {doubt} is \
         complete unless it comes after all: those are sealed as _INCOMPLETE and name it"
    ))
}

/// `3-9,12`, both ends included; `20-` has no end.
fn parse_seqs(text: &str) -> Option<IntervalSet> {
    let mut seqs = IntervalSet::new();
    for part in text.split(',') {
        let (start, end) = match part.trim().split_once('-') {
            None => (part.trim().parse().ok()?, part.trim().parse::<u64>().ok()?.checked_add(1)?),
            Some((start, "")) => (start.parse().ok()?, u64::MAX),
            Some((start, end)) => (start.parse::<u64>().ok()?, end.parse::<u64>().ok()?.checked_add(1)?),
        };
        if start >= end {
            return None;
        }
        seqs.insert_range(start, end);
    }
    Some(seqs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seqs_are_given_as_they_are_shown() {
        for text in ["3-9,12", "0", "20-"] {
            assert_eq!(ranges(&parse_seqs(text).unwrap(), None), text);
        }
        assert_eq!(ranges(&parse_seqs("12, 3-9,10-11").unwrap(), None), "3-12");
        for bad in ["", "a", "9-3", "3-9,", "-3"] {
            assert_eq!(parse_seqs(bad), None, "{bad}");
        }
    }
}
