//! What changes the log by hand besides seals: `forget`, `abandon`. Each says what it does and what that costs, checks it
//! against the log, and checks it again after every record that came between.

use anyhow::bail;
use proto::ids::{AgentName, Origin};
use proto::intervals::IntervalSet;
use proto::wire;
use proto::wire::commit_record::Action;
use serde::Serialize;

use super::super::findings::Refused;
use super::{Abandon, Forget, How, Site, user};
use crate::commit::solo::{Solo, System};
use crate::log::View;
use crate::log::view::origins::complement;
use crate::seal::marker::time;
use crate::seal::rule::DOUBT_MS;
use crate::seal::wait::ranges;

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct Outcome {
    /// The record; absent if nothing was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<u64>,
    what: String,
}

fn say(outcome: &Outcome, how: How, print: impl Fn(&str)) -> anyhow::Result<()> {
    if how.json {
        print(&serde_json::to_string_pretty(outcome)?);
        return Ok(());
    }
    print(&match outcome.record {
        Some(n) => format!("{} (record {n})", outcome.what),
        None => outcome.what.clone(),
    });
    Ok(())
}

pub(super) async fn begin(site: &Site) -> anyhow::Result<Solo> {
    let waiting = |reason: &str| tracing::warn!(reason, "waiting for the destination");
    Ok(Solo::begin(std::sync::Arc::clone(&site.store), "seal-tool", site.modes(), Box::new(System), waiting).await?)
}

/// `seal forget`.
pub(super) async fn forget(site: Site, forget: &Forget, print: impl Fn(&str)) -> anyhow::Result<()> {
    let Forget { agent, reason, how, .. } = forget;
    let how = *how;
    let view = site.read().await?;
    let said = match what_forget_does(&view, agent) {
        Ok(said) => said,
        Err(refused) => return Err(Refused(refused).into()),
    };
    if how.dry_run {
        return say(&Outcome { record: None, what: format!("would forget {said}") }, how, print);
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
    say(&Outcome { record: Some(n), what: format!("forgot {said}") }, how, print)
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
        Err(refused) => return Err(Refused(refused).into()),
    };
    if how.dry_run {
        return say(&Outcome { record: None, what: format!("would abandon {said}") }, how, print);
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
    say(&Outcome { record: Some(n), what: format!("abandoned {said}") }, how, print)
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
