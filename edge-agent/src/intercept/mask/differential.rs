//! Does the scan, or the shortcut behind escapes, ever change what the plain patterns say? Lines are made up from what
//! matters to the grammar and masked both ways.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use super::passes::Passes;
use super::token::Tokens;
use super::{MaskConfig, MaskedLines, Masker};

/// A line that is masked differently with and without the scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    /// The line.
    pub line: Vec<u8>,
    /// By the plain patterns over the whole line.
    pub plain: Vec<u8>,
    /// With the scan in front.
    pub scanned: Vec<u8>,
}

/// Masks made-up lines for `duration` with the plain patterns and with the scan in front; gives their number, or the
/// first line on which the two disagree. The same `seed` makes the same lines.
pub(super) fn mask_differential(seed: u64, duration: Duration) -> Result<u64, Box<Difference>> {
    let started = Instant::now();
    let mut random = SmallRng::seed_from_u64(seed);
    let mut masker = Masker::new(&MaskConfig::default()).expect("replace needs no key");
    let plain = Passes::new();
    let mut buffer = Vec::new();
    let mut lines = 0;
    while started.elapsed() < duration {
        buffer.clear();
        let mut ends = Vec::new();
        for _ in 0..64 {
            make_line(&mut random, &mut buffer);
            ends.push(buffer.len());
            buffer.push(b'\n');
        }
        lines += ends.len() as u64;
        compare(&buffer, &ends, &plain, &mut masker)?;
    }
    Ok(lines)
}

/// Compares the two on every line of `buffer`; `ends` are the positions of the line breaks.
pub(super) fn compare(
    buffer: &[u8],
    ends: &[usize],
    plain: &Passes,
    masker: &mut Masker,
) -> Result<(), Box<Difference>> {
    let (mut masked, mut stage, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    let mut scanned = MaskedLines::new(buffer);
    let mut start = 0;
    for &end in ends {
        let line = &buffer[start..end];
        let changed = scanned.mask(masker, start, end, &mut masked);
        plain.emails::<false>(line, &Tokens::Replace, &mut stage);
        plain.phones::<false>(&stage, &Tokens::Replace, &mut expected);
        let result = if changed { &masked[..] } else { line };
        if result != expected {
            return Err(Box::new(Difference { line: line.to_vec(), plain: expected, scanned: result.to_vec() }));
        }
        start = end + 1;
    }
    Ok(())
}

/// What lines are made of.
const FRAGMENTS: [&[u8]; 96] = [
    b"@",
    b"%40",
    b"%2540",
    br"\u0040",
    br"\\u0040",
    br"\x40",
    b"+",
    b"%2B",
    b"%2b",
    b"%252B",
    br"\u002b",
    br"\x2B",
    b"=",
    b":",
    b"%3D",
    b"%3a",
    b"%253D",
    b"\"",
    br#"\""#,
    br"\x22",
    b"%22",
    b"'",
    br"\'",
    br#"\\""#,
    b"tel",
    b"cell",
    b"fax",
    b"gsm",
    b"phone",
    b"Mobile",
    b"telephone",
    b"msisdn",
    b"whatsapp",
    b"hotel",
    b"_number",
    b"No",
    b".nr",
    b"[]",
    b"00",
    b"0049",
    b"+49",
    b"30",
    b"123456",
    b"1234567",
    b"12345678",
    b"123456789012345",
    b"1234567890123456",
    b"415-666-7777",
    b"(",
    b")",
    b"%28",
    b"%29",
    b"%20",
    b"%252D",
    b" ",
    b"  ",
    b".",
    b"-",
    b"/",
    b"_",
    b"jane.doe",
    b"o'brien",
    b"x|y",
    b"example.com",
    b"example",
    b".co.uk",
    b".png",
    b".service",
    b".html",
    b"%2E",
    b"xn--80ak6aa92e",
    b"[192.168.2.1]",
    b"[IPv6:fe80::1]",
    b"\xc3\xbc",
    b"%C3%BC",
    br"\xc3\xbc",
    b"\xc2\xa0",
    b"\xe2\x80\x93",
    b"%c2%a0",
    b"\xff",
    b"%41",
    b"%",
    b"%e",
    b"\\",
    br"\\",
    br"\n",
    b"<email>",
    b"<phone:0123456789abcdef>",
    b"<",
    b">",
    b"&",
    b"13:55:36 +1000",
    b"[10/Oct/2024:13:55:36 +0000]",
    b"203.0.113.7",
    b"GET /?q=",
    b"\xd0\xba",
];

fn make_line(random: &mut SmallRng, out: &mut Vec<u8>) {
    let pieces = random.random_range(0..24);
    for _ in 0..pieces {
        match random.random_range(0..16) {
            0..=9 => out.extend_from_slice(FRAGMENTS[random.random_range(0..FRAGMENTS.len())]),
            10..=12 => {
                for _ in 0..random.random_range(1..6) {
                    out.push(random.random_range(b'0'..=b'9'));
                }
            }
            13..=14 => out.push(b"+-()@%.=:\\\"25048BbxuDA "[random.random_range(0..23)]),
            _ => {
                let byte = (random.next_u32() & 0xff) as u8;
                out.push(if byte == b'\n' { b'\r' } else { byte });
            }
        }
    }
}
