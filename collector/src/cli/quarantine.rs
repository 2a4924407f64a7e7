//! `catchment-collector quarantine show | replay`: whole batches that nobody could decode or place, and how their events
//! go on. Changes nothing at the destination; payloads are shown to nobody unless they are asked for.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use proto::header::Header;
use proto::ids::{AgentName, DatasetName};
use serde::Serialize;

use super::findings::{Finding, ended};
use super::letters::names;
use super::output::{self, Output};
use super::seal::{Place, Site, parse_agent, parse_dataset};
use crate::format::text::decode_lines;
use crate::log::layout;
use crate::quarantine::{self, QuarantinedBatch};
use crate::seal::marker::time;
use crate::store::StoreError;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 30;

/// What `quarantine` does.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Lists quarantined batches with their reasons. Changes nothing, and shows no payload.
    Show(Show),
    /// Decodes what can be decoded into lines of a new local file, which an edge agent reads like any other.
    Replay(Replay),
}

/// Which of them.
#[derive(Debug, Clone, Args)]
struct Filter {
    /// Only those that say this dataset.
    #[arg(long, value_parser = parse_dataset)]
    dataset: Option<DatasetName>,
    /// Only of this day, UTC, e.g. `2026-11-20`.
    #[arg(long)]
    day: Option<String>,
    /// Only those whose reason has this in it.
    #[arg(long)]
    reason: Option<String>,
    /// Only of this agent.
    #[arg(long, value_parser = parse_agent)]
    agent: Option<AgentName>,
}

/// See [`Command::Show`].
#[derive(Debug, Clone, Args)]
pub struct Show {
    #[command(flatten)]
    filter: Filter,
    /// Write header and payload of each, as they came, into this directory, which must be there.
    #[arg(long, value_name = "DIR")]
    payload_to: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// See [`Command::Replay`].
#[derive(Debug, Clone, Args)]
pub struct Replay {
    #[command(flatten)]
    filter: Filter,
    /// The file to make; it must not be there. A note is made beside it.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Also what a note beside FILE says was replayed before.
    #[arg(long)]
    again: bool,
    /// Say what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
}

/// Does it. `print` takes what is for standard output.
pub async fn execute(command: &Command, config: Option<&Path>, print: impl Fn(&str)) -> anyhow::Result<()> {
    ended(async {
        match command {
            Command::Show(asked) => show(&Site::open(&asked.place, config)?, asked, print).await,
            Command::Replay(asked) => replay(&Site::open(&asked.place, config)?, asked, print).await,
        }
    })
    .await
}

/// A batch as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    day: String,
    agent: String,
    origin: String,
    seq: u64,
    reason: String,
    /// What its header says, as far as it can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Facts>,
    payload_bytes: usize,
    file: String,
}

#[derive(Debug, Serialize)]
struct Facts {
    dataset: String,
    partition: String,
    source: String,
    events: u64,
    raw_bytes: u64,
    codec: &'static str,
    dead_letters: bool,
}

impl Facts {
    fn of(header: &Header) -> Option<Self> {
        let data = header.data()?;
        Some(Self {
            dataset: data.dataset.to_string(),
            partition: data.partition.path(),
            source: data.wire.source.clone(),
            events: data.wire.events,
            raw_bytes: data.wire.raw_bytes,
            codec: data.codec.as_str_name(),
            dead_letters: data.wire.dead_letters,
        })
    }
}

async fn show(site: &Site, asked: &Show, print: impl Fn(&str)) -> anyhow::Result<usize> {
    let mut all = Vec::new();
    let findings = each(site, &asked.filter, |file, day, batch, header| {
        if let Some(dir) = &asked.payload_to {
            let name = format!("{}-{}-{}", batch.id.agent.as_str().replace('/', "_"), batch.id.origin, batch.id.seq);
            write_new(&dir.join(format!("{name}.header")), &batch.header)?;
            write_new(&dir.join(format!("{name}.payload")), &batch.payload)?;
        }
        all.push(Shown {
            day: day.to_owned(),
            agent: batch.id.agent.to_string(),
            origin: batch.id.origin.to_string(),
            seq: batch.id.seq,
            reason: batch.reason.clone(),
            header: header.and_then(Facts::of),
            payload_bytes: batch.payload.len(),
            file: file.to_owned(),
        });
        Ok(())
    })
    .await?;
    if asked.json {
        print(&serde_json::to_string_pretty(&serde_json::json!({ "batches": all, "findings": findings }))?);
        return Ok(findings.len());
    }
    for one in &all {
        print(&format!("{} {} run {} batch {}: {}", one.day, one.agent, one.origin, one.seq, one.reason));
        print(&match &one.header {
            None => format!("  no header that can be read, {} bytes of payload", one.payload_bytes),
            Some(h) => format!(
                "  {}/{}, source {}, {} events, {} bytes raw, {} bytes {}{}",
                h.dataset,
                h.partition,
                h.source,
                h.events,
                h.raw_bytes,
                one.payload_bytes,
                h.codec,
                if h.dead_letters { ", dead letters" } else { "" }
            ),
        });
    }
    print(&format!("{} batches in quarantine", all.len()));
    findings.iter().for_each(|finding| print(&finding.to_string()));
    Ok(findings.len())
}

fn write_new(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = made.with_context(|| format!("{} cannot be made; nothing is overwritten", path.display()))?;
    Ok(file.write_all(bytes)?)
}

async fn replay(site: &Site, asked: &Replay, print: impl Fn(&str)) -> anyhow::Result<usize> {
    let Some(dataset) = &asked.filter.dataset else {
        bail!("--dataset is wanted: the file of lines goes to one dataset");
    };
    output::check(&asked.to)?;
    let before = output::replayed(&asked.to, &site.url, "quarantine")?;
    let mut out = if asked.dry_run { None } else { Some(Output::create(&asked.to)?) };
    let (mut lines, mut batches, mut said) = (0u64, 0u64, Vec::new());
    let walked = each(site, &asked.filter, |_, _, batch, header| {
        let id = batch.id.to_string();
        if let Some(note) = before.get(&id).filter(|_| !asked.again) {
            said.push((false, format!("{id}: replayed before, as {} says; --again takes it too", note.display())));
            return Ok(());
        }
        match decode(batch, header) {
            Err(why) => said.push((true, format!("{id}: cannot be replayed: {why}"))),
            Ok(raw) => {
                batches += 1;
                for line in raw.split_inclusive(|byte| *byte == b'\n') {
                    lines += 1;
                    if let Some(out) = &mut out {
                        out.line(&id, line.strip_suffix(b"\n").unwrap_or(line))?;
                    }
                }
            }
        }
        Ok(())
    })
    .await;
    let findings = match walked {
        Ok(findings) => findings,
        Err(error) => {
            if let Some(out) = out {
                out.take_back();
            }
            return Err(error);
        }
    };
    let to = asked.to.display();
    match out {
        None => print(&format!("{lines} lines of {batches} batches would be written to {to}")),
        Some(out) if batches == 0 => {
            out.take_back();
            print(&format!("nothing to replay; {to} was not made"));
        }
        Some(out) => {
            out.end(&site.url, "quarantine", time(site.now_unix_ms()), format!("dataset {dataset}"))?;
            print(&format!(
                "{lines} lines of {batches} batches written to {to}; {to}.replayed.json says which they are"
            ));
        }
    }
    said.iter().for_each(|(_, line)| print(line));
    findings.iter().for_each(|finding| print(&finding.to_string()));
    Ok(findings.len() + said.iter().filter(|(trouble, _)| *trouble).count())
}

/// The lines of a batch, never more than its header declares and a frame may hold.
fn decode(batch: &QuarantinedBatch, header: Option<&Header>) -> Result<Vec<u8>, String> {
    let data = header.and_then(Header::data).ok_or("its header cannot be read, or it is no data")?;
    if data.wire.dead_letters {
        return Err("it holds dead letters, which are no events of the dataset; look at it with --payload-to".into());
    }
    decode_lines(data, &batch.payload).map_err(|error| error.to_string())
}

/// Every batch that passes; files that are damaged.
async fn each(
    site: &Site,
    filter: &Filter,
    mut take: impl FnMut(&str, &str, &QuarantinedBatch, Option<&Header>) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for day in names(&*site.store, layout::QUARANTINE).await? {
        if filter.day.as_ref().is_some_and(|asked| *asked != day) {
            continue;
        }
        for name in names(&*site.store, &format!("{}/{day}", layout::QUARANTINE)).await? {
            let file = format!("{}/{day}/{name}", layout::QUARANTINE);
            let bytes = match site.store.read(&file, MAX_FILE).await {
                Ok(bytes) => bytes,
                // Deleted by its retention since it was listed.
                Err(StoreError::NotFound { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            for batch in quarantine::read(bytes) {
                match batch {
                    Err(error) => findings.push(Finding::new(
                        &file,
                        error.to_string(),
                        "batches behind that place cannot be read; those before it were shown",
                        "restore it from a snapshot; `log verify --checksums` tells whether its bytes changed",
                    )),
                    Ok(batch) => {
                        let header = Header::decode(batch.header.clone()).ok();
                        if passes(filter, &batch, header.as_ref()) {
                            take(&file, &day, &batch, header.as_ref())?;
                        }
                    }
                }
            }
        }
    }
    Ok(findings)
}

fn passes(filter: &Filter, batch: &QuarantinedBatch, header: Option<&Header>) -> bool {
    let dataset = header.and_then(Header::data).map(|data| &data.dataset);
    filter.dataset.as_ref().is_none_or(|asked| Some(asked) == dataset)
        && filter.agent.as_ref().is_none_or(|asked| *asked == batch.id.agent)
        && filter.reason.as_ref().is_none_or(|asked| batch.reason.contains(asked))
}
