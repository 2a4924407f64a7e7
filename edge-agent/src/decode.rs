//! Decode: from the pieces of a chunk to events: where each begins and ends. Slices only, nothing is copied.
//!
//! Invariant: every LF of a piece ends exactly one event, an empty line is one too, and one CR before the LF is no part of it.

use std::ops::Range;

/// Walks the events of a piece of whole lines, as ranges without line end.
#[derive(Debug, Clone)]
pub struct Events<'a> {
    bytes: &'a [u8],
    start: usize,
    ends: memchr::Memchr<'a>,
}

impl<'a> Events<'a> {
    /// `bytes` ends in LF; what stands behind the last LF is taken as one event more.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, start: 0, ends: memchr::memchr_iter(b'\n', bytes) }
    }
}

impl Iterator for Events<'_> {
    type Item = Range<usize>;

    #[inline]
    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.start;
        let end = match self.ends.next() {
            Some(end) => end,
            None if start < self.bytes.len() => self.bytes.len(),
            None => return None,
        };
        self.start = end + 1;
        Some(start..without_cr(self.bytes, start, end))
    }
}

/// The end of an event without the CR of its line end.
pub fn without_cr(bytes: &[u8], start: usize, end: usize) -> usize {
    end - usize::from(end > start && bytes[end - 1] == b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(bytes: &str) -> Vec<&str> {
        Events::new(bytes.as_bytes()).map(|range| &bytes[range]).collect()
    }

    #[test]
    fn lines_lose_their_end_and_one_cr() {
        assert_eq!(events("a\r\n\nb\rc\n\r\r\n"), ["a", "", "b\rc", "\r"]);
        assert_eq!(events("a\nb"), ["a", "b"]);
        assert_eq!(events(""), [""; 0]);
    }
}
