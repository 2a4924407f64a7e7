//! `loadtest demo`: logs are written and rotated live on eight hosts while eight agents, two aggregators and two collectors
//! carry them to a local directory; one process of each tier is killed on the way; at the end every event is counted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::chaos::killer::Kill;
use crate::cluster::Program;
use crate::cluster::spec::{Ack, Dataset, Masking, Roll, Spec, Tier};
use crate::live::{self, LINE_BYTES};
use crate::progress::Progress;
use crate::verify::Outcome;

const AGGREGATORS: usize = 2;
const COLLECTORS: usize = 2;

/// What to show.
#[derive(Debug, Clone)]
pub struct Options {
    /// Logs, data and state go below it; it must be empty or not there.
    pub dir: PathBuf,
    /// Bytes of logs.
    pub bytes: u64,
    /// Bytes per second.
    pub rate: u64,
    /// Hosts, each with an agent; half of them rename their logs, half copy and truncate them. An even number.
    pub hosts: usize,
    /// How the data is published.
    pub dataset: Dataset,
    /// Where it is published; `<dir>/data` if `None`.
    pub dest: Option<String>,
}

impl Options {
    /// What the command shows: eight hosts, Parquet.
    pub fn new(dir: PathBuf) -> Self {
        let dataset = Dataset { format: "parquet".into(), ..Dataset::default() };
        Self { dir, bytes: 120_000_000, rate: 4_000_000, hosts: 8, dataset, dest: None }
    }

    fn dest(&self, dir: &Path) -> String {
        self.dest.clone().unwrap_or_else(|| format!("file://{}", dir.join("data").display()))
    }
}

/// Runs the demo; the folder of the published data is `<dir>/data`.
pub fn demo(options: &Options, program: Program) -> Result<Outcome> {
    let dir = std::path::absolute(&options.dir)?;
    ensure_empty(&dir)?;
    let run = live::Options {
        spec: spec(options, &options.dest(&dir)),
        dir,
        hosts: options.hosts,
        bytes: options.bytes,
        rate: options.rate,
        seed: 1,
        kills: plan(options),
    };
    let mut progress = Progress::new("demo");
    let finished = live::live(&run, program, &mut progress, &mut |_, _| Ok(()))?;
    progress.finish();
    ensure!(finished.killed.len() == 3, "not every tier lost a process: {:?}", finished.killed);
    Ok(finished.outcome)
}

/// How to read the result, line by line.
pub fn how_to_read(dir: &Path) -> Result<String> {
    let dir = std::path::absolute(dir)?;
    let files = format!("{}/data/{}/*/*.parquet", dir.display(), Dataset::default().name);
    let query = format!(
        "select event_date, count(*) as events from read_parquet('{files}', hive_partitioning = true) group by all order by all"
    );
    Ok(format!(
        "read it yourself, with DuckDB on the command line or in Python (pip install duckdb):\n  duckdb -c \"{query}\"\n  \
         python3 -c \"import duckdb; print(duckdb.sql(\\\"{query}\\\"))\"\n\
         dead letters: zstd -dc {dir}/data/_catchment/dead-letter/*/*/*.jsonl.zst\n\
         logs and state of the processes: {dir}/processes",
        dir = dir.display()
    ))
}

fn ensure_empty(dir: &Path) -> Result<()> {
    let mut entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look into {}", dir.display())),
    };
    ensure!(entries.next().is_none(), "{} is not empty; choose another folder or remove it", dir.display());
    Ok(())
}

fn spec(options: &Options, dest: &str) -> Spec {
    Spec {
        agents: Vec::new(),
        aggregators: AGGREGATORS,
        collectors: COLLECTORS,
        dest: dest.to_owned(),
        dataset: options.dataset.clone(),
        masking: Masking::Replace,
        ack: Ack::Committed,
        roll: Roll { bytes: 64 << 20, age: Duration::from_secs(3), idle: Duration::from_secs(2) },
        linger: Duration::from_secs(1),
        level: 1,
        clock: None,
        top: Vec::new(),
        extra: Vec::new(),
    }
}

/// One process of each tier, with events committed before, between and after.
fn plan(options: &Options) -> Vec<Kill> {
    let events = options.bytes / LINE_BYTES;
    let kill = |tier, index, percent: u64| Kill {
        tier,
        index,
        at_committed: events * percent / 100,
        down: Duration::from_secs(1),
    };
    vec![kill(Tier::EdgeAgent, options.hosts / 2 - 1, 15), kill(Tier::Aggregator, 0, 35), kill(Tier::Collector, 1, 55)]
}
