//! `channel status`: what a running aggregator says, else what its directory says.

use std::io::Write;
use std::path::{Path, PathBuf};

use common::record_log::{RecordAt, RecordReader};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CLEAN, FOUND, Target, batches, print, size, utc};
use crate::channel::describe::{Description, Held, Oldest};
use crate::channel::lock::{self, DirLock};
use crate::channel::repair::DAMAGED;
use crate::channel::survey::{ChannelSurvey, Depth};
use crate::channel::{decode_meta, free_bytes};
use crate::cli::request;

/// Most lines of a list in the text.
const LINES: usize = 20;

#[derive(Serialize)]
struct Report {
    /// `process` or `directory`.
    source: &'static str,
    data_dir: PathBuf,
    /// The process that has the channel open.
    process: Option<String>,
    /// False: the ledger could not be read, and everything counts as held.
    answers_known: bool,
    #[serde(flatten)]
    channel: Description,
    oldest_events: Option<Events>,
    /// What is on its way to each collector; absent when no process was asked.
    collectors: Option<Value>,
    disk: Disk,
    /// What the process says of its own troubles; absent when none was asked.
    running: Option<Running>,
    /// Things that are wrong: those of `running`, and those that `channel check` explains.
    findings: usize,
}

/// Out of `/status` of the process.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Running {
    /// Nothing is acknowledged until it is opened again.
    storage_failed: bool,
    /// Damaged places found since its start.
    corruptions: u64,
    /// Batches that could not be read back, since its start.
    given_up_batches: u64,
}

impl Running {
    fn troubles(self) -> usize {
        usize::from(self.storage_failed) + usize::from(self.corruptions > 0) + usize::from(self.given_up_batches > 0)
    }

    fn text(self, out: &mut dyn Write) -> anyhow::Result<()> {
        let Self { storage_failed, corruptions, given_up_batches } = self;
        if storage_failed {
            writeln!(
                out,
                "its storage has failed: nothing is acknowledged until it could be opened again, which is tried every 5 s; \
                 the log says why"
            )?;
        }
        if corruptions > 0 {
            writeln!(out, "{corruptions} damaged places were found since it started: `channel check` names them")?;
        }
        if given_up_batches > 0 {
            let given_up = batches(given_up_batches);
            writeln!(out, "{given_up} could not be read back since it started and were given up: the log names them")?;
        }
        Ok(())
    }
}

/// Of the oldest held batch.
#[derive(Serialize)]
struct Events {
    events: u64,
    min_event_time_us: i64,
    max_event_time_us: i64,
}

#[derive(Serialize)]
struct Disk {
    segment_bytes: u64,
    ledger_bytes: u64,
    /// Kept by repairs.
    damaged_bytes: u64,
    /// Given up for the ledger when the disk is full.
    reserve_bytes: u64,
    /// Of the file system.
    free_bytes: Option<u64>,
    /// Capacity, where the configuration is known.
    max_bytes: Option<u64>,
}

/// Asks, or looks, and tells.
pub fn status(target: &Target, json: bool, out: &mut dyn Write) -> anyhow::Result<u8> {
    let report = match asked(target)? {
        Some(Told { channel: Some(channel), running, collectors }) => told(target, channel, running, collectors),
        Some(Told { channel: None, running, .. }) => looked(target, Some(running))?,
        None => looked(target, None)?,
    };
    if json {
        print(out, &report)?;
    } else {
        text(&report, out)?;
    }
    Ok(if report.findings == 0 { CLEAN } else { FOUND })
}

/// What a process answered.
struct Told {
    /// None: its storage has failed, so that it does not know.
    channel: Option<Description>,
    running: Running,
    collectors: Option<Value>,
}

/// None: no process answers.
fn asked(target: &Target) -> anyhow::Result<Option<Told>> {
    let Some(config) = &target.config else { return Ok(None) };
    let Ok(status) = request(config.admin.listen, "GET", "/status") else { return Ok(None) };
    let mut status: Value = serde_json::from_str(&status)?;
    let collectors = status.get_mut("collectors").map(Value::take);
    let running: Running = serde_json::from_value(status)?;
    let channel = match request(config.admin.listen, "GET", "/channel") {
        Ok(described) => serde_json::from_str(&described)?,
        // It ended in between, or its owner hangs on the disk.
        Err(_) => None,
    };
    Ok(Some(Told { channel, running, collectors }))
}

fn told(target: &Target, channel: Description, running: Running, collectors: Option<Value>) -> Report {
    Report {
        source: "process",
        data_dir: target.data_dir.clone(),
        process: DirLock::holder(&target.data_dir).ok().flatten(),
        answers_known: true,
        oldest_events: channel.oldest.as_ref().and_then(|oldest| events(&target.data_dir, oldest)),
        channel,
        collectors,
        disk: disk(target),
        findings: running.troubles(),
        running: Some(running),
    }
}

fn looked(target: &Target, running: Option<Running>) -> anyhow::Result<Report> {
    let survey = ChannelSurvey::of(&target.data_dir, Depth::Footers)?;
    let channel = survey.describe();
    Ok(Report {
        source: "directory",
        data_dir: target.data_dir.clone(),
        process: survey.running.clone(),
        answers_known: survey.answers_known(),
        oldest_events: channel.oldest.as_ref().and_then(|oldest| events(&target.data_dir, oldest)),
        channel,
        collectors: None,
        disk: disk(target),
        findings: survey.findings.len() + running.map_or(0, Running::troubles),
        running,
    })
}

/// Event times of a batch, from its own header.
fn events(dir: &Path, oldest: &Oldest) -> Option<Events> {
    let at = RecordAt { segment: oldest.segment, offset: oldest.offset };
    let record = RecordReader::new(dir.join("seg")).read(at).ok()?;
    let (_, header) = decode_meta(&record.meta).ok()?;
    let header = proto::header::Header::decode(header).ok()?;
    let data = header.data().filter(|data| !data.wire.dead_letters && data.wire.max_event_time_us != 0)?;
    Some(Events {
        events: data.wire.events,
        min_event_time_us: data.wire.min_event_time_us,
        max_event_time_us: data.wire.max_event_time_us,
    })
}

fn disk(target: &Target) -> Disk {
    let dir = &target.data_dir;
    Disk {
        segment_bytes: lock::bytes_below(&dir.join("seg")),
        ledger_bytes: lock::bytes_below(&dir.join("ledger")),
        damaged_bytes: lock::bytes_below(&dir.join(DAMAGED)) + lock::bytes_below(&dir.join("ledger.damaged")),
        reserve_bytes: lock::bytes_below(&dir.join("reserve")),
        free_bytes: free_bytes(dir).ok(),
        max_bytes: target.config.as_ref().map(|config| config.channel.max_bytes.bytes()),
    }
}

fn text(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let dir = report.data_dir.display();
    let process = report.process.as_deref();
    match (report.source, process) {
        ("process", _) => writeln!(out, "{dir}: as the running aggregator says")?,
        _ if report.running.is_some() => {
            writeln!(out, "{dir}: as its files say; the running aggregator was asked, and cannot say what it holds")?
        }
        (_, Some(process)) => {
            writeln!(out, "{dir}: as its files say; process {process} has it open and was not asked")?
        }
        _ => writeln!(out, "{dir}: as its files say; no aggregator has it open")?,
    }
    if let Some(running) = report.running {
        running.text(out)?;
    }
    if !report.answers_known {
        writeln!(out, "the ledger cannot be read: what was answered is not known, everything counts as held")?;
    }
    writeln!(out, "held: {}, {}", batches(report.channel.held_batches), size(report.channel.held_bytes))?;
    if let Some(oldest) = &report.channel.oldest {
        let minted = utc(i64::try_from(oldest.minted_unix_ms).unwrap_or(i64::MAX));
        writeln!(out, "oldest: {}/{}/{} of {}", oldest.agent, oldest.origin, oldest.seq, oldest.dataset)?;
        writeln!(out, "  its agent's run began {minted}")?;
        if let (Some(events), Some(partition)) = (&report.oldest_events, &oldest.partition) {
            let (first, last) = (utc(events.min_event_time_us / 1000), utc(events.max_event_time_us / 1000));
            writeln!(out, "  {} events of {partition}, from {first} to {last}", events.events)?;
        }
    }
    held("agents", &report.channel.agents, out)?;
    held("datasets", &report.channel.datasets, out)?;
    segments(report, out)?;
    collectors(report, out)?;
    let disk = &report.disk;
    writeln!(
        out,
        "disk: segments {}, ledger {}, reserve {}, set aside {}, free {}, capacity {}",
        size(disk.segment_bytes),
        size(disk.ledger_bytes),
        size(disk.reserve_bytes),
        size(disk.damaged_bytes),
        disk.free_bytes.map_or_else(|| "unknown".into(), size),
        disk.max_bytes.map_or_else(|| "not known without --config".into(), size),
    )?;
    let in_files = report.findings - report.running.map_or(0, Running::troubles);
    if in_files > 0 {
        writeln!(out, "{in_files} things are wrong here: `channel check` names them")?;
    }
    Ok(())
}

fn held(name: &str, list: &[Held], out: &mut dyn Write) -> anyhow::Result<()> {
    if list.is_empty() {
        return Ok(());
    }
    writeln!(out, "{name}:")?;
    for one in list.iter().take(LINES) {
        writeln!(out, "  {:<32} {:>14} {:>12}", one.name, batches(one.batches), size(one.bytes))?;
    }
    if list.len() > LINES {
        writeln!(out, "  and {} more: see --json", list.len() - LINES)?;
    }
    Ok(())
}

fn segments(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let list = &report.channel.segments;
    writeln!(out, "segments: {}", list.len())?;
    for one in list.iter().take(LINES) {
        let state = if one.sealed { "sealed" } else { "open" };
        let answered = match (one.held_batches, one.answered_batches) {
            (Some(held), Some(answered)) => format!("{held} held, {answered} answered"),
            _ => "answers not known".into(),
        };
        writeln!(out, "  {} {:>10} {state:<6} {:>14}: {answered}", one.segment, size(one.bytes), batches(one.batches))?;
    }
    if list.len() > LINES {
        writeln!(out, "  and {} more: see --json", list.len() - LINES)?;
    }
    Ok(())
}

fn collectors(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let Some(Value::Array(list)) = &report.collectors else {
        writeln!(out, "collectors: only a running aggregator knows them")?;
        return Ok(());
    };
    writeln!(out, "collectors: {}", list.len())?;
    for one in list {
        let flag = |key: &str| one.get(key).and_then(Value::as_bool).unwrap_or(false);
        let count = |key: &str| one.get(key).and_then(Value::as_u64).unwrap_or(0);
        let state = match () {
            () if !flag("connected") => "not connected",
            () if flag("stalled") => "commits nothing while another does",
            () if flag("draining") => "drains",
            () => "connected",
        };
        let address = one.get("address").and_then(Value::as_str).unwrap_or("?");
        let (sent, staged) = (count("sent_batches"), count("staged_batches"));
        writeln!(out, "  {address}: {state}, {} sent, {staged} staged and not committed", batches(sent))?;
    }
    Ok(())
}
