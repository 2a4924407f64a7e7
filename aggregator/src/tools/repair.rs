//! `channel repair`.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::{CLEAN, FOUND, batches, print, print_findings};
use crate::channel::finding::Finding;
use crate::channel::repair::{self, DAMAGED, Plan, Step};
use crate::channel::survey::{ChannelSurvey, Depth};

#[derive(Serialize)]
struct Report<'a> {
    data_dir: &'a Path,
    dry_run: bool,
    /// What was wrong.
    findings: &'a [Finding],
    #[serde(flatten)]
    plan: &'a Plan,
    /// What is wrong after the repair; empty after a dry run.
    left: &'a [Finding],
}

/// Repairs, or says what would be done. The code is 1 when something is (or would be) left wrong.
pub fn repair(dir: &Path, dry_run: bool, json: bool, out: &mut dyn Write) -> anyhow::Result<u8> {
    let (survey, plan) = if dry_run {
        repair::prepare(dir)?
    } else {
        repair::repair(dir, u64::try_from(common::clock::unix_ms()).unwrap_or(0))?
    };
    let left = match dry_run || plan.steps.is_empty() {
        true => Vec::new(),
        false => ChannelSurvey::of(dir, Depth::Everything)?.findings,
    };
    let report = Report { data_dir: dir, dry_run, findings: &survey.findings, plan: &plan, left: &left };
    if json {
        print(out, &report)?;
    } else {
        text(&report, out)?;
    }
    let wrong = if dry_run { !plan.steps.is_empty() } else { !left.is_empty() };
    Ok(if wrong { FOUND } else { CLEAN })
}

fn text(report: &Report<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
    if report.plan.steps.is_empty() {
        writeln!(out, "{}: there is nothing to repair", report.data_dir.display())?;
        return Ok(());
    }
    print_findings(out, report.findings)?;
    writeln!(out, "{}:", if report.dry_run { "would be done" } else { "done" })?;
    for step in &report.plan.steps {
        writeln!(out, "  {}", step_text(step))?;
    }
    losses(report.plan, out)?;
    match (report.dry_run, report.left.is_empty()) {
        (true, _) => writeln!(out, "nothing was changed")?,
        (false, true) => writeln!(out, "checked again: no problem found; the aggregator can be started")?,
        (false, false) => {
            writeln!(out, "checked again, this is left; the aggregator starts all the same:")?;
            print_findings(out, report.left)?;
        }
    }
    Ok(())
}

fn step_text(step: &Step) -> String {
    match step {
        Step::CutTail { file, to, bytes } => {
            format!("{file}: cut at {to}, the {bytes} bytes behind it are kept in {DAMAGED}/")
        }
        Step::Rewrite { file, kept_batches, answered_batches } => format!(
            "{file}: {} written anew and held ({} need no delivery), the file is kept in {DAMAGED}/",
            batches(*kept_batches),
            answered_batches
        ),
        Step::Seal { file } => format!("{file}: gets its footer, since newer segments follow it"),
        Step::SetAside { file } => format!("{file}: kept in {DAMAGED}/"),
        Step::NewLedger => {
            format!("ledger: a new one; what is held is delivered again; the old one is kept in {DAMAGED}/")
        }
        Step::SweepLedger => "ledger: rows that fit no segment are removed".into(),
    }
}

fn losses(plan: &Plan, out: &mut dyn Write) -> anyhow::Result<()> {
    if plan.losses.is_empty() && plan.unknown_bytes == 0 {
        writeln!(out, "lost: nothing")?;
        return Ok(());
    }
    writeln!(
        out,
        "lost here (an agent with ack = \"committed\" still has what was not delivered, and appends it again):"
    )?;
    for loss in &plan.losses {
        let range = |&(first, last): &(u64, u64)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        let seqs: Vec<String> = loss.seqs.iter().map(range).collect();
        let perhaps = if loss.perhaps_delivered { " (perhaps delivered before)" } else { "" };
        writeln!(out, "  agent {} origin {} seq {}{perhaps}", loss.agent, loss.origin, seqs.join(", "))?;
    }
    if plan.unknown_bytes > 0 {
        writeln!(out, "  {} bytes of which nobody can say whose batches they were", plan.unknown_bytes)?;
    }
    Ok(())
}
