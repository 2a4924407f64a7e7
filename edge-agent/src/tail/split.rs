//! Cuts read bytes into runs of whole events and events that are too long.
//!
//! Invariant: the parts cover the given bytes exactly, in order; no event longer than the limit is inside a run.
//! The limit is checked by leaping from limit to limit, so short lines cost nothing.

use std::ops::Range;

use memchr::{memchr, memrchr};

/// One part of a run of complete events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Whole events, each ended by LF.
    Lines(Range<usize>),
    /// One event without its LF, longer than the limit; its LF follows.
    TooLong(Range<usize>),
}

/// True if an event of these bytes (without LF) is longer than `max`, not counting one CR at its end.
pub fn is_too_long(bytes: u64, ends_in_cr: bool, max: u64) -> bool {
    bytes - u64::from(ends_in_cr && bytes > 0) > max
}

/// Parts of `data`, which ends with LF or is empty.
pub fn split(data: &[u8], max: usize) -> Vec<Part> {
    debug_assert!(data.last().is_none_or(|last| *last == b'\n'));
    let (mut parts, mut run, mut at) = (Vec::with_capacity(1), 0, 0);
    while data.len() - at > max + 1 {
        if let Some(lf) = memrchr(b'\n', &data[at..=at + max]) {
            at += lf + 1;
            continue;
        }
        let Some(length) = memchr(b'\n', &data[at..]) else { break };
        let end = at + length;
        if is_too_long(length as u64, data[end - 1] == b'\r', max as u64) {
            if run < at {
                parts.push(Part::Lines(run..at));
            }
            parts.push(Part::TooLong(at..end));
            run = end + 1;
        }
        at = end + 1;
    }
    if run < data.len() {
        parts.push(Part::Lines(run..data.len()));
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_hand(data: &[u8], max: usize) -> Vec<(bool, Vec<u8>)> {
        data.split_inclusive(|byte| *byte == b'\n')
            .map(|line| {
                let body = &line[..line.len() - 1];
                let counted = body.strip_suffix(b"\r").unwrap_or(body);
                (counted.len() > max, line.to_vec())
            })
            .collect()
    }

    proptest! {
        #[test]
        fn every_event_is_classed_and_nothing_is_lost(
            lines in prop::collection::vec("[ab\r]{0,12}", 0..20), max in 1usize..10
        ) {
            let data: Vec<u8> = lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
            let mut found = Vec::new();
            for part in split(&data, max) {
                match part {
                    Part::Lines(range) => {
                        found.extend(data[range].split_inclusive(|b| *b == b'\n').map(|l| (false, l.to_vec())));
                    }
                    Part::TooLong(range) => found.push((true, data[range.start..=range.end].to_vec())),
                }
            }
            prop_assert_eq!(found, by_hand(&data, max));
        }
    }

    #[test]
    fn the_limit_counts_the_body_alone() {
        assert_eq!(split(b"12345\r\nab\n", 5), vec![Part::Lines(0..10)]);
        assert_eq!(split(b"123456\nab\n", 5), vec![Part::TooLong(0..6), Part::Lines(7..10)]);
        assert_eq!(split(b"", 5), vec![]);
    }
}
