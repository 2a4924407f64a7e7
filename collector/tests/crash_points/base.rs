//! Where the files of a world lie: in memory, or in a directory of this machine as a collector's own local store keeps
//! them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use collector::store::{DestinationConfig, Store, open};
use tempfile::TempDir;

use crate::store::{Faults, Kept, MemStore};

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Base {
    Memory(MemStore),
    Directory(Arc<dyn Store>, Arc<TempDir>),
}

impl Base {
    pub fn memory() -> Self {
        Self::Memory(MemStore::new(7, Faults::default()))
    }

    /// The real local store, in a temporary directory.
    pub fn directory() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        Self::Directory(open(&DestinationConfig::new(url)).unwrap(), Arc::new(dir))
    }

    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory(store) => Arc::new(store.clone()),
            Self::Directory(store, _) => Arc::clone(store),
        }
    }

    /// Names of everything there is, directories too.
    pub fn names(&self) -> BTreeSet<String> {
        match self {
            Self::Memory(store) => store.all_below("").into_iter().collect(),
            Self::Directory(_, dir) => {
                let mut names = BTreeSet::new();
                walk(dir.path(), "", &mut |name, _| _ = names.insert(name.to_owned()));
                names
            }
        }
    }

    /// Everything below `dir`, directories and open files too.
    pub fn all_below(&self, dir: &str) -> Vec<String> {
        let prefix = format!("{dir}/");
        self.names().into_iter().filter(|name| name.starts_with(&prefix)).collect()
    }
}

impl Kept for Base {
    fn files_below(&self, dir: &str) -> Vec<(String, Bytes)> {
        match self {
            Self::Memory(store) => store.files_below(dir),
            Self::Directory(_, root) => {
                let mut files = Vec::new();
                walk(root.path(), dir, &mut |name, path| {
                    if path.is_file() {
                        files.push((name.to_owned(), std::fs::read(path).unwrap().into()));
                    }
                });
                files.sort();
                files
            }
        }
    }

    fn file(&self, path: &str) -> Option<Bytes> {
        match self {
            Self::Memory(store) => store.file(path),
            Self::Directory(_, root) => std::fs::read(root.path().join(path)).ok().map(Bytes::from),
        }
    }
}

/// Everything below `dir` by its name below `root`; nothing if it is not there.
fn walk(root: &Path, dir: &str, each: &mut impl FnMut(&str, &Path)) {
    let Ok(entries) = std::fs::read_dir(root.join(dir)) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let name = if dir.is_empty() { name } else { format!("{dir}/{name}") };
        each(&name, &entry.path());
        if entry.path().is_dir() {
            walk(root, &name, each);
        }
    }
}
