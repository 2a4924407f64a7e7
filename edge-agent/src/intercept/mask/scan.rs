//! The scan in front of the patterns: finds the lines that may hold an address or a number, at the speed of memory.
//!
//! Invariant: every match of the grammar contains, in its own line, a byte at which [`Scan`] stops and says yes: an at-sign,
//! a plus sign with 8 digits behind it, an equals sign or colon with a field name before it and 7 digits behind, or with `00`
//! and 10 digits behind, each plain or escaped. More lines than necessary may be named; none may be missed. The
//! differential test holds it.

use memchr::{Memchr3, memchr3_iter};

/// Walks a buffer once, from left to right.
pub(super) struct Scan<'a> {
    bytes: &'a [u8],
    signs: Memchr3<'a>,
    delimiters: Memchr3<'a>,
    next_sign: usize,
    next_delimiter: usize,
}

impl<'a> Scan<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut scan = Self {
            bytes,
            signs: memchr3_iter(b'@', b'%', b'+', bytes),
            delimiters: memchr3_iter(b'=', b':', b'\\', bytes),
            next_sign: 0,
            next_delimiter: 0,
        };
        scan.next_sign = next(&mut scan.signs, bytes, sign);
        scan.next_delimiter = next(&mut scan.delimiters, bytes, delimiter);
        scan
    }

    /// May the bytes `start..end` hold a match? Ranges are asked for in ascending order and do not overlap.
    pub(super) fn has_candidate(&mut self, start: usize, end: usize) -> bool {
        let mut found = false;
        while self.next_sign < end {
            found |= self.next_sign >= start;
            self.next_sign = next(&mut self.signs, self.bytes, sign);
        }
        while self.next_delimiter < end {
            found |= self.next_delimiter >= start;
            self.next_delimiter = next(&mut self.delimiters, self.bytes, delimiter);
        }
        found
    }
}

#[inline]
fn next(stops: &mut Memchr3<'_>, bytes: &[u8], is_candidate: impl Fn(&[u8], usize) -> bool) -> usize {
    stops.find(|at| is_candidate(bytes, *at)).unwrap_or(usize::MAX)
}

/// `@`, `%` and `+`.
fn sign(bytes: &[u8], at: usize) -> bool {
    match bytes[at] {
        // Not that of `+0000`, nor a query's spaces. (Where a field name stands before it, its delimiter is the stop.)
        b'+' if !matches!(bytes.get(at + 1), Some(b'1'..=b'9' | b'(' | b'%')) => false,
        b'+' => number_follows(bytes, at + 1, 8),
        b'@' => local_ends(bytes, at) && domain_begins(bytes, at + 1),
        _ => percent(bytes, at),
    }
}

/// `%(?:25)*` before `40`, `2B`, `3D`, `3A`.
fn percent(bytes: &[u8], at: usize) -> bool {
    let mut digits = at + 1;
    while bytes[digits..].starts_with(b"25") {
        digits += 2;
    }
    match (bytes.get(digits), bytes.get(digits + 1).map(u8::to_ascii_lowercase)) {
        (Some(b'4'), Some(b'0')) => local_ends(bytes, at) && domain_begins(bytes, digits + 2),
        (Some(b'2'), Some(b'b')) => number_follows(bytes, digits + 2, 8),
        (Some(b'3'), Some(b'd' | b'a')) => value_follows(bytes, at, digits + 2),
        _ => false,
    }
}

/// `=`, `:` and the last backslash of `\u0040`, `\x40`, `\u002b`, `\x2b`.
fn delimiter(bytes: &[u8], at: usize) -> bool {
    if bytes[at] != b'\\' {
        return value_follows(bytes, at, at + 1);
    }
    let behind = &bytes[at + 1..];
    let code = if behind.starts_with(b"u00") { 3 } else { usize::from(behind.first() == Some(&b'x')) };
    match (code, behind.get(code), behind.get(code + 1).map(u8::to_ascii_lowercase)) {
        (0, ..) => false,
        (_, Some(b'4'), Some(b'0')) => true,
        (_, Some(b'2'), Some(b'b')) => number_follows(bytes, at + code + 3, 8),
        _ => false,
    }
}

/// Can a local part end before `at`?
fn local_ends(bytes: &[u8], at: usize) -> bool {
    at.checked_sub(1).is_some_and(|before| {
        let byte = bytes[before];
        byte.is_ascii_alphanumeric() || byte >= 0x80 || matches!(byte, b'_' | b'+' | b'.' | b'\'' | b'|' | b'-' | b'"')
    })
}

/// Can a domain begin at `at`?
fn domain_begins(bytes: &[u8], at: usize) -> bool {
    bytes
        .get(at)
        .is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte >= 0x80 || matches!(byte, b'_' | b'%' | b'\\' | b'['))
}

/// Are there `least` digits in the bytes from `at` on that a number, its separators and their escapes are made of?
fn number_follows(bytes: &[u8], at: usize, least: usize) -> bool {
    let mut digits = 0;
    for byte in bytes.get(at..).unwrap_or_default() {
        match byte {
            b'0'..=b'9' => {
                digits += 1;
                if digits == least {
                    return true;
                }
            }
            b' ' | b'.' | b'(' | b')' | b'/' | b'-' | b'+' | b'%' | b'\\' | b'u' | b'x' => {}
            b'a'..=b'f' | b'A'..=b'F' | 0x80.. => {}
            _ => return false,
        }
    }
    false
}

/// EQ at `from..to`: is there a value behind it that rule K or Z could take?
fn value_follows(bytes: &[u8], from: usize, to: usize) -> bool {
    let mut at = to;
    match bytes.get(at) {
        // Most colons stand in clock times: no name ends before them.
        Some(b'1'..=b'9') if from == 0 || matches!(bytes[from - 1], b'0' | b'1' | b'3'..=b'9') => return false,
        Some(b'0'..=b'9' | b'(' | b'+' | b' ' | b'"' | b'\'' | b'\\' | b'%') => {}
        _ => return false,
    }
    at += skip(bytes, at, b" ", b"20");
    while bytes.get(at) == Some(&b'\\') && bytes.get(at + 1).is_some_and(|b| matches!(b, b'\\' | b'"' | b'\'')) {
        at += 1;
    }
    at += if bytes[at..].starts_with(br"\x22") { 4 } else { skip(bytes, at, b"\"'", b"22") };
    let value = &bytes[at..];
    if value.starts_with(b"00") && number_follows(bytes, at, 10) {
        return true;
    }
    matches!(value.first(), Some(b'0'..=b'9' | b'(' | b'+' | b'\\' | b'%'))
        && name_ends(&bytes[..from])
        && number_follows(bytes, at, 7)
}

/// Length of one of `plain`, or of `%(?:25)*` with `code`, at `at`.
fn skip(bytes: &[u8], at: usize, plain: &[u8], code: &[u8]) -> usize {
    match bytes.get(at) {
        Some(byte) if plain.contains(byte) => 1,
        Some(b'%') => {
            let mut end = at + 1;
            while bytes[end..].starts_with(b"25") {
                end += 2;
            }
            if bytes[end..].starts_with(code) { end + code.len() - at } else { 0 }
        }
        _ => 0,
    }
}

/// Does `text` end like the name of a field that holds a phone, perhaps with `[]`, a quote and a space behind it?
fn name_ends(text: &[u8]) -> bool {
    let mut text = text.strip_suffix(b" ").unwrap_or(text);
    if let Some(before) = text.strip_suffix(b"\"").or_else(|| text.strip_suffix(b"'")) {
        text = before;
        while let Some(before) = text.strip_suffix(b"\\") {
            text = before;
        }
    } else if let Some(before) = text.strip_suffix(br"\x22") {
        text = before;
    } else if let Some(mut before) = text.strip_suffix(b"22") {
        while let Some(shorter) = before.strip_suffix(b"25") {
            before = shorter;
        }
        text = before.strip_suffix(b"%").unwrap_or(text);
    }
    let text = text.strip_suffix(b"[]").unwrap_or(text);
    const ENDS: [&[u8; 2]; 12] = [b"el", b"ll", b"ax", b"sm", b"ne", b"le", b"dn", b"pp", b"er", b"um", b"no", b"nr"];
    text.last_chunk::<2>().is_some_and(|last| ENDS.iter().any(|end| last.eq_ignore_ascii_case(&end[..])))
}
