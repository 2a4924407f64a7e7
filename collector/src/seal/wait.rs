//! One thing a partition waits for, in the words of an operator. Pure.

use proto::ids::{AgentName, Origin};
use proto::intervals::IntervalSet;
use proto::wire;
use proto::wire::GapReason;

use crate::log::view::origins::standing::{Leaf, Trouble};

/// What is missing, whose it is, and what to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Wait {
    /// Whose; none where no agent is known at all.
    pub agent: Option<AgentName>,
    /// The run, where a single one is meant.
    pub origin: Option<Origin>,
    /// Why.
    pub reason: GapReason,
    /// The last T that counts, milliseconds since the epoch.
    pub last_mark_unix_ms: Option<i64>,
    /// Since when nothing can be said of it: the last T, else the first record of the agent, else the partition's end.
    pub since_unix_ms: i64,
    /// Known seqs that are not committed.
    pub missing: IntervalSet,
    /// Everything from this seq on is unknown.
    pub missing_from: Option<u64>,
    /// What an operator can do, one or two sentences.
    pub advice: String,
}

impl Wait {
    /// Nobody is known whose word would count.
    pub fn nobody(since_unix_ms: i64) -> Self {
        let advice = "no agent is known whose word would count: all were forgotten, or every run of theirs was \
                      abandoned. Start an agent, or seal by hand with `catchment-collector seal now --incomplete`";
        Self { agent: None, ..Self::of_agent(None, GapReason::NoMark, since_unix_ms, advice.into()) }
    }

    /// Something that is no single run's.
    pub fn of_agent(agent: Option<&AgentName>, reason: GapReason, since_unix_ms: i64, advice: String) -> Self {
        Self {
            agent: agent.cloned(),
            origin: None,
            reason,
            last_mark_unix_ms: None,
            since_unix_ms,
            missing: IntervalSet::new(),
            missing_from: None,
            advice,
        }
    }

    /// A leaf without a counting mark that is late enough.
    pub fn of_leaf(agent: &AgentName, leaf: &Leaf, first_record_unix_ms: i64) -> Self {
        let since = leaf.mark_unix_ms.unwrap_or(first_record_unix_ms);
        let wait = match &leaf.trouble {
            Some((origin, trouble)) => Self::of_trouble(agent, *origin, trouble, since),
            None => {
                let advice = format!(
                    "{agent} has not said that it read everything since then. Start it, or look at \
                     `catchment-edge-agent status` there; if it is gone for good: `catchment-collector seal forget {agent}`"
                );
                let wait = Self::of_agent(Some(agent), GapReason::NoMark, since, advice);
                Self { origin: Some(leaf.origin), ..wait }
            }
        };
        Self { last_mark_unix_ms: leaf.mark_unix_ms, ..wait }
    }

    /// A run that keeps marks from counting.
    pub fn of_trouble(agent: &AgentName, origin: Origin, trouble: &Trouble, since_unix_ms: i64) -> Self {
        let abandon = |origin: &Origin, seqs: &str| {
            format!(
                "`catchment-collector seal abandon --agent {agent} --origin {origin}{seqs} --reason TEXT` (no day that \
                 begins before then and 24 h is complete)"
            )
        };
        let (reason, advice) = match trouble {
            Trouble::Missing { seqs, from } => {
                let ranges = if from.is_none() || !seqs.is_empty() { ranges(seqs, None) } else { String::new() };
                let what =
                    if ranges.is_empty() { "the end of this run is".into() } else { format!("batches {ranges} are") };
                let option = if ranges.is_empty() { String::new() } else { format!(" --seqs {ranges}") };
                let advice = format!(
                    "{what} not in the log. They lie in the outbox of {agent} or at an aggregator that is down: start \
                     those. If they are lost with a disk: {}",
                    abandon(&origin, &option)
                );
                (GapReason::MissingSeqs, advice)
            }
            Trouble::Restored(from) => {
                let advice = format!(
                    "its state directory was restored or copied while run {from} may go on elsewhere. If what it was \
                     copied from is gone, or the directory was only moved (say `catchment-edge-agent outbox adopt` before \
                     the first start in a new place, and nothing waits): {}. If it goes on, stop the copy and abandon the \
                     copy's run {origin} in the same way, not that of the original",
                    abandon(from, "")
                );
                (GapReason::Restored, advice)
            }
            Trouble::Contradicted(by) => {
                let by: Vec<String> = by.iter().map(ToString::to_string).collect();
                let runs = if by.is_empty() { String::new() } else { format!(" ({} go on from it)", by.join(", ")) };
                let advice = format!(
                    "two runs say different things of this one{runs}: a cloned machine or a copied state directory uses \
                     the name {agent}. Stop the clone, give it a name and an empty state directory of its own, and \
                     abandon the run of the clone, not that of the original: `catchment-collector seal abandon --agent \
                     {agent} --origin RUN --reason TEXT`"
                );
                (GapReason::Contradicted, advice)
            }
            Trouble::NoOpen => {
                let advice = format!(
                    "the first batch of this run was quarantined, so nobody knows what was before it: start {agent} \
                     again; if that does not help: {}",
                    abandon(&origin, "")
                );
                (GapReason::MissingSeqs, advice)
            }
        };
        let mut wait = Self::of_agent(Some(agent), reason, since_unix_ms, advice);
        wait.origin = Some(origin);
        match trouble {
            Trouble::Missing { seqs, from } => (wait.missing, wait.missing_from) = (seqs.clone(), *from),
            Trouble::NoOpen => wait.missing.insert_range(0, 1),
            Trouble::Restored(_) | Trouble::Contradicted(_) => {}
        }
        wait
    }

    /// As a seal says it.
    pub fn to_gap(&self) -> wire::SealGap {
        wire::SealGap {
            agent: self.agent.as_ref().map(ToString::to_string).unwrap_or_default(),
            reason: self.reason as i32,
            origin: self.origin.map(Origin::to_bytes).unwrap_or_default(),
            last_mark_unix_ms: self.last_mark_unix_ms,
            missing: (!self.missing.is_empty()).then(|| (&self.missing).into()),
            missing_from: self.missing_from,
        }
    }
}

/// `3-9,12,20-`: both ends inclusive.
pub fn ranges(seqs: &IntervalSet, from: Option<u64>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (start, end) in seqs.iter() {
        parts.push(match end - start {
            1 => start.to_string(),
            _ if end == u64::MAX => format!("{start}-"),
            _ => format!("{start}-{}", end - 1),
        });
    }
    parts.extend(from.map(|from| format!("{from}-")));
    parts.join(",")
}

/// A reason as a word, for logs, markers and tools.
pub fn word(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Unspecified => "unknown",
        GapReason::NoMark => "silent",
        GapReason::MissingSeqs => "missing_batches",
        GapReason::Restored => "restored",
        GapReason::Contradicted => "contradicted",
        GapReason::NeverSeen => "never_seen",
        GapReason::Departed => "departed",
        GapReason::Abandoned => "abandoned",
        GapReason::Forgotten => "forgotten",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_copy_both_runs_are_named_for_either_may_be_the_one_to_abandon() {
        let (agent, copy, original) = (AgentName::new("web-1").unwrap(), Origin::mint(7, 7), Origin::mint(5, 5));
        let wait = Wait::of_trouble(&agent, copy, &Trouble::Restored(original), 0);
        assert!(
            wait.advice.contains(&copy.to_string()) && wait.advice.contains(&original.to_string()),
            "{}",
            wait.advice
        );
    }

    /// An operator copies them.
    #[test]
    fn commands_are_called_by_the_names_of_their_binaries() {
        let (agent, origin) = (AgentName::new("web-1").unwrap(), Origin::mint(5, 5));
        let leaf = |trouble| Leaf { origin, abandoned: false, left: false, mark_unix_ms: None, trouble };
        let seqs: IntervalSet = [3, 4].into_iter().collect();
        let troubles = [
            Trouble::Missing { seqs, from: Some(6) },
            Trouble::Restored(origin),
            Trouble::Contradicted(vec![origin]),
            Trouble::NoOpen,
        ];
        let waits = troubles.map(|trouble| Wait::of_leaf(&agent, &leaf(Some((origin, trouble))), 0));
        for advice in
            waits.into_iter().chain([Wait::nobody(0), Wait::of_leaf(&agent, &leaf(None), 0)]).map(|w| w.advice)
        {
            let commands: Vec<&str> = advice.split('`').skip(1).step_by(2).collect();
            assert!(!commands.is_empty(), "{advice}");
            for command in commands {
                let named =
                    ["catchment-edge-agent ", "catchment-collector "].iter().any(|name| command.starts_with(name));
                assert!(named, "{command:?} in: {advice}");
            }
        }
    }
}
