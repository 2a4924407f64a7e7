//! A store in memory that fails as HDFS does: every change may be carried out and not answered, carried out late, or
//! lost; a dropped call goes on. Reads are consistent. All choices come from one seeded generator.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use collector::store::{Entry, Renamed, StagedFile, Stat, Store, StoreError, StoreFuture};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

#[derive(Debug, Clone)]
pub enum Node {
    Dir,
    Open,
    File(Bytes),
}

/// Chances out of 1000, per change.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Carried out, not answered.
    pub reply_lost: u32,
    /// Not answered, carried out later.
    pub late: u32,
    /// Not answered, never carried out.
    pub lost: u32,
    /// Answered "not now".
    pub unavailable: u32,
    /// A close that is answered only after a minute.
    pub slow_close: u32,
}

#[derive(Debug)]
struct State {
    nodes: BTreeMap<String, Node>,
    rng: SmallRng,
    faults: Faults,
    down: bool,
    /// Changes that were carried out although nobody was told.
    pub silent: u64,
}

/// Cheap to clone: one store.
#[derive(Debug, Clone)]
pub struct MemStore(Arc<Mutex<State>>);

#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Fine,
    ReplyLost,
    Late,
    Lost,
    Unavailable,
}

fn size(node: &Node) -> u64 {
    match node {
        Node::File(bytes) => bytes.len() as u64,
        Node::Dir | Node::Open => 0,
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn unanswered(op: &'static str, path: &str) -> StoreError {
    StoreError::Unanswered { op, path: path.to_owned(), detail: "timed out".into() }
}

fn unavailable(op: &'static str, path: &str) -> StoreError {
    StoreError::Unavailable { op, path: path.to_owned(), detail: "standby".into() }
}

fn missing(op: &'static str, path: &str) -> StoreError {
    StoreError::NotFound { op, path: path.to_owned(), detail: String::new() }
}

/// Files as they lie there, whatever a store answers.
pub trait Kept {
    /// Everything below `dir` that is a closed file, in order.
    fn files_below(&self, dir: &str) -> Vec<(String, Bytes)>;
    /// A closed file.
    fn file(&self, path: &str) -> Option<Bytes>;
}

impl Kept for MemStore {
    fn files_below(&self, dir: &str) -> Vec<(String, Bytes)> {
        MemStore::files_below(self, dir)
    }

    fn file(&self, path: &str) -> Option<Bytes> {
        MemStore::file(self, path)
    }
}

#[allow(dead_code, reason = "several tests take this store in, each uses a part of it")]
impl MemStore {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let nodes = BTreeMap::from([(String::new(), Node::Dir)]);
        let rng = SmallRng::seed_from_u64(seed);
        Self(Arc::new(Mutex::new(State { nodes, rng, faults, down: false, silent: 0 })))
    }

    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
    }

    pub fn silent(&self) -> u64 {
        self.lock().silent
    }

    /// Everything below `dir` that is a closed file.
    pub fn files_below(&self, dir: &str) -> Vec<(String, Bytes)> {
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let state = self.lock();
        let files = state.nodes.iter().filter(|(path, _)| path.starts_with(&prefix));
        files
            .filter_map(|(path, node)| match node {
                Node::File(bytes) => Some((path.clone(), bytes.clone())),
                Node::Dir | Node::Open => None,
            })
            .collect()
    }

    /// Everything below `dir`, directories and open files too.
    pub fn all_below(&self, dir: &str) -> Vec<String> {
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        self.lock().nodes.keys().filter(|path| path.starts_with(&prefix) && !path.is_empty()).cloned().collect()
    }

    pub fn file(&self, path: &str) -> Option<Bytes> {
        match self.lock().nodes.get(path) {
            Some(Node::File(bytes)) => Some(bytes.clone()),
            _ => None,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn delay(&self) -> Duration {
        let mut state = self.lock();
        let longest = if state.rng.random_ratio(1, 20) { 2_000_000 } else { 20_000 };
        Duration::from_micros(state.rng.random_range(100..longest))
    }

    fn fate(&self) -> Fate {
        let mut state = self.lock();
        if state.down {
            return Fate::Unavailable;
        }
        let roll = state.rng.random_range(0..1000);
        let faults = state.faults;
        let mut below = faults.reply_lost;
        for (fate, next) in [
            (Fate::ReplyLost, faults.late),
            (Fate::Late, faults.lost),
            (Fate::Lost, faults.unavailable),
            (Fate::Unavailable, 0),
        ] {
            if roll < below {
                return fate;
            }
            below += next;
        }
        Fate::Fine
    }

    /// A change: carried out by a task of its own, whatever becomes of the caller.
    fn change<'a, T: Send + 'static>(
        &'a self,
        op: &'static str,
        path: &'a str,
        act: impl FnOnce(&mut BTreeMap<String, Node>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'a, T> {
        let (before, after, fate) = (self.delay(), self.delay(), self.fate());
        let (store, late) = (self.clone(), self.lock().rng.random_range(1..90));
        let carried_out = tokio::spawn(async move {
            tokio::time::sleep(before).await;
            match fate {
                Fate::Lost | Fate::Unavailable => return None,
                Fate::Late => tokio::time::sleep(Duration::from_secs(late)).await,
                Fate::Fine | Fate::ReplyLost => {}
            }
            let mut state = store.lock();
            let result = act(&mut state.nodes);
            if fate != Fate::Fine && result.is_ok() {
                state.silent += 1;
            }
            Some(result)
        });
        Box::pin(async move {
            match fate {
                Fate::Unavailable => {
                    tokio::time::sleep(before).await;
                    Err(unavailable(op, path))
                }
                Fate::ReplyLost | Fate::Late | Fate::Lost => {
                    tokio::time::sleep(before + after + Duration::from_secs(1)).await;
                    Err(unanswered(op, path))
                }
                Fate::Fine => {
                    let result = carried_out.await.expect("the store does not panic").expect("it is carried out");
                    tokio::time::sleep(after).await;
                    result
                }
            }
        })
    }

    fn look<'a, T: Send + 'static>(
        &'a self,
        op: &'static str,
        path: &'a str,
        act: impl FnOnce(&BTreeMap<String, Node>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'a, T> {
        let (before, fate) = (self.delay(), self.fate());
        Box::pin(async move {
            tokio::time::sleep(before).await;
            if fate != Fate::Fine {
                return Err(unavailable(op, path));
            }
            act(&self.lock().nodes)
        })
    }
}

impl Store for MemStore {
    fn make_dirs<'a>(&'a self, path: &'a str, _: u32) -> StoreFuture<'a, ()> {
        let all = path.to_owned();
        self.change("make_dirs", path, move |nodes| {
            let mut at = all.as_str();
            while !at.is_empty() {
                nodes.entry(at.to_owned()).or_insert(Node::Dir);
                at = parent(at);
            }
            Ok(())
        })
    }

    fn make_dir_new<'a>(&'a self, path: &'a str, _: u32) -> StoreFuture<'a, ()> {
        let at = path.to_owned();
        self.change("make_dir_new", path, move |nodes| match nodes.insert(at.clone(), Node::Dir) {
            None => Ok(()),
            Some(_) => Err(StoreError::AlreadyExists { op: "make_dir_new", path: at, detail: String::new() }),
        })
    }

    fn create<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Box<dyn StagedFile>> {
        let (at, store) = (path.to_owned(), self.clone());
        self.change("create", path, move |nodes| {
            if !matches!(nodes.get(parent(&at)), Some(Node::Dir)) {
                return Err(missing("create", &at));
            }
            if nodes.contains_key(&at) {
                return Err(StoreError::AlreadyExists { op: "create", path: at, detail: String::new() });
            }
            nodes.insert(at.clone(), Node::Open);
            Ok(Box::new(MemFile { store, path: at, bytes: BytesMut::new() }) as Box<dyn StagedFile>)
        })
    }

    fn rename_new<'a>(&'a self, from: &'a str, to: &'a str) -> StoreFuture<'a, Renamed> {
        let (source, target) = (from.to_owned(), to.to_owned());
        self.change("rename", from, move |nodes| {
            if !nodes.contains_key(&source) {
                return Ok(Renamed::SourceMissing);
            }
            if nodes.contains_key(&target) {
                return Ok(Renamed::TargetExists);
            }
            if !matches!(nodes.get(parent(&target)), Some(Node::Dir)) {
                return Ok(Renamed::ParentMissing);
            }
            let node = nodes.remove(&source).expect("it was just there");
            let below = format!("{source}/");
            let held: Vec<String> = nodes.keys().filter(|path| path.starts_with(&below)).cloned().collect();
            for path in held {
                let node = nodes.remove(&path).expect("it was just there");
                nodes.insert(format!("{target}/{}", &path[below.len()..]), node);
            }
            nodes.insert(target, node);
            Ok(Renamed::Done)
        })
    }

    fn read<'a>(&'a self, path: &'a str, _: u64) -> StoreFuture<'a, Bytes> {
        let at = path.to_owned();
        self.look("read", path, move |nodes| match nodes.get(&at) {
            Some(Node::File(bytes)) => Ok(bytes.clone()),
            _ => Err(missing("read", &at)),
        })
    }

    fn read_range<'a>(&'a self, path: &'a str, offset: u64, len: usize) -> StoreFuture<'a, Bytes> {
        let at = path.to_owned();
        self.look("read", path, move |nodes| match nodes.get(&at) {
            Some(Node::File(bytes)) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(from..from.saturating_add(len).min(bytes.len())))
            }
            _ => Err(missing("read", &at)),
        })
    }

    fn list<'a>(&'a self, dir: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        let at = dir.to_owned();
        self.look("list", dir, move |nodes| {
            if !nodes.contains_key(&at) {
                return Err(missing("list", &at));
            }
            let below = nodes.iter().filter(|(path, _)| parent(path) == at && !path.is_empty());
            Ok(below
                .map(|(path, node)| Entry {
                    name: path.rsplit('/').next().unwrap_or_default().to_owned(),
                    is_dir: matches!(node, Node::Dir),
                    bytes: size(node),
                })
                .collect())
        })
    }

    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>> {
        let at = path.to_owned();
        self.look("stat", path, move |nodes| {
            let is_dir = |node: &Node| matches!(node, Node::Dir);
            Ok(nodes.get(&at).map(|n| Stat { is_dir: is_dir(n), bytes: size(n), mode: 0o750, modified_unix_ms: 0 }))
        })
    }

    fn delete<'a>(&'a self, path: &'a str, _: bool) -> StoreFuture<'a, bool> {
        let at = path.to_owned();
        self.change("delete", path, move |nodes| {
            let below = format!("{at}/");
            nodes.retain(|path, _| !path.starts_with(&below));
            Ok(nodes.remove(&at).is_some())
        })
    }

    fn set_attributes<'a>(&'a self, path: &'a str, _: u32, _: Option<&'a str>) -> StoreFuture<'a, ()> {
        let at = path.to_owned();
        self.change("set_attributes", path, move |nodes| {
            if nodes.contains_key(&at) { Ok(()) } else { Err(missing("set_attributes", &at)) }
        })
    }
}

struct MemFile {
    store: MemStore,
    path: String,
    bytes: BytesMut,
}

impl StagedFile for MemFile {
    fn append(&mut self, bytes: Bytes) -> StoreFuture<'_, ()> {
        self.bytes.extend_from_slice(&bytes);
        let fate = self.store.fate();
        Box::pin(async move {
            match fate {
                Fate::Fine => Ok(()),
                Fate::Unavailable => Err(unavailable("append", &self.path)),
                _ => Err(unanswered("append", &self.path)),
            }
        })
    }

    fn close(self: Box<Self>) -> StoreFuture<'static, u64> {
        let Self { store, path, bytes } = *self;
        let slow = {
            let mut state = store.lock();
            let chance = state.faults.slow_close.min(1000);
            state.rng.random_ratio(chance, 1000)
        };
        Box::pin(async move {
            let (at, bytes) = (path.clone(), bytes.freeze());
            let length = bytes.len() as u64;
            let closed = store.change("close", &path, move |nodes| match nodes.get_mut(&at) {
                Some(node @ Node::Open) => {
                    *node = Node::File(bytes);
                    Ok(length)
                }
                _ => Err(missing("close", &at)),
            });
            let closed = closed.await;
            if slow {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            closed
        })
    }
}
