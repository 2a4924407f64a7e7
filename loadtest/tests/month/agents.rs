//! Machines of the month: a log that is written and rotated, a state directory, and now and then a run of the real
//! agent on both: its owner in steps at the simulated time, its shipping as a task of the paused runtime.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use common::admin::Health;
use edge_agent::agent::owner::{End, Owner, Step};
use edge_agent::agent::{self, Given, Opened, Tuning};
use edge_agent::config::AgentConfig;
use edge_agent::ship::client::Dial;
use edge_agent::ship::messages::FromShip;
use edge_agent::status::Gauges;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt};
use tokio::task::JoinHandle;

use crate::lines::Lines;
use crate::part::{DAILY, HOUR, HOURLY, MINUTE};

/// Between two writes to a log.
const WRITE_EVERY: i64 = HOUR;
/// Steps in a row of an owner that makes progress.
const STEPS: usize = 20;
/// A run that begins or ends is stepped at every tick.
const HASTE: Duration = Duration::from_secs(300);

struct Run {
    owner: Owner,
    to_owner: Sender<FromShip>,
    ship: JoinHandle<()>,
    due: Instant,
    hasty_until: Instant,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.ship.abort();
    }
}

pub struct Machine {
    name: String,
    dir: PathBuf,
    config: AgentConfig,
    run: Option<Run>,
    /// It is told to end.
    ending: bool,
    next_write: Option<i64>,
}

fn config(name: &str, dir: &Path) -> AgentConfig {
    let source = |dataset: &str| {
        format!(
            "[[sources]]\nname = \"{dataset}\"\ntype = \"tail\"\npaths = [\"{}/logs/{dataset}.log*\"]\npoll = \"1m\"\n\
             rescan = \"1m\"\ndataset = \"{dataset}\"\ntime = {{ format = \"iso8601\" }}\n",
            dir.display()
        )
    };
    let text = format!(
        "name = \"{name}\"\nstate_dir = \"{}/state\"\nmark_every = \"30m\"\ndrain_deadline = \"5m\"\nleave_on_stop = {}\n\
         [aggregators]\npeers = [\"aggregator:1\"]\n[outbox]\nmin_free = \"1MiB\"\nmin_free_percent = 0\n\
         [batch]\nlinger = \"15s\"\n{}{}",
        dir.display(),
        name.starts_with("pod-"),
        source(DAILY),
        source(HOURLY)
    );
    common::config::parse(&text).unwrap()
}

impl Machine {
    pub fn new(name: &str, root: &Path) -> Self {
        let dir = root.join(name);
        fs::create_dir_all(dir.join("logs")).unwrap();
        let config = config(name, &dir);
        Self { name: name.to_owned(), dir, config, run: None, ending: false, next_write: None }
    }

    pub fn runs(&self) -> bool {
        self.run.is_some()
    }

    /// It has ended for good.
    pub fn is_over(&self) -> bool {
        self.run.is_none() && self.next_write.is_none()
    }

    /// It was told to end.
    pub fn is_ending(&self) -> bool {
        self.run.is_some() && self.ending
    }

    pub fn start(&mut self, dial: Dial, now: i64, rng: &mut SmallRng) {
        assert!(self.run.is_none());
        let at = tokio::time::Instant::now().into_std();
        let mut bits = [0; 16];
        rng.fill_bytes(&mut bits);
        let given = Given {
            peers: self.config.aggregators.source().watch().0,
            dial,
            gauges: Arc::new(Gauges::default()),
            health: Health::new(),
            now: at,
            origin_bits: u128::from_le_bytes(bits),
            seed: rng.random(),
        };
        let tuning = Tuning {
            contact_timeout: Duration::from_secs(60),
            hurry: Duration::from_secs(10),
            segment_bytes: 64 * 1024,
        };
        let Opened { owner, ship, to_owner } = agent::open(&self.config, false, &tuning, given).unwrap();
        let ship = tokio::spawn(ship.run());
        self.run = Some(Run { owner, to_owner, ship, due: at, hasty_until: at + HASTE });
        self.ending = false;
        // Some have something to send at once.
        let first = if rng.random_bool(0.5) { now } else { now + rng.random_range(0..WRITE_EVERY) };
        self.next_write.get_or_insert(first);
    }

    /// An orderly end: a stop, or for good. A stop of a `pod` is for good too, by its configuration.
    pub fn close(&mut self, left: bool) {
        let Some(run) = &mut self.run else { return };
        if left {
            self.next_write = None;
        }
        let is_pod = self.config.leave_on_stop;
        run.to_owner.send(if left && !is_pod { FromShip::Leave } else { FromShip::Stop }).unwrap();
        run.due = tokio::time::Instant::now().into_std();
        self.ending = true;
    }

    /// Like SIGKILL, between two steps. `gone`: with the whole machine.
    pub fn crash(&mut self, gone: bool) {
        self.run = None;
        if gone {
            self.next_write = None;
        }
    }

    /// A new machine of the same name.
    pub fn wipe(&mut self) {
        assert!(self.run.is_none());
        fs::remove_dir_all(&self.dir).unwrap();
        fs::create_dir_all(self.dir.join("logs")).unwrap();
    }

    /// The machine is given back.
    pub fn remove(&self) {
        fs::remove_dir_all(&self.dir).unwrap();
    }

    /// Copies the state directory beside it.
    pub fn back_up(&self) {
        copy_dir(&self.dir.join("state"), &self.dir.join("backup"));
    }

    /// Puts the copy in the place of the state directory, or its files in the place of the present ones.
    pub fn restore(&self, in_place: bool) {
        assert!(self.run.is_none());
        let (state, backup) = (self.dir.join("state"), self.dir.join("backup"));
        if !in_place {
            fs::remove_dir_all(&state).unwrap();
            fs::rename(&backup, &state).unwrap();
            return;
        }
        for dir in [state.join("outbox"), state.clone()] {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    fs::remove_file(path).unwrap();
                }
            }
        }
        copy_dir(&backup, &state);
        fs::remove_dir_all(&backup).unwrap();
    }

    /// What is written by now.
    pub fn write(&mut self, now: i64, lines: &mut Lines, rng: &mut SmallRng) {
        let Some(next) = self.next_write.filter(|next| *next <= now) else { return };
        for dataset in [DAILY, HOURLY] {
            let back = match rng.random_range(0..400) {
                0 => rng.random_range(4 * HOUR..30 * HOUR),
                1..=12 => rng.random_range(0..(7 * HOUR / 2)),
                _ => 0,
            };
            self.log(dataset, now - back, rng.random_range(1..4), now, lines);
        }
        // Now and then the log is busy.
        let pause = if rng.random_bool(0.1) { rng.random_range(2 * MINUTE..6 * MINUTE) } else { WRITE_EVERY };
        self.next_write = Some(next + pause);
        if self.runs() && rng.random_bool(0.04) {
            self.rotate();
        }
    }

    /// Writes `events` lines about `time`.
    pub fn log(&mut self, dataset: &'static str, time: i64, events: u64, now: i64, lines: &mut Lines) {
        let path = self.dir.join("logs").join(format!("{dataset}.log"));
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        let text: String = (0..events).map(|_| lines.write(&self.name, dataset, time, now) + "\n").collect();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// By renaming, one older file is kept.
    fn rotate(&self) {
        for dataset in [DAILY, HOURLY] {
            let log = self.dir.join("logs").join(format!("{dataset}.log"));
            if log.exists() {
                fs::rename(&log, log.with_extension("log.1")).unwrap();
            }
        }
    }

    /// The steps of its agent that are due.
    pub fn step(&mut self) {
        let now = tokio::time::Instant::now().into_std();
        let Some(run) = &mut self.run else { return };
        if now < run.due && now >= run.hasty_until && !self.ending {
            return;
        }
        for _ in 0..STEPS {
            match run.owner.step(now).unwrap_or_else(|error| panic!("{}: {error}", self.name)) {
                Step::Over(end) => {
                    assert_eq!(end, End::Clean, "{}", self.name);
                    self.run = None;
                    self.ending = false;
                    return;
                }
                Step::Wait(Duration::ZERO) => {}
                Step::Wait(wait) => {
                    run.due = now + wait;
                    return;
                }
            }
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}
