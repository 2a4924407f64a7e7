//! A live run: logs are written and rotated at a rate while a whole cluster carries them away and a plan of kills is
//! carried out; then everything drains and every event is counted. The demo is one such run, chaos is many.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use crate::chaos::killer::{CommitCounter, Kill, Killed, Killer};
use crate::cluster::spec::{Spec, Tier};
use crate::cluster::{Cluster, Program};
use crate::generate::{self, Rotate, Written};
use crate::progress::{Flow, Progress, StallWatch};
use crate::run;
use crate::verify::masker::Masker;
use crate::verify::{self, Outcome, input};

/// A run in which nothing moves for so long has failed.
const STALL: Duration = Duration::from_secs(240);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest time the writers may take beyond what their rate says.
const WRITERS_LATE: Duration = Duration::from_secs(300);
const STOP_WITHIN: Duration = Duration::from_secs(90);
/// What a generated line has on average, for planning only.
pub const LINE_BYTES: u64 = 232;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Logs and processes lie below it.
    pub dir: PathBuf,
    /// The cluster. Its agents are set here: one per host.
    pub spec: Spec,
    /// Hosts, each with an agent; the first half of them renames its logs, the rest copies and truncates.
    pub hosts: usize,
    /// Bytes of logs.
    pub bytes: u64,
    /// Bytes per second.
    pub rate: u64,
    /// Of the logs.
    pub seed: u64,
    /// Who is killed when.
    pub kills: Vec<Kill>,
}

/// What came of it.
#[derive(Debug)]
pub struct Finished {
    /// The comparison.
    pub outcome: Outcome,
    /// The kills, as they happened.
    pub killed: Vec<Killed>,
    /// From the first line until everything was committed.
    pub seconds: f64,
}

/// Changes what a killed process comes back with.
pub type BeforeRestart<'a> = dyn FnMut(&mut Cluster, Tier) -> Result<()> + 'a;

/// Runs, and compares.
pub fn live(
    options: &Options,
    program: Program,
    progress: &mut Progress,
    before_restart: &mut BeforeRestart<'_>,
) -> Result<Finished> {
    let logs = options.dir.join("logs");
    let agents = (0..options.hosts).map(|host| vec![pattern(&logs.join(generate::host_name(host)))]).collect();
    let spec = Spec { agents, ..options.spec.clone() };
    let (dest, dataset) = (spec.dest.clone(), spec.dataset.clone());
    let mut cluster = Cluster::create(spec, program, &options.dir.join("processes"))?;
    progress
        .say(&format!("starting {} collectors and {} aggregators", options.spec.collectors, options.spec.aggregators));
    cluster.start_servers()?;
    let began = Instant::now();
    let writers = Writers::start(options, &logs);
    progress.say(&format!("starting {} agents; their logs are written and rotated while they read", options.hosts));
    cluster.start_agents(false)?;
    let mut killer = Killer::new(options.kills.clone());
    drive(&mut cluster, &mut killer, progress, before_restart)?;
    writers.join(&cluster, progress)?;
    progress.say("the logs are complete; agents read what is left, then everything drains");
    cluster.stop_all(Tier::EdgeAgent, STOP_WITHIN)?;
    cluster.start_agents(true)?;
    run::wait_for_agents(&mut cluster, progress)?;
    run::drain_servers(&mut cluster, progress)?;
    let seconds = began.elapsed().as_secs_f64();
    let outcome = verify::verify(&verify::Options {
        logs: input::matched_files(&[pattern(&logs.join("*"))])?,
        dest,
        dataset: Some(dataset.name),
        masker: Masker::Replace,
        log_format: Some(dataset.log_format),
        known: Default::default(),
    })?;
    Ok(Finished { outcome, killed: killer.killed().to_vec(), seconds })
}

/// Lets the flow run and the killer kill until the plan is carried out.
fn drive(
    cluster: &mut Cluster,
    killer: &mut Killer,
    progress: &mut Progress,
    before_restart: &mut BeforeRestart<'_>,
) -> Result<()> {
    let mut counter = CommitCounter::default();
    let mut watch = StallWatch::new(STALL, Instant::now());
    while !killer.is_done() {
        let committed = counter.read(cluster);
        if let Some(text) = killer.tick(cluster, committed, before_restart)? {
            progress.say(&text);
        }
        if !killer.is_down() {
            cluster.check_all_alive(&Tier::ALL)?;
        }
        let flow = Flow { committed, ..Flow::of(cluster) };
        progress.show(flow);
        if watch.is_stalled(flow, Instant::now()) {
            bail!("nothing has moved for {STALL:?}: {flow:?}{}", cluster.complaints());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn pattern(host: &Path) -> String {
    format!("{}/access.log*", host.display())
}

/// The threads that write the logs.
struct Writers {
    threads: Vec<JoinHandle<Result<Written>>>,
    written: Arc<AtomicU64>,
    within: Duration,
}

impl Writers {
    fn start(options: &Options, logs: &Path) -> Self {
        let written = Arc::new(AtomicU64::new(0));
        let half = |first_host: usize, rotate: Rotate| generate::Options {
            bytes: options.bytes / 2,
            hosts: options.hosts / 2,
            first_host,
            out: logs.to_owned(),
            seed: options.seed,
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
        let within = Duration::from_secs(options.bytes / options.rate.max(1)) + WRITERS_LATE;
        Self { threads: threads.into(), written, within }
    }

    fn join(self, cluster: &Cluster, progress: &mut Progress) -> Result<()> {
        let began = Instant::now();
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            cluster.check_all_alive(&Tier::ALL)?;
            progress.show(Flow::of(cluster));
            if began.elapsed() > self.within {
                bail!("only {} bytes of logs were written in {:?}", self.written.load(Ordering::Relaxed), self.within);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a writer of logs failed"))??;
        }
        Ok(())
    }
}
