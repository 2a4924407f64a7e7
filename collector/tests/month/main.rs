//! A simulated month: 50 agents that scale, restart, vanish, come back, lose or copy their state; backfills; batches
//! that come hours late; three real collectors of which one dies every day, on a real store, with time that is paused.
//! A judge that knows what every agent wrote says when each partition may be sealed and with what content.
//!
//! A failure names its seed: `CATCHMENT_SEED=<n> cargo test --release -p collector --test month` plays it again,
//! `CATCHMENT_DAYS=<n>` sets its length. It makes many small files: a temporary directory in memory (`TMPDIR`) makes it
//! several times faster.

#![allow(clippy::print_stdout, reason = "the numbers of a month are read by people")]

mod agents;
mod check;
mod oracle;
mod store;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use proto::ids::Origin;
use proto::wire;
use proto::wire::commit_record::Action;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use agents::{Agent, DAILY, DAY, HOUR, HOURLY, MINUTE, Start};
use world::{BEGIN, SLOTS, World};

/// How long after the rule allows it a seal may come: two ticks of everything it passes, and the silence after which a
/// dead collector's share goes to the others.
const PATIENCE: i64 = 80 * MINUTE;
const STEADY: usize = 32;
const SCALED: usize = 5;

/// What happens to an agent at a time.
#[derive(Debug, Clone)]
enum Deed {
    Start(Start),
    /// Its state directory is emptied first.
    StartAnew,
    Close {
        left: bool,
    },
    Crash,
    /// Old days, one batch each.
    Load {
        days: i64,
    },
    Forget,
    /// Its run before the newest.
    Abandon,
}

struct Month {
    world: World,
    agents: BTreeMap<String, Agent>,
    deeds: BTreeMap<(i64, u64), (String, Deed)>,
    rng: SmallRng,
    last: BTreeMap<String, Origin>,
}

impl Month {
    fn plan(&mut self, at: i64, agent: &str, deed: Deed) {
        let number = self.deeds.len() as u64;
        self.deeds.insert((BEGIN + at, number), (agent.to_owned(), deed));
    }

    fn plan_month(&mut self, days: i64) {
        for n in 0..STEADY {
            let name = format!("web-{n}");
            let at = self.rng.random_range(0..HOUR);
            self.plan(at, &name, Deed::Start(Start::Plain));
            for day in 0..days {
                if self.rng.random_bool(0.2) {
                    let at = day * DAY + self.rng.random_range(2 * HOUR..DAY);
                    let deed = if self.rng.random_bool(0.5) { Deed::Crash } else { Deed::Close { left: false } };
                    self.plan(at, &name, deed);
                    let pause = self.rng.random_range(MINUTE..20 * MINUTE);
                    self.plan(at + pause, &name, Deed::Start(Start::Plain));
                }
            }
        }
        for day in 0..days {
            for n in 0..SCALED {
                for name in [format!("pod-{n}"), format!("job-{day}-{n}")] {
                    let begin = day * DAY + self.rng.random_range(7 * HOUR..8 * HOUR);
                    self.plan(begin, &name, Deed::Start(Start::Plain));
                    let end = day * DAY + self.rng.random_range(19 * HOUR..20 * HOUR);
                    self.plan(end, &name, Deed::Close { left: true });
                }
            }
        }
        self.plan_accidents(days);
    }

    fn plan_accidents(&mut self, days: i64) {
        // A shorter month has the same accidents, sooner after one another.
        let on = |day: i64, hour: i64| (day * days / 30).max(1) * DAY + hour * HOUR;
        for name in ["gone-1", "gone-2", "gone-3", "gone-4", "gone-5", "wiped-1", "wiped-2", "copy-1"] {
            self.plan(HOUR, name, Deed::Start(Start::Plain));
        }
        self.plan(on(8, 11), "gone-1", Deed::Crash);
        self.plan(on(8, 11) + 30 * HOUR, "gone-1", Deed::Forget);
        // Nobody says anything of this one: after a week it is forgotten.
        self.plan(on(19, 3), "gone-5", Deed::Crash);
        for (name, at, hours) in [("gone-2", on(3, 14), 3), ("gone-3", on(11, 9), 9), ("gone-4", on(18, 15), 40)] {
            self.plan(at, name, Deed::Crash);
            self.plan(at + hours * HOUR, name, Deed::Start(Start::Plain));
        }
        self.plan(on(6, 10), "wiped-1", Deed::Close { left: true });
        self.plan(on(6, 11), "wiped-1", Deed::StartAnew);
        // It had left, and its new run is waited for all the same.
        self.plan(on(7, 9), "wiped-1", Deed::Crash);
        self.plan(on(7, 16), "wiped-1", Deed::Start(Start::Plain));
        // It had not left: its old run is waited for until somebody gives it up.
        self.plan(on(22, 9), "wiped-2", Deed::Crash);
        self.plan(on(22, 10), "wiped-2", Deed::StartAnew);
        self.plan(on(22, 22), "wiped-2", Deed::Abandon);
        self.plan(on(13, 8), "copy-1", Deed::Crash);
        self.plan(on(13, 9), "copy-1", Deed::Start(Start::Restored));
        self.plan(on(13, 19), "copy-1", Deed::Abandon);
        self.plan(on(15, 12), "load-1", Deed::Start(Start::Plain));
        self.plan(on(15, 12) + MINUTE, "load-1", Deed::Load { days: 20 });
        self.plan(on(15, 12) + 2 * MINUTE, "load-1", Deed::Close { left: true });
        self.plan(on(16, 13), "gone-2", Deed::Load { days: 10 });
    }

    async fn deed(&mut self, name: &str, deed: Deed) {
        let now = self.world.clock.now();
        let begins = if name.starts_with("load") { now } else { now - HOUR };
        let agent = self.agents.entry(name.to_owned()).or_insert_with(|| Agent::new(name, begins));
        match deed {
            // It waits until the machine is given up, or until its last run is.
            Deed::Start(_) | Deed::StartAnew if agent.runs() => {}
            Deed::Start(how) => {
                self.last.extend(agent.newest.map(|newest| (name.to_owned(), newest.origin)));
                agent.start(how, now, &mut self.rng);
            }
            Deed::StartAnew => {
                self.last.extend(agent.newest.take().map(|newest| (name.to_owned(), newest.origin)));
                agent.start(Start::Plain, now, &mut self.rng);
            }
            Deed::Close { left } if agent.runs() => {
                agent.close(left, now, &mut self.rng);
                agent.end().into_iter().for_each(|batch| self.world.send(batch));
            }
            Deed::Crash => agent.end().into_iter().for_each(|batch| self.world.send(batch)),
            Deed::Load { days } => {
                for day in 0..days {
                    let dataset = if day % 2 == 0 { DAILY } else { HOURLY };
                    agent.data(dataset, now - (40 + day) * DAY, 3);
                }
            }
            Deed::Close { .. } => {}
            Deed::Forget => {
                let forget = wire::Forget { agent: name.to_owned(), reason: "test".into() };
                self.world.operator(Action::Forget(forget)).await;
            }
            Deed::Abandon => {
                let origin = self.last[name].to_bytes();
                let abandon = wire::Abandon {
                    agent: name.to_owned(),
                    origin,
                    ranges: None,
                    time_unix_ms: now,
                    reason: "test".into(),
                };
                self.world.operator(Action::Abandon(abandon)).await;
            }
        }
    }

    async fn minute(&mut self) {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let now = self.world.clock.now();
        while let Some(entry) = self.deeds.first_entry().filter(|entry| entry.key().0 <= now) {
            let (name, deed) = entry.remove();
            self.deed(&name, deed).await;
        }
        for agent in self.agents.values_mut() {
            agent.step(now, &mut self.rng);
            for batch in agent.send(|id| self.world.is_done(id)) {
                self.world.send(batch);
            }
        }
        self.world.step().await;
    }
}

async fn play(seed: u64, days: i64) {
    let root = tempfile::tempdir().unwrap();
    let mut month = Month::new(root.path(), seed, days);
    let mut weeks = Vec::new();
    for day in 0..days {
        let (slot, at) = (month.rng.random_range(0..SLOTS), month.rng.random_range(0..24 * 60));
        for minute in 0..24 * 60 {
            if minute == at {
                month.world.kill(slot);
            }
            month.minute().await;
        }
        let size = check::Size::of(root.path(), day, month.world.clock.now());
        println!("{size}");
        size.is_clean();
        if days >= 28 && day % 7 == 6 {
            weeks.push(size);
        }
    }
    month.home().await;
    check::the_end(&month.world);
    check::flat(&weeks);
}

impl Month {
    fn new(root: &std::path::Path, seed: u64, days: i64) -> Self {
        let world = World::new(root, seed, PATIENCE);
        let rng = SmallRng::seed_from_u64(seed ^ 0x1234);
        let mut month = Self { world, agents: BTreeMap::new(), deeds: BTreeMap::new(), rng, last: BTreeMap::new() };
        month.plan_month(days);
        month
    }

    /// All agents leave, and everything that is open is sealed.
    async fn home(&mut self) {
        self.deeds.clear();
        let names: Vec<String> = self.agents.keys().cloned().collect();
        for name in names {
            self.deed(&name, Deed::Close { left: true }).await;
        }
        for _ in 0..34 * 60 {
            self.minute().await;
        }
    }

    /// Published files belong to their users: they remove one, with its marker or alone, or a whole partition.
    fn users(&mut self) {
        let there = check::published(&self.world.root);
        if there.is_empty() {
            return;
        }
        let path = &there[self.rng.random_range(0..there.len())];
        let dir = path.rsplit_once('/').unwrap().0;
        let whole = self.rng.random_bool(0.3);
        let gone: Vec<String> = there
            .iter()
            .filter(|other| *other == path || whole && other.starts_with(&format!("{dir}/")))
            .cloned()
            .collect();
        // What lies under a day's directory may be hours.
        if whole && !gone.is_empty() {
            std::fs::remove_dir_all(self.world.root.join(dir)).unwrap();
        } else {
            std::fs::remove_file(self.world.root.join(path)).unwrap();
        }
        self.world.oracle.removed.extend(gone);
    }
}

/// Users remove files, markers and whole partitions: each is named once, and seals, checkpoints and cleaning go on.
#[test]
fn what_users_remove_blocks_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let root = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let mut month = Month::new(root.path(), 7, 2);
        month.deeds.retain(|_, (name, _)| name.starts_with("web-") || name.starts_with("pod-"));
        for minute in 0..48 * 60 {
            if minute % 37 == 0 {
                month.users();
            }
            month.minute().await;
        }
        month.home().await;
        check::the_end(&month.world);
        let oracle = &month.world.oracle;
        println!("{} removed, {} of them named in records", oracle.removed.len(), oracle.reported);
        assert!(oracle.reported > 0 && oracle.removed.len() > 40);
        assert!(check::checkpoint(root.path()) + 128 > oracle.next, "checkpoints go on");
    });
    runtime.shutdown_background();
}

#[test]
fn a_month() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("CATCHMENT_SEED").unwrap_or(1);
    let days = number("CATCHMENT_DAYS").unwrap_or(if cfg!(debug_assertions) { 6 } else { 30 });
    println!("seed {seed}, {days} days: CATCHMENT_SEED={seed} CATCHMENT_DAYS={days} plays it again");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(play(seed, days as i64));
    runtime.shutdown_background();
}
