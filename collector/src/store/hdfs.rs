//! HDFS through `hdfs-native`, behind the one wrapper that this crate may be used by.
//!
//! What it owns, because the crate has none of it: a time-out on every call, error classes by Java class name
//! ([`classify`]), repetition of calls that were answered with safe mode or standby, and writers that are dead after
//! their first error ([`writer`]). A call that timed out was dropped, but its request may be in flight: it is
//! [`StoreError::Unanswered`] and never sent again from here. Nothing is ever overwritten, no parent is made on the
//! way, and `hsync` is not used (it can hang for ever when a DataNode dies).

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use hdfs_native::client::{FileStatus, WriteOptions};
use hdfs_native::{Client, ClientBuilder, HdfsError};
use tokio::time::{Instant, sleep, timeout};

use super::destination::HdfsConfig;
use super::path::{check, check_inner};
use super::{Entry, Renamed, StagedFile, Stat, Store, StoreError, StoreFuture};

mod classify;
mod writer;

use classify::{Effect, classify};

const FILE_MODE: u32 = 0o640;
/// Read per time-out.
const READ_PIECE_BYTES: usize = 4 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The store. Holds the one client of the process: a client that ever opened a file never frees its connection.
pub struct HdfsStore {
    client: Client,
    root: String,
    limits: Limits,
    options: WriteOptions,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    call: Duration,
    write: Duration,
    close: Duration,
    retry_for: Duration,
}

impl std::fmt::Debug for HdfsStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HdfsStore").field("root", &self.root).finish_non_exhaustive()
    }
}

impl HdfsStore {
    /// Reads the Hadoop configuration; connects at the first call.
    pub fn open(authority: &str, root: &str, config: &HdfsConfig) -> Result<Self, String> {
        let mut builder = ClientBuilder::new().with_url(format!("hdfs://{authority}")).with_config([
            // The crate asks for a replacement on every failure of a 3-replica pipeline, also where there is no
            // fourth DataNode, and then gives the file up. A file that ends with fewer replicas is healed by the NameNode.
            ("dfs.client.block.write.replace-datanode-on-failure.policy", "NEVER"),
            // Repetition is ours: the crate's would go on for minutes behind our time-out.
            ("dfs.client.failover.max.attempts", "3"),
            ("dfs.client.failover.sleep.base.millis", "200"),
            ("dfs.client.failover.sleep.max.millis", "1000"),
        ]);
        if let Some(dir) = &config.config_dir {
            builder = builder.with_config_dir(dir.to_string_lossy());
        }
        if let Some(user) = &config.user {
            builder = builder.with_user(user);
        }
        if let (Some(principal), Some(keytab)) = (&config.principal, &config.keytab) {
            builder = builder.with_kerberos_principal(principal).with_kerberos_keytab(keytab.to_string_lossy());
        }
        let mut options = WriteOptions::default().permission(FILE_MODE).overwrite(false).create_parent(false);
        options.replication = config.replication;
        options.block_size = config.block_bytes.map(|size| size.bytes());
        let limits = Limits {
            call: config.call_timeout.get(),
            write: config.write_timeout.get(),
            close: config.close_timeout.get(),
            retry_for: config.retry_for.get(),
        };
        let client = builder.build().map_err(|e| e.to_string())?;
        Ok(Self { client, root: root.to_owned(), limits, options })
    }

    /// The absolute path; the root of the file system when both are empty.
    fn at(&self, path: &str) -> String {
        match (self.root.as_str(), path) {
            (root, "") => root.to_owned(),
            ("/", path) => format!("/{path}"),
            (root, path) => format!("{root}/{path}"),
        }
    }

    /// Calls until it is answered with anything but "not now", at most `retry_for`.
    async fn call<T, F>(
        &self,
        op: &'static str,
        path: &str,
        effect: Effect,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, HdfsError>>,
    {
        let give_up = Instant::now() + self.limits.retry_for;
        let mut pause = FIRST_PAUSE;
        loop {
            match bounded(op, path, effect, self.limits.call, attempt()).await {
                Err(StoreError::Unavailable { .. }) if Instant::now() + pause < give_up => {}
                answer => return answer,
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn status(&self, path: &str) -> Result<Option<FileStatus>, StoreError> {
        let at = self.at(path);
        match self.call("stat", path, Effect::None, || self.client.get_file_info(&at)).await {
            Ok(status) => Ok(Some(status)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn rename(&self, from: &str, to: &str) -> Result<Renamed, StoreError> {
        let (source, target) = (self.at(from), self.at(to));
        let answer = self.call("rename", to, Effect::Change, || async {
            match self.client.rename(&source, &target, false).await {
                Ok(()) => Ok(Renamed::Done),
                Err(error) => classify::rename_answer(&error).ok_or(error),
            }
        });
        answer.await
    }

    /// `mkdirs` answers the same whether it made the directory or found it, so the directory is made under a name
    /// that nobody else has and renamed, which only one of several racers can.
    async fn make_dir_new(&self, path: &str, mode: u32) -> Result<(), StoreError> {
        let unique = format!("{path}.new-{:016x}", rand::random::<u64>());
        check_inner("make directory", &unique)?;
        let at = self.at(&unique);
        self.call("make directory", path, Effect::Change, || self.client.mkdirs(&at, mode, false)).await?;
        let failed = match self.rename(&unique, path).await? {
            Renamed::Done => return Ok(()),
            Renamed::TargetExists => StoreError::AlreadyExists {
                op: "make directory",
                path: path.to_owned(),
                detail: "somebody else made it".into(),
            },
            Renamed::SourceMissing | Renamed::ParentMissing => StoreError::NotFound {
                op: "make directory",
                path: path.to_owned(),
                detail: "its parent does not exist".into(),
            },
        };
        // Empty and of no use; left behind it does no harm.
        let _ = self.call("delete", &unique, Effect::Change, || self.client.delete(&at, false)).await;
        Err(failed)
    }

    /// In pieces, each with a time-out and a reader of its own: one that failed is opened again, elsewhere if need be.
    async fn read_part(&self, path: &str, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let at = self.at(path);
        let mut parts: Vec<Bytes> = Vec::new();
        let mut done = 0;
        while done < len {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(done);
            let wanted = (len - done).min(READ_PIECE_BYTES);
            let read = self.call("read", path, Effect::None, || async {
                let reader = self.client.read(&at).await?;
                // The crate panics over a range beyond the end.
                let there = reader.file_length().saturating_sub(from).min(wanted);
                if there == 0 { Ok(Bytes::new()) } else { reader.read_range(from, there).await }
            });
            let part = read.await?;
            done += part.len();
            let ended = part.len() < wanted;
            parts.push(part);
            if ended {
                break;
            }
        }
        if done < len {
            self.check_end("read", path, offset.saturating_add(done as u64)).await?;
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { parts.concat().into() })
    }

    /// Does the file end here? The client leaves out a last block that no DataNode has reported yet, which a file that
    /// was closed a moment ago may have: a short answer must never be taken for a short file.
    async fn check_end(&self, op: &'static str, path: &str, end: u64) -> Result<(), StoreError> {
        let length = self.status(path).await?.map_or(end, |status| status.length as u64);
        if length <= end {
            return Ok(());
        }
        let detail = format!("only {end} of its {length} bytes can be read yet: its last block is not reported");
        Err(StoreError::Unavailable { op, path: path.to_owned(), detail })
    }

    async fn read_all(&self, path: &str, max_bytes: u64) -> Result<Bytes, StoreError> {
        let at = self.at(path);
        let read = self.call("read", path, Effect::None, || async {
            let mut reader = self.client.read(&at).await?;
            let bytes = reader.file_length();
            if bytes as u64 > max_bytes {
                return Ok(Err(bytes));
            }
            reader.read_bytes(bytes).await.map(Ok)
        });
        let bytes = read.await?.map_err(|bytes| StoreError::Other {
            op: "read",
            path: path.to_owned(),
            detail: format!("it has {bytes} bytes, at most {max_bytes} are expected"),
        })?;
        self.check_end("read", path, bytes.len() as u64).await?;
        Ok(bytes)
    }
}

/// One call with its time-out. A panic inside the crate counts as no answer.
async fn bounded<T>(
    op: &'static str,
    path: &str,
    effect: Effect,
    limit: Duration,
    call: impl Future<Output = Result<T, HdfsError>>,
) -> Result<T, StoreError> {
    let detail = match timeout(limit, AssertUnwindSafe(call).catch_unwind()).await {
        Ok(Ok(Ok(value))) => return Ok(value),
        Ok(Ok(Err(error))) => return Err(classify(op, path, effect, &error)),
        Ok(Err(_panic)) => "the HDFS client panicked".to_owned(),
        Err(_elapsed) => format!("no answer within {limit:?}"),
    };
    let path = path.to_owned();
    Err(match effect {
        Effect::Change | Effect::Write => StoreError::Unanswered { op, path, detail },
        Effect::None => StoreError::Unavailable { op, path, detail },
    })
}

impl Store for HdfsStore {
    fn make_dirs<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check("make directory", path)?;
            let at = self.at(path);
            self.call("make directory", path, Effect::Change, || self.client.mkdirs(&at, mode, true)).await
        })
    }

    fn make_dir_new<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check_inner("make directory", path)?;
            self.make_dir_new(path, mode).await
        })
    }

    fn create<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Box<dyn StagedFile>> {
        Box::pin(async move {
            check_inner("create", path)?;
            let at = self.at(path);
            let writer = self.call("create", path, Effect::Change, || self.client.create(&at, &self.options)).await?;
            let file = writer::HdfsFile::new(writer, self.client.clone(), path.to_owned(), at, self.limits);
            Ok(Box::new(file) as Box<dyn StagedFile>)
        })
    }

    fn rename_new<'a>(&'a self, from: &'a str, to: &'a str) -> StoreFuture<'a, Renamed> {
        Box::pin(async move {
            check_inner("rename", from)?;
            check_inner("rename", to)?;
            self.rename(from, to).await
        })
    }

    fn read<'a>(&'a self, path: &'a str, max_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            check_inner("read", path)?;
            self.read_all(path, max_bytes).await
        })
    }

    fn read_range<'a>(&'a self, path: &'a str, offset: u64, len: usize) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            check_inner("read", path)?;
            self.read_part(path, offset, len).await
        })
    }

    fn list<'a>(&'a self, dir: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        Box::pin(async move {
            check("list", dir)?;
            let at = self.at(dir);
            let found = self.call("list", dir, Effect::None, || self.client.list_status(&at, false)).await?;
            let mut entries: Vec<Entry> = found.into_iter().map(entry).collect();
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        })
    }

    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>> {
        Box::pin(async move {
            check("stat", path)?;
            Ok(self.status(path).await?.map(|status| Stat {
                is_dir: status.isdir,
                bytes: status.length as u64,
                mode: u32::from(status.permission),
                modified_unix_ms: i64::try_from(status.modification_time).unwrap_or(i64::MAX),
            }))
        })
    }

    fn delete<'a>(&'a self, path: &'a str, recursive: bool) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            check_inner("delete", path)?;
            let at = self.at(path);
            self.call("delete", path, Effect::Change, || self.client.delete(&at, recursive)).await
        })
    }

    fn set_attributes<'a>(&'a self, path: &'a str, mode: u32, group: Option<&'a str>) -> StoreFuture<'a, ()> {
        const OP: &str = "set attributes of";
        Box::pin(async move {
            check_inner(OP, path)?;
            let at = self.at(path);
            if group.is_some() {
                self.call(OP, path, Effect::Change, || self.client.set_owner(&at, None, group)).await?;
            }
            self.call(OP, path, Effect::Change, || self.client.set_permission(&at, mode)).await
        })
    }
}

fn entry(status: FileStatus) -> Entry {
    let name = status.path.rsplit('/').next().unwrap_or_default().to_owned();
    Entry { name, is_dir: status.isdir, bytes: status.length as u64 }
}
