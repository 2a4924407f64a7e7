//! What happens to which machine, and when: drawn from the seed before the month begins.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::part::{DAY, HOUR, MINUTE};
use crate::world::BEGIN;

const STEADY: usize = 32;
const SCALED: usize = 5;

/// What happens to a machine at a time.
#[derive(Debug, Clone, Copy)]
pub enum Deed {
    /// Its agent starts.
    Start,
    /// On a new machine of the same name.
    StartAnew,
    /// Its state directory is copied while the agent runs.
    BackUp,
    /// The copy takes its place, as a directory of its own or file by file, and the agent starts.
    Restore { in_place: bool },
    /// An orderly end.
    Close { left: bool },
    /// Its agent is killed; what is logged goes on.
    Crash,
    /// With the whole machine.
    Vanish,
    /// Old days are loaded, one batch each.
    Load { days: i64 },
    /// By an operator.
    Forget,
    /// Its run before the newest.
    Abandon,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    deeds: BTreeMap<(i64, u64), (String, Deed)>,
    number: u64,
}

impl Plan {
    pub fn new(days: i64, rng: &mut SmallRng) -> Self {
        let mut plan = Self::default();
        plan.steady(days, rng);
        plan.scaled(days, rng);
        plan.vanishing(days);
        plan.state(days);
        plan
    }

    pub fn add(&mut self, at: i64, name: &str, deed: Deed) {
        self.number += 1;
        self.deeds.insert((at, self.number), (name.to_owned(), deed));
    }

    fn on(&mut self, at: i64, name: &str, deed: Deed) {
        self.add(BEGIN + at, name, deed);
    }

    /// The next one by `now`.
    pub fn due(&mut self, now: i64) -> Option<(String, Deed)> {
        let entry = self.deeds.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    pub fn retain(&mut self, of: impl Fn(&str) -> bool) {
        self.deeds.retain(|_, (name, _)| of(name));
    }

    pub fn clear(&mut self) {
        self.deeds.clear();
    }

    fn steady(&mut self, days: i64, rng: &mut SmallRng) {
        for n in 0..STEADY {
            let name = format!("web-{n}");
            self.on(rng.random_range(0..HOUR), &name, Deed::Start);
            for day in 0..days {
                if rng.random_bool(0.2) {
                    let at = day * DAY + rng.random_range(2 * HOUR..DAY);
                    let deed = if rng.random_bool(0.5) { Deed::Crash } else { Deed::Close { left: false } };
                    self.on(at, &name, deed);
                    self.on(at + rng.random_range(MINUTE..20 * MINUTE), &name, Deed::Start);
                }
            }
        }
    }

    fn scaled(&mut self, days: i64, rng: &mut SmallRng) {
        for day in 0..days {
            for n in 0..SCALED {
                for name in [format!("pod-{n}"), format!("job-{day}-{n}")] {
                    self.on(day * DAY + rng.random_range(7 * HOUR..8 * HOUR), &name, Deed::Start);
                    self.on(day * DAY + rng.random_range(19 * HOUR..20 * HOUR), &name, Deed::Close { left: true });
                }
            }
        }
    }

    fn vanishing(&mut self, days: i64) {
        let on = |day: i64, hour: i64| when(days, day, hour);
        for name in ["gone-1", "gone-2", "gone-3", "gone-4", "gone-5"] {
            self.on(HOUR, name, Deed::Start);
        }
        self.on(on(8, 11), "gone-1", Deed::Vanish);
        self.on(on(8, 11) + 30 * HOUR, "gone-1", Deed::Forget);
        // Nobody says anything of this one: after a week it is forgotten.
        self.on(on(19, 3), "gone-5", Deed::Vanish);
        for (name, at, hours) in [("gone-2", on(3, 14), 3), ("gone-3", on(11, 9), 9), ("gone-4", on(18, 15), 40)] {
            self.on(at, name, Deed::Crash);
            self.on(at + hours * HOUR, name, Deed::Start);
        }
        self.on(on(15, 12), "load-1", Deed::Start);
        self.on(on(15, 12) + MINUTE, "load-1", Deed::Load { days: 20 });
        self.on(on(15, 12) + 2 * MINUTE, "load-1", Deed::Close { left: true });
        self.on(on(16, 13), "gone-2", Deed::Load { days: 10 });
    }

    fn state(&mut self, days: i64) {
        let on = |day: i64, hour: i64| when(days, day, hour);
        for name in ["wiped-1", "wiped-2", "copy-1", "copy-2"] {
            self.on(HOUR, name, Deed::Start);
        }
        self.on(on(6, 10), "wiped-1", Deed::Close { left: true });
        self.on(on(6, 11), "wiped-1", Deed::StartAnew);
        // It had left, and its new run is waited for all the same.
        self.on(on(7, 9), "wiped-1", Deed::Crash);
        self.on(on(7, 16), "wiped-1", Deed::Start);
        // It had not left: its old run is waited for until somebody gives it up.
        self.on(on(22, 9), "wiped-2", Deed::Crash);
        self.on(on(22, 10), "wiped-2", Deed::StartAnew);
        self.on(on(22, 22), "wiped-2", Deed::Abandon);
        for (name, day, in_place) in [("copy-1", 13, false), ("copy-2", 20, true)] {
            self.on(on(day, 5), name, Deed::BackUp);
            self.on(on(day, 8), name, Deed::Crash);
            self.on(on(day, 9), name, Deed::Restore { in_place });
            self.on(on(day, 19), name, Deed::Abandon);
        }
    }
}

/// A shorter month has the same accidents, sooner after one another.
fn when(days: i64, day: i64, hour: i64) -> i64 {
    (day * days / 30).max(1) * DAY + hour * HOUR
}
