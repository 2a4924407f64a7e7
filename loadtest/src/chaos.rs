//! `loadtest chaos`: rounds of a whole run in which an agent, an aggregator and a collector are killed, each at a random
//! instant with events committed before and after it; every round is verified event by event.

pub mod killer;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cluster::spec::{Ack, Dataset, Masking, Roll, Spec, Tier};
use crate::cluster::{Cluster, Program};
use crate::generate::rng::Rng;
use crate::generate::{self, Rotate};
use crate::progress::{Flow, Progress, StallWatch};
use crate::run;
use crate::verify::masker::Masker;
use crate::verify::{self, Outcome, input};
use killer::{CommitCounter, Kill, Killed, Killer};

/// A round in which nothing moves for so long has failed.
const STALL: Duration = Duration::from_secs(240);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What a generated line has on average, for planning only.
const LINE_BYTES: u64 = 232;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of rounds.
    pub rounds: u32,
    /// Bytes of generated logs per round.
    pub bytes: u64,
    /// Each round writes below it, into a folder of its own.
    pub dest: String,
    /// The killed agent comes back with another masking and another zstd level.
    pub change_config: bool,
    /// Instants and victims follow from it.
    pub seed: u64,
    /// What is written.
    pub dataset: Dataset,
    /// When agents let go.
    pub ack: Ack,
    /// Numbers of processes.
    pub agents: usize,
    /// See `agents`.
    pub aggregators: usize,
    /// See `agents`.
    pub collectors: usize,
    /// Folder for logs, state and the generated input; temporary if `None`.
    pub work: Option<PathBuf>,
}

/// One round.
#[derive(Debug)]
pub struct Round {
    /// The comparison.
    pub outcome: Outcome,
    /// The kills.
    pub killed: Vec<Killed>,
    /// Its length.
    pub seconds: f64,
}

/// All rounds; true if every one was exact. Each round's report goes to `each`.
pub fn chaos(options: &Options, program: &Program, each: &mut dyn FnMut(Value) -> Result<()>) -> Result<bool> {
    let work = run::WorkDir::new(options.work.as_deref())?;
    let logs = work.path().join("logs");
    let input = generate::Options {
        bytes: options.bytes,
        hosts: options.agents,
        first_host: 0,
        out: logs.clone(),
        seed: options.seed,
        rate: None,
        rotate: Rotate::None,
        rotate_bytes: u64::MAX,
        odd_per_million: generate::ODD_PER_MILLION,
        end: generate::yesterday(),
    };
    generate::generate(&input, &AtomicU64::new(0))?;
    let files = input::matched_files(&[format!("{}/*/access.log", globset::escape(&logs.to_string_lossy()))])?;
    let mut exact = true;
    for number in 1..=options.rounds {
        let dir = work.path().join(format!("round-{number}"));
        let seed = options.seed.wrapping_add(u64::from(number));
        let round = round(options, program, &files, number, seed, &dir);
        let round = round.with_context(|| format!("round {number} (seed {seed}); its logs are in {}", dir.display()));
        let round = match round {
            Ok(round) => round,
            Err(error) => {
                work.keep();
                return Err(error);
            }
        };
        each(report(number, seed, &round))?;
        if round.outcome.is_exact() {
            std::fs::remove_dir_all(&dir)?;
        } else {
            exact = false;
        }
    }
    if !exact {
        work.keep();
    }
    Ok(exact)
}

fn round(options: &Options, program: &Program, files: &[PathBuf], number: u32, seed: u64, dir: &Path) -> Result<Round> {
    let mut rng = Rng::new(seed, 0);
    let dest = format!("{}/round-{seed}-{number}", options.dest.trim_end_matches('/'));
    let known = verify::snapshot(&dest)?;
    let mut cluster = Cluster::create(spec(options, files, &dest), program.clone(), dir)?;
    let mut killer = Killer::new(plan(options, &mut rng), true);
    let mut progress = Progress::new("chaos");
    cluster.start_servers()?;
    let began = Instant::now();
    cluster.start_agents(true)?;
    let change = options.change_config;
    drive(&mut cluster, &mut killer, &mut progress, &mut |cluster, tier| {
        if change && tier == Tier::EdgeAgent { change_config(cluster) } else { Ok(()) }
    })?;
    run::wait_for_agents(&mut cluster, &mut progress)?;
    run::drain_servers(&mut cluster, &mut progress)?;
    let seconds = began.elapsed().as_secs_f64();
    let outcome = verify::verify(&verify::Options {
        logs: files.to_vec(),
        dest,
        dataset: Some(options.dataset.name.clone()),
        masker: Masker::Replace,
        log_format: Some(options.dataset.log_format.clone()),
        known,
    })?;
    progress.finish();
    Ok(Round { outcome, killed: killer.killed().to_vec(), seconds })
}

/// Lets the flow run and the killer kill until agents have ended or the plan is carried out.
pub fn drive(
    cluster: &mut Cluster,
    killer: &mut Killer,
    progress: &mut Progress,
    before_restart: &mut dyn FnMut(&mut Cluster, Tier) -> Result<()>,
) -> Result<()> {
    let mut counter = CommitCounter::default();
    let mut watch = StallWatch::new(STALL, Instant::now());
    while !killer.is_done() && (killer.is_down() || cluster.any_runs(Tier::EdgeAgent)) {
        let committed = counter.read(cluster);
        if let Some(text) = killer.tick(cluster, committed, before_restart)? {
            progress.say(&text);
        }
        if !killer.is_down() {
            cluster.check_all_alive(&[Tier::Aggregator, Tier::Collector])?;
        }
        let flow = Flow { committed, ..Flow::of(cluster) };
        progress.show(flow);
        if watch.is_stalled(flow, Instant::now()) {
            bail!("nothing has moved for {STALL:?}: {flow:?}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// One kill per tier, in random order, each after 5 to 75 % of the events.
fn plan(options: &Options, rng: &mut Rng) -> Vec<Kill> {
    let events = options.bytes / LINE_BYTES;
    let mut kill = |tier: Tier, count: usize| Kill {
        tier,
        index: rng.below(count),
        at_committed: events * (5 + rng.below(70) as u64) / 100,
        down: Duration::from_millis(200 + rng.below(2_800) as u64),
    };
    vec![
        kill(Tier::EdgeAgent, options.agents),
        kill(Tier::Aggregator, options.aggregators),
        kill(Tier::Collector, options.collectors),
    ]
}

fn spec(options: &Options, files: &[PathBuf], dest: &str) -> Spec {
    Spec {
        agents: run::share_out(files, options.agents),
        aggregators: options.aggregators,
        collectors: options.collectors,
        dest: dest.to_owned(),
        dataset: options.dataset.clone(),
        masking: Masking::Replace,
        ack: options.ack,
        roll: Roll { bytes: 8 << 20, age: Duration::from_secs(2), idle: Duration::from_secs(1) },
        linger: Duration::from_millis(500),
        level: 1,
        extra: Vec::new(),
    }
}

/// Keyed tokens instead of plain ones, and level 3 instead of 1: other bytes for the same events.
fn change_config(cluster: &mut Cluster) -> Result<()> {
    let key_file = cluster.dir().join("mask.key");
    std::fs::write(&key_file, "a key for rounds of chaos, 32 b.\n")?;
    cluster.spec.masking = Masking::Hmac { key_file: key_file.to_string_lossy().into_owned() };
    cluster.spec.level = 3;
    cluster.write_configs()
}

fn report(number: u32, seed: u64, round: &Round) -> Value {
    let sums = &round.outcome.sums;
    let kills: Vec<Value> = round
        .killed
        .iter()
        .map(|killed| {
            json!({
                "name": killed.name,
                "tier": killed.tier.key(),
                "committed_before": killed.committed_before,
                "flow_back_seconds": killed.back_after.map(|took| took.as_secs_f64()),
            })
        })
        .collect();
    json!({
        "round": number,
        "seed": seed,
        "exact": round.outcome.is_exact(),
        "events_in": sums.events_in,
        "published": sums.published,
        "dead_lettered": sums.dead_lettered,
        "lost": sums.lost,
        "duplicated": sums.duplicated,
        "unexpected": sums.unexpected,
        "quarantined": sums.quarantined,
        "misplaced": round.outcome.found.misplaced,
        "seconds": round.seconds,
        "kills": kills,
    })
}
