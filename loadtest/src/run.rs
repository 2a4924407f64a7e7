//! `loadtest run`: pushes given files through a cluster of its own, waits until all is committed, and compares what lies
//! at the destination with what went in.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster::spec::{Ack, Dataset, Masking, Roll, Spec, Tier};
use crate::cluster::usage::Usage;
use crate::cluster::{Cluster, Program};
use crate::progress::{Flow, Progress, StallWatch};
use crate::verify::masker::Masker;
use crate::verify::{self, Outcome};

pub mod report;

/// A run in which nothing moves for so long has failed.
const STALL: Duration = Duration::from_secs(180);
/// Longest drain of a tier.
const DRAIN: Duration = Duration::from_secs(300);
/// How often processes are asked how far they are.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The files that go in.
    pub logs: Vec<PathBuf>,
    /// `file:///DIR` or `hdfs://HOST:PORT/DIR`.
    pub dest: String,
    /// Where they go there.
    pub dataset: Dataset,
    /// Numbers of processes.
    pub agents: usize,
    /// See `agents`.
    pub aggregators: usize,
    /// See `agents`.
    pub collectors: usize,
    /// Whether agents mask.
    pub masker: Masker,
    /// Folder for configuration, state and logs of the processes; a temporary one that goes away after success if `None`.
    pub work: Option<PathBuf>,
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The comparison.
    pub outcome: Outcome,
    /// From the start of the agents until everything was committed.
    pub seconds: f64,
    /// By tier, in the order of the path.
    pub usage: [(Tier, Usage); 3],
}

/// Runs, compares, and cleans up after itself.
pub fn run(options: &Options, program: Program) -> Result<Finished> {
    let work = WorkDir::new(options.work.as_deref())?;
    let finished = run_in(options, program, work.path());
    match finished {
        Ok(finished) if finished.outcome.is_exact() => Ok(finished),
        Ok(finished) => {
            work.keep();
            Ok(finished)
        }
        Err(error) => {
            Err(error.context(format!("logs and state of all processes are kept in {}", work.keep().display())))
        }
    }
}

fn run_in(options: &Options, program: Program, work: &Path) -> Result<Finished> {
    let known = verify::snapshot(&options.dest)?;
    let bytes = total_bytes(&options.logs)?;
    let mut cluster = Cluster::create(spec(options, bytes), program, work)?;
    let mut progress = Progress::new("run");
    cluster.start_servers()?;
    let began = Instant::now();
    cluster.start_agents(true)?;
    wait_for_agents(&mut cluster, &mut progress)?;
    drain_servers(&mut cluster, &mut progress)?;
    let seconds = began.elapsed().as_secs_f64();
    progress.say("everything is committed; comparing");
    let outcome = compare(options, known)?;
    progress.finish();
    Ok(Finished { outcome, seconds, usage: Tier::ALL.map(|tier| (tier, cluster.usage(tier))) })
}

/// Waits until every agent has read, sent and seen committed all it has, and has exited.
pub fn wait_for_agents(cluster: &mut Cluster, progress: &mut Progress) -> Result<()> {
    let mut watch = StallWatch::new(STALL, Instant::now());
    while cluster.any_runs(Tier::EdgeAgent) {
        cluster.check_all_alive(&[Tier::Aggregator, Tier::Collector])?;
        let flow = Flow::of(cluster);
        progress.show(flow);
        if watch.is_stalled(flow, Instant::now()) {
            bail!("nothing has moved for {STALL:?}: {flow:?}{}", cluster.complaints());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    cluster.join_all(Tier::EdgeAgent, Duration::from_secs(1))
}

/// Empties the channels, then ends both tiers: collectors commit what they hold.
pub fn drain_servers(cluster: &mut Cluster, progress: &mut Progress) -> Result<()> {
    progress.show(Flow::of(cluster));
    cluster.drain_aggregators(DRAIN).context("the channels could not be emptied")?;
    cluster.stop_all(Tier::Aggregator, DRAIN)?;
    cluster.stop_all(Tier::Collector, DRAIN)
}

fn compare(options: &Options, known: BTreeSet<String>) -> Result<Outcome> {
    verify::verify(&verify::Options {
        logs: options.logs.clone(),
        dest: options.dest.clone(),
        dataset: Some(options.dataset.name.clone()),
        masker: options.masker,
        log_format: Some(options.dataset.log_format.clone()),
        known,
    })
}

fn spec(options: &Options, bytes: u64) -> Spec {
    Spec {
        agents: share_out(&options.logs, options.agents),
        aggregators: options.aggregators,
        collectors: options.collectors,
        dest: options.dest.clone(),
        dataset: options.dataset.clone(),
        masking: if options.masker == Masker::Off { Masking::Off } else { Masking::Replace },
        ack: Ack::Committed,
        roll: roll_for(bytes),
        linger: Duration::from_secs(1),
        level: 1,
        clock: None,
        top: Vec::new(),
        extra: Vec::new(),
    }
}

/// Small inputs are committed soon, large ones in files worth having.
fn roll_for(bytes: u64) -> Roll {
    let age = Duration::from_secs((bytes / 50_000_000).clamp(2, 30));
    Roll { bytes: 256 << 20, age, idle: Duration::from_secs(1) }
}

/// Gives each agent about the same bytes. With more agents than files the rest of the agents have nothing to do and are
/// not started.
pub fn share_out(logs: &[PathBuf], agents: usize) -> Vec<Vec<String>> {
    let mut files: Vec<(u64, &PathBuf)> =
        logs.iter().map(|path| (path.metadata().map_or(0, |meta| meta.len()), path)).collect();
    files.sort_by(|a, b| b.cmp(a));
    let mut shares: Vec<(u64, Vec<String>)> = vec![(0, Vec::new()); agents.min(logs.len()).max(1)];
    for (bytes, path) in files {
        if let Some(share) = shares.iter_mut().min_by_key(|share| share.0) {
            share.0 += bytes.max(1);
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            share.1.push(globset::escape(&path.to_string_lossy()));
        }
    }
    shares.into_iter().map(|share| share.1).collect()
}

fn total_bytes(logs: &[PathBuf]) -> Result<u64> {
    logs.iter().map(|path| Ok(path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len())).sum()
}

/// The folder of a cluster: a given one stays, a temporary one goes away unless it is kept.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl WorkDir {
    /// A given folder (made if it is not there), or a new temporary one.
    pub fn new(given: Option<&Path>) -> Result<Self> {
        match given {
            Some(path) => {
                std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
                Ok(Self { path: std::path::absolute(path)?, temporary: None })
            }
            None => {
                let temporary = tempfile::Builder::new().prefix("catchment-").tempdir()?;
                Ok(Self { path: temporary.path().to_owned(), temporary: Some(temporary) })
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets it stay; says where it is.
    pub fn keep(mut self) -> PathBuf {
        if let Some(temporary) = self.temporary.take() {
            let _ = temporary.keep();
        }
        self.path.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_shared_out_by_size_and_no_agent_is_idle() {
        let dir = tempfile::tempdir().unwrap();
        let logs: Vec<PathBuf> = [20, 1, 4, 5]
            .into_iter()
            .enumerate()
            .map(|(number, bytes)| {
                let path = dir.path().join(format!("[{number}].log"));
                std::fs::write(&path, vec![b'x'; bytes]).unwrap();
                path
            })
            .collect();
        let shares = share_out(&logs, 2);
        assert_eq!(shares.iter().map(Vec::len).collect::<Vec<_>>(), [1, 3]);
        assert!(shares[0][0].ends_with("[[]0[]].log"), "{shares:?}");
        assert_eq!(share_out(&logs[..1], 4).len(), 1);
    }
}
