//! A store whose calls can be cut: after so many more, one is carried out and never answered, and the rest never begin.
//! So a run dies between any two of its steps, and its last one is done or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use collector::store::{Entry, Renamed, StagedFile, Stat, Store, StoreError, StoreFuture};
use tokio_util::sync::CancellationToken;

/// Calls that are left.
#[derive(Debug, Clone)]
pub struct Cut {
    left: Arc<AtomicI64>,
    gone: CancellationToken,
}

impl Default for Cut {
    fn default() -> Self {
        Self { left: Arc::new(AtomicI64::new(i64::MAX)), gone: CancellationToken::new() }
    }
}

impl Cut {
    pub fn after(&self, calls: i64) {
        self.left.store(calls, Ordering::SeqCst);
    }

    pub fn is_cut(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }

    /// The run is gone: whatever of it still waits for an answer gets an error, and ends. In a process of its own it
    /// would have ended with it.
    pub fn bury(&self) {
        self.after(-1);
        self.gone.cancel();
    }

    fn pass<'a, T: Send + 'a>(&self, call: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        let Self { left, gone } = self.clone();
        Box::pin(async move {
            let left = left.fetch_sub(1, Ordering::SeqCst);
            if left >= 0 {
                let answer = call.await;
                if left > 0 {
                    return answer;
                }
            }
            gone.cancelled().await;
            Err(StoreError::Other { op: "any", path: String::new(), detail: "this run is dead".into() })
        })
    }
}

#[derive(Debug)]
pub struct CutStore {
    pub inner: Arc<dyn Store>,
    pub cut: Cut,
}

impl Store for CutStore {
    fn make_dirs<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.cut.pass(self.inner.make_dirs(path, mode))
    }
    fn make_dir_new<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.cut.pass(self.inner.make_dir_new(path, mode))
    }
    fn create<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Box<dyn StagedFile>> {
        let cut = self.cut.clone();
        let created = self.cut.pass(self.inner.create(path));
        Box::pin(async move { Ok(Box::new(CutFile { inner: created.await?, cut }) as Box<dyn StagedFile>) })
    }
    fn rename_new<'a>(&'a self, from: &'a str, to: &'a str) -> StoreFuture<'a, Renamed> {
        self.cut.pass(self.inner.rename_new(from, to))
    }
    fn read<'a>(&'a self, path: &'a str, max_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.cut.pass(self.inner.read(path, max_bytes))
    }
    fn read_range<'a>(&'a self, path: &'a str, offset: u64, len: usize) -> StoreFuture<'a, Bytes> {
        self.cut.pass(self.inner.read_range(path, offset, len))
    }
    fn list<'a>(&'a self, dir: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        self.cut.pass(self.inner.list(dir))
    }
    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>> {
        self.cut.pass(self.inner.stat(path))
    }
    fn delete<'a>(&'a self, path: &'a str, recursive: bool) -> StoreFuture<'a, bool> {
        self.cut.pass(self.inner.delete(path, recursive))
    }
    fn set_attributes<'a>(&'a self, path: &'a str, mode: u32, group: Option<&'a str>) -> StoreFuture<'a, ()> {
        self.cut.pass(self.inner.set_attributes(path, mode, group))
    }
}

struct CutFile {
    inner: Box<dyn StagedFile>,
    cut: Cut,
}

impl StagedFile for CutFile {
    fn append(&mut self, bytes: Bytes) -> StoreFuture<'_, ()> {
        let cut = self.cut.clone();
        cut.pass(self.inner.append(bytes))
    }
    fn close(self: Box<Self>) -> StoreFuture<'static, u64> {
        self.cut.pass(self.inner.close())
    }
}
