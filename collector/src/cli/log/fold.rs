//! Folds the whole log that is left, compares every checkpoint on the way, and notes every file that records name.

use std::collections::BTreeMap;

use futures::StreamExt;
use proto::wire;
use serde::Serialize;

use super::super::findings::Finding;
use super::files::Named;
use super::read::{self, Got, Listed};
use crate::log::{View, layout};
use crate::store::Store;

/// Records read at once.
const PARALLEL: usize = 8;
/// Differences that are named.
const NAMED: usize = 5;

/// What the log gave.
#[derive(Debug, Default)]
pub(super) struct Folded {
    /// Up to where it could be folded; none where nothing could be.
    pub view: Option<View>,
    /// Where the fold began.
    pub begin: u64,
    /// Records that were read and whole.
    pub whole: u64,
    /// The first and last record that is there.
    pub records: Option<(u64, u64)>,
    /// Every checkpoint.
    pub checkpoints: Vec<Compared>,
    /// The highest checkpoint that is whole.
    pub highest: Option<u64>,
    pub named: Named,
    pub findings: Vec<Finding>,
}

/// A checkpoint beside the fold of the records below it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Compared {
    /// Its number.
    pub n: u64,
    /// `equal`, `differs`, `not_compared` (the records below it are gone) or `damaged`.
    pub state: &'static str,
}

/// Reads and folds everything below `to`.
pub(super) async fn fold(store: &dyn Store, url: &str, to: Option<u64>) -> anyhow::Result<Folded> {
    let Listed { mut records, mut checkpoints, findings } = read::list(store, url).await?;
    let end = to.unwrap_or(u64::MAX);
    records.retain(|n| *n < end);
    checkpoints.retain(|n| *n <= end);
    let mut folded = Folded { findings, ..Folded::default() };
    folded.records = records.first().copied().zip(records.last().copied());
    let mut known = BTreeMap::new();
    for n in checkpoints {
        match read::checkpoint(store, n).await? {
            Got::Whole(checkpoint) => _ = known.insert(n, checkpoint),
            Got::Gone => {}
            Got::Wrong(finding) => {
                folded.findings.push(finding);
                folded.checkpoints.push(Compared { n, state: "damaged" });
            }
        }
    }
    folded.highest = known.keys().next_back().copied();
    if records.first().is_none_or(|first| *first == 0) && known.keys().all(|n| *n > 0) && !records.is_empty() {
        folded.view = Some(View::default());
    }
    if records.is_empty() && known.is_empty() {
        folded.view = Some(View::default());
    }
    folded.begin = match &folded.view {
        Some(_) => 0,
        None => known.keys().find(|n| records.first().is_none_or(|first| **n >= *first)).copied().unwrap_or(0),
    };
    folded.findings.extend(holes(&records, folded.highest.unwrap_or(0)));
    let mut reading = futures::stream::iter(records.iter().map(|n| async move { (*n, read::record(store, *n).await) }))
        .buffered(PARALLEL);
    while let Some((n, got)) = reading.next().await {
        folded.pass(&mut known, n);
        folded.take(n, got?);
    }
    let rest: Vec<u64> = known.keys().copied().collect();
    for n in rest {
        folded.pass(&mut known, n);
    }
    folded.checkpoints.sort_by_key(|compared| compared.n);
    Ok(folded)
}

impl Folded {
    /// Passes every checkpoint up to `n`: compares it, or goes on from it.
    fn pass(&mut self, known: &mut BTreeMap<u64, (wire::Checkpoint, View)>, n: u64) {
        while let Some(entry) = known.first_entry().filter(|entry| *entry.key() <= n) {
            let (at, (checkpoint, view)) = entry.remove_entry();
            let state = match &self.view {
                Some(folded) if folded.next() == at => {
                    let differences = differences(&folded.to_checkpoint(), &checkpoint);
                    if differences.is_empty() {
                        "equal"
                    } else {
                        self.findings.push(differs(at, &differences));
                        "differs"
                    }
                }
                _ => {
                    self.named.checkpoint(at, &view);
                    self.view = Some(view);
                    "not_compared"
                }
            };
            self.checkpoints.push(Compared { n: at, state });
        }
    }

    fn take(&mut self, n: u64, got: Got<wire::CommitRecord>) {
        let record = match got {
            Got::Whole(record) => record,
            // Freed since it was listed: a checkpoint covers it.
            Got::Gone => return,
            Got::Wrong(finding) => {
                self.view = None;
                return self.findings.push(finding);
            }
        };
        self.whole += 1;
        self.findings.extend(self.named.record(n, &record));
        let Some(view) = self.view.as_mut().filter(|view| view.next() == n) else { return };
        match view.apply(n, &record) {
            Ok(applied) if applied.twice > 0 => self.findings.push(Finding::new(
                layout::commit(n),
                format!("it covers {} batches that a record before it covers", applied.twice),
                "their events may be in two published files: exactly once is broken (I4)",
                format!("report this with `log show {n}` and `log show`; find both files there and compare them"),
            )),
            Ok(_) => {}
            Err(error) => {
                self.findings.push(Finding::new(
                    layout::commit(n),
                    error.to_string(),
                    "no collector can read past it",
                    "restore this file from a snapshot; report this if its bytes were never changed",
                ));
                self.view = None;
            }
        }
    }
}

/// Numbers that are missing between those that are there, or before them; `highest` is the highest checkpoint.
pub(super) fn holes(records: &[u64], highest: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut expected = match records.first() {
        // What a checkpoint covers may be gone.
        Some(first) if *first <= highest => *first,
        _ => highest,
    };
    for n in records.iter().copied() {
        if n > expected {
            findings.push(missing(expected, n, highest));
        }
        expected = n + 1;
    }
    findings
}

fn missing(from: u64, to: u64, highest: u64) -> Finding {
    let (file, last) = (layout::commit(from), to - 1);
    let what = if from == last {
        format!("record {from} is missing, and record {to} is there")
    } else {
        format!("records {from} to {last} are missing, and record {to} is there")
    };
    if to <= highest {
        let means = format!("checkpoint {highest} covers it, so no collector reads it; nothing is lost");
        return Finding::new(file, what, means, "find out who deleted it: only collectors free records, oldest first");
    }
    Finding::new(
        file,
        what,
        "no collector can start: it would not know what later records cover, and commit batches again; those that run have \
         it in memory and go on",
        "restore the file from a snapshot or the trash, byte for byte, then run `log verify` again; stop those that run only \
         after that",
    )
}

fn differs(n: u64, differences: &[String]) -> Finding {
    let more = differences.len().saturating_sub(NAMED);
    let mut what =
        format!("it differs from the records below it in {}", differences[..differences.len() - more].join("; "));
    if more > 0 {
        what += &format!("; and {more} more");
    }
    Finding::new(
        layout::checkpoint(n),
        what,
        "collectors that begin with it know other things than those that read the records",
        "report this; while the records below it are there, moving this checkpoint away makes collectors that start begin \
         with a lower one",
    )
}

/// What stands in one and not, or otherwise, in the other.
fn differences(folded: &wire::Checkpoint, stored: &wire::Checkpoint) -> Vec<String> {
    let mut out = Vec::new();
    table(&mut out, "origin", &folded.origins, &stored.origins, |o| {
        format!("{} {}", o.agent, o.origin.iter().map(|b| format!("{b:02x}")).collect::<String>())
    });
    table(&mut out, "agent", &folded.agents, &stored.agents, |a| a.agent.clone());
    table(&mut out, "partition", &folded.partitions, &stored.partitions, |p| {
        let partition = p.partition.unwrap_or_default();
        format!("{} day {} hour {:?}", p.dataset, partition.date, partition.hour)
    });
    table(&mut out, "expired set", &folded.expired, &stored.expired, |o| {
        format!("{} {}", o.agent, o.origin.iter().map(|b| format!("{b:02x}")).collect::<String>())
    });
    table(&mut out, "audit row", &folded.audit, &stored.audit, |row| {
        format!("{} {} {:?}", row.agent, row.dataset, row.event_hour)
    });
    if folded.horizon_unix_ms != stored.horizon_unix_ms {
        out.push(format!("the horizon ({} and {})", folded.horizon_unix_ms, stored.horizon_unix_ms));
    }
    out
}

fn table<T: PartialEq>(out: &mut Vec<String>, what: &str, folded: &[T], stored: &[T], key: impl Fn(&T) -> String) {
    if folded == stored {
        return;
    }
    let by =
        |rows: &[T]| -> BTreeMap<String, usize> { rows.iter().enumerate().map(|(at, row)| (key(row), at)).collect() };
    let (ours, theirs) = (by(folded), by(stored));
    for (name, at) in &ours {
        match theirs.get(name) {
            None => out.push(format!("{what} {name} (not in the checkpoint)")),
            Some(other) if folded[*at] != stored[*other] => out.push(format!("{what} {name}")),
            Some(_) => {}
        }
    }
    out.extend(
        theirs
            .keys()
            .filter(|name| !ours.contains_key(*name))
            .map(|name| format!("{what} {name} (not in the records)")),
    );
    if out.is_empty() {
        out.push(format!("the order of {what}s"));
    }
}
