//! A file system under the state directory that is full to the last byte: the agent goes on holding what it cannot store,
//! and stores it when there is room. On a small memory file system; where none can be mounted, the tests say so.

mod bench;
mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bench::{Bench, Running, start};
use bytes::Bytes;
use common::supervise::Shutdown;
use edge_agent::agent::owner::End;
use edge_agent::cli::admin_client::ask;
use edge_agent::outbox::room::RESERVE_BYTES;
use edge_agent::outbox::{ChunkAppend, Options, Outbox};
use proto::ids::Origin;
use proto::wire;
use support::{Fake, eventually};

/// A file system of its own; unmounted at the end.
struct Small {
    _dir: tempfile::TempDir,
    at: PathBuf,
}

impl Small {
    #[expect(clippy::print_stderr, reason = "a test that does not run has to say so")]
    fn mount(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("mount");
        fs::create_dir(&at).unwrap();
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: no file system can be mounted here, a full one was not tried");
            return None;
        }
        Some(Self { _dir: dir, at })
    }

    /// Takes every byte that is left.
    fn fill(&self) -> PathBuf {
        let path = self.at.join("filler");
        let mut file = File::options().create(true).append(true).open(&path).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.at).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.at.display());
    }
}

fn reserve_bytes(state: &Path) -> Option<u64> {
    fs::metadata(state.join("reserve")).ok().map(|metadata| metadata.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_file_system_costs_nothing_that_was_held() {
    let Some(small) = Small::mount(32) else { return };
    let (fake, mut bench, state) = (Fake::start().await, Bench::new(), small.at.join("state"));
    let mut config = bench.config_at(&state, &fake, "mark_every = \"1s\"");
    config.outbox.min_free = common::units::Size::kib(4);
    bench.write(100);
    let (stop, task) = start(config.clone(), false);
    fake.until("the first lines", |state| state.lines().len() == 100).await;
    eventually("the reserve", || reserve_bytes(&state) == Some(RESERVE_BYTES)).await;

    // While acks are awaited nothing is given back; the log is deleted with bytes that nobody has read.
    fake.with(|state| (state.commit_at_once, state.commit_opens_only) = (false, true));
    let filler = small.fill();
    bench.write_noise(8000);
    small.fill();
    fs::remove_file(bench.log()).unwrap();
    // More than a mark is due meanwhile, and the reserve is given up and eaten.
    for _ in 0..150 {
        small.fill();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!task.is_finished(), "the process ended, and what it held is lost");
    let said = tokio::task::spawn_blocking(move || ask(config.admin.listen, "GET", "/status")).await.unwrap().unwrap();
    let said = said.to_string();
    assert!(said.contains("no_space"), "{said}");
    assert!(fake.with(|state| state.lines().len()) < 8100, "there was room for everything");

    fs::remove_file(filler).unwrap();
    fake.with(|state| state.commit_at_once = true);
    fake.with(|state| state.commit_opens_only = false);
    fake.with(support::State::commit_all);
    fake.until("every line", |state| state.lines().len() == 8100).await;
    let now = fake.with(|state| state.first_kinds().matches('m').count());
    fake.until("marks again", |state| state.first_kinds().matches('m').count() > now).await;
    eventually("the reserve again", || reserve_bytes(&state) == Some(RESERVE_BYTES)).await;
    let admin = config.admin.listen;
    eventually("nothing is said any more", || !ask(admin, "GET", "/status").unwrap().to_string().contains("no_space"))
        .await;
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    fake.with(|state| assert!(!state.kinds(state.origins()[0]).contains('v')));
}

#[test]
fn what_was_appended_waits_for_room() {
    let Some(small) = Small::mount(8) else { return };
    let dir = small.at.join("outbox");
    let options = Options { dir: dir.clone(), rejected: small.at.join("rejected"), segment_bytes: 256 * 1024 };
    let (mut outbox, _) = Outbox::open(options.clone()).unwrap();
    let origin = Origin::mint(1_793_500_000_000, 1);
    outbox.append_open(origin, wire::Open::default()).unwrap();
    assert_eq!(outbox.commit().unwrap().len(), 1);
    let filler = small.fill();
    for n in 0..3u8 {
        let payload = Bytes::from(vec![n; 100_000]);
        let data = wire::Data {
            dataset: "d".into(),
            partition: Some(wire::Partition { date: 20_000, hour: None }),
            codec: wire::Codec::None as i32,
            framing: wire::Framing::Lines as i32,
            events: 1,
            raw_bytes: payload.len() as u64,
            payload_bytes: payload.len() as u64,
            payload_crc32c: crc32c::crc32c(&payload),
            ..Default::default()
        };
        let batches = vec![(data, payload)];
        outbox.append_chunk(origin, ChunkAppend { batches, ..Default::default() }).unwrap();
        assert!(outbox.commit().unwrap_err().is_full(), "there was room");
    }
    fs::remove_file(filler).unwrap();
    let stored = outbox.commit().unwrap();
    assert_eq!(stored.iter().map(|stored| stored.seq).collect::<Vec<_>>(), [1, 2, 3]);
    // No room for the footer and the next segment either: what is stored is told all the same.
    small.fill();
    outbox.append_mark(origin, 1).unwrap_or_else(|error| assert!(error.is_full(), "{error}"));
    drop(outbox.commit());
    drop(outbox);
    fs::remove_file(small.at.join("filler")).unwrap();
    let (outbox, recovered) = Outbox::open(options).unwrap();
    assert_eq!((recovered.damage, recovered.voided), (vec![], vec![]));
    for stored in stored {
        let batch = outbox.reader().read(outbox.place(origin, stored.seq).unwrap()).unwrap();
        assert_eq!(batch.payload, vec![stored.seq as u8 - 1; 100_000]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_full_file_system_uses_the_reserve() {
    let Some(small) = Small::mount(32) else { return };
    let (fake, mut bench, state) = (Fake::start().await, Bench::new(), small.at.join("state"));
    let config = bench.config_at(&state, &fake, "");
    bench.write(100);
    let (stop, task) = start(config.clone(), false);
    fake.until("the lines", |state| state.lines().len() == 100).await;
    eventually("the reserve", || reserve_bytes(&state) == Some(RESERVE_BYTES)).await;
    stop.stop_now();
    task.await.unwrap().unwrap();
    small.fill();
    let (stop, task) = start(config, false);
    fake.until("the open of another run", |state| state.origins().len() == 2).await;
    assert_eq!(reserve_bytes(&state), None);
    stop.drain();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
}

/// An agent that has sent all it read, with the file system full behind it.
async fn full_behind_an_idle_agent(small: &Small, bench: &Bench, fake: &Fake, leave: bool) -> (Shutdown, Running) {
    let state = small.at.join("state");
    let more = format!("drain_deadline = \"3s\"\nleave_on_stop = {leave}");
    let mut config = bench.config_at(&state, fake, &more);
    config.outbox.min_free = common::units::Size::kib(4);
    // So many hours that their counts do not fit what is left of a page that the file system has given already.
    let line = |n: u64| format!("2026-11-{:02}T{:02}:00:00Z line {n}\n", 1 + n / 20, n % 20);
    fs::write(bench.log(), (0..400).map(line).collect::<String>()).unwrap();
    let (stop, task) = start(config, false);
    fake.until("the lines", |state| state.lines().len() == 400).await;
    eventually("the reserve", || reserve_bytes(&state) == Some(RESERVE_BYTES)).await;
    // Nothing is left that could be given up.
    fs::remove_file(state.join("reserve")).unwrap();
    small.fill();
    (stop, task)
}

async fn closes_once_there_is_room(leave: bool, ends: &str) {
    let Some(small) = Small::mount(32) else { return };
    let (fake, bench) = (Fake::start().await, Bench::new());
    let (stop, task) = full_behind_an_idle_agent(&small, &bench, &fake, leave).await;
    stop.drain();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!task.is_finished(), "it ended without a close");
    fs::remove_file(small.at.join("filler")).unwrap();
    assert_eq!(task.await.unwrap().unwrap(), End::Clean);
    fake.with(|state| assert!(state.first_kinds().ends_with(ends), "{}", state.first_kinds()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_finds_no_room_is_waited_for() {
    closes_once_there_is_room(true, "dc").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_mark_that_finds_no_room_has_the_close_behind_it() {
    closes_once_there_is_room(false, "dmc").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_without_a_stored_close_is_not_clean() {
    let Some(small) = Small::mount(32) else { return };
    let (fake, bench) = (Fake::start().await, Bench::new());
    let (stop, task) = full_behind_an_idle_agent(&small, &bench, &fake, true).await;
    stop.drain();
    let end = task.await.unwrap().unwrap();
    assert!(matches!(&end, End::Unfinished(problems) if problems[0].contains("could not be closed")), "{end:?}");
    fake.with(|state| assert!(!state.first_kinds().contains('c')));
}
