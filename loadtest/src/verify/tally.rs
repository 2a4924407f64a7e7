//! The count itself: what went in against what was found, per event. Generated lines are told apart by their id (four
//! bytes each), other lines by a hash of their masked form; memory grows with the number of different lines, never with
//! their bytes.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_128;

use crate::event_id::EventId;

/// Of a line longer than [`LONG_BYTES`], this much of the masked head stands for it when it was dead-lettered cut.
pub const HEAD_BYTES: usize = 32 * 1024;
/// Dead letters hold at most this much of an event.
pub const LONG_BYTES: usize = 64 * 1024;

/// Where an event was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a published file.
    Published,
    /// Among the dead letters.
    DeadLetter,
    /// In a quarantined batch.
    Quarantine,
}

/// What is known of one event, or of equal ones: a log may hold one line a million times.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    expected: u32,
    found: u32,
}

/// One generated event: counts saturate, which is enough to see "not once".
#[derive(Debug, Clone, Copy, Default)]
struct IdCount {
    expected: u8,
    found: u8,
    destroyed: bool,
}

/// What remains when everything was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// Lines that went in.
    pub events_in: u64,
    /// Found in published files, each as often as it was found.
    pub published: u64,
    /// Found among the dead letters.
    pub dead_lettered: u64,
    /// Found in quarantine.
    pub quarantined: u64,
    /// Went in and found nowhere.
    pub lost: u64,
    /// Found more often than they went in.
    pub duplicated: u64,
    /// Found though nothing like it went in.
    pub unexpected: u64,
    /// Lines that their writer destroyed, and how many of those were found all the same (read in time).
    pub destroyed: u64,
    /// See `destroyed`.
    pub destroyed_but_found: u64,
}

/// Counts events that went in and that were found.
#[derive(Debug, Default)]
pub struct Tally {
    hosts: HashMap<Vec<u8>, Vec<IdCount>>,
    lines: HashMap<u128, Count>,
    /// Heads of long lines: what their dead letters show of them.
    heads: HashMap<u128, Vec<u128>>,
    sums: Sums,
}

impl Tally {
    /// A generated line went in.
    pub fn expect_id(&mut self, id: EventId<'_>) {
        self.sums.events_in += 1;
        let count = self.id(id);
        count.expected = count.expected.saturating_add(1);
    }

    /// A generated line was destroyed by its writer: it may be found, but need not.
    pub fn destroyed_id(&mut self, id: EventId<'_>) {
        self.id(id).destroyed = true;
    }

    /// Another line went in; `masked` is what must be found of it, `whole` is false when only a head of it is known.
    pub fn expect_line(&mut self, masked: &[u8], whole: bool) {
        self.sums.events_in += 1;
        let key = if whole { xxh3_128(masked) } else { head_key(masked) };
        if masked.len() >= HEAD_BYTES {
            self.heads.entry(head_key(masked)).or_default().push(key);
        }
        let count = self.lines.entry(key).or_default();
        count.expected = count.expected.saturating_add(1);
    }

    /// A generated line was found.
    pub fn found_id(&mut self, id: EventId<'_>, place: Place) {
        self.place(place);
        let count = self.id(id);
        count.found = count.found.saturating_add(1);
    }

    /// Another line was found. A dead letter may show only its head.
    pub fn found_line(&mut self, body: &[u8], place: Place) {
        self.place(place);
        let mut key = xxh3_128(body);
        if place == Place::DeadLetter
            && body.len() >= HEAD_BYTES
            && !self.lines.contains_key(&key)
            && let Some(keys) = self.heads.get(&head_key(body))
        {
            let open = |key: &&u128| self.lines.get(key).is_some_and(|count| count.found < count.expected);
            key = keys.iter().find(open).or(keys.first()).copied().unwrap_or(key);
        }
        let count = self.lines.entry(key).or_default();
        count.found = count.found.saturating_add(1);
    }

    /// Lines that went in so far.
    pub fn events_in(&self) -> u64 {
        self.sums.events_in
    }

    /// The sums of everything that was counted.
    pub fn sums(&self) -> Sums {
        let mut sums = self.sums;
        for count in self.hosts.values().flatten() {
            add_id(&mut sums, *count);
        }
        for count in self.lines.values() {
            add(&mut sums, count.expected, count.found);
        }
        sums
    }

    /// Some of the generated lines that were not found once: host, number, times expected, times found.
    pub fn samples(&self, most: usize) -> Vec<String> {
        let wrong = |count: &IdCount| count.found != count.expected && !(count.destroyed && count.found <= 1);
        let hosts = self.hosts.iter().flat_map(|(host, counts)| {
            let wrong = counts.iter().enumerate().filter(move |(_, count)| wrong(count));
            wrong.map(move |(number, count)| {
                let host = String::from_utf8_lossy(host);
                format!("{host} event {number}: {} in, {} found", count.expected, count.found)
            })
        });
        hosts.take(most).collect()
    }

    fn place(&mut self, place: Place) {
        match place {
            Place::Published => self.sums.published += 1,
            Place::DeadLetter => self.sums.dead_lettered += 1,
            Place::Quarantine => self.sums.quarantined += 1,
        }
    }

    fn id(&mut self, id: EventId<'_>) -> &mut IdCount {
        if !self.hosts.contains_key(id.host) {
            self.hosts.insert(id.host.to_vec(), Vec::new());
        }
        let counts = self.hosts.get_mut(id.host).expect("inserted above");
        let at = usize::try_from(id.number).unwrap_or(usize::MAX).min(MAX_NUMBER);
        if counts.len() <= at {
            counts.resize(at + 1, IdCount::default());
        }
        &mut counts[at]
    }
}

/// Numbers past this are all counted as this one: a damaged id must not ask for any amount of memory.
const MAX_NUMBER: usize = 1 << 28;

fn head_key(masked: &[u8]) -> u128 {
    // Another key space than whole lines have.
    xxh3_128(&masked[..masked.len().min(HEAD_BYTES)]) ^ 1
}

fn add_id(sums: &mut Sums, count: IdCount) {
    if !count.destroyed {
        return add(sums, u32::from(count.expected), u32::from(count.found));
    }
    sums.destroyed += 1;
    sums.destroyed_but_found += u64::from(count.found > 0);
    sums.lost += u64::from(count.expected.saturating_sub(count.found));
    sums.duplicated += u64::from(count.found.saturating_sub(count.expected.max(1)));
}

fn add(sums: &mut Sums, expected: u32, found: u32) {
    if expected == 0 {
        sums.unexpected += u64::from(found);
    } else {
        sums.lost += u64::from(expected.saturating_sub(found));
        sums.duplicated += u64::from(found.saturating_sub(expected));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> EventId<'static> {
        EventId { host: b"web-01", number }
    }

    #[test]
    fn lost_twice_and_unexpected_are_told_apart() {
        let mut tally = Tally::default();
        for number in 0..5 {
            tally.expect_id(id(number));
        }
        tally.destroyed_id(id(5));
        tally.destroyed_id(id(6));
        for number in [0, 1, 1, 3, 6, 9] {
            tally.found_id(id(number), Place::Published);
        }
        tally.found_id(id(4), Place::DeadLetter);
        let sums = tally.sums();
        assert_eq!((sums.events_in, sums.published, sums.dead_lettered), (5, 6, 1));
        assert_eq!((sums.lost, sums.duplicated, sums.unexpected), (1, 1, 1));
        assert_eq!((sums.destroyed, sums.destroyed_but_found), (2, 1));
        assert_eq!(tally.samples(10).len(), 3);
    }

    #[test]
    fn equal_lines_are_a_multiset() {
        let mut tally = Tally::default();
        for line in ["a", "a", "b", ""] {
            tally.expect_line(line.as_bytes(), true);
        }
        for line in ["a", "a", "a", ""] {
            tally.found_line(line.as_bytes(), Place::Published);
        }
        let sums = tally.sums();
        assert_eq!((sums.lost, sums.duplicated, sums.unexpected), (1, 1, 0));
    }

    #[test]
    fn one_of_very_many_equal_lines_is_missed() {
        let mut tally = Tally::default();
        (0..70_000).for_each(|_| tally.expect_line(b"GET /health", true));
        (0..69_999).for_each(|_| tally.found_line(b"GET /health", Place::Published));
        assert_eq!((tally.sums().lost, tally.sums().duplicated), (1, 0));
    }

    #[test]
    fn a_cut_dead_letter_is_known_by_its_head() {
        let mut long = vec![b'x'; 200_000];
        long[70_000] = b'y';
        let mut tally = Tally::default();
        tally.expect_line(&long, true);
        tally.expect_line(&long[..100_000], false);
        tally.found_line(&long[..LONG_BYTES], Place::DeadLetter);
        tally.found_line(&long[..LONG_BYTES], Place::DeadLetter);
        let sums = tally.sums();
        assert_eq!((sums.lost, sums.duplicated, sums.unexpected), (0, 0, 0));
    }
}
