//! What nginx variables and Apache directives mean: one column name and type for both, so that a dataset does not
//! change its schema with the server.

use super::{ColumnType, FieldKind, TimeSyntax};

/// The field of an nginx variable (`name` without `$`).
pub(super) fn nginx(name: &str) -> (String, FieldKind) {
    let kind = match name {
        "time_local" => FieldKind::Time(TimeSyntax::Clf),
        "time_iso8601" => FieldKind::Time(TimeSyntax::Iso),
        "msec" => FieldKind::Time(TimeSyntax::Epoch { scale: 1_000_000 }),
        "request" => FieldKind::Request,
        "status" => FieldKind::Status,
        "body_bytes_sent" | "bytes_sent" | "request_length" | "connection" | "connection_requests" | "gzip_bytes" => {
            FieldKind::Count
        }
        "server_port" | "remote_port" | "pid" => FieldKind::Port,
        "request_time" | "connection_time" => FieldKind::Seconds,
        _ if name.starts_with("upstream_") || name == "http_x_forwarded_for" => FieldKind::List,
        _ => FieldKind::Text,
    };
    let column = match name {
        "body_bytes_sent" => "bytes",
        "http_referer" => "referer",
        "http_user_agent" => "user_agent",
        "request_method" => "method",
        "server_protocol" => "protocol",
        "request_uri" => "path",
        _ => name,
    };
    (column.to_owned(), kind)
}

/// Is it a variable whose meaning is known here? Others are taken as text.
pub(super) fn nginx_is_known(name: &str) -> bool {
    const PREFIXES: [&str; 6] = ["http_", "sent_http_", "cookie_", "arg_", "upstream_", "ssl_"];
    const NAMES: [&str; 40] = [
        "args",
        "body_bytes_sent",
        "bytes_sent",
        "connection",
        "connection_requests",
        "connection_time",
        "content_length",
        "content_type",
        "document_uri",
        "gzip_bytes",
        "gzip_ratio",
        "host",
        "hostname",
        "https",
        "is_args",
        "msec",
        "pid",
        "pipe",
        "proxy_add_x_forwarded_for",
        "query_string",
        "realip_remote_addr",
        "remote_addr",
        "remote_port",
        "remote_user",
        "request",
        "request_completion",
        "request_id",
        "request_length",
        "request_method",
        "request_time",
        "request_uri",
        "scheme",
        "server_addr",
        "server_name",
        "server_port",
        "server_protocol",
        "status",
        "time_iso8601",
        "time_local",
        "uri",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The field of an Apache directive: its letter(s) and the argument in braces.
pub(super) fn apache(letter: &str, argument: Option<&str>) -> Option<(String, FieldKind)> {
    let header = |prefix: &str, name: &str| {
        format!("{prefix}{}", name.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
    };
    let (column, kind) = match (letter, argument) {
        ("t", None) => ("time_local".to_owned(), FieldKind::Time(TimeSyntax::Clf)),
        ("t", Some("sec")) => ("time".to_owned(), FieldKind::Time(TimeSyntax::Epoch { scale: 1_000_000 })),
        ("t", Some("msec")) => ("time".to_owned(), FieldKind::Time(TimeSyntax::Epoch { scale: 1_000 })),
        ("t", Some("usec")) => ("time".to_owned(), FieldKind::Time(TimeSyntax::Epoch { scale: 1 })),
        ("t", Some(_)) => ("time_text".to_owned(), FieldKind::Text),
        ("i", Some(name)) => match header("http_", name).as_str() {
            "http_referer" => ("referer".to_owned(), FieldKind::Text),
            "http_user_agent" => ("user_agent".to_owned(), FieldKind::Text),
            other => {
                let kind = if other == "http_x_forwarded_for" { FieldKind::List } else { FieldKind::Text };
                (other.to_owned(), kind)
            }
        },
        ("o", Some(name)) => (header("sent_http_", name), FieldKind::Text),
        ("C", Some(name)) => (header("cookie_", name), FieldKind::Text),
        ("e", Some(name)) => (header("env_", name), FieldKind::Text),
        ("n", Some(name)) => (header("note_", name), FieldKind::Text),
        ("T", Some("ms")) => ("request_time_ms".to_owned(), FieldKind::Count),
        ("T", Some("us")) => ("request_time_us".to_owned(), FieldKind::Count),
        (letter, _) => {
            let (name, kind) =
                APACHE.iter().find(|(known, ..)| *known == letter).map(|(_, name, kind)| (*name, *kind))?;
            (name.to_owned(), kind)
        }
    };
    Some((column, kind))
}

const APACHE: [(&str, &str, FieldKind); 29] = [
    ("h", "remote_addr", FieldKind::Text),
    ("a", "client_addr", FieldKind::Text),
    ("A", "local_addr", FieldKind::Text),
    ("l", "remote_logname", FieldKind::Text),
    ("u", "remote_user", FieldKind::Text),
    ("r", "request", FieldKind::Request),
    ("m", "method", FieldKind::Text),
    ("U", "path", FieldKind::Text),
    ("q", "query", FieldKind::Text),
    ("H", "protocol", FieldKind::Text),
    ("s", "status", FieldKind::Status),
    (">s", "status", FieldKind::Status),
    ("<s", "status", FieldKind::Status),
    ("b", "bytes", FieldKind::Count),
    ("B", "bytes", FieldKind::Count),
    ("O", "bytes_sent", FieldKind::Count),
    ("I", "bytes_received", FieldKind::Count),
    ("S", "bytes_total", FieldKind::Count),
    ("D", "request_time_us", FieldKind::Count),
    ("T", "request_time_s", FieldKind::Count),
    ("v", "server_name", FieldKind::Text),
    ("V", "server_name", FieldKind::Text),
    ("p", "server_port", FieldKind::Port),
    ("P", "pid", FieldKind::Port),
    ("k", "keepalive_requests", FieldKind::Count),
    ("f", "filename", FieldKind::Text),
    ("L", "log_id", FieldKind::Text),
    ("R", "handler", FieldKind::Text),
    ("X", "connection_status", FieldKind::Text),
];

/// The columns of a field, in order.
pub(super) fn columns(name: &str, kind: FieldKind) -> Vec<(String, ColumnType)> {
    match kind {
        FieldKind::Text | FieldKind::List => vec![(name.to_owned(), ColumnType::Text)],
        FieldKind::Status | FieldKind::Port => vec![(name.to_owned(), ColumnType::Int32)],
        FieldKind::Count => vec![(name.to_owned(), ColumnType::Int64)],
        FieldKind::Seconds => vec![(name.to_owned(), ColumnType::Float64)],
        FieldKind::Request => ["method", "path", "protocol", "request"]
            .map(|column| {
                (if name == "request" { column.to_owned() } else { format!("{name}_{column}") }, ColumnType::Text)
            })
            .to_vec(),
        FieldKind::Time(TimeSyntax::Epoch { .. }) => Vec::new(),
        FieldKind::Time(_) => vec![("utc_offset_minutes".to_owned(), ColumnType::Int32)],
    }
}
