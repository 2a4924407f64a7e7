//! `catchment-collector deadletter show | replay`: single events that could not be placed, and how they go on.
//!
//! Changes nothing at the destination. A replay writes the bodies as lines of a local file, for an edge agent.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::bail;
use base64::Engine;
use bytes::Bytes;
use clap::{Args, Subcommand};
use proto::dead_letter::DeadLetter;
use proto::ids::{AgentName, DatasetName};
use serde::Serialize;

use super::findings::{Finding, ended};
use super::output::{self, Output};
use super::seal::{Place, Site, parse_agent, parse_dataset};
use crate::log::layout;
use crate::seal::marker::time;
use crate::store::{Store, StoreError};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 30;
/// Longest line: a body of 64 KiB, escaped, and its fields.
const MAX_LINE: u64 = 1 << 20;

/// What `deadletter` does.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Counts dead letters by dataset, day, stage and reason. Changes nothing.
    Show(Show),
    /// Writes their bodies as lines of a new local file, which an edge agent reads like any other.
    Replay(Replay),
}

/// Which of them.
#[derive(Debug, Clone, Args)]
struct Filter {
    /// Only this dataset.
    #[arg(long, value_parser = parse_dataset)]
    dataset: Option<DatasetName>,
    /// Only those made on this day, UTC, e.g. `2026-11-20`.
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
    /// Print the letters themselves, as the JSON lines they are; bodies are masked as in the dataset.
    #[arg(long, conflicts_with = "json")]
    lines: bool,
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

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Kind {
    dataset: String,
    day: String,
    stage: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Count {
    #[serde(flatten)]
    kind: Kind,
    events: u64,
}

async fn show(site: &Site, asked: &Show, print: impl Fn(&str)) -> anyhow::Result<usize> {
    let mut counts: BTreeMap<Kind, u64> = BTreeMap::new();
    let mut files = 0;
    let findings = each(
        site,
        &asked.filter,
        |file, line, letter| {
            if asked.lines {
                print(String::from_utf8_lossy(line).trim_end());
            }
            let stage = format!("{:?}", letter.stage).to_lowercase();
            let (dataset, day) = (file.dataset.clone(), file.day.clone());
            *counts.entry(Kind { dataset, day, stage, reason: letter.reason }).or_default() += 1;
            Ok(())
        },
        &mut files,
    )
    .await?;
    if asked.json {
        let counts: Vec<Count> = counts.into_iter().map(|(kind, events)| Count { kind, events }).collect();
        let report = serde_json::json!({ "files": files, "dead_letters": counts, "findings": findings });
        print(&serde_json::to_string_pretty(&report)?);
    } else if !asked.lines {
        let total: u64 = counts.values().sum();
        for (kind, events) in &counts {
            print(&format!("{} {}  {events} at {}: {}", kind.dataset, kind.day, kind.stage, kind.reason));
        }
        print(&format!("{total} dead letters in {files} files"));
    }
    if !asked.json {
        findings.iter().for_each(|finding| print(&finding.to_string()));
    }
    Ok(findings.len())
}

async fn replay(site: &Site, asked: &Replay, print: impl Fn(&str)) -> anyhow::Result<usize> {
    if asked.filter.dataset.is_none() {
        bail!("--dataset is wanted: the file of lines goes to one dataset");
    }
    output::check(&asked.to)?;
    let before = output::replayed(&asked.to, &site.url, "deadletter")?;
    let mut out = if asked.dry_run { None } else { Some(Output::create(&asked.to)?) };
    let (mut lines, mut known, mut cut, mut files) = (0u64, 0u64, 0u64, 0);
    let walked = each(
        site,
        &asked.filter,
        |file, _, letter| {
            let source = format!("{}: {}: {}", file.path, letter.agent, letter.reason);
            let Some(body) = body(&letter) else {
                cut += 1;
                return Ok(());
            };
            if !asked.again && before.contains_key(&source) {
                known += 1;
                return Ok(());
            }
            lines += 1;
            out.as_mut().map_or(Ok(()), |out| out.line(&source, &body))
        },
        &mut files,
    )
    .await;
    let result = finish(site, asked, walked, out, lines, &print);
    if known > 0 {
        let notes: std::collections::BTreeSet<_> = before.values().map(|note| note.display().to_string()).collect();
        let notes = notes.into_iter().collect::<Vec<_>>().join(", ");
        print(&format!("{known} were replayed before, as {notes} says; --again takes them too"));
    }
    if cut > 0 {
        print(&format!("{cut} cannot be replayed: their bodies were cut at 64 KiB, or hold a newline"));
    }
    Ok(result? + usize::from(cut > 0))
}

/// Ends the output, or takes it back.
fn finish(
    site: &Site,
    asked: &Replay,
    walked: anyhow::Result<Vec<Finding>>,
    out: Option<Output>,
    lines: u64,
    print: &impl Fn(&str),
) -> anyhow::Result<usize> {
    let to = asked.to.display();
    let findings = match (walked, out) {
        (Err(error), out) => {
            if let Some(out) = out {
                out.take_back();
            }
            return Err(error);
        }
        (Ok(findings), Some(out)) if lines == 0 => {
            out.take_back();
            print(&format!("nothing to replay; {to} was not made"));
            findings
        }
        (Ok(findings), Some(out)) => {
            let filter = serde_json::json!({
                "dataset": asked.filter.dataset.as_ref().map(ToString::to_string), "day": asked.filter.day,
                "reason": asked.filter.reason, "agent": asked.filter.agent.as_ref().map(ToString::to_string),
            });
            out.end(&site.url, "deadletter", time(site.now_unix_ms()), filter.to_string())?;
            print(&format!("{lines} lines written to {to}; {to}.replayed.json says which they are"));
            findings
        }
        (Ok(findings), None) => {
            print(&format!("{lines} lines would be written to {to}"));
            findings
        }
    };
    findings.iter().for_each(|finding| print(&finding.to_string()));
    Ok(findings.len())
}

/// The whole body, if it can be a line.
fn body(letter: &DeadLetter) -> Option<Vec<u8>> {
    let body = match (&letter.body, &letter.body_base64) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(coded)) => base64::engine::general_purpose::STANDARD.decode(coded).ok()?,
        (None, None) => Vec::new(),
    };
    (body.len() as u64 >= letter.body_bytes && !body.contains(&b'\n')).then_some(body)
}

/// A file of dead letters.
struct File {
    path: String,
    dataset: String,
    day: String,
}

/// Every letter that passes, in the order of names; files that are damaged.
async fn each(
    site: &Site,
    filter: &Filter,
    mut take: impl FnMut(&File, &[u8], DeadLetter) -> anyhow::Result<()>,
    files: &mut usize,
) -> anyhow::Result<Vec<Finding>> {
    let store = &*site.store;
    let mut findings = Vec::new();
    for dataset in names(store, layout::DEAD_LETTER).await? {
        if filter.dataset.as_ref().is_some_and(|asked| asked.as_str() != dataset) {
            continue;
        }
        let dir = format!("{}/{dataset}", layout::DEAD_LETTER);
        for made in names(store, &dir).await? {
            let day = made.strip_prefix("cut_date=").unwrap_or(&made).to_owned();
            if filter.day.as_ref().is_some_and(|asked| *asked != day) {
                continue;
            }
            for name in names(store, &format!("{dir}/{made}")).await? {
                let path = format!("{dir}/{made}/{name}");
                let file = File { path, dataset: dataset.clone(), day: day.clone() };
                let bytes = match store.read(&file.path, MAX_FILE).await {
                    Ok(bytes) => bytes,
                    // Deleted by its retention since it was listed.
                    Err(StoreError::NotFound { .. }) => continue,
                    Err(error) => return Err(error.into()),
                };
                *files += 1;
                findings.extend(letters(&file, bytes, filter, &mut take)?);
            }
        }
    }
    Ok(findings)
}

/// The names in a directory, in order; none if it is not there.
pub(super) async fn names(store: &dyn Store, dir: &str) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = match store.list(dir).await {
        Ok(entries) => entries.into_iter().map(|entry| entry.name).collect(),
        Err(StoreError::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    names.sort();
    Ok(names)
}

fn letters(
    file: &File,
    bytes: Bytes,
    filter: &Filter,
    take: &mut impl FnMut(&File, &[u8], DeadLetter) -> anyhow::Result<()>,
) -> anyhow::Result<Option<Finding>> {
    let damaged = |what: String| {
        Ok(Some(Finding::new(
            &file.path,
            what,
            "what follows in this file cannot be read; all before it was shown",
            "restore it from a snapshot, or look at it with zstd or gzip; `log verify --checksums` tells whether its bytes \
             changed",
        )))
    };
    let raw: Box<dyn Read> = match file.path.rsplit('.').next() {
        Some("zst") => match zstd::stream::read::Decoder::new(&*bytes) {
            Ok(decoder) => Box::new(decoder),
            Err(error) => return damaged(error.to_string()),
        },
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(&*bytes)),
        _ => Box::new(&*bytes),
    };
    let mut raw = BufReader::new(raw);
    let (mut line, mut number) = (Vec::new(), 0u64);
    loop {
        line.clear();
        number += 1;
        match raw.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) => return damaged(format!("it cannot be decompressed behind line {}: {error}", number - 1)),
        }
        let letter: DeadLetter = match serde_json::from_slice(&line) {
            Ok(letter) => letter,
            Err(error) => return damaged(format!("line {number} is no dead letter: {error}")),
        };
        let reason = filter.reason.as_ref().is_none_or(|asked| letter.reason.contains(asked));
        let agent = filter.agent.as_ref().is_none_or(|asked| asked.as_str() == letter.agent);
        if reason && agent {
            take(file, &line, letter)?;
        }
    }
}
