//! Where partitions, the commit log and everything else of a destination live: one trait, one implementation per
//! kind of destination, the same guarantees from each (held by one conformance suite, [`conformance`]).
//!
//! Invariant: nothing here ever replaces or truncates what exists. A file is created exclusively, written once,
//! durable when closed, and gets its final name by a rename that fails if that name is taken.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

pub mod conformance;
mod destination;
mod hdfs;
mod local;
#[cfg(test)]
pub(crate) mod observed;
mod path;

pub use destination::{DestinationConfig, HdfsConfig};

/// What the methods of [`Store`] and [`StagedFile`] return.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A destination. Paths are relative to its root, with `/` between parts and without empty, `.` or `..` parts;
/// the empty path is the root itself. Every call ends within the time-outs of its configuration.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Makes a directory and its missing parents with `mode`; done as well if it is there. For directories that are shared.
    fn make_dirs<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()>;

    /// Makes a directory that nobody else may have made: [`StoreError::AlreadyExists`] otherwise, for all but one of
    /// several racers. Its parent must exist.
    fn make_dir_new<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()>;

    /// Creates a file exclusively; its parent must exist. It is readable by its owner and group only.
    fn create<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Box<dyn StagedFile>>;

    /// Renames a file or directory WITHOUT ever replacing anything; durable when answered. Of several racers for one
    /// name exactly one gets [`Renamed::Done`].
    fn rename_new<'a>(&'a self, from: &'a str, to: &'a str) -> StoreFuture<'a, Renamed>;

    /// Reads a whole closed file of at most `max_bytes`; a longer one is [`StoreError::Other`].
    fn read<'a>(&'a self, path: &'a str, max_bytes: u64) -> StoreFuture<'a, Bytes>;

    /// Reads `len` bytes of a closed file from `offset` on; fewer only where the file ends, none behind its end. For files
    /// that the log names, piece by piece: a caller's memory holds one piece.
    fn read_range<'a>(&'a self, path: &'a str, offset: u64, len: usize) -> StoreFuture<'a, Bytes>;

    /// What a directory holds, by name. A missing one is [`StoreError::NotFound`].
    fn list<'a>(&'a self, dir: &'a str) -> StoreFuture<'a, Vec<Entry>>;

    /// What stands under a name, if anything.
    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>>;

    /// Deletes a file or directory (with what it holds if `recursive`); false if there was none.
    fn delete<'a>(&'a self, path: &'a str, recursive: bool) -> StoreFuture<'a, bool>;

    /// Sets permission bits and, if given, the group (a name).
    fn set_attributes<'a>(&'a self, path: &'a str, mode: u32, group: Option<&'a str>) -> StoreFuture<'a, ()>;
}

/// A file while it is written. After its first error every later call fails: what it holds is not known any more.
pub trait StagedFile: Send {
    /// Adds bytes at the end. Not durable yet.
    fn append(&mut self, bytes: Bytes) -> StoreFuture<'_, ()>;

    /// Ends the file and makes it durable; the length the store has for it, to be compared with what was written.
    /// A file that is dropped without this must never be named by a commit.
    fn close(self: Box<Self>) -> StoreFuture<'static, u64>;
}

/// How a rename without overwrite ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renamed {
    /// The file has its new name.
    Done,
    /// Something stands under the new name; nothing was changed.
    TargetExists,
    /// Nothing stands under the old name; nothing was changed.
    SourceMissing,
    /// The directory of the new name does not exist; nothing was changed.
    ParentMissing,
}

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Last part of the path.
    pub name: String,
    /// Directory or file.
    pub is_dir: bool,
    /// Length in bytes, 0 for a directory.
    pub bytes: u64,
}

/// What stands under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Directory or file.
    pub is_dir: bool,
    /// Length in bytes, 0 for a directory.
    pub bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Last modification, milliseconds since the epoch, by the clock of the store.
    pub modified_unix_ms: i64,
}

/// How far an error reaches: whether it says anything about other paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The store as a whole is away, or says nothing: hold everything that needs it.
    Store,
    /// This path alone: go on with the others.
    Path,
}

/// Why a call of a store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Timed out, or the link broke, with a change under way: it may still be carried out later. Settle it.
    #[error("{op} {path} was not answered and may still be carried out: {detail}")]
    Unanswered {
        /// The operation.
        op: &'static str,
        /// Its path.
        path: String,
        /// What was seen.
        detail: String,
    },
    /// The store as a whole, answered or never sent: nothing was done and it can be tried again later. Also any read
    /// without an answer.
    #[error("{op} {path} is not possible now, try later: {detail}")]
    Unavailable {
        /// The operation.
        op: &'static str,
        /// Its path.
        path: String,
        /// What the store said.
        detail: String,
    },
    /// A quota of this path's directory is used up: nothing was done. Other paths go on, and this one once there is
    /// room.
    #[error("{op} {path}: a quota is used up; raise it or make room below that directory: {detail}")]
    Full {
        /// The operation.
        op: &'static str,
        /// Its path.
        path: String,
        /// What the store said.
        detail: String,
    },
    /// The path, or its parent, does not exist.
    #[error("{op} {path}: there is no such file or directory: {detail}")]
    NotFound {
        /// The operation.
        op: &'static str,
        /// Its path.
        path: String,
        /// What the store said.
        detail: String,
    },
    /// Something stands under that name already. It need not be complete.
    #[error("{op} {path}: it exists already: {detail}")]
    AlreadyExists {
        /// The operation.
        op: &'static str,
        /// Its path.
        path: String,
        /// What the store said.
        detail: String,
    },
    /// The store refuses this user.
    #[error("{op} {path}: permission denied; give the collector's user access to it: {detail}")]
    Permission {
        /// The operation.
        op: &'static str,
        /// Its path.
        path: String,
        /// What the store said.
        detail: String,
    },
    /// Anything else; trying again does not help.
    #[error("{op} {path} failed: {detail}")]
    Other {
        /// The operation.
        op: &'static str,
        /// Its path.
        path: String,
        /// What the store said.
        detail: String,
    },
}

impl StoreError {
    /// Is the store away, or is it this path?
    pub fn reach(&self) -> Reach {
        match self {
            Self::Unanswered { .. } | Self::Unavailable { .. } => Reach::Store,
            Self::Full { .. } | Self::NotFound { .. } | Self::AlreadyExists { .. } => Reach::Path,
            Self::Permission { .. } | Self::Other { .. } => Reach::Path,
        }
    }
}

/// A destination that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreOpenError {
    /// The url is not one of ours.
    #[error("destination.url {url:?} is not file:///DIR or hdfs://HOST:PORT/DIR: {detail}")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The directory or the client cannot be used.
    #[error("the destination {url} cannot be opened: {detail}")]
    Open {
        /// As configured.
        url: String,
        /// What was seen.
        detail: String,
    },
}

/// Opens the destination. A local root is made if it is missing; HDFS is not called yet. Call it within a tokio
/// runtime, and once per process: an HDFS client lives as long as the process.
pub fn open(config: &DestinationConfig) -> Result<Arc<dyn Store>, StoreOpenError> {
    match config.target()? {
        destination::Target::Local(root) => {
            let store = local::LocalStore::open(&root)
                .map_err(|e| StoreOpenError::Open { url: config.url.clone(), detail: e.to_string() })?;
            Ok(Arc::new(store))
        }
        destination::Target::Hdfs { authority, root } => {
            let store = hdfs::HdfsStore::open(&authority, &root, &config.hdfs)
                .map_err(|detail| StoreOpenError::Open { url: config.url.clone(), detail })?;
            Ok(Arc::new(store))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_local_destination_conforms() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/made/on/open", dir.path().display());
        let store = open(&DestinationConfig { url, hdfs: HdfsConfig::default() }).unwrap();
        conformance::run(store, "t").await.unwrap();
    }
}
