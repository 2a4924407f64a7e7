//! From columns back to the line, to tell whether the columns alone give the same bytes.

use super::{FieldKind, LogFormat, Part, TimeSyntax, Value};
use crate::event_time::civil::{self, DAY_US, SECOND_US};
use crate::event_time::clf;

impl LogFormat {
    /// Writes the line that the columns stand for to `out` (cleared first). False if a value is missing that a line of
    /// this format always has.
    pub fn render(
        &self,
        values: &[Value<'_>],
        event_time_us: Option<i64>,
        rest: Option<&[u8]>,
        out: &mut Vec<u8>,
    ) -> bool {
        out.clear();
        for (index, part) in self.parts.iter().enumerate() {
            if Some(index) == self.rest_from {
                let Some(rest) = rest else { return false };
                out.extend_from_slice(rest);
                return true;
            }
            match part {
                Part::Literal(literal) => out.extend_from_slice(literal),
                Part::Field { kind, column, .. } => {
                    if render_field(*kind, values.get(*column..).unwrap_or_default(), event_time_us, out).is_none() {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Do the columns give exactly `line` back? They do not where a line is not UTF-8 (columns are text), where a number is
    /// out of range or has leading zeros, for leap seconds, for `-0000`. `scratch` is reused between calls.
    pub fn gives_back(
        &self,
        line: &[u8],
        values: &[Value<'_>],
        event_time_us: Option<i64>,
        rest: Option<&[u8]>,
        scratch: &mut Vec<u8>,
    ) -> bool {
        self.render(values, event_time_us, rest, scratch) && scratch == line && std::str::from_utf8(line).is_ok()
    }
}

fn render_field(kind: FieldKind, values: &[Value<'_>], event_time_us: Option<i64>, out: &mut Vec<u8>) -> Option<()> {
    match kind {
        FieldKind::Time(TimeSyntax::Epoch { scale }) => epoch(event_time_us?, scale, out),
        FieldKind::Time(syntax) => {
            let Value::Int(minutes) = *values.first()? else { return None };
            match syntax {
                TimeSyntax::Clf => clf::render(event_time_us?, minutes as i32, out),
                _ => iso(event_time_us?, minutes as i32, out),
            }
        }
        FieldKind::Request => request(values.get(..4)?, out),
        FieldKind::Status => match *values.first()? {
            Value::Int(status) => out.extend([100, 10, 1].map(|unit| b'0' + (status / unit % 10) as u8)),
            _ => return None,
        },
        FieldKind::Text | FieldKind::List | FieldKind::Count | FieldKind::Port | FieldKind::Seconds => {
            match *values.first()? {
                Value::Null => out.push(b'-'),
                Value::Text(text) => out.extend_from_slice(text),
                Value::Int(number) => write(out, format_args!("{number}")),
                Value::Float(seconds) => write(out, format_args!("{seconds:.3}")),
            }
        }
    }
    Some(())
}

fn write(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    use std::io::Write;
    out.write_fmt(arguments).expect("a vector takes every byte");
}

fn request(values: &[Value<'_>], out: &mut Vec<u8>) {
    match *values {
        [Value::Text(method), Value::Text(path), protocol, _] => {
            out.extend_from_slice(method);
            out.push(b' ');
            out.extend_from_slice(path);
            if let Value::Text(protocol) = protocol {
                out.push(b' ');
                out.extend_from_slice(protocol);
            }
        }
        [_, _, _, Value::Text(whole)] => out.extend_from_slice(whole),
        _ => out.push(b'-'),
    }
}

/// nginx: seconds with three decimals; Apache: whole seconds, milli- or microseconds.
fn epoch(us: i64, scale: i64, out: &mut Vec<u8>) {
    if scale == SECOND_US && us.rem_euclid(SECOND_US) != 0 {
        write(out, format_args!("{}.{:03}", us.div_euclid(SECOND_US), us.rem_euclid(SECOND_US) / 1_000));
    } else {
        write(out, format_args!("{}", us.div_euclid(scale)));
    }
}

/// As nginx writes `$time_iso8601`.
fn iso(us: i64, minutes: i32, out: &mut Vec<u8>) {
    let local = us + i64::from(minutes) * 60 * SECOND_US;
    let (year, month, day) = civil::date(local.div_euclid(DAY_US) as i32);
    let second = local.rem_euclid(DAY_US) / SECOND_US;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let sign = if minutes < 0 { '-' } else { '+' };
    let offset = minutes.abs();
    write(
        out,
        format_args!(
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{sign}{:02}:{:02}",
            offset / 60,
            offset % 60
        ),
    );
}
