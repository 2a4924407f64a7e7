//! The collector's tools for the person on call, as processes on a real HDFS: each says what is wrong with a damaged
//! destination and where, and changes nothing; what they write out for a replay goes through a running cluster and
//! arrives once.

mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use collector::store::{self, DestinationConfig};
use loadtest::cluster::Cluster;
use loadtest::cluster::spec::{Masking, Spec, Tier};
use loadtest::hadoop::{Hdfs, Options};
use loadtest::verify::tree::Tree;
use prost::Message;
use proto::header::Header;
use proto::ids::Origin;
use proto::record::number_name;
use proto::wire::append_response::Answer;
use proto::wire::batch_header::Kind;
use proto::wire::ingest_client::IngestClient;
use proto::wire::{self, AppendRequest};
use serde_json::Value;

use scene::day::{PATIENCE, wait_for};
use scene::{program, small_spec};

/// 2025-11-20.
const DAY: i32 = 20_412;
const GOOD: usize = 20;
/// Events that could not be placed: where they were read from first they have no usable time, or one that is to come.
const DEAD: [&str; 3] =
    ["epoch 1763646936 first", "epoch 1763646937 second", "- [20/Nov/2099:13:55:36 +0000] epoch 1763646938 third"];
const AHEAD: &str = "more than 24 h ahead";

/// Every file by its path.
type Files = BTreeMap<String, Vec<u8>>;

fn good(n: usize) -> String {
    format!("10.0.0.1 - - [20/Nov/2025:13:55:36 +0000] \"GET /{n} HTTP/1.1\" 200 1 \"-\" \"-\"")
}

/// Lines of a batch that says an hour, where the dataset has none.
fn odd() -> [String; 2] {
    [good(1001), good(1002)]
}

struct Farm {
    cluster: Cluster,
    root: String,
    dir: tempfile::TempDir,
    hdfs: Hdfs,
}

impl Farm {
    /// One of each tier, and everything that a destination may hold: events, dead letters, a quarantined batch.
    fn start() -> Self {
        let hdfs = Hdfs::start(&Options { datanodes: 2, replication: 2, ..Options::default() }).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for sub in ["logs", "again", "back"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let at = |sub: &str| format!("{}/{sub}/*.log", dir.path().display());
        let root = format!("{}/tools", hdfs.url());
        let source = |name: &str, time: &str| {
            format!(
                "[[sources]]\nname = \"{name}\"\ntype = \"tail\"\npaths = [\"{}\"]\ndataset = \"clickstream\"\ntime = {time}\n",
                at(name)
            )
        };
        let again = source("again", "{ format = \"epoch\", unit = \"s\", after = \"epoch \" }");
        let back = source("back", "{ format = \"log_format\", log_format = \"combined\" }");
        let spec = Spec {
            dest: root.clone(),
            masking: Masking::Off,
            extra: vec![(Tier::EdgeAgent, again + &back)],
            ..small_spec(dir.path(), vec![at("logs")])
        };
        let mut cluster = Cluster::create(spec, program(), &dir.path().join("cluster")).unwrap();
        cluster.start_servers().unwrap();
        let lines: Vec<String> = (0..GOOD).map(good).chain(DEAD.map(str::to_owned)).collect();
        fs::write(dir.path().join("logs/access.log"), lines.join("\n") + "\n").unwrap();
        let mut farm = Self { cluster, root, dir, hdfs };
        farm.run_agent();
        let address = farm.cluster.addresses(Tier::Aggregator, 0).listen;
        tokio::runtime::Runtime::new().unwrap().block_on(send_odd_batch(address));
        wait_for("the quarantined batch", || {
            farm.tool(&["quarantine", "show"]).1.contains("\n1 batches").then_some(())
        });
        // Everybody has left: the day is compacted and sealed, and nothing changes any more by itself.
        wait_for("the seal", || files(&farm.root).keys().any(|path| path.ends_with("/_SUCCESS")).then_some(()));
        farm
    }

    /// Until everything that the agent finds is committed.
    fn run_agent(&mut self) {
        self.cluster.start_agent(0, true).unwrap();
        self.cluster.join_all(Tier::EdgeAgent, PATIENCE).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Exit code, and what a tool said on both outputs.
    fn tool(&self, args: &[&str]) -> (i32, String) {
        self.tool_at(&self.root, args)
    }

    fn tool_at(&self, url: &str, args: &[&str]) -> (i32, String) {
        let mut command = program().command(Tier::Collector, args);
        command.args(["--dest", url]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It ends when its standard input does.
        let input = child.stdin.take();
        let output = child.wait_with_output().unwrap();
        drop(input);
        let said = [&b"\n"[..], &output.stdout, &output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    }

    /// Lines in published files.
    fn published(&self) -> BTreeMap<String, u64> {
        let mut lines = BTreeMap::new();
        for (_, bytes) in
            files(&self.root).into_iter().filter(|(path, _)| path.ends_with(".log.zst") && !path.starts_with('_'))
        {
            let text = String::from_utf8(zstd::stream::decode_all(&bytes[..]).unwrap()).unwrap();
            text.lines().for_each(|line| *lines.entry(line.to_owned()).or_default() += 1);
        }
        lines
    }
}

/// All files, but for what lies in staging directories: runs that live show there that they do.
fn files(url: &str) -> Files {
    let tree = Tree::open(url).unwrap();
    let all = tree.files().unwrap().into_iter().filter(|file| !file.path.contains("/staging/"));
    all.map(|file| (file.path.clone(), tree.read_all(&file).unwrap())).collect()
}

/// Every file, those in staging directories too.
fn all_files(url: &str) -> Files {
    let tree = Tree::open(url).unwrap();
    tree.files().unwrap().into_iter().map(|file| (file.path.clone(), tree.read_all(&file).unwrap())).collect()
}

/// Makes a destination of these files.
fn lay(url: &str, files: &Files) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = store::open(&DestinationConfig::new(url.to_owned())).unwrap();
        let dirs: BTreeSet<&str> = files.keys().map(|path| path.rsplit_once('/').map_or("", |(dir, _)| dir)).collect();
        for dir in dirs.into_iter().chain(["_catchment/checkpoints", "_catchment/staging"]) {
            store.make_dirs(dir, 0o750).await.unwrap();
        }
        let write = |(path, bytes): (&String, &Vec<u8>)| {
            let (store, path, bytes) = (store.clone(), path.clone(), bytes.clone());
            async move {
                let mut file = store.create(&path).await.unwrap();
                file.append(bytes.into()).await.unwrap();
                file.close().await.unwrap();
            }
        };
        futures::future::join_all(files.iter().map(write)).await;
    });
}

/// A batch that any aggregator takes and no collector can place.
async fn send_odd_batch(aggregator: std::net::SocketAddr) {
    let mut client = IngestClient::connect(format!("http://{aggregator}")).await.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let origin = Origin::mint(now.as_millis() as u64, 9);
    let raw = odd().join("\n") + "\n";
    let payload = zstd::bulk::compress(raw.as_bytes(), 1).unwrap();
    let data = wire::Data {
        dataset: "clickstream".into(),
        partition: Some(wire::Partition { date: DAY, hour: Some(13) }),
        codec: wire::Codec::Zstd as i32,
        framing: wire::Framing::Lines as i32,
        events: 2,
        raw_bytes: raw.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc32c: crc32c::crc32c(&payload),
        zone: "UTC".into(),
        source: "logs".into(),
        ..Default::default()
    };
    let close = wire::Close { left: true, ..Default::default() };
    let batches = [
        (Kind::Open(wire::Open::default()), Vec::new()),
        (Kind::Data(data), payload),
        (Kind::Close(close), Vec::new()),
    ];
    for (seq, (kind, payload)) in batches.into_iter().enumerate() {
        let header = Header::encode(origin, seq as u64, kind).unwrap().bytes;
        let append = AppendRequest { agent: "web-odd".into(), header, payload: payload.into(), ..Default::default() };
        let bytes = append.encoded_len();
        let mut request = tonic::Request::new(append);
        request.metadata_mut().insert(proto::PAYLOAD_BYTES_HEADER, bytes.to_string().parse().unwrap());
        request.metadata_mut().insert(proto::AGENT_HEADER, "web-odd".parse().unwrap());
        let answer = client.append(request).await.unwrap().into_inner().answer;
        assert!(matches!(answer, Some(Answer::Durable(_))), "{answer:?}");
        // A record for each.
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
}

fn commit(n: usize) -> String {
    format!("_catchment/commits/{}", number_name(n as u64))
}

/// Tools that read the whole log; those that read letters and quarantine alone.
const OF_THE_LOG: [&[&str]; 5] =
    [&["log", "verify"], &["log", "show"], &["log", "replay"], &["seal", "status"], &["audit", "--since", "3650d"]];
const OF_FILES: [&[&str]; 2] = [&["deadletter", "show"], &["quarantine", "show"]];
const FINISH: &[&str] = &["log", "replay", "--finish"];

/// A destination that was damaged in one way; all tools are called on it, and nothing in it changes.
struct Damaged<'a> {
    farm: &'a Farm,
    url: String,
    said: BTreeMap<Vec<&'static str>, (i32, String)>,
}

impl<'a> Damaged<'a> {
    fn new(farm: &'a Farm, whole: &Files, name: &str, damage: impl FnOnce(&mut Files)) -> Self {
        let url = format!("{}/{name}", farm.hdfs.url());
        let mut files = whole.clone();
        damage(&mut files);
        lay(&url, &files);
        let mut said = BTreeMap::new();
        let more: [&[&str]; 2] = [&["log", "verify", "--checksums"], &["log", "replay", "--finish", "--dry-run"]];
        for args in OF_THE_LOG.into_iter().chain(OF_FILES).chain(more) {
            said.insert(args.to_vec(), farm.tool_at(&url, args));
        }
        assert!(all_files(&url) == files, "{name}: a tool changed something");
        Self { farm, url, said }
    }

    /// This tool ends so, and says each of these.
    fn says(&self, args: &[&'static str], code: i32, texts: &[&str]) {
        let (ended, said) = &self.said[args];
        assert_eq!(*ended, code, "{args:?}: {said}");
        texts.iter().for_each(|text| assert!(said.contains(text), "{args:?} does not say {text:?}: {said}"));
    }

    /// All tools that need the log name the record, and finishing is refused.
    fn no_log(&self, n: usize, what: &str) {
        let path = commit(n);
        let finding = format!("FINDING {path}: {what}");
        for args in &OF_THE_LOG[..3] {
            self.says(args, 1, &[&finding]);
        }
        self.says(&["log", "verify"], 1, &["nothing was changed"]);
        let (code, said) = &self.said[&OF_THE_LOG[3].to_vec()];
        assert!(*code != 0 && said.contains(&path) && said.contains(what), "{code}: {said}");
        self.says(OF_THE_LOG[4], 2, &[&path, what]);
        let before = all_files(&self.url);
        let (code, said) = self.farm.tool_at(&self.url, FINISH);
        assert!(code == 2 && said.contains("log verify") && said.contains(&path), "{code}: {said}");
        assert!(all_files(&self.url) == before);
        self.says(OF_FILES[0], 0, &["3 dead letters"]);
        self.says(OF_FILES[1], 0, &["1 batches"]);
    }
}

/// The first file below a directory with this end.
fn one(files: &Files, dir: &str, end: &str) -> String {
    files.keys().find(|path| path.starts_with(dir) && path.ends_with(end)).unwrap().clone()
}

fn flip(files: &mut Files, path: &str) {
    let bytes = files.get_mut(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
}

fn cut(files: &mut Files, path: &str) {
    let bytes = files.get_mut(path).unwrap();
    bytes.truncate(bytes.len() - 3);
}

fn damage_is_told(farm: &Farm, whole: &Files) {
    let last = whole.keys().filter(|path| path.starts_with("_catchment/commits/")).count() - 1;
    assert!(last >= 4, "records enough to take one out of the middle: {last}");
    assert!(!whole.keys().any(|path| path.contains("/checkpoints/")), "no checkpoint makes up for a record");

    let flipped = Damaged::new(farm, whole, "flipped", |files| flip(files, &commit(1)));
    flipped.no_log(1, "its CRC32C is");
    let torn = Damaged::new(farm, whole, "torn", |files| cut(files, &commit(last)));
    torn.no_log(last, "it is not a whole commit record");
    let hole = Damaged::new(farm, whole, "hole", |files| _ = files.remove(&commit(2)).unwrap());
    for args in &OF_THE_LOG[..3] {
        hole.says(args, 1, &[&format!("FINDING {}: record 2 is missing, and record 3 is there", commit(2))]);
    }
    hole.says(OF_THE_LOG[4], 2, &[&format!("{} is missing, and record 3 is there", commit(2))]);
    let (code, said) = &hole.said[&OF_THE_LOG[3].to_vec()];
    assert!(*code != 0 && said.contains("is missing, and record 3 is there"), "{said}");

    let published = one(whole, "clickstream/", ".zst");
    let missing = Damaged::new(farm, whole, "missing", |files| _ = files.remove(&published).unwrap());
    missing.says(&["log", "verify"], 1, &[&format!("FINDING {published}: record"), "it is not there"]);
    let changed = Damaged::new(farm, whole, "changed", |files| flip(files, &published));
    changed.says(&["log", "verify", "--checksums"], 1, &[&format!("FINDING {published}: its CRC32C is")]);
    for damaged in [&missing, &changed] {
        OF_THE_LOG[1..4].iter().for_each(|args| damaged.says(args, 0, &[]));
    }

    let (quarantine, letters) =
        (one(whole, "_catchment/quarantine/", ".cq"), one(whole, "_catchment/dead-letter/", ""));
    let aside = Damaged::new(farm, whole, "aside", |files| {
        flip(files, &quarantine);
        cut(files, &letters);
    });
    aside.says(OF_FILES[1], 1, &[&format!("FINDING {quarantine}: the entry at offset 8 is damaged"), "\n0 batches"]);
    aside.says(OF_FILES[0], 1, &[&format!("FINDING {letters}: it cannot be decompressed behind line ")]);
    let checksums = ["log", "verify", "--checksums"];
    aside.says(&checksums, 1, &[&format!("FINDING {quarantine}: its CRC32C"), &format!("FINDING {letters}: it has ")]);
}

/// Where no collector runs, what is still staged is brought to its place when that is asked for: that and nothing else.
fn staged_files_are_finished(farm: &Farm, whole: &Files) {
    let published = one(whole, "clickstream/", ".zst");
    let (_, said) = farm.tool(&["log", "show", "--json", "0.."]);
    let shown: Value = serde_json::from_str(&said).unwrap();
    let mut named = shown["records"].as_array().unwrap().iter().flat_map(|record| record["files"].as_array().unwrap());
    let named = named.find(|file| file["final"] == published.as_str()).unwrap();
    let staged = named["staged"].as_str().unwrap().to_owned();
    let left = Damaged::new(farm, whole, "left", |files| {
        let bytes = files.remove(&published).unwrap();
        files.insert(staged.clone(), bytes);
    });
    left.says(&["log", "verify", "--checksums"], 0, &["1 still staged", "clean"]);
    left.says(&["log", "replay", "--finish", "--dry-run"], 0, &[&format!("would be brought: {staged} -> {published}")]);
    let (code, said) = farm.tool_at(&left.url, FINISH);
    assert!(code == 0 && said.trim() == format!("brought: {staged} -> {published}"), "{code}: {said}");
    assert!(all_files(&left.url) == *whole, "it is in its place, and nothing else has changed");
}

/// What the note beside an output says was replayed: lines by source.
fn note(to: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(format!("{}.replayed.json", to.display())).unwrap();
    let note: Value = serde_json::from_str(&text).unwrap();
    let sources: BTreeMap<String, u64> = serde_json::from_value(note["sources"].clone()).unwrap();
    assert_eq!(note["lines"].as_u64().unwrap(), sources.values().sum::<u64>(), "{note}");
    sources
}

/// Writes out what passes `more`, once in words alone; these lines, and a note that names what they come from.
fn replay(farm: &Farm, what: &str, to: &Path, more: &[&str], lines: &[&str], source: &str) -> String {
    let name = to.to_str().unwrap();
    let args = [&[what, "replay", "--dataset", "clickstream", "--to", name], more].concat();
    let (before, dir) = (files(&farm.root), names(to.parent().unwrap()));
    let (code, said) = farm.tool(&[&args[..], &["--dry-run"]].concat());
    assert!(code == 0 && said.contains(&format!("\n{} lines", lines.len())) && said.contains("would be"), "{said}");
    assert!(names(to.parent().unwrap()) == dir, "a dry run makes no file");
    let (code, said) = farm.tool(&args);
    assert_eq!(code, 0, "{said}");
    assert_eq!(fs::read_to_string(to).unwrap().lines().collect::<Vec<_>>(), lines);
    let sources = note(to);
    assert!(sources.values().sum::<u64>() == lines.len() as u64, "{sources:?}");
    assert!(sources.keys().all(|key| key.contains(source)), "{sources:?}");
    let (code, refused) = farm.tool(&args);
    assert!(code == 2 && refused.contains("nothing is overwritten"), "{refused}");
    assert!(files(&farm.root) == before, "nothing at the destination has changed");
    said
}

fn names(dir: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Nothing is left to replay: that is said, with the note that knows why, and no file is made.
fn replayed_before(farm: &Farm, what: &str, dir: &Path, notes: &[&str]) {
    let to = dir.join("once-more.log");
    let args = [what, "replay", "--dataset", "clickstream", "--to", to.to_str().unwrap()];
    let (code, said) = farm.tool(&args);
    assert!(code == 0 && said.contains("nothing to replay") && said.contains("replayed before"), "{code}: {said}");
    notes.iter().for_each(|note| assert!(said.contains(note), "{said}"));
    assert!(!to.exists());
}

/// `(agent, origin)` of every batch in the log.
fn origins(farm: &Farm) -> BTreeMap<(String, String), String> {
    let (code, said) = farm.tool(&["log", "show", "--json", "0.."]);
    assert_eq!(code, 0, "{said}");
    let shown: Value = serde_json::from_str(&said).unwrap();
    let covers = shown["records"].as_array().unwrap().iter().flat_map(|record| record["covers"].as_array().unwrap());
    let mut origins: BTreeMap<(String, String), String> = BTreeMap::new();
    for cover in covers {
        let text = |key: &str| cover[key].as_str().unwrap().to_owned();
        *origins.entry((text("agent"), text("origin"))).or_default() += &cover["seqs"].to_string();
    }
    origins
}

/// Written out in two parts, the second of which leaves out what the first one took; then read by the agent.
fn replays_arrive_once(farm: &mut Farm) {
    let (again, back) = (farm.path("again"), farm.path("back"));
    let (part, rest) = (again.join("part.log"), again.join("rest.log"));
    replay(farm, "deadletter", &part, &["--reason", AHEAD], &DEAD[2..], AHEAD);
    let said = replay(farm, "deadletter", &rest, &[], &DEAD[..2], "no usable time");
    assert!(said.contains("1 were replayed before") && said.contains("part.log.replayed.json"), "{said}");
    replayed_before(farm, "deadletter", &again, &["part.log.replayed.json", "rest.log.replayed.json"]);
    let odd = odd();
    replay(farm, "quarantine", &back.join("odd.log"), &[], &odd.each_ref().map(String::as_str), "web-odd/");
    replayed_before(farm, "quarantine", &back, &["odd.log.replayed.json"]);

    let before = origins(farm);
    let expected: BTreeMap<String, u64> = (0..GOOD).map(|n| (good(n), 1)).collect();
    assert_eq!(farm.published(), expected);
    farm.run_agent();
    let expected: BTreeMap<String, u64> =
        expected.into_keys().chain(DEAD.map(str::to_owned)).chain(odd).map(|line| (line, 1)).collect();
    assert_eq!(farm.published(), expected, "each is there once");
    let after = origins(farm);
    assert!(before.iter().all(|(origin, seqs)| after.get(origin) == Some(seqs)), "nothing came under an old identity");
    let new: Vec<_> = after.keys().filter(|key| !before.contains_key(*key)).collect();
    assert!(new.len() == 1 && new[0].0 == "edge-agent-1", "{new:?}");
    // They stay where they are, and are still known to be replayed; nor does the agent read its files twice.
    assert!(farm.tool(OF_FILES[0]).1.contains("3 dead letters") && farm.tool(OF_FILES[1]).1.contains("\n1 batches"));
    replayed_before(farm, "deadletter", &again, &[]);
    replayed_before(farm, "quarantine", &back, &[]);
    farm.run_agent();
    assert_eq!(farm.published(), expected);
    let (code, said) = farm.tool(&["log", "verify", "--checksums"]);
    assert!(code == 0 && said.contains("clean"), "{said}");
}

#[test]
fn tools_tell_what_is_wrong_on_hdfs_and_replays_arrive_once() {
    let mut farm = Farm::start();
    let whole = files(&farm.root);
    damage_is_told(&farm, &whole);
    staged_files_are_finished(&farm, &whole);
    replays_arrive_once(&mut farm);
    farm.cluster.drain_aggregators(PATIENCE).unwrap();
    farm.cluster.stop_all(Tier::Aggregator, PATIENCE).unwrap();
    farm.cluster.stop_all(Tier::Collector, PATIENCE).unwrap();
}
