//! `catchment-collector seal ...` on a destination as an operator meets it: one agent whose word is in, one with a hole,
//! and no collector running.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use collector::cli::findings::Ended;
use collector::cli::{Cli, execute};
use collector::commit::solo::{Solo, read_only};
use collector::log::view::PartitionKey;
use collector::publish::DirModes;
use collector::replay::Source;
use collector::seal::marker::Text;
use collector::store::{DestinationConfig, Store, open};
use proto::ids::{DatasetName, Origin, Partition};
use proto::wire;
use proto::wire::commit_record::Action;

const DAY: i64 = 86_400_000;
/// 2026-11-18.
const DATE: i32 = 20_775;

/// A clock that stands still.
struct At(i64);

impl Source for At {
    fn random(&mut self) -> [u8; 16] {
        rand::random()
    }
    fn unix_ms(&mut self) -> i64 {
        self.0
    }
}

struct Place {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
}

fn key() -> PartitionKey {
    PartitionKey { dataset: DatasetName::new("clicks").unwrap(), partition: Partition::new(DATE, None).unwrap() }
}

fn run(agent: u64) -> Origin {
    Origin::mint((i64::from(DATE) * DAY) as u64, u128::from(agent))
}

fn cover(agent: u64, data: &[u64], mark: Option<(u64, i64)>) -> wire::OriginCover {
    let set: proto::intervals::IntervalSet = data.iter().copied().collect();
    let open = wire::SeqOpen { seq: 0, open: Some(wire::Open::default()) };
    wire::OriginCover {
        agent: format!("web-{agent}"),
        origin: run(agent).to_bytes(),
        data: (!set.is_empty()).then(|| (&set).into()),
        opens: if data.contains(&1) { vec![open] } else { Vec::new() },
        marks: mark
            .map(|(seq, at_unix_ms)| wire::SeqMark { seq, mark: Some(wire::Mark { at_unix_ms, ..Default::default() }) })
            .into_iter()
            .collect(),
        ..Default::default()
    }
}

impl Place {
    /// Noon: files with batches of web-1 and web-2. Next morning: marks of both; batches 3 and 4 of web-2 are missing.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&DestinationConfig::new(format!("file://{}/logs", dir.path().display()))).unwrap();
        let place = Self { dir, store };
        let start = i64::from(DATE) * DAY;
        let covers = vec![cover(1, &[1], None), cover(2, &[1, 2], None)];
        place.files(start + DAY / 2, &key(), &["a\nb\nc\nd\n", "e\nf\n", "g\n"], covers).await;
        let morning = start + DAY + DAY / 4;
        place.publish(morning, vec![cover(1, &[], Some((2, morning))), cover(2, &[], Some((5, morning)))]).await;
        place
    }

    /// Files of a partition, in one record.
    async fn files(&self, at: i64, key: &PartitionKey, files: &[&str], covers: Vec<wire::OriginCover>) {
        let mut solo = self.begin(at).await;
        let texts = files;
        let mut files = Vec::new();
        for (at, lines) in texts.iter().enumerate() {
            let staged = format!("{}/{at}.gz", solo.layout().staging());
            let mut bytes = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            bytes.write_all(lines.as_bytes()).unwrap();
            let bytes = bytes.finish().unwrap();
            let mut file = self.store.create(&staged).await.unwrap();
            file.append(bytes.clone().into()).await.unwrap();
            file.close().await.unwrap();
            files.push(wire::PublishedFile {
                kind: wire::FileKind::Data as i32,
                staged,
                r#final: format!("{}/c-1-{at}.log.gz", key.dir()),
                dataset: key.dataset.to_string(),
                partition: Some(key.partition.into()),
                bytes: bytes.len() as u64,
                raw_bytes: lines.len() as u64,
                crc32c: crc32c::crc32c(&bytes),
                events: lines.lines().count() as u64,
                covers: (0..covers.len() as u32).collect(),
                mode: 0o640,
                ..Default::default()
            });
        }
        let publish = wire::Publish { files, covers };
        solo.commit(|_, _| Ok(Action::Publish(publish.clone()))).await.unwrap();
        solo.finish_files(key).await.unwrap();
        solo.end().await.unwrap();
    }

    async fn begin(&self, at: i64) -> Solo {
        let store = Arc::clone(&self.store);
        Solo::begin(store, "c", DirModes::default(), Box::new(At(at)), |_| {}).await.unwrap()
    }

    async fn publish(&self, at: i64, covers: Vec<wire::OriginCover>) {
        let mut solo = self.begin(at).await;
        let publish = wire::Publish { files: Vec::new(), covers };
        solo.commit(|_, _| Ok(Action::Publish(publish.clone()))).await.unwrap();
        solo.end().await.unwrap();
    }

    /// With a configuration in which no day is given up.
    async fn seal(&self, arguments: &[&str]) -> Result<String, String> {
        let config = self.dir.path().join("collector.toml");
        let url = self.url();
        let text = format!(
            "[destination]\nurl = \"{url}\"\n[[datasets]]\nname = \"clicks\"\ncompression = \"gzip\"\nincomplete_after = \"3650d\"\n"
        );
        std::fs::write(&config, text).unwrap();
        command(Some(&config), arguments).await
    }

    fn url(&self) -> String {
        format!("file://{}/logs", self.dir.path().display())
    }

    /// What a reader of the partition sees: it has one file.
    async fn lines(&self) -> String {
        let entries = self.store.list(&key().dir()).await.unwrap();
        let [file] = &entries.iter().filter(|entry| !entry.name.starts_with('_')).collect::<Vec<_>>()[..] else {
            panic!("{entries:?}")
        };
        let bytes = self.store.read(&format!("{}/{}", key().dir(), file.name), 1 << 20).await.unwrap();
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
        text
    }

    async fn marker(&self, name: &str) -> Option<Text> {
        self.marker_of(&key(), name).await
    }

    async fn marker_of(&self, key: &PartitionKey, name: &str) -> Option<Text> {
        let bytes = self.store.read(&format!("{}/{name}", key.dir()), 1 << 20).await.ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    async fn records(&self) -> u64 {
        read_only(&self.store).await.unwrap().next()
    }
}

async fn command(config: Option<&Path>, arguments: &[&str]) -> Result<String, String> {
    let mut all = vec!["catchment-collector".to_owned(), "seal".into()];
    all.extend(arguments.iter().map(|text| (*text).to_owned()));
    if let Some(config) = config {
        all.extend(["--config".to_owned(), config.display().to_string()]);
    }
    let cli = Cli::try_parse_from(all).map_err(|error| error.to_string())?;
    let out = RefCell::new(String::new());
    let done = execute(cli, |text| {
        out.borrow_mut().push_str(text);
        out.borrow_mut().push('\n');
    });
    match done.await {
        Ok(()) => Ok(out.into_inner()),
        Err(error) => Err(format!("{}{error:#}", out.into_inner())),
    }
}

/// How the process ends, and what it says to standard error.
async fn ends(config: &Path, arguments: &[&str]) -> (u8, String) {
    let config = config.display().to_string();
    let all = [&["catchment-collector"], arguments, &["--config", &config]].concat();
    match execute(Cli::try_parse_from(all).unwrap(), |_| {}).await {
        Ok(()) => (0, String::new()),
        Err(error) => {
            let ended: Ended = error.downcast().unwrap();
            (ended.code, ended.message)
        }
    }
}

const NOW: [&str; 5] = ["now", "--dataset", "clicks", "--partition", "event_date=2026-11-18"];

#[tokio::test]
async fn status_names_the_agent_the_batches_and_what_to_do() {
    let place = Place::new().await;
    let records = place.records().await;
    let said = place.seal(&["status"]).await.unwrap();
    for part in [
        "clicks/event_date=2026-11-18: 7 events in 3 files, waits since 2026-11-19T04:00:00.000Z",
        "web-2: missing batches",
        "batches 3-4,6-",
        "--seqs 3-4",
    ] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    assert!(!said.contains("web-1"), "{said}");
    let json: serde_json::Value = serde_json::from_str(&place.seal(&["status", "--json"]).await.unwrap()).unwrap();
    assert_eq!(json["open"][0]["state"], "waits");
    assert_eq!(json["open"][0]["waits_for"][0]["agent"], "web-2");
    let other = place.seal(&["status", "--dataset", "other"]).await.unwrap();
    assert!(other.contains("nothing is open"), "{other}");
    assert_eq!(place.records().await, records, "status changes nothing");
    let url = place.url();
    let said = command(None, &["status", "--dest", &url]).await.unwrap();
    assert!(said.contains("not judged: its dataset is not declared here"), "{said}");
}

#[tokio::test]
async fn now_refuses_where_counts_do_not_close_and_seals_when_it_is_told_to() {
    let place = Place::new().await;
    let records = place.records().await;
    let refused = place.seal(&NOW).await.unwrap_err();
    assert!(refused.contains("web-2") && refused.contains("--incomplete"), "{refused}");
    let dry = place.seal(&[&NOW[..], &["--incomplete", "--dry-run"]].concat()).await.unwrap();
    assert!(dry.contains("would seal clicks/event_date=2026-11-18 as incomplete"), "{dry}");
    assert_eq!(place.records().await, records, "nothing was written");
    let sealed = place.seal(&[&NOW[..], &["--incomplete", "--by", "ops"]].concat()).await.unwrap();
    assert!(sealed.contains("sealed clicks/event_date=2026-11-18: incomplete: events of web-2"), "{sealed}");
    let text = place.marker("_INCOMPLETE").await.unwrap();
    // Its small files were joined first: that is a record too.
    assert_eq!((text.events, text.files, text.seal, text.sealed_by.as_deref()), (7, 1, records + 1, Some("ops")));
    assert_eq!(place.lines().await, "a\nb\nc\nd\ne\nf\ng\n");
    assert_eq!((text.gaps.len(), text.gaps[0].missing.as_deref()), (1, Some("3-4,6-")));
    assert!(place.marker("_SUCCESS").await.is_none());
    let again = place.seal(&NOW).await.unwrap_err();
    assert!(again.contains("was sealed at"), "{again}");
    let staging = place.store.list("_catchment/staging").await.unwrap();
    assert!(staging.is_empty(), "a tool leaves nothing behind: {staging:?}");
}

#[tokio::test]
async fn what_is_complete_is_sealed_without_a_configuration_too() {
    let place = Place::new().await;
    let morning = i64::from(DATE) * DAY + DAY + DAY / 4;
    place.publish(morning, vec![cover(2, &[3, 4], None)]).await;
    let url = place.url();
    let guess = command(None, &[&NOW[..], &["--dest", &url]].concat()).await.unwrap_err();
    assert!(guess.contains("nobody knows when a day is over") && guess.contains("--zone"), "{guess}");
    // Where the day ends later, it is not over yet for the agents' marks.
    let west = ["--dest", &url, "--zone", "America/Los_Angeles"];
    let said = command(None, &[&NOW[..], &west].concat()).await.unwrap_err();
    assert!(said.contains("the counts do not close"), "{said}");
    let said = command(None, &[&NOW[..], &["--dest", &url, "--zone", "UTC"]].concat()).await.unwrap();
    assert!(said.contains("small files are not joined"), "{said}");
    let text = place.marker("_SUCCESS").await.unwrap();
    assert!(text.complete && text.gaps.is_empty() && text.sealed_by.is_some());
    let said = place.seal(&["status"]).await.unwrap();
    assert!(said.contains("nothing is open") && said.contains("sealed, latest first"), "{said}");
}

#[tokio::test]
async fn without_a_name_all_that_is_due_is_sealed_and_the_rest_is_named() {
    let place = Place::new().await;
    let day = |dataset: &str, date: i32| PartitionKey {
        dataset: DatasetName::new(dataset).unwrap(),
        partition: Partition::new(date, None).unwrap(),
    };
    let (before, other, far) = (day("clicks", DATE - 30), day("views", DATE), day("clicks", DATE + 30_000));
    let start = i64::from(DATE) * DAY;
    // The missing batches of web-2 come, but what it loaded into an old day is not vouched for: its mark is too early.
    place.files(start + DAY / 2, &other, &["h\n"], vec![cover(2, &[3, 4], None)]).await;
    place.files(start + DAY + DAY / 4, &before, &["i\n", "j\n"], vec![cover(1, &[3], None)]).await;
    place.files(start + DAY + DAY / 4, &far, &["k\n"], vec![cover(1, &[4], None)]).await;
    let records = place.records().await;
    let said = place.seal(&["now", "--dry-run"]).await.unwrap_err();
    assert!(said.contains("left out: dataset views is not declared"), "{said}");
    assert!(said.contains("would seal clicks/event_date=2026-11-18 as complete"), "{said}");
    assert!(said.contains("clicks/event_date=2026-10-19 is not sealed: the counts do not close"), "{said}");
    assert_eq!(place.records().await, records, "nothing was written");

    let json = place.seal(&["now", "--json"]).await.unwrap_err();
    let report: serde_json::Value = serde_json::from_str(&json[..=json.rfind('}').unwrap()]).unwrap();
    assert!(report["notes"][0].as_str().unwrap().contains("views is not declared"), "{report}");
    let outcomes = report["partitions"].as_array().unwrap();
    let sealed: Vec<_> = outcomes.iter().map(|one| (one["partition"].as_str().unwrap(), &one["sealed"])).collect();
    assert_eq!(
        sealed,
        [("clicks/event_date=2026-10-19", &false.into()), ("clicks/event_date=2026-11-18", &true.into())]
    );
    assert_eq!(outcomes[0]["missing"][0]["agent"], "web-1");
    assert!(place.marker("_SUCCESS").await.is_some());

    let said = place.seal(&["now", "--incomplete"]).await.unwrap();
    assert!(said.contains("sealed clicks/event_date=2026-10-19: incomplete"), "{said}");
    let text = place.marker_of(&before, "_INCOMPLETE").await.unwrap();
    assert_eq!((text.events, text.files), (2, 1));
    // One that is not over is sealed only by its name; one without a declaration only where none are given.
    assert!(place.seal(&["now", "--incomplete"]).await.unwrap().contains("nothing is due"));
    let named = ["now", "--partition", "event_date=2109-01-07"];
    assert!(place.seal(&named).await.unwrap_err().contains("is not over"));
    let none = ["now", "--partition", "event_date=2001-01-01"];
    assert!(place.seal(&none).await.unwrap_err().contains("no dataset has an open partition event_date=2001-01-01"));
    let url = place.url();
    let said = command(None, &["now", "--dest", &url, "--dataset", "views", "--zone", "UTC", "--lateness", "4h"])
        .await
        .unwrap();
    assert!(said.contains("sealed views/event_date=2026-11-18: complete"), "{said}");
}

#[tokio::test]
async fn a_marker_that_cannot_be_written_is_said_also_of_several() {
    let place = Place::new().await;
    let morning = i64::from(DATE) * DAY + DAY + DAY / 4;
    place.publish(morning, vec![cover(2, &[3, 4], None)]).await;
    // Something that is not ours has the marker's name.
    place.store.make_dirs(&format!("{}/_SUCCESS/taken", key().dir()), 0o750).await.unwrap();
    let said = place.seal(&["now"]).await.unwrap_err();
    assert!(said.contains("is written, and finished by the collectors or by the same command again"), "{said}");
}

#[tokio::test]
async fn abandon_gives_up_what_is_lost_and_says_what_that_costs() {
    let place = Place::new().await;
    let origin = run(2).to_string();
    let abandon = |seqs: &'static str| {
        let origin = origin.clone();
        let place = &place;
        async move {
            let arguments =
                ["abandon", "--agent", "web-2", "--origin", &origin, "--seqs", seqs, "--reason", "disk lost"];
            place.seal(&arguments).await
        }
    };
    let refused = abandon("1-4").await.unwrap_err();
    assert!(refused.contains("are in the log: they are not lost"), "{refused}");
    assert!(abandon("4-3").await.unwrap_err().contains("both ends included"));
    let unknown = ["abandon", "--agent", "web-2", "--origin", &"0".repeat(32), "--reason", "x"];
    assert!(place.seal(&unknown).await.unwrap_err().contains("has no run"));
    let said = abandon("3-4").await.unwrap();
    assert!(said.contains("its batches 3-4") && said.contains("sealed as _INCOMPLETE"), "{said}");
    let status = place.seal(&["status"]).await.unwrap();
    assert!(status.contains("is sealed as incomplete next"), "{status}");
    // Nothing is waited for, but it is not complete.
    assert!(place.seal(&NOW).await.unwrap_err().contains("missing: web-2 (abandoned)"));
}

#[tokio::test]
async fn forget_takes_an_agent_out_until_its_next_record() {
    let place = Place::new().await;
    assert!(place.seal(&["forget", "web-9"]).await.unwrap_err().contains("has no agent web-9"));
    let dry = place.seal(&["forget", "web-2", "--dry-run", "--json"]).await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&dry).unwrap();
    assert!(json["what"].as_str().unwrap().starts_with("would forget web-2") && json["record"].is_null());
    let said = place.seal(&["forget", "web-2", "--reason", "scrapped"]).await.unwrap();
    assert!(said.contains("forgot web-2") && said.contains("(record "), "{said}");
    let again = place.seal(&["forget", "web-2"]).await.unwrap_err();
    assert!(again.contains("sent nothing since"), "{again}");
    let status = place.seal(&["status"]).await.unwrap();
    assert!(status.contains("complete, not sealed yet"), "{status}");
}

#[tokio::test]
async fn the_exit_code_tells_what_was_refused_from_what_could_not_be_looked_at() {
    let place = Place::new().await;
    place.seal(&["status"]).await.unwrap();
    let config = place.dir.path().join("collector.toml");
    let day = "event_date=2026-11-18";
    for (wanted, arguments) in [
        (0, vec!["seal", "status"]),
        (0, vec!["seal", "forget", "web-2", "--dry-run"]),
        (1, vec!["seal", "now", "--dataset", "clicks", "--partition", day]),
        (1, vec!["seal", "now", "--dataset", "clicks", "--partition", "event_date=2001-01-01"]),
        (1, vec!["seal", "forget", "web-9"]),
        (1, vec!["seal", "abandon", "--agent", "web-9", "--origin", &"0".repeat(32), "--reason", "x"]),
        (2, vec!["seal", "now", "--dataset", "views", "--partition", day]),
        (2, vec!["seal", "status", "--dest", "file:///no/such/place"]),
    ] {
        assert_eq!(ends(&config, &arguments).await.0, wanted, "{arguments:?}");
    }
    // An inventory that is not on this machine is needed only by what judges partitions.
    let text = std::fs::read_to_string(&config).unwrap();
    let inventory = place.dir.path().join("agents");
    std::fs::write(&config, format!("{text}[housekeeping]\ninventory = \"{}\"\n", inventory.display())).unwrap();
    for arguments in [&["seal", "status"][..], &["seal", "now"]] {
        let (code, said) = ends(&config, arguments).await;
        assert!(code == 2 && said.contains(&format!("inventory {}", inventory.display())), "{code} {said}");
    }
    for arguments in [
        &["log", "verify"][..],
        &["log", "show"],
        &["audit"],
        &["deadletter", "show"],
        &["quarantine", "show"],
        &["seal", "forget", "web-2", "--dry-run"],
    ] {
        assert_eq!(ends(&config, arguments).await, (0, String::new()), "{arguments:?}");
    }
    std::fs::write(&inventory, "web-1\nweb-2\n").unwrap();
    assert_eq!(ends(&config, &["seal", "status"]).await.0, 0);
    // The log is damaged: nobody can say anything.
    let commits = place.dir.path().join("logs/_catchment/commits");
    for record in std::fs::read_dir(commits).unwrap() {
        std::fs::write(record.unwrap().path(), "x").unwrap();
    }
    assert_eq!(ends(&config, &["seal", "status"]).await.0, 2);
}

#[tokio::test]
async fn a_destination_that_nobody_uses_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    assert!(command(None, &["status", "--dest", &url]).await.unwrap_err().contains("no collector ever wrote there"));
    let url = format!("{url}/missing");
    assert!(command(None, &["status", "--dest", &url]).await.unwrap_err().contains("no such directory"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "looking makes nothing");
}

#[tokio::test]
async fn a_tool_whose_file_is_not_in_its_place_keeps_its_directory() {
    let place = Place::new().await;
    let mut solo = place.begin(i64::from(DATE) * DAY + DAY / 2).await;
    let staged = format!("{}/7.log.gz", solo.layout().staging());
    place.store.create(&staged).await.unwrap().close().await.unwrap();
    // Something that is not ours stands under its final name.
    let taken = format!("{}/taken.log.gz", key().dir());
    place.store.create(&taken).await.unwrap().close().await.unwrap();
    let file = wire::PublishedFile {
        kind: wire::FileKind::Data as i32,
        staged: staged.clone(),
        r#final: taken,
        dataset: "clicks".into(),
        partition: Some(key().partition.into()),
        mode: 0o640,
        ..Default::default()
    };
    let publish = wire::Publish { files: vec![file], covers: Vec::new() };
    solo.commit(|_, _| Ok(Action::Publish(publish.clone()))).await.unwrap();
    assert!(solo.finish_files(&key()).await.is_err());
    let error = solo.end().await.unwrap_err().to_string();
    assert!(error.contains("finished by the collectors"), "{error}");
    assert!(place.store.stat(&staged).await.unwrap().is_some(), "a committed file is never deleted");
}
