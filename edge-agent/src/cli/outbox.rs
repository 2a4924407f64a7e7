//! `outbox show | check | export | adopt`. All but `adopt` only read, without the lock, and are safe beside a running
//! agent.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use super::admin_client::ask;
use super::export;
use crate::config::AgentConfig;
use crate::outbox::look::{Finding, Look, Segment, Severity, look};
use crate::outbox::rejected;
use crate::outbox::state_dir::adopt::{adopt, is_locked, standing};
use crate::outbox::view::{BatchView, OriginView, batches, origins};

/// What to do with the state directory.
#[derive(Debug, Subcommand)]
pub enum OutboxCommand {
    /// List origins and the batches that are kept, with where they are stored already.
    Show {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Read everything and verify every CRC; says what is damaged and where. Changes nothing.
    Check {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Write the payload of every kept batch to a file that zcat or zstd reads, and index.jsonl beside them.
    Export {
        /// A directory that does not exist yet, or is empty.
        #[arg(long)]
        to: PathBuf,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Declare that the state directory was moved, not copied: what it was moved from never starts an agent again.
    Adopt {
        /// Say what would be done, change nothing.
        #[arg(long)]
        dry_run: bool,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
}

/// Runs one of them.
pub fn run(config: &AgentConfig, command: &OutboxCommand, out: &mut dyn Write) -> Result<ExitCode> {
    match command {
        OutboxCommand::Show { json } => show(config, *json, out),
        OutboxCommand::Check { json } => check(config, *json, out),
        OutboxCommand::Export { to, json } => export::run(config, to, *json, out),
        OutboxCommand::Adopt { dry_run, json } => run_adopt(config, *dry_run, *json, out),
    }
}

/// Writes a document as one line of JSON.
pub fn print_json(document: &impl Serialize, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{}", serde_json::to_string(document)?)?;
    Ok(())
}

/// Where an aggregator holds which batches, as the running agent knows.
pub fn stored_at(config: &AgentConfig) -> Option<serde_json::Value> {
    let status = ask(config.admin_listen(), "GET", "/status").ok()?;
    let name = config.agent_name().ok()?;
    (status["agent"] == name.as_str()).then(|| status["stored_at"].clone())
}

/// Whose outbox it is: as recorded there, else as configured.
pub fn owner_name(config: &AgentConfig) -> Result<String> {
    let configured = config.agent_name()?.to_string();
    Ok(standing(&config.state_dir).map_or(configured, |standing| standing.agent))
}

#[derive(Debug, Serialize)]
struct Shown {
    agent: String,
    outbox: PathBuf,
    /// An agent runs on it.
    running: bool,
    segments: Vec<Segment>,
    origins: Vec<OriginView>,
    batches: Vec<BatchView>,
    /// Files under `rejected/`, and their bytes.
    rejected_files: u64,
    rejected_bytes: u64,
    findings: Vec<Finding>,
}

fn show(config: &AgentConfig, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let dir = config.state_dir.join("outbox");
    let look = look(&dir, true)?;
    let agent = owner_name(config)?;
    let stored = stored_at(config);
    let rejected = config.state_dir.join("rejected");
    let shown = Shown {
        running: is_locked(&config.state_dir),
        origins: origins(&look),
        batches: batches(&look, &agent, stored.as_ref()),
        rejected_files: std::fs::read_dir(&rejected).map_or(0, |entries| entries.count() as u64),
        rejected_bytes: rejected::bytes(&rejected),
        segments: look.segments.clone(),
        findings: look.findings.clone(),
        agent,
        outbox: dir,
    };
    if json {
        print_json(&shown, out)?;
    } else {
        shown.print(out)?;
    }
    Ok(code(&look))
}

impl Shown {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let state = if self.running { "an agent runs on it" } else { "no agent runs on it" };
        writeln!(out, "agent {}, outbox {} ({state})", self.agent, self.outbox.display())?;
        for origin in &self.origins {
            writeln!(
                out,
                "origin {} {}: next seq {}, unacked {}",
                origin.origin, origin.ended, origin.next_seq, origin.unacked
            )?;
        }
        if !self.batches.is_empty() {
            writeln!(
                out,
                "{:<34} {:>6} {:<5} {:<20} {:<22} {:>8} {:>10}  stored at",
                "origin", "seq", "kind", "dataset", "partition", "events", "bytes"
            )?;
        }
        for batch in &self.batches {
            let dataset = if batch.dead_letters { format!("{} (dead)", batch.dataset) } else { batch.dataset.clone() };
            let stored = match (&batch.damaged, batch.stored_at.join(", ")) {
                (true, _) => format!("DAMAGED in {} at {}", batch.file, batch.offset),
                (false, nodes) if nodes.is_empty() => "here only, as far as is known".to_owned(),
                (false, nodes) => nodes,
            };
            writeln!(
                out,
                "{:<34} {:>6} {:<5} {:<20} {:<22} {:>8} {:>10}  {stored}",
                batch.origin, batch.seq, batch.kind, dataset, batch.partition, batch.events, batch.bytes
            )?;
        }
        let bytes: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        writeln!(out, "{} batches in {} segments of {bytes} bytes", self.batches.len(), self.segments.len())?;
        if self.rejected_files > 0 {
            writeln!(out, "rejected: {} files, {} bytes", self.rejected_files, self.rejected_bytes)?;
        }
        print_findings(&self.findings, out)
    }
}

/// One line for each.
pub fn print_findings(findings: &[Finding], out: &mut dyn Write) -> Result<()> {
    for finding in findings {
        let word = match finding.severity {
            Severity::Damage => "DAMAGED",
            Severity::Torn => "unfinished",
        };
        writeln!(out, "{word}: {} at {}: {}", finding.file, finding.offset, finding.what)?;
    }
    Ok(())
}

/// 1 if anything is damaged; an unfinished end is nothing out of order.
pub fn code(look: &Look) -> ExitCode {
    let damaged = look.findings.iter().any(|finding| finding.severity == Severity::Damage);
    if damaged || !look.holes.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[derive(Debug, Serialize)]
struct Checked {
    agent: String,
    outbox: PathBuf,
    ok: bool,
    segments: Vec<Segment>,
    findings: Vec<Finding>,
    /// Seqs that lie in no file: their segment file is missing, or damaged.
    missing: Vec<Missing>,
}

#[derive(Debug, Serialize)]
struct Missing {
    origin: String,
    seqs: Vec<[u64; 2]>,
}

fn check(config: &AgentConfig, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let dir = config.state_dir.join("outbox");
    let look = look(&dir, true)?;
    let ok = code(&look) == ExitCode::SUCCESS;
    let checked = Checked {
        agent: owner_name(config)?,
        ok,
        missing: missing(&look),
        segments: look.segments.clone(),
        findings: look.findings.clone(),
        outbox: dir.clone(),
    };
    if json {
        print_json(&checked, out)?;
    } else {
        checked.print(&dir, out)?;
    }
    Ok(code(&look))
}

impl Checked {
    fn print(&self, dir: &Path, out: &mut dyn Write) -> Result<()> {
        print_findings(&self.findings, out)?;
        for missing in &self.missing {
            let seqs: Vec<String> = missing.seqs.iter().map(|[from, to]| format!("{from}..{to}")).collect();
            writeln!(
                out,
                "MISSING: seqs {} of origin {} were never acked and lie in no readable file: a segment file is gone or \
                 damaged; the next start keeps what is left under rejected/ and sends voids in their place",
                seqs.join(", "),
                missing.origin
            )?;
        }
        let records: u64 = self.segments.iter().map(|segment| segment.records).sum();
        let bytes: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        let verdict = if self.ok { "every CRC matches" } else { "damage was found, nothing was changed" };
        let files = self.segments.len();
        writeln!(out, "{}: {files} segments, {records} records, {bytes} bytes: {verdict}", dir.display())?;
        Ok(())
    }
}

fn missing(look: &Look) -> Vec<Missing> {
    let mut by_origin: Vec<Missing> = Vec::new();
    for (origin, seq) in &look.holes {
        let origin = origin.to_string();
        if by_origin.last().is_none_or(|last| last.origin != origin) {
            by_origin.push(Missing { origin, seqs: Vec::new() });
        }
        let Some(last) = by_origin.last_mut() else { continue };
        match last.seqs.last_mut() {
            Some([_, end]) if *end == *seq => *end += 1,
            _ => last.seqs.push([*seq, seq + 1]),
        }
    }
    by_origin
}

fn run_adopt(config: &AgentConfig, dry_run: bool, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let adoption = adopt(&config.state_dir, &config.agent_name()?, dry_run)?;
    if json {
        print_json(&adoption, out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let dir = config.state_dir.display();
    if adoption.already {
        writeln!(out, "{dir} is the directory that agent {} knows as its own: nothing to adopt", adoption.agent)?;
        return Ok(ExitCode::SUCCESS);
    }
    let before = adoption.recorded.map_or_else(|| "none".to_owned(), |place| place.inode.to_string());
    writeln!(
        out,
        "{} {dir} as the one and only state directory of agent {}: outbox inode {before} becomes {}",
        if dry_run { "would adopt" } else { "adopted" },
        adoption.agent,
        adoption.found.inode
    )?;
    writeln!(
        out,
        "the next start chains on to the origins in it; the directory it was moved from must never start an agent again"
    )?;
    Ok(ExitCode::SUCCESS)
}
