//! A log format as a template: its fields name columns, and a row fills them in. The other direction (bytes to columns)
//! is the product's; this one is written anew, so that a column that lost something shows.

use anyhow::{Result, bail};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};

use super::bytes_at;

/// The formats that have a name, with the columns' own names.
const COMMON: &str = r#"$remote_addr $remote_logname $remote_user [$time_local] "$request" $status $bytes"#;
const NAMED_END: &str = r#" "$referer" "$user_agent""#;
/// Columns whose name is not that of the nginx variable.
const RENAMED: [(&str, &str); 6] = [
    ("body_bytes_sent", "bytes"),
    ("http_referer", "referer"),
    ("http_user_agent", "user_agent"),
    ("request_method", "method"),
    ("server_protocol", "protocol"),
    ("request_uri", "path"),
];
/// The directives of Apache that are known here, longest first where one begins with another.
const DIRECTIVES: [(&str, &str); 18] = [
    ("%{Referer}i", "referer"),
    ("%{User-Agent}i", "user_agent"),
    ("%{User-agent}i", "user_agent"),
    ("%{X-Forwarded-For}i", "http_x_forwarded_for"),
    ("%>s", "status"),
    ("%h", "remote_addr"),
    ("%a", "client_addr"),
    ("%l", "remote_logname"),
    ("%u", "remote_user"),
    ("%t", "time_local"),
    ("%r", "request"),
    ("%s", "status"),
    ("%b", "bytes"),
    ("%O", "bytes_sent"),
    ("%D", "request_time_us"),
    ("%v", "server_name"),
    ("%V", "server_name"),
    ("%p", "server_port"),
];
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
    /// A named format, a `log_format` string of nginx, or one of Apache with its usual directives.
    pub fn new(log_format: &str) -> Result<Self> {
        let template = match log_format {
            "common" => COMMON.to_owned(),
            "combined" => format!("{COMMON}{NAMED_END}"),
            "vhost_combined" => format!("$server_name:$server_port {COMMON}{NAMED_END}"),
            other if other.contains('$') => other.to_owned(),
            other => from_apache(other)?,
        };
        let mut pieces = Vec::new();
        let mut rest = template.as_str();
        while let Some(at) = rest.find('$') {
            let name = &rest[at + 1..];
            let braced = name.starts_with('{');
            let name = name.trim_start_matches('{');
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
            let column = RENAMED.iter().find(|(variable, _)| *variable == &name[..end]).map_or(&name[..end], |r| r.1);
            pieces.push(Piece::Text(rest.as_bytes()[..at].to_vec()));
            pieces.push(Piece::Field(column.to_owned()));
            rest = &name[end + usize::from(braced)..];
        }
        pieces.push(Piece::Text(rest.as_bytes().to_vec()));
        Ok(Self { pieces })
    }

    /// The line of one row. From the first field that has no column on, the text stands in `rest`.
    pub fn render(&self, batch: &RecordBatch, row: usize) -> Result<Vec<u8>> {
        let mut line = Vec::with_capacity(256);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => line.extend_from_slice(text),
                Piece::Field(name) => {
                    if !push_field(&mut line, batch, row, name)? {
                        let rest = batch.column_by_name("rest").and_then(|column| bytes_at(column.as_ref(), row));
                        line.extend_from_slice(rest.unwrap_or_default());
                        return Ok(line);
                    }
                }
            }
        }
        Ok(line)
    }
}

fn from_apache(log_format: &str) -> Result<String> {
    let mut template = log_format.replace("%t", "[%t]").replace("\\\"", "\"");
    for (directive, column) in DIRECTIVES {
        template = template.replace(directive, &format!("${{{column}}}"));
    }
    if template.contains('%') {
        bail!("the verifier cannot put lines of the log format {log_format} together again");
    }
    Ok(template)
}

/// Appends a field; false when there is no column for it.
fn push_field(line: &mut Vec<u8>, batch: &RecordBatch, row: usize, name: &str) -> Result<bool> {
    match name {
        "request" => push_request(line, batch, row)?,
        "time_local" => line.extend_from_slice(clf_time(batch, row)?.as_bytes()),
        _ if batch.column_by_name(name).is_none() => return Ok(false),
        _ => line.extend_from_slice(text_of(batch, row, name)?.as_deref().unwrap_or(b"-")),
    }
    Ok(true)
}

/// Method, path and protocol, or the whole request where it is none of these.
fn push_request(line: &mut Vec<u8>, batch: &RecordBatch, row: usize) -> Result<()> {
    let parts = [text_of(batch, row, "method")?, text_of(batch, row, "path")?, text_of(batch, row, "protocol")?];
    let parts: Vec<Vec<u8>> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        line.extend_from_slice(text_of(batch, row, "request")?.as_deref().unwrap_or(b"-"));
    } else {
        line.extend_from_slice(&parts.join(&b' '));
    }
    Ok(())
}

fn text_of(batch: &RecordBatch, row: usize, name: &str) -> Result<Option<Vec<u8>>> {
    let Some(column) = batch.column_by_name(name) else { bail!("there is no column {name}") };
    if column.is_null(row) {
        return Ok(None);
    }
    if let Some(numbers) = column.as_primitive_opt::<Int32Type>() {
        let number = numbers.value(row);
        return Ok(Some(if name == "status" { format!("{number:03}") } else { number.to_string() }.into_bytes()));
    }
    if let Some(numbers) = column.as_primitive_opt::<Int64Type>() {
        return Ok(Some(numbers.value(row).to_string().into_bytes()));
    }
    if let Some(numbers) = column.as_primitive_opt::<Float64Type>() {
        return Ok(Some(format!("{:.3}", numbers.value(row)).into_bytes()));
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
    let Some(minutes) = text_of(batch, row, "utc_offset_minutes")? else { bail!("a row has no utc_offset_minutes") };
    let minutes: i64 = std::str::from_utf8(&minutes)?.parse()?;
    let local = times.value(row) + minutes * 60_000_000;
    let time = jiff::Timestamp::from_microsecond(local)?.to_zoned(jiff::tz::TimeZone::UTC);
    let month = MONTHS[usize::from(time.month().unsigned_abs()) - 1];
    let (day, year) = (time.day(), time.year());
    let (sign, offset) = (if minutes < 0 { '-' } else { '+' }, minutes.abs());
    Ok(format!(
        "{day:02}/{month}/{year:04}:{:02}:{:02}:{:02} {sign}{:02}{:02}",
        time.hour(),
        time.minute(),
        time.second(),
        offset / 60,
        offset % 60
    ))
}
