//! Markers on a store that fails, is raced, or ends in the middle.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::commit::CommitId;
use crate::log::{Layout, layout};
use crate::seal::marker::{INCOMPLETE, SUCCESS, Text, orphaned_markers, time};
use crate::seal::{Marker, assess, finish_marker, marker};
use crate::store::{DestinationConfig, Entry, Renamed, StagedFile, Stat, Store, StoreError, StoreFuture, open};

/// What happens to one change of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// It is done, and not answered.
    DoneUnanswered,
    /// It is not done, and not answered.
    LostUnanswered,
    /// It is not done now.
    NotNow,
    /// The process ends before it, or after it.
    EndsBefore,
    EndsAfter,
}

/// Changes are counted from 0; the one at `at` meets trouble. `others` is called before each.
struct Troubled {
    inner: Arc<dyn Store>,
    changes: AtomicUsize,
    at: usize,
    trouble: Trouble,
    ended: tokio::sync::Notify,
    before: Mutex<Option<(usize, Marker)>>,
}

impl std::fmt::Debug for Troubled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Troubled").finish_non_exhaustive()
    }
}

impl Troubled {
    fn new(inner: &Arc<dyn Store>, at: usize, trouble: Trouble) -> Self {
        let (inner, changes, ended) = (Arc::clone(inner), AtomicUsize::new(0), tokio::sync::Notify::new());
        Self { inner, changes, at, trouble, ended, before: Mutex::new(None) }
    }

    async fn change<T>(&self, work: StoreFuture<'_, T>) -> Result<T, StoreError> {
        let number = self.changes.fetch_add(1, Ordering::SeqCst);
        let other = self.before.lock().unwrap().take_if(|(at, _)| *at == number);
        if let Some((_, marker)) = other {
            place(&self.inner, "other", 99, &marker).await.unwrap();
        }
        if number != self.at {
            return work.await;
        }
        let (op, path, detail) = ("change", "it".to_owned(), "test".to_owned());
        match self.trouble {
            Trouble::DoneUnanswered => {
                work.await?;
                Err(StoreError::Unanswered { op, path, detail })
            }
            Trouble::LostUnanswered => Err(StoreError::Unanswered { op, path, detail }),
            Trouble::NotNow => Err(StoreError::Unavailable { op, path, detail }),
            Trouble::EndsBefore => self.end().await,
            Trouble::EndsAfter => {
                work.await?;
                self.end().await
            }
        }
    }

    async fn end<T>(&self) -> T {
        self.ended.notify_one();
        std::future::pending().await
    }
}

impl Store for Troubled {
    fn make_dirs<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.inner.make_dirs(path, mode)
    }
    fn make_dir_new<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.inner.make_dir_new(path, mode)
    }
    fn create<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Box<dyn StagedFile>> {
        Box::pin(self.change(self.inner.create(path)))
    }
    fn rename_new<'a>(&'a self, from: &'a str, to: &'a str) -> StoreFuture<'a, Renamed> {
        Box::pin(self.change(self.inner.rename_new(from, to)))
    }
    fn read<'a>(&'a self, path: &'a str, max_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.inner.read(path, max_bytes)
    }
    fn read_range<'a>(&'a self, path: &'a str, offset: u64, bytes: usize) -> StoreFuture<'a, Bytes> {
        self.inner.read_range(path, offset, bytes)
    }
    fn list<'a>(&'a self, dir: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        self.inner.list(dir)
    }
    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>> {
        self.inner.stat(path)
    }
    fn delete<'a>(&'a self, path: &'a str, recursive: bool) -> StoreFuture<'a, bool> {
        Box::pin(self.change(self.inner.delete(path, recursive)))
    }
    fn set_attributes<'a>(&'a self, path: &'a str, mode: u32, group: Option<&'a str>) -> StoreFuture<'a, ()> {
        Box::pin(self.change(self.inner.set_attributes(path, mode, group)))
    }
}

/// A destination with the partition's directory, and markers of the same partition with numbers 3, 5 and 9.
async fn destination() -> (tempfile::TempDir, Arc<dyn Store>, [Marker; 3]) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
    let mut log = Log::new();
    log.publish(vec![Cover::of("a", run(1)).root().data([1])], &[(0, 0)]);
    log.at(28 * HOUR);
    log.publish(vec![Cover::of("a", run(1)).mark(2, 28 * HOUR)], &[]);
    let Verdict::Ready(seal) = log.verdict(0) else { panic!() };
    log.seal(seal);
    let first = marker(&log.view, &key(0)).unwrap();
    let numbered = |number: u64| {
        let mut text: Text = serde_json::from_slice(&first.json).unwrap();
        text.seal = number;
        Marker { number, json: serde_json::to_vec_pretty(&text).unwrap().into(), ..first.clone() }
    };
    store.make_dirs(&key(0).dir(), 0o750).await.unwrap();
    store.make_dirs(layout::STAGING, 0o750).await.unwrap();
    (dir, store, [3, 5, 9].map(numbered))
}

async fn place(store: &Arc<dyn Store>, who: &str, id: u8, marker: &Marker) -> Result<(), StoreError> {
    let layout = Layout::new(who);
    store.make_dirs(&layout.staging(), 0o750).await.unwrap();
    finish_marker(&**store, &layout, CommitId([id; 16]), marker).await
}

async fn number(store: &Arc<dyn Store>) -> Option<u64> {
    let path = format!("{}/{SUCCESS}", key(0).dir());
    let bytes = store.read(&path, 1 << 20).await.ok()?;
    Some(serde_json::from_slice::<Text>(&bytes).unwrap().seal)
}

#[tokio::test(start_paused = true)]
async fn a_lower_one_is_replaced_a_higher_one_never() {
    let (_dir, store, [three, five, nine]) = destination().await;
    place(&store, "c", 1, &three).await.unwrap();
    place(&store, "d", 1, &nine).await.unwrap();
    place(&store, "c", 2, &five).await.unwrap();
    assert_eq!(number(&store).await, Some(9));
    for who in ["c", "d"] {
        let left = store.list(&Layout::new(who).staging()).await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
    let names: Vec<String> = store.list(&key(0).dir()).await.unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [SUCCESS]);
    // A marker that is none of ours.
    store.delete(&nine.path(), false).await.unwrap();
    store.create(&nine.path()).await.unwrap().close().await.unwrap();
    place(&store, "c", 3, &five).await.unwrap();
    assert_eq!(number(&store).await, Some(5));
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_the_highest_whatever_one_change_does() {
    for trouble in [Trouble::DoneUnanswered, Trouble::LostUnanswered, Trouble::NotNow] {
        for at in 0..12 {
            let (_dir, store, [three, five, _]) = destination().await;
            place(&store, "c", 1, &three).await.unwrap();
            let layout = Layout::new("d");
            store.make_dirs(&layout.staging(), 0o750).await.unwrap();
            let troubled = Troubled::new(&store, at, trouble);
            let done = finish_marker(&troubled, &layout, CommitId([2; 16]), &five).await;
            // An error before anything was taken leaves what was there; the caller tries again.
            if done.is_err() {
                assert_eq!(number(&store).await, Some(3), "{trouble:?} at {at}");
                finish_marker(&*store, &layout, CommitId([3; 16]), &five).await.unwrap();
            }
            assert_eq!(number(&store).await, Some(5), "{trouble:?} at {at}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_slow_never_undoes_a_higher_one() {
    for at in 0..6 {
        for before in 0..6 {
            for trouble in [Trouble::DoneUnanswered, Trouble::LostUnanswered] {
                let (_dir, store, [three, five, nine]) = destination().await;
                place(&store, "c", 1, &three).await.unwrap();
                let layout = Layout::new("slow");
                store.make_dirs(&layout.staging(), 0o750).await.unwrap();
                let troubled = Troubled::new(&store, at, trouble);
                *troubled.before.lock().unwrap() = Some((before, nine));
                let done = finish_marker(&troubled, &layout, CommitId([2; 16]), &five).await;
                let there = number(&store).await.unwrap();
                let replaced = troubled.before.lock().unwrap().is_none();
                if replaced {
                    assert_eq!(there, 9, "{trouble:?} at {at}, the other before {before}");
                } else {
                    assert!(there == 5 || done.is_err(), "{trouble:?} at {at}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_ends_in_the_middle_is_finished_by_others() {
    for trouble in [Trouble::EndsBefore, Trouble::EndsAfter] {
        for at in 0..8 {
            for before in [None, Some(at)] {
                let (_dir, store, [three, five, nine]) = destination().await;
                place(&store, "c", 1, &three).await.unwrap();
                let layout = Layout::new("ends");
                store.make_dirs(&layout.staging(), 0o750).await.unwrap();
                let troubled = Troubled::new(&store, at, trouble);
                *troubled.before.lock().unwrap() = before.map(|before| (before, nine.clone()));
                tokio::select! {
                    done = finish_marker(&troubled, &layout, CommitId([2; 16]), &five) => done.unwrap(),
                    () = troubled.ended.notified() => {}
                }
                let replaced = before.is_some() && troubled.before.lock().unwrap().is_none();
                // Whoever deletes its directory looks for what it had taken, and writes that marker again.
                let newest = if replaced { &nine } else { &five };
                let orphaned = orphaned_markers(&*store, &layout.staging()).await.unwrap();
                assert!(number(&store).await.is_some() || orphaned == [key(0)], "{trouble:?} at {at}");
                store.delete(&layout.staging(), true).await.unwrap();
                place(&store, "c", 4, newest).await.unwrap();
                assert_eq!(number(&store).await, Some(newest.number), "{trouble:?} at {at}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_retired_run_takes_nothing_away() {
    let (_dir, store, [three, five, _]) = destination().await;
    place(&store, "c", 1, &three).await.unwrap();
    let done = finish_marker(&*store, &Layout::new("retired"), CommitId([2; 16]), &five).await;
    assert!(matches!(done, Err(StoreError::NotFound { .. })), "{done:?}");
    assert_eq!(number(&store).await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn many_at_once_end_with_the_highest() {
    let (_dir, store, [three, five, nine]) = destination().await;
    let all = [&three, &five, &nine, &three, &nine, &five];
    let work = all.iter().enumerate().map(|(at, marker)| {
        let (store, who) = (Arc::clone(&store), format!("c{at}"));
        async move { place(&store, &who, at as u8, marker).await }
    });
    for done in futures::future::join_all(work).await {
        done.unwrap();
    }
    assert_eq!(number(&store).await, Some(9));
}

#[tokio::test]
async fn a_partition_whose_directory_was_removed_gets_none() {
    let (_dir, store, [three, ..]) = destination().await;
    store.delete(&key(0).dir(), true).await.unwrap();
    place(&store, "c", 1, &three).await.unwrap();
    assert_eq!(store.stat(&key(0).dir()).await.unwrap(), None);
}

#[test]
fn the_text_has_stable_keys_and_counts_what_came_late() {
    let mut log = Log::new();
    log.at(21 * HOUR);
    log.publish(vec![Cover::of("web-1", run(1)).root().data([1]).mark(2, 20 * HOUR)], &[(0, 0)]);
    log.at(32 * HOUR);
    assert_eq!(marker(&log.view, &key(0)), None, "it is not sealed");
    let Verdict::Ready(seal) = log.verdict(0) else { panic!() };
    log.seal(seal);
    let late = wire::PublishedFile {
        kind: wire::FileKind::Data as i32,
        r#final: "d/event_date=1970-01-01/late.zst".into(),
        dataset: "d".into(),
        late_of: "d".into(),
        partition: Some(key(0).partition.into()),
        bytes: 5,
        events: 2,
        ..Default::default()
    };
    let covers = vec![Cover::of("web-1", run(1)).data([3]).0];
    log.record(Action::Publish(wire::Publish { files: vec![late], covers }));
    let marker = marker(&log.view, &key(0)).unwrap();
    assert_eq!((marker.name, marker.number, marker.path()), (INCOMPLETE, 2, format!("{}/_INCOMPLETE", key(0).dir())));
    let expected = format!(
        r#"{{
  "format": 1,
  "dataset": "d",
  "partition": "event_date=1970-01-01",
  "complete": false,
  "events": 3,
  "files": 2,
  "bytes": 15,
  "late_events": 2,
  "late_files": 1,
  "seal": 2,
  "sealed_at": "1970-01-02T08:00:00.000Z",
  "gaps": [
    {{
      "agent": "web-1",
      "reason": "silent",
      "origin": "{}",
      "last_mark": "1970-01-01T20:00:00.000Z"
    }}
  ],
  "message": "incomplete: events of web-1 may be missing, see gaps"
}}
"#,
        run(1)
    );
    assert_eq!(std::str::from_utf8(&marker.json).unwrap(), expected);
    assert_eq!(time(1), "1970-01-01T00:00:00.001Z");
    assert!(assess(&log.rule(), &log.view, &key(0), log.now).is_none(), "it is sealed");
}
