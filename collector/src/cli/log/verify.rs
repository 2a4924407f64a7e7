//! `log verify` and `log replay`: the fold, what it names, and what was found.

use std::fmt;

use serde::Serialize;

use super::super::findings::Finding;
use super::super::seal::Site;
use super::files::Looked;
use super::fold::{self, Compared, Folded};
use super::read::{self, Got};
use super::runs::{self, Run};
use super::{Replay, Verify};
use crate::log::View;
use crate::log::view::partitions::State;
use crate::seal::marker::time;
use crate::store::Store;

/// What was looked at, and found.
#[derive(Debug, Serialize)]
struct Report {
    destination: String,
    at: String,
    /// First and last record that is there.
    records: Option<(u64, u64)>,
    whole: u64,
    /// Where the fold began: 0, or the lowest checkpoint behind which the records are still there.
    folded_from: u64,
    folded_to: Option<u64>,
    checkpoints: Vec<Compared>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Looked>,
    #[serde(skip_serializing_if = "Option::is_none")]
    view: Option<Sums>,
    runs: Vec<Run>,
    findings: Vec<Finding>,
}

/// What the view says in numbers.
#[derive(Debug, Serialize)]
struct Sums {
    agents: usize,
    origins: usize,
    batches: u64,
    partitions_open: usize,
    partitions_sealed: usize,
    files: u64,
    events: u64,
}

pub(super) async fn verify(site: &Site, asked: &Verify, print: impl Fn(&str)) -> anyhow::Result<usize> {
    let store = &*site.store;
    let mut folded = fold(site, None).await?;
    let mut looked = folded.named.look(store, asked.checksums, site.retention).await?;
    if !looked.findings.is_empty() && later(store, &mut folded).await? {
        // A record that came meanwhile may have replaced what was found missing.
        looked = folded.named.look(store, asked.checksums, site.retention).await?;
    }
    folded.findings.append(&mut looked.findings);
    let runs = runs::runs(store, folded.view.as_ref()).await?;
    finish(site, folded, Some(looked), None, runs, asked.json, print)
}

pub(super) async fn replay(site: &Site, asked: &Replay, print: impl Fn(&str)) -> anyhow::Result<usize> {
    let folded = fold(site, asked.to).await?;
    let view = folded.view.as_ref().map(sums);
    finish(site, folded, None, view, Vec::new(), asked.json, print)
}

/// What a collector frees between two listings looks like damage once, and not twice.
async fn fold(site: &Site, to: Option<u64>) -> anyhow::Result<Folded> {
    let folded = fold::fold(&*site.store, &site.url, to).await?;
    if folded.findings.is_empty() { Ok(folded) } else { fold::fold(&*site.store, &site.url, to).await }
}

/// Takes records that were written since; false if there are none.
async fn later(store: &dyn Store, folded: &mut Folded) -> anyhow::Result<bool> {
    let Some((first, last)) = folded.records else { return Ok(false) };
    let mut n = last + 1;
    while let Got::Whole(record) = read::record(store, n).await? {
        folded.named.record(n, &record);
        n += 1;
    }
    folded.records = Some((first, n - 1));
    Ok(n > last + 1)
}

fn sums(view: &View) -> Sums {
    let open = || view.partitions().open().map(|(.., open)| open.sums());
    let sealed = || {
        view.partitions().iter().filter_map(|(_, row)| match &row.state {
            State::Sealed(sealed) => Some(sealed),
            State::Open(_) => None,
        })
    };
    Sums {
        agents: view.committed().agents(),
        origins: view.committed().origins(),
        batches: view.committed().iter().map(|(_, _, seqs, _)| seqs.count()).sum(),
        partitions_open: open().count(),
        partitions_sealed: sealed().count(),
        files: open().map(|s| s.files).sum::<u64>() + sealed().map(|s| s.seal.files + s.appended.files).sum::<u64>(),
        events: open().map(|s| s.events).sum::<u64>()
            + sealed().map(|s| s.seal.events + s.appended.events).sum::<u64>(),
    }
}

fn finish(
    site: &Site,
    folded: Folded,
    files: Option<Looked>,
    view: Option<Sums>,
    runs: Vec<Run>,
    json: bool,
    print: impl Fn(&str),
) -> anyhow::Result<usize> {
    let report = Report {
        destination: site.url.clone(),
        at: time(site.now_unix_ms()),
        records: folded.records,
        whole: folded.whole,
        folded_from: folded.begin,
        folded_to: folded.view.as_ref().map(View::next),
        checkpoints: folded.checkpoints,
        files,
        view,
        runs,
        findings: folded.findings,
    };
    print(&if json { serde_json::to_string_pretty(&report)? } else { report.to_string() });
    Ok(report.findings.len())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} at {}", self.destination, self.at)?;
        match self.records {
            None => writeln!(f, "records: none")?,
            Some((first, last)) => writeln!(f, "records: {first} to {last}, {} of them whole", self.whole)?,
        }
        match self.folded_to {
            Some(to) => writeln!(f, "folded: from {} to {to}", self.folded_from)?,
            None => writeln!(f, "folded: not to the end, see below")?,
        }
        for checkpoint in &self.checkpoints {
            let says = match checkpoint.state {
                "equal" => "equals the records below it",
                "differs" => "DIFFERS from the records below it",
                "damaged" => "DAMAGED",
                _ => "whole; the records below it are gone, so it cannot be compared",
            };
            writeln!(f, "checkpoint {}: {says}", checkpoint.n)?;
        }
        if let Some(files) = &self.files {
            write!(f, "files: {} named, {} in place, {} still staged", files.named, files.in_place, files.staged)?;
            match files.read {
                0 => writeln!(f, ", not read")?,
                read => writeln!(f, ", {read} read with their CRC32C compared")?,
            }
            if files.expired > 0 {
                writeln!(f, "  {} dead-letter and quarantine files are gone by their retention", files.expired)?;
            }
        }
        if let Some(view) = &self.view {
            writeln!(f, "view: {} agents, {} runs, {} batches", view.agents, view.origins, view.batches)?;
            let (open, sealed) = (view.partitions_open, view.partitions_sealed);
            writeln!(f, "  {open} partitions open, {sealed} sealed; {} events in {} files", view.events, view.files)?;
        }
        for run in &self.runs {
            write!(f, "run {}: ", run.name)?;
            match run.read {
                Some(read) => write!(f, "has read all below {read}")?,
                None => write!(f, "never showed a sign of life")?,
            }
            write!(f, ", {} files ({} bytes), {} drafts, {} voids", run.files, run.bytes, run.drafts, run.voids)?;
            if let Some(n) = run.retired_by {
                write!(f, ", retired by record {n}")?;
            }
            writeln!(f, "{}", if run.fenced { ", fenced: about to be deleted" } else { "" })?;
        }
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        match self.findings.len() {
            0 => write!(f, "clean"),
            1 => write!(f, "1 finding; nothing was changed"),
            more => write!(f, "{more} findings; nothing was changed"),
        }
    }
}
