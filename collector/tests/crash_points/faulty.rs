//! The store as one run sees it: at its k-th change it goes wrong in a chosen way. Also keeps every record of the log
//! that was ever there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use collector::store::{Entry, Renamed, StagedFile, Stat, Store, StoreError, StoreFuture};
use tokio::sync::{Notify, watch};

use crate::base::Base;
use crate::kinds::Change;
use crate::store::Kept;

/// What happens at the k-th change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The process ends before it is sent.
    CrashBefore,
    /// The process ends after it was carried out, before the answer came.
    CrashAfter,
    /// Carried out, not answered; the process goes on.
    ReplyLost,
    /// Not carried out, not answered.
    Lost,
    /// Not answered, carried out later.
    Late,
    /// The process is stopped with the change under way; that is carried out, and the process goes on, at the release.
    Freeze,
}

/// How late a late change is.
const LATE: Duration = Duration::from_secs(90);

/// Every record that the log ever had, by path.
pub type Archive = Arc<Mutex<BTreeMap<String, Bytes>>>;

#[derive(Debug)]
pub struct Switch {
    at: u64,
    mode: Mode,
    /// Every change that was asked for, in order.
    trace: Mutex<Vec<Change>>,
    dead: AtomicBool,
    /// While it is set nothing gets into a partition.
    pub refuses: AtomicBool,
    /// While it is set no directory of a retired run is touched: only the log says that it is retired.
    pub spares: AtomicBool,
    /// Notified at the k-th change if the process ends or stops there.
    pub struck: Notify,
    /// True while the process is stopped.
    pub frozen: watch::Sender<bool>,
}

impl Switch {
    pub fn new(at: u64, mode: Mode) -> Arc<Self> {
        Arc::new(Self {
            at,
            mode,
            trace: Mutex::default(),
            dead: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            spares: AtomicBool::new(false),
            struck: Notify::new(),
            frozen: watch::channel(false).0,
        })
    }

    pub fn count(&self) -> u64 {
        self.trace.lock().unwrap().len() as u64
    }

    /// Every change that was asked for, in order.
    pub fn trace(&self) -> Vec<Change> {
        self.trace.lock().unwrap().clone()
    }

    /// The change at which it went wrong.
    pub fn hit(&self) -> Option<Change> {
        self.trace.lock().unwrap().get(usize::try_from(self.at).ok()?).cloned()
    }

    /// Notes a change; its number.
    fn note(&self, change: Change) -> u64 {
        let mut trace = self.trace.lock().unwrap();
        trace.push(change);
        trace.len() as u64 - 1
    }

    pub fn release(&self) {
        self.frozen.send_replace(false);
    }

    pub async fn thawed(&self) {
        let mut frozen = self.frozen.subscribe();
        frozen.wait_for(|frozen| !frozen).await.expect("the switch lives");
    }
}

/// Cheap to clone: one run's store.
#[derive(Debug, Clone)]
pub struct FaultyStore {
    pub inner: Arc<dyn Store>,
    pub kept: Base,
    pub archive: Archive,
    pub switch: Arc<Switch>,
}

fn unanswered(op: &'static str, path: &str) -> StoreError {
    StoreError::Unanswered { op, path: path.to_owned(), detail: "as the test says".into() }
}

impl FaultyStore {
    /// A change, which may be carried out though nobody waits for it any more.
    async fn change<T: Send + 'static>(
        &self,
        op: &'static str,
        path: &str,
        act: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.change_from(op, None, path, act).await
    }

    async fn change_from<T: Send + 'static>(
        &self,
        op: &'static str,
        from: Option<&str>,
        path: &str,
        act: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let switch = &self.switch;
        self.wait().await;
        let count = switch.note(Change { op, from: from.map(str::to_owned), path: path.to_owned() });
        if count != switch.at {
            // What was sent is carried out, and noted, though the process ends meanwhile.
            return tokio::spawn(act).await.expect("the store does not panic");
        }
        match switch.mode {
            Mode::CrashBefore | Mode::CrashAfter => {
                if switch.mode == Mode::CrashAfter {
                    let _ = act.await;
                }
                switch.dead.store(true, Ordering::SeqCst);
                switch.struck.notify_one();
                std::future::pending().await
            }
            Mode::ReplyLost => {
                let _ = act.await;
                Err(unanswered(op, path))
            }
            Mode::Lost => Err(unanswered(op, path)),
            Mode::Late => {
                tokio::spawn(async move {
                    tokio::time::sleep(LATE).await;
                    let _ = act.await;
                });
                Err(unanswered(op, path))
            }
            Mode::Freeze => {
                switch.frozen.send_replace(true);
                switch.struck.notify_one();
                let thaw = Arc::clone(switch);
                let late = tokio::spawn(async move {
                    thaw.thawed().await;
                    act.await
                });
                late.await.expect("the store does not panic")
            }
        }
    }

    /// A process that has ended, or is stopped, sends nothing.
    async fn wait(&self) {
        self.switch.thawed().await;
        if self.switch.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

impl Store for FaultyStore {
    fn make_dirs<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        let (inner, at) = (self.inner.clone(), path.to_owned());
        Box::pin(self.change("make_dirs", path, async move { inner.make_dirs(&at, mode).await }))
    }

    fn make_dir_new<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        let (inner, at) = (self.inner.clone(), path.to_owned());
        Box::pin(self.change("make_dir_new", path, async move { inner.make_dir_new(&at, mode).await }))
    }

    fn create<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Box<dyn StagedFile>> {
        let (inner, at, store) = (self.inner.clone(), path.to_owned(), self.clone());
        Box::pin(self.change("create", path, async move {
            let file = inner.create(&at).await?;
            Ok(Box::new(FaultyFile { store, path: at, file }) as Box<dyn StagedFile>)
        }))
    }

    fn rename_new<'a>(&'a self, from: &'a str, to: &'a str) -> StoreFuture<'a, Renamed> {
        let (inner, source, target) = (self.inner.clone(), from.to_owned(), to.to_owned());
        let (archive, kept) = (Arc::clone(&self.archive), self.kept.clone());
        if self.switch.spares.load(Ordering::SeqCst) && to.ends_with(".gone") {
            let detail = "as the test says".into();
            return Box::pin(async move { Err(StoreError::Unavailable { op: "rename", path: to.to_owned(), detail }) });
        }
        if self.switch.refuses.load(Ordering::SeqCst) && to.starts_with("d/") {
            let detail = "as the test says".into();
            return Box::pin(async move { Err(StoreError::Unavailable { op: "rename", path: to.to_owned(), detail }) });
        }
        Box::pin(self.change_from("rename", Some(from), to, async move {
            let renamed = inner.rename_new(&source, &target).await?;
            if renamed == Renamed::Done && target.starts_with("_catchment/commits/") {
                let bytes = kept.file(&target).expect("it was just renamed");
                let before = archive.lock().unwrap().insert(target.clone(), bytes);
                assert!(before.is_none(), "HOLE: {target} was there before, and freed");
            }
            Ok(renamed)
        }))
    }

    fn read<'a>(&'a self, path: &'a str, max_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            self.wait().await;
            self.inner.read(path, max_bytes).await
        })
    }

    fn read_range<'a>(&'a self, path: &'a str, offset: u64, len: usize) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            self.wait().await;
            self.inner.read_range(path, offset, len).await
        })
    }

    fn list<'a>(&'a self, dir: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        Box::pin(async move {
            self.wait().await;
            self.inner.list(dir).await
        })
    }

    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>> {
        Box::pin(async move {
            self.wait().await;
            self.inner.stat(path).await
        })
    }

    fn delete<'a>(&'a self, path: &'a str, recursive: bool) -> StoreFuture<'a, bool> {
        let (inner, at) = (self.inner.clone(), path.to_owned());
        Box::pin(self.change("delete", path, async move { inner.delete(&at, recursive).await }))
    }

    fn set_attributes<'a>(&'a self, path: &'a str, mode: u32, group: Option<&'a str>) -> StoreFuture<'a, ()> {
        let (inner, at, group) = (self.inner.clone(), path.to_owned(), group.map(str::to_owned));
        Box::pin(self.change(
            "set_attributes",
            path,
            async move { inner.set_attributes(&at, mode, group.as_deref()).await },
        ))
    }
}

struct FaultyFile {
    store: FaultyStore,
    path: String,
    file: Box<dyn StagedFile>,
}

impl StagedFile for FaultyFile {
    fn append(&mut self, bytes: Bytes) -> StoreFuture<'_, ()> {
        self.file.append(bytes)
    }

    fn close(self: Box<Self>) -> StoreFuture<'static, u64> {
        let Self { store, path, file } = *self;
        Box::pin(async move { store.change("close", &path, file.close()).await })
    }
}
