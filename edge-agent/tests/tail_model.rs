//! Property test of the tail source against a model that knows which lines exist: under random schedules of appends, rotations of every kind,
//! deletions, link switches and restarts, no line is emitted twice, and every line that was in reach at a look and not destroyed
//! unread is emitted.

mod tail_world;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tail_world::World;

const LOGS: [&str; 2] = ["a.log", "b.log"];
const TARGETS: [&str; 2] = ["one", "two"];

/// A step of a schedule.
#[derive(Debug, Clone)]
enum Step {
    /// So many lines of about so many bytes, to this file.
    Append { log: usize, lines: usize, bytes: usize },
    /// To the target of the link.
    AppendTarget { target: usize, lines: usize },
    /// x.log -> x.log.1 (what was there is unlinked), the writer makes x.log anew.
    Rename { log: usize, away: bool },
    /// x.log is copied over x.log.1, a look may fall between, then x.log is truncated, and may be refilled before the next look.
    CopyTruncate { log: usize, look_between: bool, refill: usize },
    /// Truncated without a copy.
    Truncate { log: usize },
    /// Unlinked, and made anew with so many lines.
    Recreate { log: usize, lines: usize },
    /// The rotated file is unlinked.
    RemoveOld { log: usize },
    /// The link leads elsewhere.
    Switch { target: usize },
    /// One poll with room for so much; what it gave may be thrown away by a crash.
    Poll { budget: usize, crash: bool },
    /// Looks without reading.
    Look,
    /// Stopped; started again at the next poll.
    Stop,
    /// Time passes.
    Pass { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let log = 0..LOGS.len();
    let target = 0..TARGETS.len();
    prop_oneof![
        6 => (log.clone(), 1usize..6, prop_oneof![Just(20), Just(400), Just(3000)])
            .prop_map(|(log, lines, bytes)| Step::Append { log, lines, bytes }),
        2 => (target.clone(), 1usize..4).prop_map(|(target, lines)| Step::AppendTarget { target, lines }),
        2 => (log.clone(), any::<bool>()).prop_map(|(log, away)| Step::Rename { log, away }),
        2 => (log.clone(), any::<bool>(), 0usize..8)
            .prop_map(|(log, look_between, refill)| Step::CopyTruncate { log, look_between, refill }),
        1 => log.clone().prop_map(|log| Step::Truncate { log }),
        1 => (log.clone(), 0usize..6).prop_map(|(log, lines)| Step::Recreate { log, lines }),
        1 => log.prop_map(|log| Step::RemoveOld { log }),
        1 => target.prop_map(|target| Step::Switch { target }),
        6 => (prop_oneof![Just(0usize), Just(1000), Just(5000), Just(1 << 20)], prop::bool::weighted(0.15))
            .prop_map(|(budget, crash)| Step::Poll { budget, crash }),
        2 => Just(Step::Look),
        1 => Just(Step::Stop),
        1 => (1u64..40).prop_map(|seconds| Step::Pass { seconds }),
    ]
}

/// Lines that were written together and move together: what one inode holds between two truncations.
#[derive(Debug, Default, Clone)]
struct Content {
    lines: Vec<u64>,
    /// So many of its lines were there at a look.
    seen: usize,
}

/// What the model knows.
struct Model {
    world: World,
    contents: Vec<Content>,
    /// The content of each file name, and whether it was looked at there.
    files: BTreeMap<String, (usize, bool)>,
    link: usize,
    next_line: u64,
    emitted: BTreeMap<u64, usize>,
    /// Lines that could not be read, or that nobody can know about.
    excused: BTreeSet<u64>,
    running: bool,
}

impl Model {
    fn new() -> Self {
        let world = World::with(|config, root| {
            config.paths = vec![format!("{root}/*.log*"), format!("{root}/current")];
            config.quantum = common::units::Size::kib(4);
            config.max_event_bytes = common::units::Size::kib(2);
            config.max_open_files = 16;
        });
        for target in TARGETS {
            world.write(target, "");
        }
        std::os::unix::fs::symlink(TARGETS[0], world.path("current")).unwrap();
        let files = TARGETS.iter().enumerate().map(|(at, name)| ((*name).to_owned(), (at, false))).collect();
        Self {
            world,
            contents: vec![Content::default(); TARGETS.len()],
            files,
            link: 0,
            next_line: 1,
            emitted: BTreeMap::new(),
            excused: BTreeSet::new(),
            running: false,
        }
    }

    fn in_reach(&self, name: &str) -> bool {
        name.contains(".log") || TARGETS[self.link] == name
    }

    fn is_reachable(&self, content: usize) -> bool {
        self.files.iter().any(|(name, (at, _))| *at == content && self.in_reach(name))
    }

    /// The agent looks: what is in reach now is known to it.
    fn looked(&mut self) {
        self.running = true;
        let names: Vec<_> = self.files.keys().filter(|name| self.in_reach(name)).cloned().collect();
        for name in names {
            let Some((content, looked)) = self.files.get_mut(&name) else { continue };
            *looked = true;
            self.contents[*content].seen = self.contents[*content].lines.len();
        }
    }

    /// The content may have lost a place: when that was the last, lines that were not seen are lost, and unless it is
    /// `held` open, all that were not read.
    fn lost_place(&mut self, content: usize, held: bool) {
        if self.is_reachable(content) {
            return;
        }
        let gone = &self.contents[content];
        let kept = if held && self.running { gone.seen } else { 0 };
        self.excused.extend(&gone.lines[kept..]);
    }

    fn write(&mut self, name: &str, lines: usize, bytes: usize) {
        let (content, _) = *self.files.entry(name.to_owned()).or_insert_with(|| {
            self.contents.push(Content::default());
            (self.contents.len() - 1, false)
        });
        let mut text = String::new();
        for _ in 0..lines {
            text += &format!("{:08} {}\n", self.next_line, "x".repeat(bytes));
            self.contents[content].lines.push(self.next_line);
            self.next_line += 1;
        }
        self.world.append(name, &text);
        if !self.is_reachable(content) {
            let content = &self.contents[content];
            self.excused.extend(&content.lines[content.seen..]);
        }
    }

    fn unlink(&mut self, name: &str) {
        if let Some((content, held)) = self.files.remove(name) {
            self.world.remove(name);
            self.lost_place(content, held);
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        if let Some((content, held)) = self.files.remove(from) {
            let below = self.files.insert(to.to_owned(), (content, held));
            self.world.rename(from, to);
            if let Some((below, held)) = below {
                self.lost_place(below, held);
            }
            self.lost_place(content, held);
        }
    }

    fn truncate(&mut self, name: &str) {
        if let Some((content, _)) = self.files.remove(name) {
            self.world.truncate(name);
            self.contents.push(Content::default());
            self.files.insert(name.to_owned(), (self.contents.len() - 1, false));
            self.lost_place(content, false);
        }
    }

    fn copy_truncate(&mut self, log: &str, look_between: bool, refill: usize) {
        let Some((content, _)) = self.files.get(log).copied() else { return };
        let old = format!("{log}.1");
        self.world.copy(log, &old);
        if let Some((below, _)) = self.files.insert(old, (content, false)) {
            self.lost_place(below, false);
        }
        if look_between {
            self.world.look();
            self.looked();
        }
        self.truncate(log);
        self.write(log, refill, 100);
    }

    fn stop(&mut self) {
        self.world.close();
        self.running = false;
        self.files.values_mut().for_each(|(_, held)| *held = false);
        for content in 0..self.contents.len() {
            if !self.is_reachable(content) {
                self.excused.extend(self.contents[content].lines.clone());
            }
        }
    }

    fn emitted(&mut self, events: Vec<Vec<u8>>) -> Result<(), TestCaseError> {
        for event in events {
            let line: u64 = String::from_utf8_lossy(&event[..8]).parse().unwrap();
            let times = self.emitted.entry(line).or_default();
            *times += 1;
            prop_assert_eq!(*times, 1, "line {} twice", line);
        }
        Ok(())
    }

    fn poll(&mut self, budget: usize, crash: bool) -> Result<bool, TestCaseError> {
        self.world.budget = budget;
        if crash {
            self.world.crash_in_poll();
            // It looked, held what it found, and all of that was let go.
            self.stop();
            return Ok(true);
        }
        let (events, at_end) = self.world.poll();
        let is_quiet = events.is_empty() && at_end;
        self.looked();
        self.emitted(events)?;
        Ok(is_quiet)
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Append { log, lines, bytes } => self.write(LOGS[log], lines, bytes),
            Step::AppendTarget { target, lines } => self.write(TARGETS[target], lines, 30),
            Step::Rename { log, away } => {
                let to = if away { format!("away-{log}-{}", self.next_line) } else { format!("{}.1", LOGS[log]) };
                self.rename(LOGS[log], &to);
            }
            Step::CopyTruncate { log, look_between, refill } => self.copy_truncate(LOGS[log], look_between, refill),
            Step::Truncate { log } => self.truncate(LOGS[log]),
            Step::Recreate { log, lines } => {
                self.unlink(LOGS[log]);
                self.write(LOGS[log], lines, 50);
            }
            Step::RemoveOld { log } => self.unlink(&format!("{}.1", LOGS[log])),
            Step::Switch { target } => {
                std::os::unix::fs::symlink(TARGETS[target], self.world.path("next")).unwrap();
                self.world.rename("next", "current");
                let before = std::mem::replace(&mut self.link, target);
                let (content, held) = self.files[TARGETS[before]];
                self.lost_place(content, held);
            }
            Step::Poll { budget, crash } => {
                self.world.pass(1);
                self.poll(budget, crash)?;
            }
            Step::Look => {
                self.world.look();
                self.looked();
            }
            Step::Stop => self.stop(),
            Step::Pass { seconds } => self.world.pass(seconds),
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), TestCaseError> {
        let mut quiet = 0;
        while quiet < 8 {
            self.world.pass(2);
            quiet = if self.poll(1 << 20, false)? { quiet + 1 } else { 0 };
        }
        for (at, content) in self.contents.iter().enumerate() {
            for line in &content.lines {
                let is_there = self.is_reachable(at);
                let is_due = is_there || !self.excused.contains(line);
                prop_assert!(!is_due || self.emitted.contains_key(line), "line {} lost", line);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_readable_line_is_emitted_once(steps in prop::collection::vec(step(), 1..60)) {
        let mut model = Model::new();
        for step in &steps {
            model.apply(step)?;
        }
        model.settle()?;
    }
}
