//! The id that every generated line carries, `eid=<host>.<number>`: written by the generator, found again by the
//! verifier. The number stands in consonants, not digits, so that it can never look like a phone number, and no `@`
//! follows: whatever masks personal data leaves it as it is.

use memchr::memmem;

/// What stands before every id.
pub const KEY: &[u8] = b"eid=";

/// Digits of the number, base 20. No vowels: no words by chance.
const DIGITS: &[u8; 20] = b"bcdfghjklmnpqrstvwxz";

/// Longest host name that is taken for one.
const MAX_HOST_BYTES: usize = 32;

/// An id as it stands in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventId<'a> {
    /// Who wrote the line; the name of the generated host's folder.
    pub host: &'a [u8],
    /// Its number there, counted from 0 without holes.
    pub number: u64,
}

/// Appends `eid=<host>.<number>`.
pub fn push(line: &mut Vec<u8>, host: &[u8], number: u64) {
    line.extend_from_slice(KEY);
    line.extend_from_slice(host);
    line.push(b'.');
    push_number(line, number);
}

fn push_number(line: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = DIGITS[(number % 20) as usize];
        number /= 20;
        if number == 0 {
            break;
        }
    }
    line.extend_from_slice(&digits[at..]);
}

/// Finds ids in lines.
#[derive(Debug)]
pub struct Finder {
    key: memmem::Finder<'static>,
    values: [u8; 256],
}

const NO_DIGIT: u8 = u8::MAX;

impl Default for Finder {
    fn default() -> Self {
        let mut values = [NO_DIGIT; 256];
        for (value, digit) in DIGITS.iter().enumerate() {
            values[*digit as usize] = value as u8;
        }
        Self { key: memmem::Finder::new(KEY), values }
    }
}

impl Finder {
    /// The first id in `line`, if there is a whole one.
    pub fn find<'a>(&self, line: &'a [u8]) -> Option<EventId<'a>> {
        let mut rest = line;
        while let Some(at) = self.key.find(rest) {
            rest = &rest[at + KEY.len()..];
            if let Some(id) = self.parse(rest) {
                return Some(id);
            }
        }
        None
    }

    /// Reads `<host>.<number>` at the beginning of `text`.
    fn parse<'a>(&self, text: &'a [u8]) -> Option<EventId<'a>> {
        let head = &text[..text.len().min(MAX_HOST_BYTES + 1)];
        let host_bytes = memchr::memchr(b'.', head)?;
        let host = &text[..host_bytes];
        if host.is_empty() || !host.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-') {
            return None;
        }
        let mut number = 0u64;
        let mut digits = 0;
        for byte in &text[host_bytes + 1..] {
            let value = self.values[*byte as usize];
            if value == NO_DIGIT {
                break;
            }
            number = number.checked_mul(20)?.checked_add(u64::from(value))?;
            digits += 1;
        }
        (digits > 0).then_some(EventId { host, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_found_again() {
        let finder = Finder::default();
        for number in [0, 1, 19, 20, 399, 400, 8_000_000, u64::from(u32::MAX), u64::MAX / 3] {
            let mut line = b"GET /search?".to_vec();
            push(&mut line, b"web-01", number);
            line.extend_from_slice(b"&q=tea HTTP/1.1");
            assert_eq!(finder.find(&line), Some(EventId { host: b"web-01", number }));
        }
    }

    #[test]
    fn other_text_holds_no_id() {
        let finder = Finder::default();
        for line in
            ["", "eid=", "eid=web-01", "eid=web-01.", "eid=.bcd", "eid=Web.bcd", "seid=web 01.bcd", "eid=web.123"]
        {
            assert_eq!(finder.find(line.as_bytes()), None, "{line}");
        }
        let found = finder.find(b"eid=nothing here, eid=web-02.c there");
        assert_eq!(found, Some(EventId { host: b"web-02", number: 1 }));
    }
}
