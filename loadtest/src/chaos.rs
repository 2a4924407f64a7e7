//! `loadtest chaos`: rounds of a whole run in which an agent, an aggregator and a collector are killed, each at a random
//! instant with events committed before and after it; every round is verified event by event.

pub mod killer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::spec::{Ack, Dataset, Masking, Roll, Spec, Tier};
use crate::cluster::{Cluster, Program};
use crate::generate::rng::Rng;
use crate::live::{self, LINE_BYTES};
use crate::progress::Progress;
use crate::run;
use killer::Kill;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of rounds.
    pub rounds: u32,
    /// Bytes of generated logs per round, written live.
    pub bytes: u64,
    /// Bytes per second.
    pub rate: u64,
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

/// All rounds; true if every one was exact. Each round's report goes to `each`.
pub fn chaos(options: &Options, program: &Program, each: &mut dyn FnMut(Value) -> Result<()>) -> Result<bool> {
    let work = run::WorkDir::new(options.work.as_deref())?;
    let mut exact = true;
    for number in 1..=options.rounds {
        let dir = work.path().join(format!("round-{number}"));
        let seed = options.seed.wrapping_add(u64::from(number));
        let round = round(options, program, number, seed, &dir);
        let round = round.with_context(|| format!("round {number} (seed {seed}); its logs are in {}", dir.display()));
        let round = match round {
            Ok(round) => round,
            Err(error) => {
                work.keep();
                return Err(error);
            }
        };
        each(report(number, seed, &round))?;
        if is_good(&round) {
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

/// Exact, and every tier lost a process with events committed before it and after it.
fn is_good(round: &live::Finished) -> bool {
    let around = |killed: &killer::Killed| killed.committed_before > 0 && killed.back_after.is_some();
    round.outcome.is_exact() && round.killed.len() == 3 && round.killed.iter().all(around)
}

fn round(options: &Options, program: &Program, number: u32, seed: u64, dir: &Path) -> Result<live::Finished> {
    let dest = format!("{}/round-{seed}-{number}", options.dest.trim_end_matches('/'));
    let run = live::Options {
        dir: dir.to_owned(),
        spec: spec(options, &dest),
        hosts: options.agents,
        bytes: options.bytes,
        rate: options.rate,
        seed,
        kills: plan(options, &mut Rng::new(seed, 0)),
    };
    let change = options.change_config;
    let mut progress = Progress::new("chaos");
    let finished = live::live(&run, program.clone(), &mut progress, &mut |cluster, tier| {
        if change && tier == Tier::EdgeAgent { change_config(cluster) } else { Ok(()) }
    })?;
    progress.finish();
    Ok(finished)
}

/// One kill per tier, in random order, each after 5 to 65 % of the events.
fn plan(options: &Options, rng: &mut Rng) -> Vec<Kill> {
    let events = options.bytes / LINE_BYTES;
    let mut kill = |tier: Tier, count: usize| Kill {
        tier,
        index: rng.below(count),
        at_committed: events * (5 + rng.below(60) as u64) / 100,
        down: Duration::from_millis(200 + rng.below(2_800) as u64),
    };
    vec![
        kill(Tier::EdgeAgent, options.agents),
        kill(Tier::Aggregator, options.aggregators),
        kill(Tier::Collector, options.collectors),
    ]
}

fn spec(options: &Options, dest: &str) -> Spec {
    Spec {
        agents: Vec::new(),
        aggregators: options.aggregators,
        collectors: options.collectors,
        dest: dest.to_owned(),
        dataset: options.dataset.clone(),
        masking: Masking::Replace,
        ack: options.ack,
        roll: Roll { bytes: 8 << 20, age: Duration::from_secs(2), idle: Duration::from_secs(1) },
        linger: Duration::from_millis(500),
        level: 1,
        clock: None,
        top: Vec::new(),
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

fn report(number: u32, seed: u64, round: &live::Finished) -> Value {
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
        "good": is_good(round),
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
