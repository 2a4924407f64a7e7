//! Formats of real servers, and what is and is not a record of them.

use super::{ColumnType, Fields, LogFormat, Value};

const LINE: &str =
    r#"203.0.113.7 - frank [10/Oct/2024:13:55:36 +0200] "GET /a b?c HTTP/1.1" 200 12 "-" "Mozilla/5.0 (X11)""#;

fn value<'a>(format: &LogFormat, fields: &Fields<'a>, name: &str) -> Value<'a> {
    fields.values[format.columns().iter().position(|c| c.name == name).unwrap_or_else(|| panic!("no column {name}"))]
}

fn text<'a>(format: &LogFormat, fields: &Fields<'a>, name: &str) -> Option<&'a str> {
    match value(format, fields, name) {
        Value::Text(text) => Some(std::str::from_utf8(text).unwrap()),
        Value::Null => None,
        other => panic!("{name} is {other:?}"),
    }
}

fn gives_back(format: &LogFormat, line: &[u8]) -> bool {
    let fields = format.parse(line).unwrap();
    let (time, rest) = (fields.parsed.event_time_us, fields.parsed.rest);
    format.gives_back(line, &fields.values, time, rest, &mut Vec::new())
}

#[test]
fn columns_of_combined_are_fixed() {
    let columns: Vec<_> =
        LogFormat::compile("combined").unwrap().columns().iter().map(|c| (c.name.clone(), c.kind)).collect();
    use ColumnType::{Int32, Int64, Text};
    let expected = [
        ("remote_addr", Text),
        ("remote_logname", Text),
        ("remote_user", Text),
        ("utc_offset_minutes", Int32),
        ("method", Text),
        ("path", Text),
        ("protocol", Text),
        ("request", Text),
        ("status", Int32),
        ("bytes", Int64),
        ("referer", Text),
        ("user_agent", Text),
    ];
    assert_eq!(columns, expected.map(|(name, kind)| (name.to_owned(), kind)));
}

#[test]
fn a_combined_line() {
    let format = LogFormat::compile("combined").unwrap();
    let fields = format.parse(LINE.as_bytes()).unwrap();
    assert_eq!(fields.parsed.event_time_us, Some(1_728_561_336_000_000));
    assert_eq!(text(&format, &fields, "remote_addr"), Some("203.0.113.7"));
    assert_eq!(text(&format, &fields, "remote_logname"), None);
    assert_eq!(text(&format, &fields, "remote_user"), Some("frank"));
    assert_eq!(value(&format, &fields, "utc_offset_minutes"), Value::Int(120));
    assert_eq!(text(&format, &fields, "method"), Some("GET"));
    assert_eq!(text(&format, &fields, "path"), Some("/a b?c"));
    assert_eq!(text(&format, &fields, "protocol"), Some("HTTP/1.1"));
    assert_eq!(text(&format, &fields, "request"), None);
    assert_eq!(value(&format, &fields, "status"), Value::Int(200));
    assert_eq!(value(&format, &fields, "bytes"), Value::Int(12));
    assert_eq!(text(&format, &fields, "referer"), None);
    assert!(gives_back(&format, LINE.as_bytes()));
}

#[test]
fn apache_and_nginx_strings_mean_the_same() {
    let apache = r#"%h %l %u %t \"%r\" %>s %b \"%{Referer}i\" \"%{User-agent}i\""#;
    let nginx = r#"$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent""#;
    for text in [apache, nginx] {
        let format = LogFormat::compile(text).unwrap();
        let fields = format.parse(LINE.as_bytes()).unwrap();
        assert_eq!(value(&format, &fields, "user_agent"), Value::Text(b"Mozilla/5.0 (X11)"));
        assert!(gives_back(&format, LINE.as_bytes()), "{text}");
    }
}

#[test]
fn a_line_is_a_record_as_a_whole_or_not_at_all() {
    let format = LogFormat::compile("combined").unwrap();
    let broken = [
        LINE.trim_end_matches('"').to_owned(),
        format!("{LINE} "),
        format!("{LINE} \"-\""),
        format!(" {LINE}"),
        format!("{LINE}{LINE}"),
        LINE.replace("frank", "user name"),
        LINE.replace(" 200 ", " - "),
        LINE.replace(" 200 ", " 20 "),
        LINE.replace(" 12 ", " -1 "),
        LINE.replace(" 12 ", " 1e3 "),
        LINE.replace(" 12 ", "  "),
        LINE.replace(" 12 ", " 18446744073709551616 "),
        LINE.replace("Mozilla/5.0 (X11)", "Foo \"bar\" baz"),
        LINE.replace("Mozilla/5.0 (X11)", "\\"),
        LINE.replace("10/Oct", "31/Feb"),
        String::new(),
    ];
    for line in broken {
        assert!(format.parse(line.as_bytes()).is_none(), "{line}");
    }
}

#[test]
fn escapes_do_not_end_a_field() {
    let format = LogFormat::compile("combined").unwrap();
    for agent in [r#"\"q\""#, r"\x22q\x22", r"ends with \\", ""] {
        let line = LINE.replace("Mozilla/5.0 (X11)", agent);
        let fields = format.parse(line.as_bytes()).unwrap();
        assert_eq!(text(&format, &fields, "user_agent"), Some(agent), "as logged");
        assert!(gives_back(&format, line.as_bytes()));
    }
}

#[test]
fn requests_that_cannot_be_split_stay_whole() {
    let format = LogFormat::compile("combined").unwrap();
    for (request, whole, path) in [
        ("-", None, None),
        ("", Some(""), None),
        ("hello", Some("hello"), None),
        (r"\x16\x03\x01 \x02", Some(r"\x16\x03\x01 \x02"), None),
        ("GET /", None, Some("/")),
        ("GET  /two  spaces HTTP/1.1", None, Some(" /two  spaces")),
        ("GET HTTP/1.1", None, Some("HTTP/1.1")),
    ] {
        let line = LINE.replace("GET /a b?c HTTP/1.1", request);
        let fields = format.parse(line.as_bytes()).unwrap();
        assert_eq!(text(&format, &fields, "request"), whole, "{request}");
        assert_eq!(text(&format, &fields, "path"), path, "{request}");
        assert!(gives_back(&format, line.as_bytes()), "{request}");
    }
}

#[test]
fn what_columns_cannot_give_back() {
    let format = LogFormat::compile("combined").unwrap();
    let mut latin = LINE.as_bytes().to_vec();
    latin[30] = LINE.as_bytes()[30];
    latin.splice(LINE.len() - 2..LINE.len() - 1, [0xe9]);
    assert!(!gives_back(&format, &latin), "not UTF-8");
    for line in [
        LINE.replace("+0200", "-0000"),
        LINE.replace("36 +0200", "60 +0200").replace("55:60", "59:60"),
        LINE.replace(" 12 ", " 012 "),
        LINE.replace(" 12 ", " 9223372036854775808 "),
    ] {
        assert!(!gives_back(&format, line.as_bytes()), "{line}");
    }
    assert!(gives_back(&format, LINE.replace(" 200 ", " 099 ").as_bytes()));
}

#[test]
fn times_numbers_and_lists_of_nginx() {
    let format = LogFormat::compile(
        r#"$msec $time_iso8601 $request_time $upstream_response_time $upstream_addr "$http_x_forwarded_for" $server_port"#,
    )
    .unwrap();
    let line = br#"1728568536.123 2024-10-10T13:55:36+00:00 0.500 0.1, 0.2 : - 10.0.0.1:80, 10.0.0.2:80 "a, b" 443"#;
    let fields = format.parse(line).unwrap();
    assert_eq!(fields.parsed.event_time_us, Some(1_728_568_536_123_000));
    assert_eq!(text(&format, &fields, "time_iso8601"), Some("2024-10-10T13:55:36+00:00"), "only one is the event time");
    assert_eq!(text(&format, &fields, "upstream_response_time"), Some("0.1, 0.2 : -"));
    assert_eq!(text(&format, &fields, "upstream_addr"), Some("10.0.0.1:80, 10.0.0.2:80"));
    assert_eq!(value(&format, &fields, "request_time"), Value::Float(0.5));
    assert_eq!(value(&format, &fields, "server_port"), Value::Int(443));
    assert!(gives_back(&format, line));
}

#[test]
fn vhost_and_custom_apache() {
    let vhost = LogFormat::compile("vhost_combined").unwrap();
    let line = format!("example.com:80 {LINE}");
    let fields = vhost.parse(line.as_bytes()).unwrap();
    assert_eq!(text(&vhost, &fields, "server_name"), Some("example.com"));
    assert_eq!(value(&vhost, &fields, "server_port"), Value::Int(80));
    assert_eq!(value(&vhost, &fields, "bytes_sent"), Value::Int(12));
    let custom = LogFormat::compile(r"%{usec}t\t%m\t%U%q\t%!200,304{X-Request-Id}i\t%D%%").unwrap();
    let line = b"1728568536123456\tGET\t/a?b\t-\t17%";
    let fields = custom.parse(line).unwrap();
    assert_eq!(fields.parsed.event_time_us, Some(1_728_568_536_123_456));
    assert_eq!(text(&custom, &fields, "path"), Some("/a?b"));
    assert_eq!(text(&custom, &fields, "http_x_request_id"), None);
    assert_eq!(value(&custom, &fields, "request_time_us"), Value::Int(17));
    assert!(gives_back(&custom, line));
}

#[test]
fn unknown_variables_at_the_end_are_the_rest() {
    let format = LogFormat::compile(r#"$remote_addr $my_flag $status "$geoip_city" $my_id"#).unwrap();
    let names: Vec<_> = format.columns().iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["remote_addr", "my_flag", "status"]);
    let line = br#"::1 x 200 "New \"York\"" 7"#;
    let fields = format.parse(line).unwrap();
    assert_eq!(fields.parsed.rest, Some(&br#"New \"York\"" 7"#[..]));
    assert!(gives_back(&format, line));
    assert!(format.parse(br#"::1 x 200 "New York 7"#).is_none());
}

#[test]
fn formats_that_cannot_be_compiled() {
    for text in ["", "plain text", "$", "${open", "%", "%Z", "%h%l", "$remote_addr$status", "a\nb $status"] {
        assert!(LogFormat::compile(text).is_err(), "{text:?}");
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that does not run has to say so")]
fn the_adversarial_lines_where_they_are_at_hand() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/adversarial/access_adversarial.log");
    let Ok(lines) = std::fs::read(&path) else {
        eprintln!("SKIPPED: no sample data at {}", path.display());
        return;
    };
    let format = LogFormat::compile("combined").unwrap();
    for line in lines.split(|byte| *byte == b'\n') {
        let mut values = Vec::new();
        if let Some(parsed) = format.parse_into(line, &mut values) {
            assert_eq!(values.len(), format.columns().len());
            let mut out = Vec::new();
            assert!(format.render(&values, parsed.event_time_us, parsed.rest, &mut out));
        }
    }
}
