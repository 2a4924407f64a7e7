//! A collector whose clock and the destination's differ: it says so, stays ready, and goes on by itself when they agree.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use collector::config::Config;
use collector::run::Collector;
use collector::store::{self, Entry, Renamed, StagedFile, Stat, Store, StoreFuture};
use common::supervise::Shutdown;

const PATIENCE: Duration = Duration::from_secs(30);
const HOUR_MS: i64 = 3_600_000;

/// A store whose clock is so far behind, milliseconds.
#[derive(Debug)]
struct Behind {
    inner: Arc<dyn Store>,
    by_ms: Arc<AtomicI64>,
}

impl Store for Behind {
    fn make_dirs<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.inner.make_dirs(path, mode)
    }
    fn make_dir_new<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.inner.make_dir_new(path, mode)
    }
    fn create<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Box<dyn StagedFile>> {
        self.inner.create(path)
    }
    fn rename_new<'a>(&'a self, from: &'a str, to: &'a str) -> StoreFuture<'a, Renamed> {
        self.inner.rename_new(from, to)
    }
    fn read<'a>(&'a self, path: &'a str, max_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.inner.read(path, max_bytes)
    }
    fn read_range<'a>(&'a self, path: &'a str, offset: u64, len: usize) -> StoreFuture<'a, Bytes> {
        self.inner.read_range(path, offset, len)
    }
    fn list<'a>(&'a self, dir: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        self.inner.list(dir)
    }
    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>> {
        Box::pin(async move {
            let by = self.by_ms.load(Ordering::SeqCst);
            let stat = self.inner.stat(path).await?;
            Ok(stat.map(|stat| Stat { modified_unix_ms: stat.modified_unix_ms - by, ..stat }))
        })
    }
    fn delete<'a>(&'a self, path: &'a str, recursive: bool) -> StoreFuture<'a, bool> {
        self.inner.delete(path, recursive)
    }
    fn set_attributes<'a>(&'a self, path: &'a str, mode: u32, group: Option<&'a str>) -> StoreFuture<'a, ()> {
        self.inner.set_attributes(path, mode, group)
    }
}

fn config(root: &Path) -> Config {
    let text = format!(
        "name = \"col-1\"\nlisten = \"127.0.0.1:0\"\n[destination]\nurl = \"file://{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [housekeeping]\nheartbeat = \"1s\"\nretire_after = \"4s\"\n\
         [[datasets]]\nname = \"d\"\n",
        root.display()
    );
    common::config::parse(&text).unwrap()
}

#[tokio::test]
async fn a_clock_that_is_ahead_is_told_until_it_is_set_right() {
    let dir = tempfile::tempdir().unwrap();
    let by_ms = Arc::new(AtomicI64::new(8 * HOUR_MS));
    let config = config(dir.path());
    let inner = store::open(&config.destination).unwrap();
    let store = Arc::new(Behind { inner, by_ms: Arc::clone(&by_ms) });
    let shutdown = Shutdown::new(Duration::from_secs(5));
    let mut collector = Collector::start_on(config, store, shutdown.clone()).await.unwrap();
    let told = collector.status.wait_for(|snapshot| snapshot.trouble.is_some());
    let told = tokio::time::timeout(PATIENCE, told).await.expect("it looks at every sign of life").unwrap().clone();
    let trouble = told.trouble.unwrap();
    assert!(trouble.starts_with("the clock of this machine is 28") && trouble.contains("ahead of"), "{trouble}");
    assert!(told.clock_ahead_ms > 7 * HOUR_MS && told.held_up.is_none(), "commits go on");
    by_ms.store(0, Ordering::SeqCst);
    let right = collector.status.wait_for(|snapshot| snapshot.trouble.is_none());
    let right = tokio::time::timeout(PATIENCE, right).await.expect("it looks again").unwrap().clone();
    assert!(right.clock_ahead_ms.abs() < 60_000, "{}", right.clock_ahead_ms);
    shutdown.drain();
    tokio::time::timeout(PATIENCE, collector.join()).await.expect("it ends").unwrap();
}
