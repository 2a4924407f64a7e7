//! The small symbols of the grammar that both passes use. Each takes a text and a place, and gives the place behind what
//! it matched there. None of them can match the same place in two lengths, so none ever has to be tried again.

/// A byte, if there is one.
pub fn byte(text: &[u8], at: usize) -> Option<u8> {
    text.get(at).copied()
}

/// A byte for which `is` says yes.
pub fn one(text: &[u8], at: usize, is: impl Fn(u8) -> bool) -> Option<usize> {
    byte(text, at).filter(|b| is(*b)).map(|_| at + 1)
}

/// These very bytes.
pub fn word(text: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    text.get(at..)?.starts_with(word).then_some(at + word.len())
}

/// These letters in any case.
pub fn word_any_case(text: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    let found = text.get(at..at + word.len())?;
    found.eq_ignore_ascii_case(word).then_some(at + word.len())
}

/// Up to `most` (at least `least`) times the same symbol.
pub fn times(at: usize, least: usize, most: usize, symbol: impl Fn(usize) -> Option<usize>) -> Option<usize> {
    let mut end = at;
    let mut count = 0;
    while count < most
        && let Some(next) = symbol(end)
    {
        end = next;
        count += 1;
    }
    (count >= least).then_some(end)
}

/// `%(?:25)*` followed by two bytes for which `is` says yes. `%25` itself is never asked for.
pub fn percent(text: &[u8], at: usize, is: impl Fn(u8, u8) -> bool) -> Option<usize> {
    let end = twenty_fives(text, word(text, at, b"%")?);
    let (high, low) = (byte(text, end)?, byte(text, end + 1)?);
    is(high, low).then_some(end + 2)
}

fn twenty_fives(text: &[u8], at: usize) -> usize {
    let mut end = at;
    while let Some(next) = word(text, end, b"25") {
        end = next;
    }
    end
}

/// One or more backslashes, then this word, then two hex digits for which `is` says yes.
pub fn backslashed(text: &[u8], at: usize, name: &[u8], is: impl Fn(u8, u8) -> bool) -> Option<usize> {
    let end = times(at, 1, usize::MAX, |at| word(text, at, b"\\"))?;
    let end = word(text, end, name)?;
    let (high, low) = (byte(text, end)?, byte(text, end + 1)?);
    is(high, low).then_some(end + 2)
}

fn is_hex(b: u8) -> bool {
    b.is_ascii_hexdigit()
}

/// NA: a byte of a character that is not ASCII, raw or escaped.
pub fn na(text: &[u8], at: usize) -> Option<usize> {
    let upper = |high: u8, low: u8| is_hex(high) && !(b'0'..=b'7').contains(&high) && is_hex(low);
    one(text, at, |b| b >= 0x80).or_else(|| percent(text, at, upper)).or_else(|| {
        let end = word(text, at, b"\\x")?;
        upper(byte(text, end)?, byte(text, end + 1)?).then_some(end + 2)
    })
}

/// ESC: an escape that is passed over whole.
pub fn esc(text: &[u8], at: usize) -> Option<usize> {
    match byte(text, at)? {
        b'%' => {
            let end = twenty_fives(text, at + 1);
            let pair = |at: usize| times(at, 2, 2, |at| one(text, at, is_hex));
            pair(end).or((end > at + 1).then_some(end))
        }
        b'\\' => {
            let hex = |name: &[u8], digits: usize| {
                let end = word(text, at + 1, name)?;
                times(end, digits, digits, |at| one(text, at, is_hex))
            };
            hex(b"u", 4).or_else(|| hex(b"x", 2)).or_else(|| one(text, at + 1, |b| b"bfnrt\"\\/".contains(&b)))
        }
        _ => None,
    }
}

/// `\\*` and a byte for which `is` says yes, `\x22`, or `%22` however often encoded: a quotation mark.
pub fn quote(text: &[u8], at: usize, is: impl Fn(u8) -> bool) -> Option<usize> {
    let raw = times(at, 0, usize::MAX, |at| word(text, at, b"\\"))?;
    one(text, raw, is).or_else(|| word(text, at, b"\\x22")).or_else(|| percent(text, at, |h, l| (h, l) == (b'2', b'2')))
}
