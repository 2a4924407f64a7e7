//! Which other runs live, as far as listings of `staging/` tell. Pure.
//!
//! A run that shows the same sign, or none, is silent. Silence is counted only between two listings that both
//! succeeded, and at most one heartbeat of it for each: an outage of the store, or a pause of this process, retires
//! nobody, since those that live show something new before enough listings were made.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::seen::Sign;

/// What a listing said of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dir {
    /// Its sign; none: it never came to its first one.
    Shows(Option<Sign>),
    /// It is there, but could not be listed.
    Unknown,
}

/// One listing of all staging directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// When it was asked for.
    pub begun: Instant,
    /// When the last answer came.
    pub ended: Instant,
    /// By name of the run.
    pub dirs: BTreeMap<String, Dir>,
    /// Names in the own directory.
    pub own: Vec<String>,
}

/// What a retired directory is called once nobody can rename out of it any more.
pub fn fenced(incarnation: &str) -> String {
    format!("{incarnation}.gone")
}

impl Looked {
    /// Is the directory of this run there, under either of its names?
    pub fn has(&self, incarnation: &str) -> bool {
        self.dirs.contains_key(incarnation) || self.dirs.contains_key(&fenced(incarnation))
    }
}

#[derive(Debug, Clone)]
struct Row {
    sign: Option<Sign>,
    silent: Duration,
    counted: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Life {
    own: String,
    heartbeat: Duration,
    retire_after: Duration,
    rows: BTreeMap<String, Row>,
}

impl Life {
    /// Nothing is known yet. `own` is this run.
    pub fn new(own: &str, heartbeat: Duration, retire_after: Duration) -> Self {
        Self { own: own.to_owned(), heartbeat, retire_after, rows: BTreeMap::new() }
    }

    /// Takes a listing that succeeded.
    pub fn listed(&mut self, looked: &Looked) {
        self.rows.retain(|name, _| looked.dirs.contains_key(name));
        for (name, dir) in &looked.dirs {
            let Dir::Shows(sign) = *dir else { continue };
            if *name == self.own {
                continue;
            }
            let new = Row { sign, silent: Duration::ZERO, counted: looked.ended };
            let row = self.rows.entry(name.clone()).or_insert_with(|| new.clone());
            if row.sign != sign {
                *row = new;
                continue;
            }
            let gap = looked.begun.saturating_duration_since(row.counted);
            if gap >= self.heartbeat / 2 {
                row.silent += gap.min(self.heartbeat);
                row.counted = looked.ended;
            }
        }
    }

    /// A record of it was read: it lived a moment ago.
    pub fn alive(&mut self, name: &str) {
        if let Some(row) = self.rows.get_mut(name) {
            row.silent = Duration::ZERO;
        }
    }

    /// Its directory is gone.
    pub fn gone(&mut self, name: &str) {
        self.rows.remove(name);
    }

    /// Runs that were silent for too long, the longest silent first. Those with a smaller name than this run act
    /// before it does: one at a time in the ordinary case, and nothing is lost if two do.
    pub fn dead(&self) -> Vec<(&str, Duration)> {
        let limit = self.retire_after + self.heartbeat * 2 * self.rank();
        let mut dead: Vec<_> = self.rows.iter().filter(|(_, row)| row.silent >= limit).collect();
        dead.sort_by_key(|(_, row)| std::cmp::Reverse(row.silent));
        dead.into_iter().map(|(name, row)| (name.as_str(), row.silent)).collect()
    }

    /// How many of those that live have a smaller name.
    pub fn rank(&self) -> u32 {
        let smaller = self.living().filter(|name| *name < self.own.as_str()).count();
        u32::try_from(smaller).unwrap_or(u32::MAX).min(100)
    }

    /// The others that live.
    pub fn living(&self) -> impl Iterator<Item = &str> {
        let living = self.rows.iter().filter(|(_, row)| row.silent < self.retire_after && row.sign.is_some());
        living.map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(30);
    const LIMIT: Duration = Duration::from_secs(600);

    fn looked(at: Instant, dirs: &[(&str, Dir)]) -> Looked {
        let dirs = dirs.iter().map(|(name, dir)| ((*name).to_owned(), *dir)).collect();
        Looked { begun: at, ended: at, dirs, own: Vec::new() }
    }

    fn shows(counter: u64) -> Dir {
        Dir::Shows(Some(Sign { read: 3, counter }))
    }

    #[test]
    fn silence_counts_only_in_listings_that_succeed() {
        let start = Instant::now();
        let mut life = Life::new("A", BEAT, LIMIT);
        let mut at = start;
        for beat in 0..20 {
            life.listed(&looked(
                at,
                &[("a", shows(1)), ("b", shows(beat)), ("c", shows(beat)), ("d", Dir::Shows(None))],
            ));
            assert!(life.dead().is_empty(), "beat {beat}: {:?}", life.dead());
            at += BEAT;
        }
        let same = [("a", shows(1)), ("c", shows(99)), ("d", Dir::Shows(None))];
        life.listed(&looked(at, &same));
        let dead: Vec<_> = life.dead().into_iter().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(dead, ["a", "d"], "no sign at all is no sign of life");
        life.alive("a");
        assert_eq!(life.dead().len(), 1);
        life.listed(&looked(at + BEAT, &[]));
        assert_eq!((life.dead().len(), life.rows.len()), (0, 0), "they are gone");
    }

    #[test]
    fn an_outage_retires_nobody() {
        let start = Instant::now();
        let mut life = Life::new("b", BEAT, LIMIT);
        let same = [("c", shows(1)), ("d", Dir::Unknown)];
        life.listed(&looked(start, &same));
        let after = start + LIMIT * 10;
        life.listed(&looked(after, &same));
        assert!(life.dead().is_empty(), "a gap between listings is one heartbeat at most");
        for fast in 0..1000 {
            life.listed(&looked(after + Duration::from_millis(fast), &same));
        }
        assert!(life.dead().is_empty(), "many listings in a moment are one");
    }

    #[test]
    fn the_smallest_name_that_lives_acts_first() {
        let start = Instant::now();
        let mut life = Life::new("m", BEAT, LIMIT);
        for beat in 0..=20u32 {
            let at = start + BEAT * beat;
            life.listed(&looked(at, &[("a", shows(u64::from(beat))), ("z", shows(1))]));
        }
        assert_eq!((life.rank(), life.dead().len()), (1, 0));
        for beat in 21..=22u32 {
            let at = start + BEAT * beat;
            life.listed(&looked(at, &[("a", shows(u64::from(beat))), ("z", shows(1))]));
        }
        assert_eq!(life.dead().len(), 1, "and somebody else if it does not");
    }
}
