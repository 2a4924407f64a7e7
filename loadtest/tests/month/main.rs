//! A simulated month: 50 agents that scale, restart, vanish, come back, lose or copy their state; backfills; batches
//! that come hours late; three collectors of which one dies every day; and time that is paused. Agents and collectors are
//! the real ones: a tailed log, pipeline, outbox on disk and shipping over the messages of `Ingest` here, owner and local
//! store there. The aggregator between them is one in memory.
//!
//! A judge that knows what every log holds, and reads what was sent and the commit log, says when each partition may be
//! sealed and with what content.
//!
//! A failure names its seed: `CATCHMENT_SEED=<n> cargo test --release -p loadtest --test month` plays its plan again,
//! `CATCHMENT_DAYS=<n>` sets its length. It makes many small files: a temporary directory in memory (`TMPDIR`) makes it
//! several times faster.

#![allow(clippy::print_stdout, reason = "the numbers of a month are read by people")]

mod agents;
mod aggregator;
mod check;
mod heap;
mod lines;
mod oracle;
mod part;
mod plan;
mod store;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::wire;
use proto::wire::commit_record::Action;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use agents::Machine;
use part::{DAILY, DAY, HOURLY, MINUTE};
use plan::{Deed, Plan};
use world::{SLOTS, World};

/// How long after the rule allows it a seal may come: two ticks of everything it passes, and the silence after which a
/// dead collector's share goes to the others.
const PATIENCE: i64 = 80 * MINUTE;
/// Between two moments of the test.
const TICK: Duration = Duration::from_secs(15);
const TICKS_A_MINUTE: i64 = 4;

struct Month {
    world: World,
    machines: BTreeMap<String, Machine>,
    /// Where they are.
    hosts: PathBuf,
    plan: Plan,
    rng: SmallRng,
}

impl Month {
    fn new(root: &Path, seed: u64, days: i64) -> Self {
        let (hosts, store) = (root.join("hosts"), root.join("store"));
        std::fs::create_dir_all(&hosts).unwrap();
        std::fs::create_dir_all(&store).unwrap();
        let world = World::new(&store, seed, PATIENCE);
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x1234);
        let plan = Plan::new(days, &mut rng);
        Self { world, machines: BTreeMap::new(), hosts, plan, rng }
    }

    async fn deed(&mut self, name: &str, deed: Deed) {
        let now = self.world.clock.now();
        let machine = self.machines.entry(name.to_owned()).or_insert_with(|| Machine::new(name, &self.hosts));
        let lines = &mut self.world.oracle.lines;
        match deed {
            // Its last run has not ended yet.
            Deed::Start | Deed::StartAnew if machine.runs() => self.plan.add(now + 2 * MINUTE, name, deed),
            Deed::Start => machine.start(self.world.aggregator.dial(), now, &mut self.rng),
            Deed::StartAnew => {
                machine.wipe();
                lines.lose(name);
                machine.start(self.world.aggregator.dial(), now, &mut self.rng);
            }
            Deed::BackUp => machine.back_up(),
            Deed::Restore { in_place } => {
                machine.restore(in_place);
                self.world.oracle.repeats.insert(name.to_owned());
                machine.start(self.world.aggregator.dial(), now, &mut self.rng);
            }
            Deed::Close { left } => machine.close(left),
            Deed::Crash => machine.crash(false),
            Deed::Vanish => {
                machine.crash(true);
                lines.lose(name);
            }
            Deed::Load { days } => {
                for day in 0..days {
                    let dataset = if day % 2 == 0 { DAILY } else { HOURLY };
                    machine.log(dataset, now - (40 + day) * DAY, 3, now, lines);
                }
            }
            Deed::Forget => {
                let forget = wire::Forget { agent: name.to_owned(), reason: "test".into() };
                self.world.operator(Action::Forget(forget)).await;
            }
            Deed::Abandon => self.abandon(name, now).await,
        }
    }

    /// What an operator would give up: the run that the newest says it was restored from, or the one before it.
    async fn abandon(&mut self, name: &str, now: i64) {
        let memory = self.world.aggregator.memory();
        let [.., before, newest] = &memory.opens[name][..] else { panic!("{name} had one run only") };
        assert_eq!(newest.restored, name.starts_with("copy-"), "{name}: {newest:?}");
        let origin = newest.restored_from.unwrap_or(before.origin).to_bytes();
        let abandon =
            wire::Abandon { agent: name.to_owned(), origin, ranges: None, time_unix_ms: now, reason: "test".into() };
        self.world.operator(Action::Abandon(abandon)).await;
    }

    async fn tick(&mut self) {
        tokio::time::sleep(TICK).await;
        let now = self.world.clock.now();
        while let Some((name, deed)) = self.plan.due(now) {
            self.deed(&name, deed).await;
        }
        for machine in self.machines.values_mut() {
            machine.write(now, &mut self.world.oracle.lines, &mut self.rng);
            machine.step();
        }
        self.machines.retain(|name, machine| {
            let over = name.starts_with("job-") && machine.is_over();
            if over {
                machine.remove();
            }
            !over
        });
        self.world.step().await;
    }

    async fn minute(&mut self) {
        for _ in 0..TICKS_A_MINUTE {
            self.tick().await;
        }
    }

    /// All agents leave, and everything that is open is sealed.
    async fn home(&mut self) {
        self.plan.clear();
        while self.machines.values().any(Machine::is_ending) {
            self.minute().await;
        }
        let now = self.world.clock.now();
        for machine in self.machines.values_mut() {
            if !machine.runs() && !machine.is_over() {
                machine.start(self.world.aggregator.dial(), now, &mut self.rng);
            }
            machine.close(true);
        }
        for _ in 0..34 * 60 {
            self.minute().await;
        }
        let running: Vec<&String> =
            self.machines.iter().filter(|(_, machine)| machine.runs()).map(|(name, _)| name).collect();
        assert!(running.is_empty(), "still running: {running:?}");
    }

    /// The heap without what the test keeps.
    fn heap(&mut self) -> usize {
        let (copy, taken) =
            heap::sized(|| (self.world.oracle.clone(), self.world.aggregator.memory(), self.plan.clone()));
        let (oracle, memory, plan) = copy;
        self.world.oracle = oracle;
        self.world.aggregator.replace_memory(memory);
        self.plan = plan;
        heap::live() - taken
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

async fn play(seed: u64, days: i64) {
    let root = tempfile::tempdir().unwrap();
    let mut month = Month::new(root.path(), seed, days);
    let store = month.world.root.clone();
    let (mut weeks, mut heaps) = (Vec::new(), vec![heap::Week::default(); 1 + days as usize / 7]);
    for day in 0..days {
        let (slot, at) = (month.rng.random_range(0..SLOTS), month.rng.random_range(0..24 * 60));
        for minute in 0..24 * 60 {
            if minute == at {
                month.world.kill(slot);
            }
            month.minute().await;
            if minute % 120 == 119 {
                let bytes = month.heap();
                heaps[day as usize / 7].add(bytes);
            }
        }
        let size = check::Size::of(&store, day, month.world.clock.now());
        println!("{size}; heap {} KiB, state directories {}", month.heap() / 1024, check::Disk::of(&month.hosts));
        size.is_clean();
        if days >= 28 && day % 7 == 6 {
            weeks.push(size);
        }
    }
    month.home().await;
    check::the_end(&month.world);
    println!("heap when all agents have left: {} KiB", month.heap() / 1024);
    month.world.end().await;
    println!("heap when the collectors are gone too: {} KiB", month.heap() / 1024);
    for (week, heap) in heaps.iter().enumerate() {
        println!("heap of week {}: {heap}", week + 1);
    }
    check::flat(&weeks, &heaps);
}

/// Users remove files, markers and whole partitions: each is named once, and seals, checkpoints and cleaning go on.
#[test]
fn what_users_remove_blocks_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let root = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let mut month = Month::new(root.path(), 7, 2);
        month.plan.retain(|name| name.starts_with("web-") || name.starts_with("pod-"));
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
        assert!(check::checkpoint(&month.world.root) + 128 > oracle.next, "checkpoints go on");
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
