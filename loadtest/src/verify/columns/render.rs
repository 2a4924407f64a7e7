//! A log format as a template: its fields name columns, and a row fills them in. The other direction (bytes to columns)
//! is the product's; this one is written anew, so that a column that lost something shows.

use anyhow::{Result, bail};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};

use super::bytes_at;

/// `common` and `combined`, as nginx writes them.
const COMMON: &str = r#"$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent"#;
const COMBINED: &str = r#"$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent""#;
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A piece of a format.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Field(String),
}

/// Puts lines together from columns.
#[derive(Debug)]
pub struct Renderer {
    pieces: Vec<Piece>,
}

impl Renderer {
    /// `common`, `combined`, or an nginx `log_format` string.
    pub fn new(log_format: &str) -> Result<Self> {
        let template = match log_format {
            "common" => COMMON,
            "combined" => COMBINED,
            other if other.contains('$') => other,
            other => bail!("the verifier cannot put lines of the log format {other} together again"),
        };
        let mut pieces = Vec::new();
        let mut rest = template;
        while let Some(at) = rest.find('$') {
            pieces.push(Piece::Text(rest.as_bytes()[..at].to_vec()));
            let name = rest[at + 1..].trim_start_matches('{');
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
            pieces.push(Piece::Field(name[..end].to_owned()));
            rest = &name[end..];
        }
        pieces.push(Piece::Text(rest.as_bytes().to_vec()));
        Ok(Self { pieces })
    }

    /// The line of one row.
    pub fn render(&self, batch: &RecordBatch, row: usize) -> Result<Vec<u8>> {
        let mut line = Vec::with_capacity(256);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => line.extend_from_slice(text),
                Piece::Field(name) => push_field(&mut line, batch, row, name)?,
            }
        }
        if let Some(rest) = batch.column_by_name("rest").and_then(|column| bytes_at(column.as_ref(), row)) {
            line.extend_from_slice(rest);
        }
        Ok(line)
    }
}

fn push_field(line: &mut Vec<u8>, batch: &RecordBatch, row: usize, name: &str) -> Result<()> {
    match name {
        "request" => {
            for (number, part) in ["method", "path", "protocol"].into_iter().enumerate() {
                let value = text_of(batch, row, part)?;
                if number > 0 && value.is_some() {
                    line.push(b' ');
                }
                line.extend_from_slice(value.as_deref().unwrap_or_default());
            }
        }
        "time_local" => line.extend_from_slice(clf_time(batch, row)?.as_bytes()),
        _ => line.extend_from_slice(text_of(batch, row, name)?.as_deref().unwrap_or(b"-")),
    }
    Ok(())
}

fn text_of(batch: &RecordBatch, row: usize, name: &str) -> Result<Option<Vec<u8>>> {
    let Some(column) = batch.column_by_name(name) else { bail!("there is no column {name}") };
    if column.is_null(row) {
        return Ok(None);
    }
    if let Some(numbers) = column.as_primitive_opt::<Int32Type>() {
        return Ok(Some(numbers.value(row).to_string().into_bytes()));
    }
    if let Some(numbers) = column.as_primitive_opt::<Int64Type>() {
        return Ok(Some(numbers.value(row).to_string().into_bytes()));
    }
    match bytes_at(column.as_ref(), row) {
        Some(bytes) => Ok(Some(bytes.to_vec())),
        None => bail!("column {name} is of a type that no line is made of"),
    }
}

fn clf_time(batch: &RecordBatch, row: usize) -> Result<String> {
    let Some(times) = batch.column_by_name("event_time").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>())
    else {
        bail!("there is no column event_time in microseconds")
    };
    let time = jiff::Timestamp::from_microsecond(times.value(row))?.to_zoned(jiff::tz::TimeZone::UTC);
    let month = MONTHS[usize::from(time.month().unsigned_abs()) - 1];
    let (day, year) = (time.day(), time.year());
    Ok(format!("{day:02}/{month}/{year:04}:{:02}:{:02}:{:02} +0000", time.hour(), time.minute(), time.second()))
}
