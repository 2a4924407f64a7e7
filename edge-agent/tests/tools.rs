//! The tools for the person on call, as processes: `status`, `outbox show | check | export | adopt`, beside a running
//! agent, without one, and on damaged stores, which they never change.

mod bench;
mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bench::{Bench, copy_dir, once, start};
use edge_agent::agent::owner::End;
use edge_agent::cli::admin_client::ask;
use edge_agent::config::AgentConfig;
use proto::wire::Codec;
use serde_json::Value;
use support::{Fake, eventually};

/// Runs the program with a configuration.
fn tool(config: &AgentConfig, args: &[&str]) -> Output {
    let file = config.state_dir.parent().unwrap().join("edge-agent.toml");
    std::fs::write(&file, common::config::dump(config)).unwrap();
    let program = env!("CARGO_BIN_EXE_catchment-edge-agent");
    Command::new(program).arg("--config").arg(file).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(config: &AgentConfig, args: &[&str]) -> (Value, Option<i32>) {
    let output = tool(config, args);
    let value = serde_json::from_slice(&output.stdout);
    (value.unwrap_or_else(|error| panic!("{error}: {}", text(&output))), output.status.code())
}

/// Everything below a directory: contents, modes and change times.
fn contents(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32, i64)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = std::fs::metadata(&path).unwrap();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), (std::fs::read(&path).unwrap(), metadata.mode(), metadata.mtime_nsec()));
        }
    }
    found
}

/// A state directory with unacked batches whose agent was killed.
async fn left_behind(fake: &Fake, bench: &mut Bench) -> AgentConfig {
    fake.with(|state| state.commit_opens_only = true);
    bench.write(400);
    let config = bench.config(fake, "");
    let (stop, task) = start(config.clone(), false);
    fake.until("the lines", |state| state.lines().len() == 400).await;
    stop.stop_now();
    task.await.unwrap().unwrap();
    config
}

fn segment_files(config: &AgentConfig) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(config.state_dir.join("outbox")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_an_agent_is_shown_checked_and_exported() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    let config = left_behind(&fake, &mut bench).await;
    bench.write(7);
    let before = contents(&config.state_dir);
    let (shown, code) = json(&config, &["outbox", "show", "--json"]);
    assert_eq!(code, Some(0), "{shown}");
    assert_eq!((shown["agent"].as_str(), shown["running"].as_bool()), (Some("web-1"), Some(false)));
    let batches = shown["batches"].as_array().unwrap();
    let events: u64 = batches.iter().map(|batch| batch["events"].as_u64().unwrap()).sum();
    assert_eq!(events, 400);
    assert!(batches.iter().all(|batch| batch["dataset"] == "clickstream" && batch["kind"] == "data"), "{shown}");
    assert_eq!(batches[0]["partition"], "event_date=2026-11-20");
    assert!(text(&tool(&config, &["outbox", "show"])).contains("here only, as far as is known"));

    let (checked, code) = json(&config, &["outbox", "check", "--json"]);
    assert_eq!((checked["ok"].as_bool(), code), (Some(true), Some(0)), "{checked}");

    let (status, code) = json(&config, &["status", "--json"]);
    assert_eq!(code, Some(0));
    assert!(status["live"].is_null() && status["no_answer"].as_str().unwrap().contains("nobody answers"), "{status}");
    let store = &status["store"];
    assert_eq!(store["kept_batches"].as_u64().unwrap(), batches.len() as u64);
    assert_eq!(store["oldest_unacked"]["seq"], batches[0]["seq"]);
    let source = &store["sources"][0];
    assert_eq!(source["matched_files"], 1);
    let unread = std::fs::metadata(bench.log()).unwrap().len() - source["files"][0]["position"].as_u64().unwrap();
    assert!(unread > 0, "seven lines were written behind its back");
    assert_eq!(source["unread_bytes"].as_u64(), Some(unread));
    assert!(text(&tool(&config, &["status"])).contains("bytes unread"));

    let to = bench.dir.path().join("export");
    let (exported, code) = json(&config, &["outbox", "export", "--json", "--to", to.to_str().unwrap()]);
    assert_eq!((exported["events"].as_u64(), code), (Some(400), Some(0)));
    assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o700);
    let index = std::fs::read_to_string(to.join("index.jsonl")).unwrap();
    let mut lines = 0;
    for line in index.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let name = line["payload"].as_str().unwrap();
        assert!(name.ends_with(".zst"));
        let payload = std::fs::read(to.join(name)).unwrap();
        let mut raw = Vec::new();
        common::frame::decode(Codec::Zstd, &payload, line["raw_bytes"].as_u64().unwrap(), &mut raw).unwrap();
        lines += raw.iter().filter(|byte| **byte == b'\n').count();
    }
    assert_eq!(lines, 400, "each file is one whole frame");
    let again = tool(&config, &["outbox", "export", "--to", to.to_str().unwrap()]);
    assert!(!again.status.success() && text(&again).contains("is not empty"), "{}", text(&again));
    assert_eq!(contents(&config.state_dir), before, "a tool changed the store");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_running_agent_they_say_where_batches_are_and_what_runs() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    fake.with(|state| state.commit_opens_only = true);
    bench.write(100);
    let config = bench.config(&fake, "");
    let (stop, task) = start(config.clone(), false);
    fake.until("the lines", |state| state.lines().len() == 100).await;
    eventually("where they are", || {
        ask(bench.admin, "GET", "/status").is_ok_and(|status| status["stored_at"][0]["batches"].is_u64())
    })
    .await;
    let node = fake.at.to_string();
    let (shown, code) = json(&config, &["outbox", "show", "--json"]);
    assert_eq!((shown["running"].as_bool(), code), (Some(true), Some(0)), "{shown}");
    assert!(shown["batches"].as_array().unwrap().iter().any(|batch| batch["stored_at"][0] == node.as_str()), "{shown}");
    let (status, _) = json(&config, &["status", "--json"]);
    assert_eq!(status["live"]["agent"], "web-1");
    assert_eq!(status["store"]["running"], true);
    let output = text(&tool(&config, &["status"]));
    assert!(output.contains("agent web-1 runs") && output.contains("an agent runs on it"), "{output}");
    for dry in [&["outbox", "adopt"][..], &["outbox", "adopt", "--dry-run"][..]] {
        let refused = tool(&config, dry);
        assert!(
            !refused.status.success() && text(&refused).contains("in use by another process"),
            "{}",
            text(&refused)
        );
    }
    // Many looks at a store that changes all the time.
    for _ in 0..10 {
        bench.write(20);
        let (checked, code) = json(&config, &["outbox", "check", "--json"]);
        assert_eq!((checked["ok"].as_bool(), code), (Some(true), Some(0)), "{checked}");
    }
    fake.with(|state| {
        state.commit_opens_only = false;
        state.commit_all();
    });
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_named_with_its_place_and_nothing_is_changed() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    let config = left_behind(&fake, &mut bench).await;
    let (shown, _) = json(&config, &["outbox", "show", "--json"]);
    let batches = shown["batches"].as_array().unwrap();
    let victim = &batches[batches.len() / 2];
    let file = config.state_dir.join("outbox").join(victim["file"].as_str().unwrap());
    let good = std::fs::read(&file).unwrap();

    // A flipped byte in the payload of one record.
    let offset = victim["offset"].as_u64().unwrap();
    let mut bytes = good.clone();
    let inside = offset as usize + 32 + victim["bytes"].as_u64().unwrap() as usize;
    bytes[inside - 20] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let before = contents(&config.state_dir);
    let (checked, code) = json(&config, &["outbox", "check", "--json"]);
    assert_eq!((checked["ok"].as_bool(), code), (Some(false), Some(1)), "{checked}");
    let finding = &checked["findings"][0];
    assert_eq!((finding["severity"].as_str(), finding["offset"].as_u64()), (Some("damage"), Some(offset)), "{checked}");
    assert_eq!(finding["file"], victim["file"]);
    let named = format!("{} seq {}", victim["origin"].as_str().unwrap(), victim["seq"]);
    assert!(finding["what"].as_str().unwrap().contains(&named), "{checked}");
    let words = text(&tool(&config, &["outbox", "check"]));
    assert!(words.contains("DAMAGED") && words.contains("nothing was changed"), "{words}");
    let to = bench.dir.path().join("export");
    let (exported, code) = json(&config, &["outbox", "export", "--json", "--to", to.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert_eq!(exported["events"].as_u64().unwrap(), 400 - victim["events"].as_u64().unwrap(), "all but that one");
    assert_eq!(contents(&config.state_dir), before, "a tool changed a damaged store");

    // A torn tail: the last record was never completed.
    let cut = good.len() - 7;
    std::fs::write(&file, &good[..cut]).unwrap();
    let (checked, code) = json(&config, &["outbox", "check", "--json"]);
    assert_eq!(checked["findings"][0]["severity"], "torn", "{checked}");
    assert!(checked["findings"][0]["offset"].as_u64().unwrap() < cut as u64);
    assert_eq!(code, Some(0), "a crash leaves such ends, they are nothing out of order");
    assert_eq!(std::fs::read(&file).unwrap().len(), cut, "the tail is cut off by a start, not by a tool");

    // No outbox at all.
    let mut elsewhere = config.clone();
    elsewhere.state_dir = bench.dir.path().join("nothing-here");
    for args in [&["outbox", "show"][..], &["outbox", "check"], &["outbox", "adopt"], &["status"]] {
        let output = tool(&elsewhere, args);
        assert!(!output.status.success() && text(&output).contains("outbox"), "{args:?}: {}", text(&output));
        assert!(!elsewhere.state_dir.exists(), "{args:?} made it");
    }
}

/// Three segments, the first ones sealed.
async fn several_segments(fake: &Fake, bench: &mut Bench) -> AgentConfig {
    fake.with(|state| state.commit_opens_only = true);
    let config = bench.config(fake, "");
    for round in 1..=3 {
        bench.write_noise(400);
        let (stop, task) = start(config.clone(), false);
        fake.until("the lines", |state| state.lines().len() == 400 * round).await;
        stop.stop_now();
        task.await.unwrap().unwrap();
    }
    let files = segment_files(&config);
    assert!(files.len() > 2, "{files:?}");
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_of_a_sealed_segment_is_checked() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    let config = several_segments(&fake, &mut bench).await;
    let file = segment_files(&config).remove(0);
    let good = std::fs::read(&file).unwrap();
    assert_eq!(json(&config, &["outbox", "check", "--json"]).1, Some(0));
    for at in [2, 30, good.len() / 3, good.len() / 2, good.len() - 100, good.len() - 5] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&file, &bytes).unwrap();
        let (checked, code) = json(&config, &["outbox", "check", "--json"]);
        assert_eq!(code, Some(1), "byte {at}: {checked}");
        let finding = &checked["findings"][0];
        assert_eq!(finding["severity"], "damage", "byte {at}: {checked}");
        assert_eq!(finding["file"].as_str(), file.file_name().unwrap().to_str());
        assert!(finding["offset"].as_u64().unwrap() <= at as u64, "byte {at}: {checked}");
        assert_eq!(std::fs::read(&file).unwrap(), bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_segment_file_is_told_by_the_seqs_that_were_in_it() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    let config = several_segments(&fake, &mut bench).await;
    let files = segment_files(&config);
    let (shown, _) = json(&config, &["outbox", "show", "--json"]);
    let lost = files[1].file_name().unwrap().to_str().unwrap();
    let in_it: Vec<&Value> = shown["batches"].as_array().unwrap().iter().filter(|b| b["file"] == lost).collect();
    assert!(!in_it.is_empty());
    std::fs::remove_file(&files[1]).unwrap();
    let (checked, code) = json(&config, &["outbox", "check", "--json"]);
    assert_eq!(code, Some(1), "{checked}");
    let missing: u64 = checked["missing"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|origin| origin["seqs"].as_array().unwrap())
        .map(|span| span[1].as_u64().unwrap() - span[0].as_u64().unwrap())
        .sum();
    assert_eq!(missing, in_it.len() as u64, "{checked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopt_says_what_it_does_and_a_dry_run_does_nothing() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(5);
    assert_eq!(once(bench.config(&fake, "")).await, End::Clean);
    let moved = bench.dir.path().join("moved");
    copy_dir(&bench.state(), &moved);
    let config = bench.config_at(&moved, &fake, "");
    let before = contents(&moved);
    let (status, _) = json(&config, &["status", "--json"]);
    assert_eq!(
        (status["store"]["is_copy"].as_bool(), &status["store"]["recorded_agent"]),
        (Some(true), &"web-1".into())
    );
    assert!(text(&tool(&config, &["status"])).contains("outbox adopt"));
    let dry = tool(&config, &["outbox", "adopt", "--dry-run"]);
    assert!(dry.status.success() && text(&dry).contains("would adopt"), "{}", text(&dry));
    assert_eq!(contents(&moved), before);
    let (done, code) = json(&config, &["outbox", "adopt", "--json"]);
    assert_eq!((done["written"].as_bool(), code), (Some(true), Some(0)));
    let again = tool(&config, &["outbox", "adopt"]);
    assert!(text(&again).contains("nothing to adopt"), "{}", text(&again));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leave_without_an_agent_reads_to_the_end_itself() {
    let (fake, mut bench) = (Fake::start().await, Bench::new());
    bench.write(12);
    let config = bench.config(&fake, "");
    let leaving = config.clone();
    let output = tokio::task::spawn_blocking(move || tool(&leaving, &["leave"])).await.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    fake.with(|state| {
        assert_eq!(state.lines().len(), 12);
        assert!(bench::close_of(state, state.origins()[0]).unwrap().left);
    });
    let (shown, _) = json(&config, &["outbox", "show", "--json"]);
    assert_eq!(shown["origins"][0]["ended"], "left", "{shown}");
}
