//! A directory of a local file system with the guarantees of the trait: a name is durable once its directory was
//! fsynced, and a rename refuses to replace (`renameat2` with `RENAME_NOREPLACE`).
//!
//! Invariant: what a listing or a read of a whole file has shown survives a power cut, since the directory is fsynced before
//! either answers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::path::{check, check_inner, parent};
use super::{Entry, Renamed, StagedFile, Stat, Store, StoreError, StoreFuture};

const FILE_MODE: u32 = 0o640;
const ROOT_MODE: u32 = 0o750;

/// The store; cheap to share.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    /// Makes the root if it is missing.
    pub fn open(root: &Path) -> io::Result<Self> {
        make_dirs(root, ROOT_MODE)?;
        Ok(Self { root: root.to_owned() })
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    /// Runs `work` on the blocking pool and puts its error into words.
    fn run<'a, T: Send + 'static>(
        &'a self,
        op: &'static str,
        path: &'a str,
        checked: Result<(), StoreError>,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            checked?;
            blocking(work).await.map_err(|e| classify(op, path, &e))
        })
    }
}

impl Store for LocalStore {
    fn make_dirs<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        let at = self.at(path);
        self.run("make directory", path, check("make directory", path), move || make_dirs(&at, mode))
    }

    fn make_dir_new<'a>(&'a self, path: &'a str, mode: u32) -> StoreFuture<'a, ()> {
        let (at, above) = (self.at(path), self.at(parent(path)));
        self.run("make directory", path, check_inner("make directory", path), move || {
            make_dir(&at, mode)?;
            sync_dir(&above)
        })
    }

    fn create<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Box<dyn StagedFile>> {
        let (at, above, name) = (self.at(path), self.at(parent(path)), path.to_owned());
        self.run("create", path, check_inner("create", path), move || {
            let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(at)?;
            Ok(Box::new(LocalFile { file: Some(file), above, path: name }) as Box<dyn StagedFile>)
        })
    }

    fn rename_new<'a>(&'a self, from: &'a str, to: &'a str) -> StoreFuture<'a, Renamed> {
        let checked = check_inner("rename", from).and_then(|()| check_inner("rename", to));
        let (source, target) = (self.at(from), self.at(to));
        let (source_dir, target_dir) = (self.at(parent(from)), self.at(parent(to)));
        Box::pin(async move {
            checked?;
            let renamed = blocking(move || {
                let renamed = rename_new(&source, &target)?;
                Ok((renamed, sync_rename(renamed, &source_dir, &target_dir)))
            })
            .await
            .map_err(|e| classify("rename", to, &e))?;
            match renamed {
                (renamed, Ok(())) => Ok(renamed),
                // It has its new name, but maybe not after a power cut.
                (_, Err(e)) => Err(StoreError::Unanswered {
                    op: "rename",
                    path: to.to_owned(),
                    detail: format!("its directory could not be fsynced: {e}"),
                }),
            }
        })
    }

    fn read<'a>(&'a self, path: &'a str, max_bytes: u64) -> StoreFuture<'a, Bytes> {
        let (at, above) = (self.at(path), self.at(parent(path)));
        self.run("read", path, check_inner("read", path), move || {
            let file = File::open(at)?;
            sync_dir(&above)?;
            let mut bytes = Vec::new();
            file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > max_bytes {
                return Err(io::Error::other(format!("it is longer than {max_bytes} bytes")));
            }
            Ok(Bytes::from(bytes))
        })
    }

    fn read_range<'a>(&'a self, path: &'a str, offset: u64, len: usize) -> StoreFuture<'a, Bytes> {
        let at = self.at(path);
        self.run("read", path, check_inner("read", path), move || {
            let mut file = File::open(at)?;
            let left = file.metadata()?.len().saturating_sub(offset);
            let len = left.min(len as u64);
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
            file.take(len).read_to_end(&mut bytes)?;
            Ok(Bytes::from(bytes))
        })
    }

    fn list<'a>(&'a self, dir: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        let at = self.at(dir);
        self.run("list", dir, check("list", dir), move || list(&at))
    }

    fn stat<'a>(&'a self, path: &'a str) -> StoreFuture<'a, Option<Stat>> {
        let at = self.at(path);
        self.run("stat", path, check("stat", path), move || match fs::symlink_metadata(at) {
            Ok(meta) => Ok(Some(Stat {
                is_dir: meta.is_dir(),
                bytes: if meta.is_dir() { 0 } else { meta.len() },
                mode: meta.mode() & 0o7777,
                modified_unix_ms: meta.mtime() * 1000 + meta.mtime_nsec() / 1_000_000,
            })),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        })
    }

    fn delete<'a>(&'a self, path: &'a str, recursive: bool) -> StoreFuture<'a, bool> {
        let (at, above) = (self.at(path), self.at(parent(path)));
        self.run("delete", path, check_inner("delete", path), move || {
            let deleted = match fs::symlink_metadata(&at) {
                Ok(meta) if !meta.is_dir() => fs::remove_file(&at),
                Ok(_) if recursive => fs::remove_dir_all(&at),
                Ok(_) => fs::remove_dir(&at),
                Err(e) => Err(e),
            };
            match deleted {
                Ok(()) => sync_dir(&above).map(|()| true),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
                Err(e) => Err(e),
            }
        })
    }

    fn set_attributes<'a>(&'a self, path: &'a str, mode: u32, group: Option<&'a str>) -> StoreFuture<'a, ()> {
        let (at, group) = (self.at(path), group.map(str::to_owned));
        self.run("set attributes of", path, check_inner("set attributes of", path), move || {
            if let Some(group) = group {
                std::os::unix::fs::chown(&at, None, Some(group_id(&group)?))?;
            }
            fs::set_permissions(&at, fs::Permissions::from_mode(mode & 0o7777))
        })
    }
}

/// `file` is none after an error, and while a call is under way: a call that was dropped poisons it.
struct LocalFile {
    file: Option<File>,
    above: PathBuf,
    path: String,
}

impl LocalFile {
    fn take(&mut self, op: &'static str) -> Result<File, StoreError> {
        self.file.take().ok_or_else(|| StoreError::Other {
            op,
            path: self.path.clone(),
            detail: "an earlier write to this file failed, so nothing more is written to it".into(),
        })
    }
}

impl StagedFile for LocalFile {
    fn append(&mut self, bytes: Bytes) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let mut file = self.take("write")?;
            let written = blocking(move || {
                file.write_all(&bytes)?;
                Ok(file)
            });
            self.file = Some(written.await.map_err(|e| classify("write", &self.path, &e))?);
            Ok(())
        })
    }

    fn close(mut self: Box<Self>) -> StoreFuture<'static, u64> {
        Box::pin(async move {
            let file = self.take("close")?;
            let above = std::mem::take(&mut self.above);
            let closed = blocking(move || {
                file.sync_all()?;
                let bytes = file.metadata()?.len();
                sync_dir(&above)?;
                Ok(bytes)
            });
            closed.await.map_err(|e| classify("close", &self.path, &e))
        })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(io::Error::other(format!("the worker thread failed: {e}"))),
    }
}

fn classify(op: &'static str, path: &str, error: &io::Error) -> StoreError {
    let (path, detail) = (path.to_owned(), error.to_string());
    match error.kind() {
        ErrorKind::NotFound => StoreError::NotFound { op, path, detail },
        ErrorKind::AlreadyExists => StoreError::AlreadyExists { op, path, detail },
        ErrorKind::PermissionDenied => StoreError::Permission { op, path, detail },
        ErrorKind::StorageFull => StoreError::Unavailable { op, path, detail },
        ErrorKind::QuotaExceeded => StoreError::Full { op, path, detail },
        _ => StoreError::Other { op, path, detail },
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// One directory with exactly `mode`, whatever the umask is.
fn make_dir(at: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().mode(mode & 0o700).create(at)?;
    fs::set_permissions(at, fs::Permissions::from_mode(mode & 0o7777))
}

/// Every missing part, each durable before the next.
fn make_dirs(at: &Path, mode: u32) -> io::Result<()> {
    match fs::metadata(at) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => return Err(io::Error::new(ErrorKind::NotADirectory, "a file stands in the way of the directory")),
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        Err(_) => {}
    }
    let Some(above) = at.parent() else { return Ok(()) };
    make_dirs(above, mode)?;
    match make_dir(at, mode) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    sync_dir(above)
}

fn rename_new(source: &Path, target: &Path) -> io::Result<Renamed> {
    match rustix::fs::renameat_with(CWD, source, CWD, target, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(Renamed::Done),
        Err(Errno::EXIST) => match fs::symlink_metadata(source) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Renamed::SourceMissing),
            _ => Ok(Renamed::TargetExists),
        },
        Err(Errno::NOENT) => match fs::symlink_metadata(source) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Renamed::SourceMissing),
            Err(e) => Err(e),
            Ok(_) => Ok(Renamed::ParentMissing),
        },
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Err(io::Error::new(
            ErrorKind::Unsupported,
            "this file system cannot rename without replacing; put the destination on ext4, xfs, btrfs or tmpfs",
        )),
        Err(e) => Err(e.into()),
    }
}

/// Makes durable what the answer says: the move itself, or the name that another one took.
fn sync_rename(renamed: Renamed, source_dir: &Path, target_dir: &Path) -> io::Result<()> {
    match renamed {
        Renamed::Done => {
            sync_dir(target_dir)?;
            if source_dir == target_dir { Ok(()) } else { sync_dir(source_dir) }
        }
        Renamed::TargetExists => sync_dir(target_dir),
        Renamed::SourceMissing | Renamed::ParentMissing => Ok(()),
    }
}

fn list(dir: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    sync_dir(dir)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = match entry.metadata() {
            Ok(meta) => meta,
            // Renamed away or deleted since the directory was read.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        entries.push(Entry {
            name: entry.file_name().to_string_lossy().into_owned(),
            is_dir: meta.is_dir(),
            bytes: if meta.is_dir() { 0 } else { meta.len() },
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The number of a group, from `/etc/group` or given as digits.
fn group_id(name: &str) -> io::Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let table = fs::read_to_string("/etc/group")?;
    find_group(&table, name).ok_or_else(|| io::Error::other(format!("the group {name:?} is not in /etc/group")))
}

fn find_group(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, LocalStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        (dir, store)
    }

    #[tokio::test]
    async fn modes_are_exact_and_paths_stay_inside() {
        let (dir, store) = store();
        store.make_dirs("a/b", 0o2770).await.unwrap();
        assert_eq!(store.stat("a/b").await.unwrap().unwrap().mode, 0o2770);
        assert!(store.create("../x").await.is_err());
        assert!(store.delete("", true).await.is_err());
        assert!(store.read("/etc/hostname", 1000).await.is_err());
        assert!(dir.path().join("a/b").is_dir());
    }

    #[tokio::test]
    async fn a_dropped_write_poisons_the_file() {
        let (_dir, store) = store();
        let mut file = store.create("f").await.unwrap();
        {
            let mut write = file.append(Bytes::from_static(b"abc"));
            let waker = std::task::Waker::noop();
            let _ = write.as_mut().poll(&mut std::task::Context::from_waker(waker));
        }
        // The first poll hands the work over and cannot see its end before the pool ran it; either way the bytes are unknown.
        let second = file.append(Bytes::from_static(b"def")).await;
        let closed = file.close().await;
        assert!(second.is_ok() == closed.is_ok(), "{second:?} {closed:?}");
    }

    #[test]
    fn groups_are_looked_up() {
        let table = "root:x:0:\nhadoop:x:1001:a,b\nbad\n";
        assert_eq!(find_group(table, "hadoop"), Some(1001));
        assert_eq!(find_group(table, "had"), None);
        assert_eq!(find_group(table, "bad"), None);
    }
}
