//! `loadtest demo`: logs are written and rotated live on eight hosts while eight agents, two aggregators and two collectors
//! carry them to a local directory; one process of each tier is killed on the way; at the end every event is counted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::chaos::drive;
use crate::chaos::killer::{Kill, Killer};
use crate::cluster::spec::{Ack, Dataset, Masking, Roll, Spec, Tier};
use crate::cluster::{Cluster, Program};
use crate::generate::{self, Rotate, Written};
use crate::progress::{Flow, Progress};
use crate::run;
use crate::verify::masker::Masker;
use crate::verify::{self, Outcome, input};

const AGGREGATORS: usize = 2;
const COLLECTORS: usize = 2;
/// Longest wait for the logs to be written.
const WRITTEN_WITHIN: Duration = Duration::from_secs(600);
const STOP_WITHIN: Duration = Duration::from_secs(90);

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
    let logs = dir.join("logs");
    let dest = options.dest(&dir);
    let mut cluster = Cluster::create(spec(options, &logs, &dest), program, &dir.join("processes"))?;
    let mut progress = Progress::new("demo");
    progress.say("starting 2 collectors and 2 aggregators");
    cluster.start_servers()?;
    let writers = Writers::start(options, &logs);
    progress.say(&format!("starting {} agents; their logs are written and rotated while they read", options.hosts));
    cluster.start_agents(false)?;

    let mut killer = Killer::new(plan(options), false);
    drive(&mut cluster, &mut killer, &mut progress, &mut |_, _| Ok(()))?;
    writers.join(&cluster, &mut progress)?;
    progress.say("the logs are complete; agents read what is left, then everything drains");
    cluster.stop_all(Tier::EdgeAgent, STOP_WITHIN)?;
    cluster.start_agents(true)?;
    run::wait_for_agents(&mut cluster, &mut progress)?;
    run::drain_servers(&mut cluster, &mut progress)?;
    progress.finish();
    ensure!(killer.is_done() && killer.killed().len() == 3, "not every tier lost a process: {:?}", killer.killed());

    verify::verify(&verify::Options {
        logs: input::matched_files(&[pattern(&logs.join("*"))])?,
        dest,
        dataset: Some(options.dataset.name.clone()),
        masker: Masker::Replace,
        log_format: Some(options.dataset.log_format.clone()),
        known: Default::default(),
    })
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

fn pattern(host: &Path) -> String {
    format!("{}/access.log*", host.display())
}

fn spec(options: &Options, logs: &Path, dest: &str) -> Spec {
    Spec {
        agents: (0..options.hosts).map(|host| vec![pattern(&logs.join(generate::host_name(host)))]).collect(),
        aggregators: AGGREGATORS,
        collectors: COLLECTORS,
        dest: dest.to_owned(),
        dataset: options.dataset.clone(),
        masking: Masking::Replace,
        ack: Ack::Committed,
        roll: Roll { bytes: 64 << 20, age: Duration::from_secs(3), idle: Duration::from_secs(2) },
        linger: Duration::from_secs(1),
        level: 1,
        extra: Vec::new(),
    }
}

/// One process of each tier, with events committed before, between and after.
fn plan(options: &Options) -> Vec<Kill> {
    let events = options.bytes / 232;
    let kill = |tier, index, percent: u64| Kill {
        tier,
        index,
        at_committed: events * percent / 100,
        down: Duration::from_secs(1),
    };
    vec![kill(Tier::EdgeAgent, options.hosts / 2 - 1, 15), kill(Tier::Aggregator, 0, 35), kill(Tier::Collector, 1, 55)]
}

/// The threads that write the logs.
struct Writers {
    threads: Vec<JoinHandle<Result<Written>>>,
    written: Arc<AtomicU64>,
}

impl Writers {
    fn start(options: &Options, logs: &Path) -> Self {
        let written = Arc::new(AtomicU64::new(0));
        let half = |first_host: usize, rotate: Rotate| generate::Options {
            bytes: options.bytes / 2,
            hosts: options.hosts / 2,
            first_host,
            out: logs.to_owned(),
            seed: 1,
            rate: Some((options.rate / 2).max(1)),
            rotate,
            rotate_bytes: (options.bytes / options.hosts as u64 / 5).max(100_000),
            odd_per_million: generate::ODD_PER_MILLION,
            end: generate::yesterday(),
        };
        let halves = [half(0, Rotate::Rename), half(options.hosts / 2, Rotate::Copytruncate)];
        let threads = halves.map(|half| {
            let written = written.clone();
            std::thread::spawn(move || generate::generate(&half, &written))
        });
        Self { threads: threads.into(), written }
    }

    fn join(self, cluster: &Cluster, progress: &mut Progress) -> Result<()> {
        let began = Instant::now();
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            cluster.check_all_alive(&Tier::ALL)?;
            progress.show(Flow::of(cluster));
            if began.elapsed() > WRITTEN_WITHIN {
                bail!("only {} bytes of logs were written in {WRITTEN_WITHIN:?}", self.written.load(Ordering::Relaxed));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a writer of logs failed"))??;
        }
        Ok(())
    }
}
