//! Access-log formats: any nginx `log_format` or Apache `LogFormat` string, compiled once, then used for event times at
//! the edge and for columns at the collector.
//!
//! Invariant: a line either is a record of the format from its first byte to its last, or it is none; and the
//! columns of a record are slices and numbers of that line, never repaired. Text stays as the server wrote it, escapes
//! (`\x22`, `\"`) included; a field that holds only `-` is null.

mod compile;
mod parse;
mod render;
mod variables;

pub use self::parse::Parsed;

/// A compiled format. Immutable; share it.
#[derive(Debug, Clone)]
pub struct LogFormat {
    text: String,
    parts: Vec<Part>,
    columns: Vec<Column>,
    /// Index into `parts` of the first field that goes to `rest`.
    rest_from: Option<usize>,
    /// Index into `parts` of the event time.
    time: Option<usize>,
}

/// Why a format string does not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log format {format:?} is not usable: {reason}")]
pub struct LogFormatError {
    /// As configured.
    pub format: String,
    /// What is wrong with it.
    pub reason: String,
}

/// One column, in the order of [`LogFormat::columns`]. All are nullable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// `remote_addr`, `status` ...: lower case, unique within the format.
    pub name: String,
    /// Its type.
    pub kind: ColumnType,
}

/// Types of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// Bytes as logged; not necessarily UTF-8.
    Text,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// 64-bit float (seconds with milliseconds).
    Float64,
}

/// One value; its kind is that of its column or null.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// `-`, or not there.
    Null,
    /// A slice of the line.
    Text(&'a [u8]),
    /// For [`ColumnType::Int32`] it fits into 32 bits.
    Int(i64),
    /// For [`ColumnType::Float64`].
    Float(f64),
}

/// How a time is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeSyntax {
    /// `10/Oct/2024:13:55:36 +0000`.
    Clf,
    /// `2024-10-10T13:55:36+00:00`.
    Iso,
    /// A number of units of `scale` microseconds.
    Epoch {
        /// Microseconds in a unit.
        scale: i64,
    },
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FieldKind {
    Text,
    /// Text that may hold `, ` and ` : ` between its elements.
    List,
    Status,
    Count,
    Port,
    Seconds,
    Request,
    Time(TimeSyntax),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    /// `column`: index of its first column.
    Field {
        kind: FieldKind,
        quoted: bool,
        column: usize,
    },
}

impl LogFormat {
    /// Compiles `common`, `combined`, `vhost_combined`, or the format string itself (nginx when it holds a `$`, else Apache).
    pub fn compile(format: &str) -> Result<Self, LogFormatError> {
        compile::compile(format)
    }

    /// The name or string it was compiled from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Names and types, in a fixed order: that of the fields in the format. A request gives `method`, `path`, `protocol`
    /// and `request` (only what cannot be split), a written time its `utc_offset_minutes`; the time itself is in
    /// [`Parsed::event_time_us`]. Fields behind the last known one are no columns but [`Parsed::rest`].
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Does the format have fields that go to [`Parsed::rest`]?
    pub fn has_rest(&self) -> bool {
        self.rest_from.is_some()
    }

    /// How its event time is written; none if it has no time.
    pub fn time_syntax(&self) -> Option<TimeSyntax> {
        match self.parts.get(self.time?)? {
            Part::Field { kind: FieldKind::Time(syntax), .. } => Some(*syntax),
            _ => None,
        }
    }

    /// Does the time stand in brackets, behind a space or at the beginning of the line?
    pub fn time_in_brackets(&self) -> bool {
        let Some(at) = self.time else { return false };
        let before = at.checked_sub(1).and_then(|at| self.parts.get(at));
        let behind = self.parts.get(at + 1);
        matches!((before, behind), (Some(Part::Literal(a)), Some(Part::Literal(b)))
            if (a == b"[" || a.ends_with(b" [")) && b.starts_with(b"]"))
    }

    /// As [`LogFormat::parse_into`], with values of its own.
    pub fn parse<'a>(&self, line: &'a [u8]) -> Option<Fields<'a>> {
        let mut values = Vec::with_capacity(self.columns.len());
        let parsed = self.parse_into(line, &mut values)?;
        Some(Fields { values, parsed })
    }
}

/// A parsed line.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields<'a> {
    /// One per column.
    pub values: Vec<Value<'a>>,
    /// Time and rest.
    pub parsed: Parsed<'a>,
}

#[cfg(test)]
mod tests;
