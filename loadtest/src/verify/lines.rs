//! Events of a stream of bytes by the documented rule: the bytes before each LF, without one CR before it, and the last
//! bytes without LF if there are any. Memory is bounded: of a line over [`MAX_LINE_BYTES`] only the head is kept.

use std::io::{self, BufRead};

/// Longest line that is kept whole; twice the largest event the agents take by default.
pub const MAX_LINE_BYTES: usize = 4 << 20;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its bytes; of a longer line the first [`MAX_LINE_BYTES`].
    pub bytes: &'a [u8],
    /// Its length.
    pub total_bytes: u64,
}

impl Line<'_> {
    /// Some of it was not kept.
    pub fn is_cut(&self) -> bool {
        self.bytes.len() as u64 != self.total_bytes
    }
}

/// Calls `each` for every event of `input`; returns the bytes read.
pub fn for_each(mut input: impl BufRead, mut each: impl FnMut(Line<'_>)) -> io::Result<u64> {
    let mut held = Vec::new();
    let mut total = 0u64;
    let mut read = 0u64;
    // Whether the last byte so far is a CR, which belongs to the line end if an LF follows.
    let mut ends_in_cr = false;
    loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            break;
        }
        let used = match memchr::memchr(b'\n', buffer) {
            Some(at) if held.is_empty() && total == 0 => {
                let line = strip_cr(&buffer[..at]);
                each(bounded(line));
                at + 1
            }
            Some(at) => {
                keep(&mut held, &mut total, &mut ends_in_cr, &buffer[..at]);
                end(&mut held, &mut total, ends_in_cr, &mut each);
                ends_in_cr = false;
                at + 1
            }
            None => {
                keep(&mut held, &mut total, &mut ends_in_cr, buffer);
                buffer.len()
            }
        };
        read += used as u64;
        input.consume(used);
    }
    if total > 0 {
        end(&mut held, &mut total, ends_in_cr, &mut each);
    }
    Ok(read)
}

fn strip_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn bounded(line: &[u8]) -> Line<'_> {
    Line { bytes: &line[..line.len().min(MAX_LINE_BYTES)], total_bytes: line.len() as u64 }
}

fn keep(held: &mut Vec<u8>, total: &mut u64, ends_in_cr: &mut bool, bytes: &[u8]) {
    if let Some(last) = bytes.last() {
        *ends_in_cr = *last == b'\r';
    }
    // One byte over the bound, so that a CR there is known and can be taken off.
    let room = (MAX_LINE_BYTES + 1).saturating_sub(held.len());
    held.extend_from_slice(&bytes[..bytes.len().min(room)]);
    *total += bytes.len() as u64;
}

fn end(held: &mut Vec<u8>, total: &mut u64, ends_in_cr: bool, each: &mut impl FnMut(Line<'_>)) {
    let length = *total - u64::from(ends_in_cr);
    let kept = (held.len() as u64).min(length).min(MAX_LINE_BYTES as u64) as usize;
    each(Line { bytes: &held[..kept], total_bytes: length });
    held.clear();
    *total = 0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn lines_of(input: &[u8], buffer: usize) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let read = for_each(BufReader::with_capacity(buffer, input), |line| lines.push(line.bytes.to_vec())).unwrap();
        assert_eq!(read, input.len() as u64);
        lines
    }

    #[test]
    fn the_documented_rule_with_any_buffer() {
        let input = b"one\r\ntwo\n\n\r\r\nfour\rfive\nlast\r";
        for buffer in 1..40 {
            let expected: Vec<&[u8]> = vec![b"one", b"two", b"", b"\r", b"four\rfive", b"last"];
            assert_eq!(lines_of(input, buffer), expected, "buffer of {buffer}");
        }
        assert!(lines_of(b"", 8).is_empty());
        assert_eq!(lines_of(b"a\n", 8).len(), 1);
    }

    #[test]
    fn a_huge_line_costs_no_memory() {
        let mut input = vec![b'x'; 3 * MAX_LINE_BYTES];
        input.extend_from_slice(b"\nnext");
        let mut seen = Vec::new();
        for_each(BufReader::new(&input[..]), |line| seen.push((line.bytes.len(), line.total_bytes))).unwrap();
        assert_eq!(seen, [(MAX_LINE_BYTES, 3 * MAX_LINE_BYTES as u64), (4, 4)]);
    }
}
