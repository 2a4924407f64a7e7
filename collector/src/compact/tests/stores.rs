//! A store that fails, hangs or loses its answer at one chosen call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::store::{Entry, Renamed, StagedFile, Stat, Store, StoreError, StoreFuture};

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It is answered "not now", and nothing is done.
    Refuse,
    /// It is carried out and not answered.
    LoseAnswer,
    /// It never returns.
    Hang,
    /// It is carried out, and then users delete this file.
    Erase(&'static str),
}

#[derive(Debug, Clone)]
pub struct Faulty {
    pub inner: Arc<dyn Store>,
    /// Calls until the chosen one.
    pub left: Arc<AtomicU64>,
    pub way: Way,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Store>, after: u64, way: Way) -> Self {
        Self { inner, left: Arc::new(AtomicU64::new(after)), way }
    }

    /// Is this the chosen call? Only one is.
    fn strikes(&self) -> bool {
        self.left.fetch_sub(1, Ordering::SeqCst) == 0
    }

    async fn call<T>(
        &self,
        op: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if !self.strikes() {
            return call.await;
        }
        let (path, detail) = (String::new(), "as the test says".to_owned());
        match self.way {
            Way::Refuse => Err(StoreError::Unavailable { op, path, detail }),
            Way::LoseAnswer => {
                drop(call.await);
                Err(StoreError::Unanswered { op, path, detail })
            }
            Way::Hang => std::future::pending().await,
            Way::Erase(gone) => {
                let answer = call.await;
                self.inner.delete(gone, false).await?;
                answer
            }
        }
    }
}

struct FaultyFile {
    store: Faulty,
    inner: Box<dyn StagedFile>,
}

impl StagedFile for FaultyFile {
    fn append(&mut self, bytes: Bytes) -> StoreFuture<'_, ()> {
        Box::pin(async move { self.store.call("write", self.inner.append(bytes)).await })
    }
    fn close(self: Box<Self>) -> StoreFuture<'static, u64> {
        Box::pin(async move { self.store.call("close", self.inner.close()).await })
    }
}

impl Store for Faulty {
    fn make_dirs<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.inner.make_dirs(path, mode)
    }
    fn make_dir_new<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        self.inner.make_dir_new(path, mode)
    }
    fn create<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Box<dyn StagedFile>> {
        Box::pin(async move {
            let inner = self.call("create", self.inner.create(path)).await?;
            Ok(Box::new(FaultyFile { store: self.clone(), inner }) as Box<dyn StagedFile>)
        })
    }
    fn rename_new<'a>(&'a self, from: &'a str, to: &'a str) -> StoreFuture<'a, Renamed> {
        panic!("compaction renames nothing: {from} to {to}")
    }
    fn read<'a>(&'a self, path: &'a str, max_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.inner.read(path, max_bytes)
    }
    fn read_range<'a>(&'a self, path: &'a str, offset: u64, len: usize) -> StoreFuture<'a, Bytes> {
        assert!(len <= 256 << 20, "reads are bounded");
        Box::pin(async move { self.call("read", self.inner.read_range(path, offset, len)).await })
    }
    fn list<'a>(&'a self, dir: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        self.inner.list(dir)
    }
    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>> {
        Box::pin(async move { self.call("stat", self.inner.stat(path)).await })
    }
    fn delete<'a>(&'a self, path: &'a str, recursive: bool) -> StoreFuture<'a, bool> {
        assert!(path.starts_with("_catchment/staging/"), "nothing published is deleted: {path}");
        self.inner.delete(path, recursive)
    }
    fn set_attributes<'a>(&'a self, path: &'a str, _: u32, _: Option<&'a str>) -> StoreFuture<'a, ()> {
        panic!("compaction sets no attributes: {path}")
    }
}
