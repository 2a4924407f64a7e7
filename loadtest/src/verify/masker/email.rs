//! Pass 1 of the page: e-mail addresses.

use std::borrow::Cow;

use super::symbols::{backslashed, byte, esc, na, one, percent, quote, times, word};

const NO_TLD: &str = "service socket timer target mount automount swap slice scope device png jpg jpeg gif svg webp avif \
                      ico bmp css js mjs json xml html htm php txt pdf gz woff ttf eot";

/// The line with its addresses replaced.
pub fn mask(line: &[u8]) -> Cow<'_, [u8]> {
    let mut out: Option<Vec<u8>> = None;
    let mut copied = 0;
    let mut at = 0;
    let mut reach = Reach::default();
    while let Some(start) = reach.next_start(line, at) {
        at = start;
        match search(line, at) {
            Step::Mask(end) => {
                let out = out.get_or_insert_with(Vec::new);
                out.extend_from_slice(&line[copied..at]);
                out.extend_from_slice(b"<email>");
                copied = end;
                at = end;
            }
            Step::GoOn(next) => at = next,
        }
    }
    match out {
        None => Cow::Borrowed(line),
        Some(mut out) => {
            out.extend_from_slice(&line[copied..]);
            Cow::Owned(out)
        }
    }
}

enum Step {
    Mask(usize),
    GoOn(usize),
}

/// The next `@` or `40`, and the last byte in front of it that no address and no escape contains.
#[derive(Default)]
struct Reach {
    sign: usize,
    stop: Option<usize>,
    known: bool,
}

impl Reach {
    /// The next place at which an address could begin, or an escape that hides one; `None` when no sign follows. It
    /// only saves work: what it leaves out can neither be matched nor change what is.
    fn next_start(&mut self, line: &[u8], at: usize) -> Option<usize> {
        if !self.known || self.sign < at {
            let rest = line.get(at..)?;
            let sign = (0..rest.len()).find(|i| rest[*i] == b'@' || rest[*i..].starts_with(b"40"))?;
            let word = |b: &u8| b.is_ascii_alphanumeric() || *b >= 0x80 || b"_+.'|-%\\\" /@".contains(b);
            let stop = rest[..sign].iter().rposition(|b| !word(b));
            *self = Self { sign: at + sign, stop: stop.map(|stop| at + stop), known: true };
        }
        Some(self.stop.map_or(at, |stop| at.max(stop + 1)))
    }
}

fn search(line: &[u8], at: usize) -> Step {
    for end in [plain_local(line, at), quoted_local(line, at)].into_iter().flatten() {
        let Some(behind_at) = at_sign(line, end) else { continue };
        if let Some(labels) = domain(line, behind_at) {
            return cut_no_tlds(line, labels).map_or(Step::GoOn(behind_at), Step::Mask);
        }
        if let Some(end) = literal(line, behind_at) {
            return Step::Mask(end);
        }
    }
    Step::GoOn(esc(line, at).unwrap_or_else(|| behind_word(line, at)))
}

/// Where to go on when a local part began at this place and no address came of it: behind its run of plain bytes. One
/// that begins further on in the run ends where this one did, and so fails as it did; without this a long word would be walked once per byte.
fn behind_word(line: &[u8], at: usize) -> usize {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b >= 0x80 || b"_+.'|-".contains(&b);
    let end = times(at, 0, usize::MAX, |at| one(line, at, plain)).unwrap_or(at);
    // Where an escape follows, the local part did not end with the plain bytes.
    let whole = first(line, at).is_some() && end > at && byte(line, end).is_none_or(|b| b != b'%' && b != b'\\');
    if whole { end } else { at + 1 }
}

fn at_sign(line: &[u8], at: usize) -> Option<usize> {
    let forty = |high: u8, low: u8| (high, low) == (b'4', b'0');
    word(line, at, b"@")
        .or_else(|| percent(line, at, forty))
        .or_else(|| backslashed(line, at, b"u00", forty))
        .or_else(|| backslashed(line, at, b"x", forty))
}

fn dot(line: &[u8], at: usize) -> Option<usize> {
    word(line, at, b".").or_else(|| percent(line, at, |high, low| high == b'2' && low.eq_ignore_ascii_case(&b'e')))
}

fn plain_local(line: &[u8], at: usize) -> Option<usize> {
    times(first(line, at)?, 0, usize::MAX, |at| char(line, at))
}

fn first(line: &[u8], at: usize) -> Option<usize> {
    let plus_or_line = |high: u8, low: u8| matches!((high, low.to_ascii_lowercase()), (b'2', b'b') | (b'5', b'f'));
    one(line, at, |b| b.is_ascii_alphanumeric() || b"_+".contains(&b))
        .or_else(|| percent(line, at, plus_or_line))
        .or_else(|| na(line, at))
}

fn char(line: &[u8], at: usize) -> Option<usize> {
    let encoded = |high: u8, low: u8| match high {
        b'2' => b"bde7".contains(&low.to_ascii_lowercase()),
        b'5' => low.eq_ignore_ascii_case(&b'f'),
        b'7' => low.eq_ignore_ascii_case(&b'c'),
        _ => false,
    };
    one(line, at, |b| b.is_ascii_alphanumeric() || b"_+.'|-".contains(&b))
        .or_else(|| percent(line, at, encoded))
        .or_else(|| stray_percent(line, at))
        .or_else(|| na(line, at))
}

/// `%[0-9A-Fa-f]?[G-Zg-z_+.'|-]`
fn stray_percent(line: &[u8], at: usize) -> Option<usize> {
    let end = word(line, at, b"%")?;
    let end = one(line, end, |b| b.is_ascii_hexdigit()).unwrap_or(end);
    one(line, end, |b| (b.is_ascii_alphabetic() && !b.is_ascii_hexdigit()) || b"_+.'|-".contains(&b))
}

fn quoted_local(line: &[u8], at: usize) -> Option<usize> {
    let mark = |at: usize| quote(line, at, |b| b == b'"');
    let inner =
        |at: usize| one(line, at, |b| b.is_ascii_alphanumeric() || b" _+.'|-".contains(&b)).or_else(|| na(line, at));
    mark(times(mark(at)?, 1, 64, inner)?)
}

/// The labels of the longest DOMAIN at this place, each as (begin, end).
fn domain(line: &[u8], at: usize) -> Option<Vec<(usize, usize)>> {
    let mut labels = Vec::new();
    let mut begin = at;
    while let Some(end) = label(line, begin)
        && let Some(next) = dot(line, end)
    {
        labels.push((begin, end));
        begin = next;
    }
    // Greedy, with backtracking: the last dot behind which a TLD stands.
    loop {
        if labels.is_empty() {
            return None;
        }
        if let Some(end) = tld(line, begin) {
            labels.push((begin, end));
            return Some(labels);
        }
        begin = labels.pop()?.0;
    }
}

fn label(line: &[u8], at: usize) -> Option<usize> {
    let letter = |at: usize| one(line, at, |b| b.is_ascii_alphanumeric() || b == b'_').or_else(|| na(line, at));
    times(letter(at)?, 0, usize::MAX, |at| one(line, at, |b| b == b'-').or_else(|| letter(at)))
}

fn tld(line: &[u8], at: usize) -> Option<usize> {
    let encoded = || {
        let end = one(line, at, |b| b.eq_ignore_ascii_case(&b'x'))?;
        let end = one(line, end, |b| b.eq_ignore_ascii_case(&b'n'))?;
        let end = word(line, end, b"--")?;
        times(end, 1, 59, |at| one(line, at, |b| b.is_ascii_alphanumeric() || b == b'-'))
    };
    let letters = || times(at, 2, 63, |at| one(line, at, |b| b.is_ascii_alphabetic()).or_else(|| na(line, at)));
    encoded().or_else(letters)
}

/// Drops labels that are no TLD from the end; gives the end of what is left, or nothing when the match is rejected.
fn cut_no_tlds(line: &[u8], mut labels: Vec<(usize, usize)>) -> Option<usize> {
    while labels.len() > 1 {
        let (begin, end) = *labels.last()?;
        let name = line[begin..end].to_ascii_lowercase();
        if !NO_TLD.split_whitespace().any(|word| word.as_bytes() == name) {
            break;
        }
        labels.pop();
    }
    let (begin, end) = *labels.last()?;
    (labels.len() > 1 && tld(&line[..end], begin) == Some(end)).then_some(end)
}

fn literal(line: &[u8], at: usize) -> Option<usize> {
    let open = word(line, at, b"[")?;
    let number = |at: usize| times(at, 1, 3, |at| one(line, at, |b| b.is_ascii_digit()));
    let four = || {
        let end = number(open)?;
        times(end, 3, 3, |at| number(word(line, at, b".")?))
    };
    let six = || {
        let end = word(line, open, b"IPv6:")?;
        times(end, 2, 45, |at| one(line, at, |b| b.is_ascii_hexdigit() || b":.".contains(&b)))
    };
    let end = four().or_else(six)?;
    (byte(line, end)? == b']').then_some(end + 1)
}
