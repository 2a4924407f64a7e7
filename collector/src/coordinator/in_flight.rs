//! What was handed to the files of groups and is not answered: it holds byte credit until it is, whatever became of its
//! group in the meantime.
//!
//! Keeps "a slow file never blocks a stream": one group, and all groups together, may hold only a part of what a stream
//! and the pool of all streams give, so there is always room to receive what goes to another file. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use proto::ids::BatchId;

use crate::ledger::StreamId;

/// A group whose oldest append is older than this is slow: its partition waits alone.
const SLOW: Duration = Duration::from_secs(2);
/// How long the partition of a slow group waits before it is tried again; also the longest wait for room.
const PAUSE: Duration = Duration::from_secs(1);
/// The shortest wait for room.
const SHORT_PAUSE: Duration = Duration::from_millis(100);
/// Most bytes of one group, over all streams.
const GROUP_BYTES: u64 = 8 << 20;
/// Besides its payload a batch costs about this much.
const BATCH_BYTES: u64 = 1024;

/// What may be received and not staged, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// Over all streams.
    pub all: u64,
    /// By one stream.
    pub stream: u64,
}

#[derive(Debug, Default)]
struct OfGroup {
    bytes: u64,
    /// Order of coming, stream, bytes.
    batches: HashMap<BatchId, (u64, StreamId, u64)>,
    streams: BTreeMap<StreamId, u64>,
    /// By order of coming: the first is the oldest.
    since: BTreeMap<u64, Instant>,
}

/// See the module.
#[derive(Debug)]
pub struct InFlight {
    credit: Credit,
    all: u64,
    streams: BTreeMap<StreamId, u64>,
    groups: HashMap<u64, OfGroup>,
    next: u64,
}

impl Default for InFlight {
    /// Nothing, and no bound until one is told.
    fn default() -> Self {
        let credit = Credit { all: u64::MAX, stream: u64::MAX };
        Self { credit, all: 0, streams: BTreeMap::new(), groups: HashMap::new(), next: 0 }
    }
}

impl InFlight {
    /// The share of one stream changes with their number.
    pub fn set_credit(&mut self, credit: Credit) {
        self.credit = credit;
    }

    /// A batch of so many bytes was handed to a group.
    pub fn add(&mut self, group: u64, id: &BatchId, stream: StreamId, bytes: u64, now: Instant) {
        let bytes = bytes + BATCH_BYTES;
        let of_group = self.groups.entry(group).or_default();
        of_group.bytes += bytes;
        of_group.batches.insert(id.clone(), (self.next, stream, bytes));
        *of_group.streams.entry(stream).or_default() += bytes;
        of_group.since.insert(self.next, now);
        self.next += 1;
        self.all += bytes;
        *self.streams.entry(stream).or_default() += bytes;
    }

    /// Its append was answered, in whatever way. Returns the stream whose credit it held.
    pub fn settle(&mut self, group: u64, id: &BatchId) -> Option<StreamId> {
        let of_group = self.groups.get_mut(&group)?;
        let (order, stream, bytes) = of_group.batches.remove(id)?;
        of_group.since.remove(&order);
        of_group.bytes -= bytes;
        take(&mut of_group.streams, stream, bytes);
        if of_group.batches.is_empty() {
            self.groups.remove(&group);
        }
        self.all -= bytes;
        take(&mut self.streams, stream, bytes);
        Some(stream)
    }

    /// How long a batch of this size for this group waits; none if it can go in now.
    ///
    /// A group may hold as much as is left free of half the credit: one alone a quarter of it, many together never
    /// more than the half. A batch for a group that holds nothing goes in whatever its size, until three quarters are
    /// held: past that only the batch could be what fills the stream.
    pub fn must_wait(&self, group: Option<u64>, stream: StreamId, bytes: u64, now: Instant) -> Option<Duration> {
        let Credit { all, stream: of_stream } = self.credit;
        let held = self.streams.get(&stream).copied().unwrap_or(0);
        let Some(of_group) = group.and_then(|group| self.groups.get(&group)) else {
            let full = held > of_stream / 4 * 3 || self.all > all / 4 * 3;
            return full.then_some(PAUSE);
        };
        let oldest = of_group.since.values().next()?;
        let age = now.saturating_duration_since(*oldest);
        if age > SLOW {
            return Some(PAUSE);
        }
        let bytes = bytes + BATCH_BYTES;
        let here = of_group.streams.get(&stream).copied().unwrap_or(0);
        let fits = of_group.bytes + bytes <= GROUP_BYTES
            && here + bytes <= (of_stream / 2).saturating_sub(held)
            && of_group.bytes + bytes <= (all / 2).saturating_sub(self.all);
        // As long as half of what it holds takes, so that it does not run dry.
        (!fits).then_some((age / 2).clamp(SHORT_PAUSE, PAUSE))
    }
}

fn take(streams: &mut BTreeMap<StreamId, u64>, stream: StreamId, bytes: u64) {
    let Some(held) = streams.get_mut(&stream) else { return };
    *held -= bytes;
    if *held == 0 {
        streams.remove(&stream);
    }
}

#[cfg(test)]
mod tests {
    use proto::ids::{AgentName, Origin};

    use super::*;

    const MIB: u64 = 1 << 20;
    const CREDIT: Credit = Credit { all: 256 * MIB, stream: 32 * MIB };

    fn id(seq: u64) -> BatchId {
        BatchId { agent: AgentName::new("web-1").unwrap(), origin: Origin::mint(1, 1), seq }
    }

    /// Hands over batches of this size until one has to wait; how many went in, and how long the next one waits.
    fn fill(in_flight: &mut InFlight, group: u64, stream: StreamId, bytes: u64, now: Instant) -> (u64, Duration) {
        for seq in 0.. {
            if let Some(wait) = in_flight.must_wait(Some(group), stream, bytes, now) {
                return (seq, wait);
            }
            in_flight.add(group, &id(stream * 1_000_000 + seq), stream, bytes, now);
        }
        unreachable!("every queue is bounded")
    }

    fn bounded() -> InFlight {
        let mut in_flight = InFlight::default();
        in_flight.set_credit(CREDIT);
        in_flight
    }

    #[test]
    fn one_group_holds_a_quarter_and_is_busy_only_shortly() {
        let (mut in_flight, now) = (bounded(), Instant::now());
        assert_eq!(fill(&mut in_flight, 1, 7, MIB, now), (7, SHORT_PAUSE), "8 MiB less what a batch costs besides");
        assert_eq!(in_flight.must_wait(Some(2), 7, 16 * MIB, now), None, "another file is not concerned");
        let later = now + Duration::from_secs(1);
        assert_eq!(in_flight.must_wait(Some(1), 7, MIB, later), Some(Duration::from_millis(500)));
        assert_eq!(in_flight.must_wait(Some(1), 7, 1, now + Duration::from_secs(3)), Some(PAUSE), "it is slow");
        assert_eq!(in_flight.settle(1, &id(7_000_000)), Some(7));
        assert_eq!(in_flight.must_wait(Some(1), 7, MIB, now), None, "what was answered makes room");
        assert_eq!(in_flight.settle(1, &id(7_000_000)), None);
    }

    #[test]
    fn many_groups_that_hang_never_hold_a_whole_stream_nor_the_whole_pool() {
        let (mut in_flight, now) = (bounded(), Instant::now());
        for stream in 0..100 {
            for group in 0..64 {
                fill(&mut in_flight, stream * 64 + group, stream, 100_000, now);
            }
            let held = in_flight.streams.get(&stream).copied().unwrap_or(0);
            assert!(held <= CREDIT.stream / 4 * 3 + 200_000, "{held}");
        }
        assert!(in_flight.all <= CREDIT.all / 4 * 3 + 200_000, "{} of {}", in_flight.all, CREDIT.all);
        // Groups that take more than their first batch stay within the half.
        let mut in_flight = bounded();
        let batches: u64 = (0..64).map(|group| fill(&mut in_flight, group, 1, 10_000, now).0).sum();
        assert!(batches * 10_000 <= CREDIT.stream / 2, "{batches}");
    }

    #[test]
    fn the_largest_batch_goes_in_where_nothing_is_held_and_only_there() {
        let (mut in_flight, now) = (bounded(), Instant::now());
        in_flight.set_credit(Credit { all: 2 * MIB, stream: MIB });
        let largest = proto::MAX_PAYLOAD_BYTES as u64;
        assert_eq!(in_flight.must_wait(None, 1, largest, now), None);
        assert_eq!(fill(&mut in_flight, 1, 1, largest, now), (1, SHORT_PAUSE));
        in_flight.settle(1, &id(1_000_000));
        assert_eq!(in_flight.must_wait(Some(1), 1, largest, now), None);
        assert!(in_flight.groups.is_empty() && in_flight.streams.is_empty() && in_flight.all == 0);
    }
}
