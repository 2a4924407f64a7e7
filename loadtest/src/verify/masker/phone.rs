//! Pass 2 of the page: phone numbers.

use super::symbols::{backslashed, byte, esc, one, percent, quote, times, word, word_any_case};

const SHORT: [&[u8]; 4] = [b"tel", b"cell", b"fax", b"gsm"];
const LONG: [&[u8]; 6] = [b"telephone", b"cellphone", b"phone", b"mobile", b"msisdn", b"whatsapp"];
/// Digits that a number can have at most.
const MOST: usize = 15;

/// A number that was matched: where masking would begin, and its groups.
struct Number {
    begin: usize,
    groups: Vec<(usize, usize)>,
}

/// What stands at a place.
enum Found {
    /// Copied as it is, up to here; the place behind is clean.
    Passed(usize),
    /// Masked from, up to.
    Mask(usize, usize),
    /// Nothing, or rejected: go on one byte further.
    Nothing,
}

/// The line with its numbers replaced, if there are any.
pub fn mask(line: &[u8]) -> Option<Vec<u8>> {
    let mut out: Option<Vec<u8>> = None;
    let (mut copied, mut at, mut clean) = (0, 0, true);
    while at < line.len() {
        match search(line, at, clean) {
            Found::Passed(end) => (at, clean) = (end, true),
            Found::Mask(begin, end) => {
                let out = out.get_or_insert_with(Vec::new);
                out.extend_from_slice(&line[copied..begin]);
                out.extend_from_slice(b"<phone>");
                (copied, at, clean) = (end, end, true);
            }
            Found::Nothing => (at, clean) = (at + 1, false),
        }
    }
    let mut out = out?;
    out.extend_from_slice(&line[copied..]);
    Some(out)
}

fn search(line: &[u8], at: usize, clean: bool) -> Found {
    if let Some(end) = token(line, at).or_else(|| clock(line, at)) {
        return Found::Passed(end);
    }
    let before = if at == 0 { None } else { byte(line, at - 1) };
    let free = |joins: fn(u8) -> bool| clean || !before.is_some_and(joins);
    if let Some(number) = international(line, at) {
        let joins = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        return if free(joins) { decide(line, &number, 8) } else { Found::Nothing };
    }
    if let Some((number, short)) = named(line, at) {
        let joins = |b: u8| b.is_ascii_alphanumeric();
        return if !short || free(joins) { decide(line, &number, 7) } else { Found::Nothing };
    }
    if let Some((begin, end)) = zeros(line, at) {
        return if end - begin <= 17 { Found::Mask(begin, end) } else { Found::Nothing };
    }
    esc(line, at).map_or(Found::Nothing, Found::Passed)
}

/// Which of the groups are the number, and whether they are masked.
fn decide(line: &[u8], number: &Number, least: usize) -> Found {
    let length = |group: &(usize, usize)| group.1 - group.0;
    let Some(first) = number.groups.first() else { return Found::Nothing };
    if length(first) >= least {
        return if length(first) <= MOST { Found::Mask(number.begin, first.1) } else { Found::Nothing };
    }
    let (mut digits, mut taken) = (0, 0);
    for group in &number.groups {
        if digits + length(group) > MOST {
            break;
        }
        digits += length(group);
        taken += 1;
    }
    let groups = &number.groups[..taken];
    let decimal = matches!(groups, [whole, part] if &line[whole.1..part.0] == b".");
    match groups.last() {
        Some(last) if digits >= least && !decimal => Found::Mask(number.begin, last.1),
        _ => Found::Nothing,
    }
}

fn token(line: &[u8], at: usize) -> Option<usize> {
    let end = word(line, at, b"<email").or_else(|| word(line, at, b"<phone"))?;
    let hash = || {
        let end = word(line, end, b":")?;
        times(end, 16, 16, |at| one(line, at, |b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
    };
    word(line, hash().unwrap_or(end), b">")
}

fn digit(line: &[u8], at: usize) -> Option<usize> {
    one(line, at, |b| b.is_ascii_digit())
}

fn digits(line: &[u8], at: usize) -> Option<usize> {
    times(at, 1, usize::MAX, |at| digit(line, at))
}

fn clock(line: &[u8], at: usize) -> Option<usize> {
    let end = word(line, digit(line, at)?, b":")?;
    let end = times(end, 2, 2, |at| digit(line, at))?;
    let fraction = || times(one(line, end, |b| b == b'.' || b == b',')?, 1, 9, |at| digit(line, at));
    let end = fraction().unwrap_or(end);
    let end = word(line, end, b" ").unwrap_or(end);
    let end = word(line, plus(line, end)?, b"1")?;
    let zone = line.get(end..end + 3)?;
    let known = [b"030", b"245", b"345", b"400"].iter().any(|text| *text == zone);
    (known || ((b'0'..=b'3').contains(&zone[0]) && &zone[1..] == b"00")).then_some(end + 3)
}

fn plus(line: &[u8], at: usize) -> Option<usize> {
    let encoded = |high: u8, low: u8| high == b'2' && low.eq_ignore_ascii_case(&b'b');
    word(line, at, b"+")
        .or_else(|| percent(line, at, encoded))
        .or_else(|| backslashed(line, at, b"u00", encoded))
        .or_else(|| backslashed(line, at, b"x", encoded))
}

fn open(line: &[u8], at: usize) -> Option<usize> {
    word(line, at, b"(").or_else(|| percent(line, at, |high, low| (high, low) == (b'2', b'8')))
}

fn sep(line: &[u8], at: usize) -> Option<usize> {
    let general = |third: u8| (0x80..=0x95).contains(&third) || third == 0xaf;
    let encoded = |high: u8, low: u8| high == b'2' && b"089def".contains(&low.to_ascii_lowercase());
    let pair = |at: usize, high: u8, low: u8| percent(line, at, |h, l| h.eq_ignore_ascii_case(&high) && l == low);
    one(line, at, |b| b" .()/-".contains(&b))
        .or_else(|| word(line, at, b"\xc2\xa0"))
        .or_else(|| one(line, word(line, at, b"\xe2\x80")?, general))
        .or_else(|| percent(line, at, encoded))
        .or_else(|| pair(pair(at, b'c', b'2')?, b'a', b'0'))
}

/// The groups from a first run of digits on: `(?:SEP{1,3} [0-9]+)*`, with a plus sign among the separators or without.
fn groups(line: &[u8], first: (usize, usize), with_plus: bool) -> Vec<(usize, usize)> {
    let mut groups = vec![first];
    let mut end = first.1;
    let separator = |at: usize| {
        let raw_plus = if with_plus { word(line, at, b"+") } else { None };
        raw_plus.or_else(|| sep(line, at))
    };
    while let Some(begin) = times(end, 1, 3, separator)
        && let Some(next) = digits(line, begin)
    {
        groups.push((begin, next));
        end = next;
    }
    groups
}

/// A, and where that does not match, B.
fn international(line: &[u8], at: usize) -> Option<Number> {
    let with_plus = word(line, at, b"+").is_none();
    let behind = plus(line, at)?;
    let begin = open(line, behind).unwrap_or(behind);
    let first = one(line, begin, |b| (b'1'..=b'9').contains(&b))?;
    let end = digits(line, first).unwrap_or(first);
    Some(Number { begin: at, groups: groups(line, (begin, end), with_plus) })
}

fn equals(line: &[u8], at: usize) -> Option<usize> {
    let encoded = |high: u8, low: u8| high == b'3' && b"da".contains(&low.to_ascii_lowercase());
    one(line, at, |b| b == b'=' || b == b':').or_else(|| percent(line, at, encoded))
}

fn any_quote(line: &[u8], at: usize) -> Option<usize> {
    quote(line, at, |b| b == b'"' || b == b'\'')
}

/// `EQ SPACE? Q?`
fn value(line: &[u8], at: usize) -> Option<usize> {
    let end = equals(line, at)?;
    let space = word(line, end, b" ").or_else(|| percent(line, end, |high, low| (high, low) == (b'2', b'0')));
    let end = space.unwrap_or(end);
    Some(any_quote(line, end).unwrap_or(end))
}

/// K, and whether its name is a short one.
fn named(line: &[u8], at: usize) -> Option<(Number, bool)> {
    let short = SHORT.iter().map(|name| (*name, true));
    let names = short.chain(LONG.iter().map(|name| (*name, false)));
    names.into_iter().find_map(|(name, short)| {
        let end = word_any_case(line, at, name)?;
        let begin = value(line, field_end(line, end))?;
        let end = plus(line, begin).unwrap_or(begin);
        let first = open(line, end).unwrap_or(end);
        let group = (first, digits(line, first)?);
        Some((Number { begin, groups: groups(line, group, true) }, short))
    })
}

/// `(?:[_.-]?(?:number|num|no|nr))? (?:\[\])? Q? [ ]?`
fn field_end(line: &[u8], at: usize) -> usize {
    let joined = one(line, at, |b| b"_.-".contains(&b)).unwrap_or(at);
    let suffix = [b"number".as_slice(), b"num", b"no", b"nr"].iter().find_map(|name| word_any_case(line, joined, name));
    let end = suffix.unwrap_or(at);
    let end = word(line, end, b"[]").unwrap_or(end);
    let end = any_quote(line, end).unwrap_or(end);
    word(line, end, b" ").unwrap_or(end)
}

/// Z.
fn zeros(line: &[u8], at: usize) -> Option<(usize, usize)> {
    let begin = value(line, at)?;
    let end = word(line, begin, b"00")?;
    let end = one(line, end, |b| (b'1'..=b'9').contains(&b))?;
    let end = times(end, 7, usize::MAX, |at| digit(line, at))?;
    Some((begin, end))
}
