//! A store for tests that tells of its calls before it makes them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::{Entry, Renamed, StagedFile, Stat, Store, StoreFuture};

/// One of the calls that are told.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    /// A directory is listed.
    List(&'a str),
    /// A mode, and maybe a group, is given.
    SetAttributes {
        /// To what.
        path: &'a str,
        /// Permission bits.
        mode: u32,
        /// Its name.
        group: Option<&'a str>,
    },
}

/// See the module.
pub struct Observed<F> {
    inner: Arc<dyn Store>,
    before: F,
}

impl<F: Fn(&Call<'_>) + Send + Sync> Observed<F> {
    /// `before` is told of each call.
    pub fn new(inner: Arc<dyn Store>, before: F) -> Self {
        Self { inner, before }
    }
}

impl<F> fmt::Debug for Observed<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").finish_non_exhaustive()
    }
}

impl<F: Fn(&Call<'_>) + Send + Sync> Store for Observed<F> {
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
        (self.before)(&Call::List(dir));
        self.inner.list(dir)
    }
    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>> {
        self.inner.stat(path)
    }
    fn delete<'a>(&'a self, path: &'a str, recursive: bool) -> StoreFuture<'a, bool> {
        self.inner.delete(path, recursive)
    }
    fn set_attributes<'a>(&'a self, path: &'a str, mode: u32, group: Option<&'a str>) -> StoreFuture<'a, ()> {
        (self.before)(&Call::SetAttributes { path, mode, group });
        self.inner.set_attributes(path, mode, group)
    }
}
