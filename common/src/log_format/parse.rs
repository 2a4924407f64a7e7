//! A line against a compiled format: strict, the whole line, without allocation. Values are slices of the line.

use super::{FieldKind, LogFormat, Part, TimeSyntax, Value};
use crate::event_time::{clf, epoch, iso};

/// What a line says beside its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parsed<'a> {
    /// Microseconds since the epoch, UTC; none for a format without a time.
    pub event_time_us: Option<i64>,
    /// The text of the fields behind the last known one, from the first of them to the end of the line.
    pub rest: Option<&'a [u8]>,
}

impl LogFormat {
    /// Parses a whole line into `values` (cleared first; one per column, in their order). `None`: it is not a record of
    /// this format. An unquoted field ends at the first byte of the literal behind it and is not empty; a quoted one ends
    /// at the first quote that no backslash escapes; numbers are digits or `-`.
    pub fn parse_into<'a>(&self, line: &'a [u8], values: &mut Vec<Value<'a>>) -> Option<Parsed<'a>> {
        values.clear();
        let mut parsed = Parsed::default();
        let mut at = 0;
        let mut rest_start = None;
        for (index, part) in self.parts.iter().enumerate() {
            match part {
                Part::Literal(literal) => {
                    if !line[at..].starts_with(literal) {
                        return None;
                    }
                    at += literal.len();
                }
                Part::Field { kind, quoted, .. } => {
                    let end = at + self.field_end(index, *kind, *quoted, &line[at..])?;
                    let text = &line[at..end];
                    if Some(index) == self.rest_from {
                        rest_start = Some(at);
                    }
                    if rest_start.is_some() {
                        check(*kind, text)?;
                    } else {
                        field(*kind, text, values, &mut parsed)?;
                    }
                    at = end;
                }
            }
        }
        parsed.rest = rest_start.map(|start| &line[start..]);
        (at == line.len()).then_some(parsed)
    }

    /// The text of the time field, if the line is valid up to there.
    pub fn time_text<'a>(&self, line: &'a [u8]) -> Option<&'a [u8]> {
        let time = self.time?;
        let mut at = 0;
        for (index, part) in self.parts.iter().enumerate() {
            match part {
                Part::Literal(literal) => {
                    if !line[at..].starts_with(literal) {
                        return None;
                    }
                    at += literal.len();
                }
                Part::Field { kind, quoted, .. } => {
                    let end = at + self.field_end(index, *kind, *quoted, &line[at..])?;
                    if index == time {
                        return Some(&line[at..end]);
                    }
                    at = end;
                }
            }
        }
        None
    }

    /// Where the field at `index` ends in `text`, which begins with it.
    fn field_end(&self, index: usize, kind: FieldKind, quoted: bool, text: &[u8]) -> Option<usize> {
        if let FieldKind::Time(TimeSyntax::Clf) = kind {
            return (text.len() >= clf::CLF_BYTES).then_some(clf::CLF_BYTES);
        }
        let stop = match self.parts.get(index + 1) {
            Some(Part::Literal(literal)) => literal.first().copied(),
            _ => None,
        };
        let end = match stop {
            Some(b'"') if quoted => return quote_end(text),
            Some(stop) if kind == FieldKind::List => list_end(text, stop),
            Some(stop) => memchr::memchr(stop, text)?,
            None => memchr::memchr(b' ', text).unwrap_or(text.len()),
        };
        (end > 0).then_some(end)
    }
}

/// The first quote that is not escaped.
fn quote_end(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', &text[at..])?;
        if text[at] == b'"' {
            return Some(at);
        }
        at += 2;
        if at > text.len() {
            return None;
        }
    }
}

/// nginx joins lists with `, ` and ` : `: these spaces are inside of the field.
fn list_end(text: &[u8], stop: u8) -> usize {
    let mut at = 0;
    loop {
        at += memchr::memchr(stop, &text[at..]).unwrap_or(text.len() - at);
        if at == text.len() || stop != b' ' {
            return at;
        }
        if at > 0 && text[at - 1] == b',' && text.len() > at + 1 {
            at += 1;
        } else if text[at..].starts_with(b" : ") {
            at += 3;
        } else {
            return at;
        }
    }
}

fn field<'a>(kind: FieldKind, text: &'a [u8], values: &mut Vec<Value<'a>>, parsed: &mut Parsed<'a>) -> Option<()> {
    match kind {
        FieldKind::Text | FieldKind::List => values.push(text_value(text)),
        FieldKind::Status => values.push(Value::Int(i64::from(status(text)?))),
        FieldKind::Count | FieldKind::Port => values.push(number(text, kind)?),
        FieldKind::Seconds => values.push(seconds(text)?),
        FieldKind::Request => request(text, values),
        FieldKind::Time(syntax) => {
            let (us, offset) = time(syntax, text)?;
            parsed.event_time_us = Some(us);
            values.extend(offset.map(|minutes| Value::Int(i64::from(minutes))));
        }
    }
    Some(())
}

fn check(kind: FieldKind, text: &[u8]) -> Option<()> {
    match kind {
        FieldKind::Text | FieldKind::List | FieldKind::Request => {}
        FieldKind::Status => drop(status(text)?),
        FieldKind::Count | FieldKind::Port => drop(number(text, kind)?),
        FieldKind::Seconds => drop(seconds(text)?),
        FieldKind::Time(syntax) => drop(time(syntax, text)?),
    }
    Some(())
}

fn text_value(text: &[u8]) -> Value<'_> {
    if text == b"-" { Value::Null } else { Value::Text(text) }
}

fn status(text: &[u8]) -> Option<u32> {
    if text.len() == 3 { crate::event_time::civil::digits::<3>(text, 0) } else { None }
}

/// Digits or `-`. A count over the column's range is null (the line is then kept beside it); one that no 64-bit
/// server can have written (over 2^64 - 1) is no number.
fn number(text: &[u8], kind: FieldKind) -> Option<Value<'static>> {
    if text == b"-" {
        return Some(Value::Null);
    }
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    let mut value: u64 = 0;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    let limit = if kind == FieldKind::Port { i32::MAX as u64 } else { i64::MAX as u64 };
    Some(if value <= limit { Value::Int(value as i64) } else { Value::Null })
}

fn seconds(text: &[u8]) -> Option<Value<'static>> {
    if text == b"-" {
        return Some(Value::Null);
    }
    if text.len() > 32 || !text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok().map(Value::Float)
}

fn time(syntax: TimeSyntax, text: &[u8]) -> Option<(i64, Option<i32>)> {
    match syntax {
        TimeSyntax::Clf => clf::ClfMemo::default().parse(text).map(|time| (time.us, Some(time.offset_minutes))),
        TimeSyntax::Iso => iso::parse(text)
            .filter(|time| time.bytes == text.len())
            .and_then(|time| Some((time.us, Some(time.offset_minutes?)))),
        TimeSyntax::Epoch { scale } => {
            let valid = text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
            valid.then(|| epoch(text, scale, false)).flatten().map(|us| (us, None))
        }
    }
}

/// `GET /a b HTTP/1.1` becomes method, path and protocol, `GET /` method and path; anything else stays whole under
/// `request`. A method is 1 to 32 upper-case letters, `-` or `_`.
fn request<'a>(text: &'a [u8], values: &mut Vec<Value<'a>>) {
    let whole = |values: &mut Vec<Value<'a>>| {
        values.extend([Value::Null, Value::Null, Value::Null, text_value(text)]);
    };
    let Some(space) = memchr::memchr(b' ', text) else { return whole(values) };
    let (method, behind) = (&text[..space], &text[space + 1..]);
    let method_ok = (1..=32).contains(&method.len())
        && method.iter().all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_'))
        && method != b"-";
    if !method_ok || behind.is_empty() {
        return whole(values);
    }
    let (path, protocol) = match memchr::memrchr(b' ', behind) {
        Some(last) if last > 0 && behind[last + 1..].starts_with(b"HTTP/") => {
            (&behind[..last], Value::Text(&behind[last + 1..]))
        }
        _ => (behind, Value::Null),
    };
    values.extend([Value::Text(method), Value::Text(path), protocol, Value::Null]);
}
