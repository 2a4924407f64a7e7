//! Rows on their way into a record batch: one builder per column, filled side by side.

use std::sync::Arc;

use arrow_array::builder::{
    BinaryBuilder, Float64Builder, Int32Builder, Int64Builder, MapBuilder, MapFieldNames, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, SchemaRef};
use common::log_format::{ColumnType, LogFormat, Value};
use proto::header::Data;

use super::schema::{HOST, MAP_NAMES, schema};

/// What all rows of a batch have in common.
pub(super) struct Batch<'a> {
    agent: &'a str,
    host: Option<&'a str>,
    source: Option<&'a str>,
    headers: Vec<(&'a str, &'a str)>,
}

impl<'a> Batch<'a> {
    pub fn new(agent: &'a str, data: &'a Data) -> Self {
        let headers = &data.wire.headers;
        let others = headers.iter().filter(|(name, _)| *name != HOST);
        let others = others.map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let source = Some(data.wire.source.as_str()).filter(|source| !source.is_empty());
        Self { agent, host: headers.get(HOST).map(String::as_str), source, headers: others }
    }
}

pub(super) struct Rows {
    schema: SchemaRef,
    event_time: TimestampMicrosecondBuilder,
    agent: StringBuilder,
    host: StringBuilder,
    source: StringBuilder,
    headers: MapBuilder<StringBuilder, StringBuilder>,
    rest: StringBuilder,
    line: BinaryBuilder,
    fields: Vec<Column>,
}

enum Column {
    Text(StringBuilder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float64(Float64Builder),
}

impl Rows {
    pub fn new(format: Option<&LogFormat>) -> Self {
        let [entry, key, value] = MAP_NAMES.map(str::to_owned);
        let names = MapFieldNames { entry, key, value };
        let columns = format.map_or(&[][..], LogFormat::columns);
        Self {
            schema: Arc::new(schema(format)),
            event_time: TimestampMicrosecondBuilder::new().with_timezone("UTC"),
            agent: StringBuilder::new(),
            host: StringBuilder::new(),
            source: StringBuilder::new(),
            headers: MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new()),
            rest: StringBuilder::new(),
            line: BinaryBuilder::new(),
            fields: columns.iter().map(|column| Column::new(column.kind)).collect(),
        }
    }

    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Adds a row. `values` has one value per field of the log format.
    pub fn push(
        &mut self,
        batch: &Batch<'_>,
        time_us: i64,
        rest: Option<&[u8]>,
        values: &[Value<'_>],
        line: Option<&[u8]>,
    ) {
        self.event_time.append_value(time_us);
        self.agent.append_value(batch.agent);
        self.host.append_option(batch.host);
        self.source.append_option(batch.source);
        for (name, value) in &batch.headers {
            self.headers.keys().append_value(name);
            self.headers.values().append_value(value);
        }
        self.headers.append(!batch.headers.is_empty()).expect("keys and values are added in pairs");
        match rest {
            Some(rest) => self.rest.append_value(String::from_utf8_lossy(rest)),
            None => self.rest.append_null(),
        }
        self.line.append_option(line);
        for (index, column) in self.fields.iter_mut().enumerate() {
            column.push(values.get(index).copied().unwrap_or(Value::Null));
        }
    }

    /// The rows so far; the builders are empty again.
    pub fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(self.event_time.finish()),
            Arc::new(self.agent.finish()),
            Arc::new(self.host.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.headers.finish()),
            Arc::new(self.rest.finish()),
            Arc::new(self.line.finish()),
        ];
        arrays.extend(self.fields.iter_mut().map(Column::finish));
        RecordBatch::try_new(self.schema.clone(), arrays)
    }
}

impl Column {
    fn new(kind: ColumnType) -> Self {
        match kind {
            ColumnType::Text => Self::Text(StringBuilder::new()),
            ColumnType::Int32 => Self::Int32(Int32Builder::new()),
            ColumnType::Int64 => Self::Int64(Int64Builder::new()),
            ColumnType::Float64 => Self::Float64(Float64Builder::new()),
        }
    }

    /// A value of another kind than the column's is null; `line` then holds the event.
    fn push(&mut self, value: Value<'_>) {
        match (self, value) {
            // Bytes that are no UTF-8 are replaced here and kept in `line`.
            (Self::Text(column), Value::Text(text)) => column.append_value(String::from_utf8_lossy(text)),
            (Self::Text(column), _) => column.append_null(),
            (Self::Int32(column), Value::Int(number)) => column.append_option(i32::try_from(number).ok()),
            (Self::Int32(column), _) => column.append_null(),
            (Self::Int64(column), Value::Int(number)) => column.append_value(number),
            (Self::Int64(column), _) => column.append_null(),
            (Self::Float64(column), Value::Float(number)) => column.append_value(number),
            (Self::Float64(column), _) => column.append_null(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Text(column) => Arc::new(column.finish()),
            Self::Int32(column) => Arc::new(column.finish()),
            Self::Int64(column) => Arc::new(column.finish()),
            Self::Float64(column) => Arc::new(column.finish()),
        }
    }
}
