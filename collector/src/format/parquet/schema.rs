//! The columns of a dataset's Parquet files.
//!
//! The same first seven in every dataset, then the fields of its log format in their order: so a field that is added at
//! the end of the format is a column added at the end. All but time and agent are nullable, there is no partition
//! column, and no column is ever taken away or changed (held by golden files).

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, TimeUnit};
use common::log_format::{ColumnType, LogFormat};

/// Microseconds UTC.
pub const EVENT_TIME: &str = "event_time";
/// Who read the event.
pub const AGENT: &str = "agent";
/// The header `host`.
pub const HOST: &str = "host";
/// The configured source.
pub const SOURCE: &str = "source";
/// Every header but `host`.
pub const HEADERS: &str = "headers";
/// Text of the fields behind the last one that is known.
pub const REST: &str = "rest";
/// The event's bytes, only where the columns do not give them back. Not necessarily UTF-8.
pub const LINE: &str = "line";
const FIXED: [&str; 7] = [EVENT_TIME, AGENT, HOST, SOURCE, HEADERS, REST, LINE];

/// Name of the repeated part of a map, and of its key and value, as the Parquet specification has them.
pub(super) const MAP_NAMES: [&str; 3] = ["key_value", "key", "value"];

/// Columns for a log format; without one the fixed columns alone.
pub fn schema(format: Option<&LogFormat>) -> Schema {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let mut fields = vec![
        Field::new(EVENT_TIME, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        Field::new(AGENT, DataType::Utf8, false),
        text(HOST),
        text(SOURCE),
        Field::new(HEADERS, headers(), true),
        text(REST),
        Field::new(LINE, DataType::Binary, true),
    ];
    for column in format.map_or(&[][..], LogFormat::columns) {
        let kind = match column.kind {
            ColumnType::Text => DataType::Utf8,
            ColumnType::Int32 => DataType::Int32,
            ColumnType::Int64 => DataType::Int64,
            ColumnType::Float64 => DataType::Float64,
        };
        fields.push(Field::new(column_name(&column.name), kind, true));
    }
    Schema::new(fields)
}

/// nginx's `$host` is not the host that wrote the log: a field with the name of a fixed column gets `log_` before it.
fn column_name(name: &str) -> String {
    if FIXED.contains(&name) { format!("log_{name}") } else { name.to_owned() }
}

fn headers() -> DataType {
    let [entry, key, value] = MAP_NAMES;
    let pair = vec![Field::new(key, DataType::Utf8, false), Field::new(value, DataType::Utf8, true)];
    DataType::Map(Arc::new(Field::new(entry, DataType::Struct(pair.into()), false)), false)
}

#[cfg(test)]
mod tests {
    use parquet::arrow::ArrowSchemaConverter;
    use parquet::schema::printer::print_schema;

    use super::*;

    fn printed(format: &str) -> String {
        let format = LogFormat::compile(format).unwrap();
        let descriptor = ArrowSchemaConverter::new().convert(&schema(Some(&format))).unwrap();
        let mut out = Vec::new();
        print_schema(&mut out, descriptor.root_schema());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn golden_schemas() {
        for (name, format, golden) in [
            ("combined", "combined", include_str!("../../../tests/golden/combined.schema")),
            (
                "nginx",
                "$host $remote_addr [$time_local] \"$request\" $status $body_bytes_sent $request_time $my_own $other",
                include_str!("../../../tests/golden/nginx.schema"),
            ),
        ] {
            let found = printed(format);
            assert!(found == golden, "the schema of {name} has changed; readers have files with the old one:\n{found}");
        }
    }

    #[test]
    fn a_field_behind_the_others_is_a_column_behind_the_others() {
        let names = |format: &str| {
            let schema = schema(Some(&LogFormat::compile(format).unwrap()));
            schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>()
        };
        let before = names("$remote_addr [$time_local] $status");
        let after = names("$remote_addr [$time_local] $status $request_time");
        assert_eq!(after[..before.len()], before);
        assert_eq!(after[before.len()..], ["request_time"]);
    }
}
