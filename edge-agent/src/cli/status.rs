//! `status`: what the running agent says of itself, and what its state directory says, read beside it without the lock.
//! Where no agent answers, the state directory alone.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::admin_client::{AskError, ask};
use super::outbox::{print_findings, print_json};
use crate::config::{AgentConfig, SourceConfig};
use crate::outbox::look::{Finding, Look, LookError, look};
use crate::outbox::rejected;
use crate::outbox::state_dir::adopt::{is_locked, standing};
use crate::outbox::view::{OriginView, origins};
use crate::tail::listing::Lister;
use crate::tail::position::{Position, id_of};

/// Files shown of one source, those with most unread bytes first.
const FILES_SHOWN: usize = 50;

#[derive(Debug, Serialize)]
struct Status {
    agent: String,
    /// The answer of the running agent; null where none answers.
    live: Value,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_answer: Option<String>,
    /// What the state directory says; null where it cannot be read.
    store: Option<Store>,
    /// Why it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_store: Option<String>,
}

#[derive(Debug, Serialize)]
struct Store {
    state_dir: String,
    /// An agent holds its lock.
    running: bool,
    /// Whose it is, as recorded there.
    recorded_agent: Option<String>,
    /// It lies elsewhere than the agent knows: the next start says *restored*, unless it is adopted.
    is_copy: bool,
    outbox_bytes: u64,
    kept_batches: u64,
    kept_bytes: u64,
    rejected_bytes: u64,
    /// T of the last mark; 0: none.
    last_mark_unix_ms: i64,
    oldest_unacked: Option<Oldest>,
    origins: Vec<OriginView>,
    sources: Vec<SourceStore>,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Oldest {
    origin: String,
    seq: u64,
    kind: &'static str,
    /// When its run began, milliseconds since the epoch: the batch is younger.
    run_since_unix_ms: u64,
}

#[derive(Debug, Default, Serialize)]
struct SourceStore {
    source: String,
    matched_files: u64,
    /// Bytes of matched files behind their stored position.
    unread_bytes: u64,
    /// Bytes that were seen in files which no known path leads to any more, and were not cut: a running agent holds
    /// those open; one that is stopped finds renamed ones by their content.
    out_of_sight_bytes: u64,
    /// Those with most unread bytes.
    files: Vec<FileStore>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct FileStore {
    path: String,
    /// The next byte to be cut.
    position: u64,
    bytes: u64,
    unread_bytes: u64,
}

/// Prints everything; exit code 1 where neither an agent nor a state directory can be asked.
pub fn run(config: &AgentConfig, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let name = config.agent_name()?.to_string();
    let (live, no_answer) = match ask(config.admin_listen(), "GET", "/status") {
        Ok(live) if live["agent"] == name.as_str() => (live, None),
        Ok(other) => (Value::Null, Some(format!("{} answers at {}", other["agent"], config.admin_listen()))),
        Err(AskError::Nobody { at, .. }) => (Value::Null, Some(format!("nobody answers at {at}"))),
        Err(error) => (Value::Null, Some(error.to_string())),
    };
    let (store, no_store) = match Store::of(config) {
        Ok(store) => (Some(store), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let code = if live.is_null() && store.is_none() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    let status = Status { agent: name, live, no_answer, store, no_store };
    if json {
        print_json(&status, out)?;
    } else {
        status.print(out)?;
    }
    Ok(code)
}

impl Store {
    fn of(config: &AgentConfig) -> Result<Self, LookError> {
        let look = look(&config.state_dir.join("outbox"), false)?;
        let (kept_batches, kept_bytes) = look.index.kept();
        let standing = standing(&config.state_dir);
        Ok(Self {
            is_copy: standing.as_ref().is_some_and(|standing| standing.is_copy),
            recorded_agent: standing.map(|standing| standing.agent),
            state_dir: config.state_dir.display().to_string(),
            running: is_locked(&config.state_dir),
            outbox_bytes: look.segments.iter().map(|segment| segment.bytes).sum(),
            kept_batches,
            kept_bytes,
            rejected_bytes: rejected::bytes(&config.state_dir.join("rejected")),
            last_mark_unix_ms: look.index.last_mark_unix_ms,
            oldest_unacked: oldest(&look),
            origins: origins(&look),
            sources: config.sources.iter().map(|source| SourceStore::of(source, &look)).collect(),
            findings: look.findings,
        })
    }
}

fn oldest(look: &Look) -> Option<Oldest> {
    let row = look.index.rows().iter().find(|row| !row.kept.is_empty())?;
    let (seq, place) = row.kept.first_key_value()?;
    Some(Oldest {
        origin: row.origin.to_string(),
        seq: *seq,
        kind: place.kind.name(),
        run_since_unix_ms: row.origin.unix_ms(),
    })
}

impl SourceStore {
    fn of(source: &SourceConfig, look: &Look) -> Self {
        let mut store = Self { source: source.name.clone(), ..Self::default() };
        let mut positions: HashMap<String, Vec<Position>> = HashMap::new();
        for (key, value) in look.index.positions(&source.name) {
            if id_of(&key).is_none() {
                continue;
            }
            match Position::decode(&value) {
                Ok(position) => positions.entry(position.path.clone()).or_default().push(position),
                Err(error) => store.problems.push(error.to_string()),
            }
        }
        let tail = &source.tail;
        match Lister::new(&tail.paths, &tail.exclude, tail.include_compressed) {
            Ok(lister) => {
                let listing = lister.list();
                store.problems.extend(listing.problems.iter().map(ToString::to_string));
                for found in listing.files {
                    let (path, bytes) = (found.path.display().to_string(), found.look.len);
                    let known = take_position(&mut positions, &path, found.look.inode.ino);
                    let position = known.map_or(0, |position| position.offset);
                    let unread_bytes = bytes.saturating_sub(position);
                    store.matched_files += 1;
                    store.unread_bytes += unread_bytes;
                    store.files.push(FileStore { path, position, bytes, unread_bytes });
                }
            }
            Err(problem) => store.problems.push(problem),
        }
        let out_of_sight = positions.values().flatten().filter(|position| !position.elsewhere);
        store.out_of_sight_bytes = out_of_sight.map(|position| position.seen_len.saturating_sub(position.offset)).sum();
        store.files.sort_by(|a, b| b.unread_bytes.cmp(&a.unread_bytes).then_with(|| a.path.cmp(&b.path)));
        store.files.truncate(FILES_SHOWN);
        store
    }
}

/// The position of the file that lies at a path now; another file that lay there before is out of sight.
fn take_position(positions: &mut HashMap<String, Vec<Position>>, path: &str, inode: u64) -> Option<Position> {
    let known = positions.get_mut(path)?;
    let at = known.iter().position(|position| position.ino == inode)?;
    Some(known.swap_remove(at))
}

impl Status {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        match &self.no_answer {
            None => self.print_live(out)?,
            Some(why) => writeln!(out, "agent {}: {why}", self.agent)?,
        }
        match (&self.store, &self.no_store) {
            (Some(store), _) => store.print(out),
            (None, why) => Ok(writeln!(out, "state directory: {}", why.as_deref().unwrap_or("not read"))?),
        }
    }

    fn print_live(&self, out: &mut dyn Write) -> Result<()> {
        let live = &self.live;
        let number = |key: &str| live[key].as_u64().unwrap_or(0);
        writeln!(out, "agent {} runs, origin {}", self.agent, live["origin"].as_str().unwrap_or("not begun"))?;
        writeln!(
            out,
            "  read {} events, cut {} batches, unacked {} ({} stored nowhere else)",
            number("read_events"),
            number("cut_batches"),
            number("unacked_batches"),
            number("undelivered_batches")
        )?;
        writeln!(
            out,
            "  unread {} bytes, held of deleted files {} bytes, time to loss {}",
            number("unread_bytes"),
            number("held_bytes"),
            match live["seconds_to_loss"].as_u64() {
                None => "none is near".to_owned(),
                Some(seconds) => format!("{seconds} s"),
            }
        )?;
        for key in ["no_space", "restored_or_copied", "undeclared", "refused", "leaving"] {
            if let Some(text) = live[key].as_str() {
                writeln!(out, "  {key}: {text}")?;
            }
        }
        for problem in live["problems"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            writeln!(out, "  problem: {problem}")?;
        }
        Ok(())
    }
}

impl Store {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let state = if self.running { "an agent runs on it" } else { "no agent runs on it" };
        writeln!(out, "state directory {} ({state})", self.state_dir)?;
        writeln!(
            out,
            "  outbox {} bytes, {} batches of {} bytes kept, rejected {} bytes",
            self.outbox_bytes, self.kept_batches, self.kept_bytes, self.rejected_bytes
        )?;
        if self.is_copy {
            writeln!(
                out,
                "  it was moved, copied or restored: the next start says so, and no mark counts before the origin it came \
                 from is abandoned; if it was moved, say `outbox adopt` before that start"
            )?;
        }
        writeln!(out, "  last mark: {}", time(self.last_mark_unix_ms))?;
        if let Some(oldest) = &self.oldest_unacked {
            let since = time(oldest.run_since_unix_ms as i64);
            writeln!(
                out,
                "  oldest unacked: {} seq {} of origin {} (run since {since})",
                oldest.kind, oldest.seq, oldest.origin
            )?;
        }
        for origin in &self.origins {
            writeln!(
                out,
                "  origin {} {}: next seq {}, unacked {}",
                origin.origin, origin.ended, origin.next_seq, origin.unacked
            )?;
        }
        for source in &self.sources {
            writeln!(
                out,
                "  source {}: {} files, {} bytes unread, {} bytes out of sight",
                source.source, source.matched_files, source.unread_bytes, source.out_of_sight_bytes
            )?;
            for file in &source.files {
                writeln!(out, "    {} of {} bytes  {}", file.position, file.bytes, file.path)?;
            }
            for problem in &source.problems {
                writeln!(out, "    problem: {problem}")?;
            }
        }
        print_findings(&self.findings, out)
    }
}

fn time(unix_ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(unix_ms) {
        Ok(time) if unix_ms > 0 => time.to_string(),
        _ => "none".to_owned(),
    }
}
