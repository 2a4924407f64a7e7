//! When a group is closed: by size, events, age, idleness, memory pressure, number of open files, or because somebody
//! asked. Pure: what is known of the groups and the time go in, numbers of groups come out.

use std::time::{Duration, Instant};

/// Limits of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimits {
    /// Bytes in file and buffer.
    pub bytes: u64,
    /// Events; 0: no limit.
    pub events: u64,
    /// Since it was opened.
    pub age: Duration,
    /// Since the last append.
    pub idle: Duration,
}

/// Most batches in one group: bounds what is known of it in memory.
pub const GROUP_BATCHES: u64 = 65_536;

/// Limits of all groups together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TotalLimits {
    /// Bytes in the buffers of open groups past which the least recently written one rolls.
    pub buffered_bytes: u64,
    /// Open groups.
    pub open: usize,
}

/// What is known of an open group.
#[derive(Debug, Clone, Copy)]
pub struct OpenGroup {
    /// Which.
    pub number: u64,
    /// Its limits.
    pub limits: GroupLimits,
    /// Bytes in file and buffer.
    pub bytes: u64,
    /// Bytes in its buffer.
    pub buffered: u64,
    /// Events in it.
    pub events: u64,
    /// Batches in it.
    pub batches: u64,
    /// When it was opened.
    pub opened: Instant,
    /// The last append.
    pub last_write: Instant,
    /// An early roll was asked for.
    pub requested: bool,
}

/// Why a group rolls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Bytes, events or batches.
    Size,
    /// Age.
    Age,
    /// No append for a while.
    Idle,
    /// Buffers of all groups together.
    Memory,
    /// Too many open groups.
    Files,
    /// An aggregator asked.
    Requested,
    /// The process stops.
    Drain,
}

impl Reason {
    /// As a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Age => "age",
            Self::Idle => "idle",
            Self::Memory => "memory",
            Self::Files => "files",
            Self::Requested => "requested",
            Self::Drain => "drain",
        }
    }
}

/// The groups that are due, each once, with the reason.
pub fn due(groups: &[OpenGroup], total: TotalLimits, draining: bool, now: Instant) -> Vec<(u64, Reason)> {
    let mut due = Vec::new();
    let mut rest = Vec::new();
    for group in groups {
        match own_reason(group, draining, now) {
            Some(reason) => due.push((group.number, reason)),
            None => rest.push(group),
        }
    }
    rest.sort_by_key(|group| (group.last_write, group.number));
    let mut rest = rest.into_iter();
    let mut buffered: u64 = rest.as_slice().iter().map(|group| group.buffered).sum();
    while buffered > total.buffered_bytes {
        let Some(oldest) = rest.next() else { break };
        buffered -= oldest.buffered;
        due.push((oldest.number, Reason::Memory));
    }
    while rest.len() > total.open {
        let Some(oldest) = rest.next() else { break };
        due.push((oldest.number, Reason::Files));
    }
    due
}

fn own_reason(group: &OpenGroup, draining: bool, now: Instant) -> Option<Reason> {
    let limits = group.limits;
    let full = group.bytes >= limits.bytes
        || (limits.events > 0 && group.events >= limits.events)
        || group.batches >= GROUP_BATCHES;
    if draining {
        Some(Reason::Drain)
    } else if full {
        Some(Reason::Size)
    } else if group.requested {
        Some(Reason::Requested)
    } else if now.saturating_duration_since(group.opened) >= limits.age {
        Some(Reason::Age)
    } else if now.saturating_duration_since(group.last_write) >= limits.idle {
        Some(Reason::Idle)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: GroupLimits =
        GroupLimits { bytes: 1000, events: 50, age: Duration::from_secs(300), idle: Duration::from_secs(60) };
    const TOTAL: TotalLimits = TotalLimits { buffered_bytes: 500, open: 3 };

    fn group(number: u64, start: Instant) -> OpenGroup {
        let (opened, last_write) = (start, start);
        let (bytes, buffered, events, batches) = (10, 10, 1, 1);
        OpenGroup { number, limits: LIMITS, bytes, buffered, events, batches, opened, last_write, requested: false }
    }

    #[test]
    fn each_limit_rolls_its_group() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let reason = |change: fn(&mut OpenGroup), secs: u64| {
            let mut group = group(4, start);
            group.last_write = at(secs.min(290));
            change(&mut group);
            due(&[group], TOTAL, false, at(secs)).first().map(|(_, reason)| *reason)
        };
        assert_eq!(reason(|_| (), 10), None);
        assert_eq!(reason(|g| g.bytes = 1000, 10), Some(Reason::Size));
        assert_eq!(reason(|g| g.events = 50, 10), Some(Reason::Size));
        assert_eq!(reason(|g| g.batches = GROUP_BATCHES, 10), Some(Reason::Size));
        assert_eq!(reason(|g| g.requested = true, 10), Some(Reason::Requested));
        assert_eq!(reason(|_| (), 300), Some(Reason::Age));
        assert_eq!(reason(|g| g.last_write = g.opened, 60), Some(Reason::Idle));
        assert_eq!(due(&[group(1, start)], TOTAL, true, start), [(1, Reason::Drain)]);
    }

    #[test]
    fn pressure_rolls_the_least_recently_written() {
        let start = Instant::now();
        let mut groups: Vec<_> = (0..5).map(|n| group(n, start)).collect();
        for (n, group) in groups.iter_mut().enumerate() {
            group.last_write = start + Duration::from_millis(10 - n as u64);
        }
        assert_eq!(due(&groups, TOTAL, false, start), [(4, Reason::Files), (3, Reason::Files)]);
        for group in &mut groups {
            group.buffered = 200;
        }
        let all = due(&groups, TOTAL, false, start);
        assert_eq!(all, [(4, Reason::Memory), (3, Reason::Memory), (2, Reason::Memory)]);
    }
}
