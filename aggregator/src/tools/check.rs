//! `channel check`.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::{CLEAN, FAILED, FOUND, batches, print, print_findings, size};
use crate::channel::finding::Finding;
use crate::channel::lock;
use crate::channel::repair::DAMAGED;
use crate::channel::survey::{ChannelSurvey, Depth};

#[derive(Serialize)]
struct Report<'a> {
    data_dir: &'a Path,
    /// The process that has the channel open.
    process: Option<&'a str>,
    clean: bool,
    segments: usize,
    batches: u64,
    bytes: u64,
    answers_known: bool,
    unreadable_files: u64,
    /// Bytes that earlier repairs took out and kept.
    damaged_kept_bytes: u64,
    findings: &'a [Finding],
}

/// Reads everything and tells.
pub fn check(dir: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<u8> {
    let survey = ChannelSurvey::of(dir, Depth::Everything)?;
    let report = Report {
        data_dir: dir,
        process: survey.running.as_deref(),
        clean: survey.findings.is_empty(),
        segments: survey.segments.len(),
        batches: survey.segments.iter().map(|view| view.batches()).sum(),
        bytes: survey.segments.iter().map(|view| view.bytes).sum(),
        answers_known: survey.answers_known(),
        unreadable_files: survey.unreadable,
        damaged_kept_bytes: lock::bytes_below(&dir.join(DAMAGED)),
        findings: &survey.findings,
    };
    if json {
        print(out, &report)?;
    } else {
        text(&report, out)?;
    }
    Ok(match (survey.unreadable, survey.findings.is_empty()) {
        (0, true) => CLEAN,
        (0, false) => FOUND,
        _ => FAILED,
    })
}

fn text(report: &Report<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
    print_findings(out, report.findings)?;
    let found = match report.findings.len() {
        0 => "no problem found".to_owned(),
        1 => "1 finding".to_owned(),
        some => format!("{some} findings"),
    };
    let stored = (report.segments, batches(report.batches), size(report.bytes));
    writeln!(out, "{}: {} segments, {}, {} read: {found}", report.data_dir.display(), stored.0, stored.1, stored.2)?;
    if report.damaged_kept_bytes > 0 {
        let kept = size(report.damaged_kept_bytes);
        writeln!(out, "{kept} that earlier repairs took out lie in {DAMAGED}/; remove them when nobody needs them")?;
    }
    match report.process {
        Some(process) if report.clean => writeln!(out, "process {process} has the channel open")?,
        Some(process) => writeln!(
            out,
            "process {process} has the channel open and goes on; to set this right stop it, then `channel repair`"
        )?,
        None if !report.clean => {
            writeln!(
                out,
                "`channel repair --dry-run` says what would be done; an aggregator starts on this all the same"
            )?;
        }
        None => {}
    }
    Ok(())
}
