//! Files with mistakes of every kind, several at once.

use std::net::SocketAddr;

use serde::Deserialize;

use super::*;
use crate::units::{Size, Span};

#[derive(Debug, Deserialize, Serialize)]
struct Example {
    name: String,
    listen: SocketAddr,
    #[serde(default)]
    batch: Batch,
    #[serde(default)]
    sources: Vec<Source>,
    #[serde(default)]
    policy: Policy,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
struct Batch {
    bytes: Size,
    linger: Span,
    level: i32,
}

impl Default for Batch {
    fn default() -> Self {
        Self { bytes: Size::mib(1), linger: Span::secs(15), level: 1 }
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Source {
    path: String,
    #[serde(default)]
    retries: u8,
    #[serde(default)]
    time: Option<Time>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
enum Time {
    Iso8601,
    Pattern { pattern: String },
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Policy {
    #[default]
    Home,
    Spread,
}

impl Validate for Example {
    fn validate(&self, problems: &mut Problems) {
        if self.name.contains(' ') {
            problems.add("name", "must have no spaces");
        }
        problems.within("batch", |problems| {
            if self.batch.level > 19 {
                problems.add("level", "must be 1 to 19");
            }
        });
        for (n, source) in self.sources.iter().enumerate() {
            if source.path.is_empty() {
                problems.add(format!("sources[{n}].path"), "must not be empty");
            }
        }
    }
}

fn problems_of(text: &str) -> Vec<String> {
    match parse::<Example>(text).unwrap_err() {
        ConfigError::Problems { problems, .. } => problems.iter().map(|(key, what)| format!("{key}: {what}")).collect(),
        other => panic!("{other}"),
    }
}

fn keys_of(text: &str) -> Vec<String> {
    problems_of(text).iter().map(|problem| problem.split(':').next().unwrap().to_owned()).collect()
}

#[test]
fn a_good_file_is_read_and_dumped_back() {
    let text = "name = 'a'\nlisten = '127.0.0.1:0'\n[batch]\nlinger = '1m'\nbytes = '2MiB'\n[[sources]]\npath = 'x'\ntime = { format = 'pattern', pattern = '%Y' }";
    let config: Example = parse(text).unwrap();
    assert_eq!(config.batch.bytes, Size::mib(2));
    let dumped = dump(&config);
    assert!(dumped.contains("linger = \"1m\""), "{dumped}");
    assert_eq!(dump(&parse::<Example>(&dumped).unwrap()), dumped);
}

#[test]
fn everything_wrong_is_listed_at_once() {
    let text = "
        name = 'a b'
        listen = 'nowhere'
        listne = 1
        policy = 'best'
        [batch]
        bytes = '5 parsecs'
        linger = 15
        level = 20
        lingre = '1s'
        [[sources]]
        path = 7
        retries = 300
        [[sources]]
        pth = 'y'
        [[sources]]
        path = ''
        time = { format = 'pattern', patern = 'x' }
    ";
    let keys = keys_of(text);
    let expected = [
        "batch.bytes",
        "batch.level",
        "batch.linger",
        "batch.lingre",
        "listen",
        "listne",
        "name",
        "policy",
        "sources[0].path",
        "sources[0].retries",
        "sources[1].path",
        "sources[1].pth",
        "sources[2].path",
    ];
    for key in expected {
        assert!(keys.contains(&key.to_owned()), "{key} is not in {keys:#?}");
    }
    let of_time = keys.iter().filter(|key| key.starts_with("sources[2].time")).count();
    assert_eq!((of_time, keys.len()), (2, expected.len() + 2), "one unknown key, one missing: {keys:#?}");
}

#[test]
fn missing_keys_do_not_hide_others() {
    assert_eq!(keys_of("[batch]\nlevel = 'x'\n[[sources]]"), ["batch.level", "listen", "name", "sources[0].path"]);
}

#[test]
fn the_error_names_the_file_the_key_and_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    let missing = load::<Example>(&path).unwrap_err().to_string();
    assert!(missing.contains("agent.toml") && missing.contains("--config"), "{missing}");
    // One that reports an error with its causes does not say the same twice.
    assert_eq!(format!("{:#}", anyhow::Error::from(load::<Example>(&path).unwrap_err())), missing);
    std::fs::write(&path, "name = ").unwrap();
    let syntax = load::<Example>(&path).unwrap_err().to_string();
    assert!(syntax.contains("agent.toml") && syntax.contains("line 1"), "{syntax}");
    std::fs::write(&path, "name = 'a'\nlisten = '127.0.0.1:1'\n[batch]\nlinger = '15'").unwrap();
    let wrong = load::<Example>(&path).unwrap_err().to_string();
    assert!(
        wrong.contains("agent.toml")
            && wrong.contains("1 problem")
            && wrong.contains("batch.linger: \"15\" is not a span"),
        "{wrong}"
    );
}
