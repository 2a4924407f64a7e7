//! One process per data directory. The lock is a `flock` on the file `lock`: it ends with its process, however that
//! ended, so a lock is never stale; the number in the file only says whom to look for.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A tool that only looks holds the lock, shared, for an instant: a start waits that long for it.
const PATIENCE: [Duration; 20] = [Duration::from_millis(50); 20];

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "the data directory {path} is in use by process {holder}: stop that aggregator first, or give this one a `data_dir` of its own"
    )]
    Held {
        /// The data directory.
        path: PathBuf,
        /// The process id as that process wrote it.
        holder: String,
    },
    /// The file system.
    #[error("the lock {path} cannot be used: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The fact.
        source: io::Error,
    },
}

/// The lock, as long as this lives.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock of a data directory that exists.
    pub fn take(data_dir: &Path) -> Result<Self, LockError> {
        let path = data_dir.join("lock");
        let failed = |source| LockError::Io { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        let mut patience = PATIENCE.iter();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(source)) => return Err(failed(source)),
                Err(TryLockError::WouldBlock) => match patience.next() {
                    Some(wait) => std::thread::sleep(*wait),
                    None => {
                        let holder = read_holder(&mut file);
                        return Err(LockError::Held { path: data_dir.to_owned(), holder });
                    }
                },
            }
        }
        file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { _file: file })
    }

    /// The process that has the lock, if one has. Changes nothing and makes no file.
    pub fn holder(data_dir: &Path) -> Result<Option<String>, LockError> {
        let path = data_dir.join("lock");
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LockError::Io { path, source }),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(read_holder(&mut file))),
            Err(TryLockError::Error(source)) => Err(LockError::Io { path, source }),
        }
    }
}

/// Has somebody the ledger open? A release that knew no lock of the directory is seen by this one.
pub fn ledger_in_use(ledger: &Path) -> bool {
    let Ok(file) = File::open(ledger.join("db")) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Bytes of all files below `path`; 0 when there is nothing.
pub fn bytes_below(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return fs::metadata(path).map_or(0, |found| found.len()) };
    entries.filter_map(Result::ok).map(|entry| bytes_below(&entry.path())).sum()
}

fn read_holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "of unknown id".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_who_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(DirLock::holder(dir.path()).unwrap(), None);
        assert!(!dir.path().join("lock").exists(), "looking makes no file");
        let lock = DirLock::take(dir.path()).unwrap();
        let own = std::process::id().to_string();
        assert_eq!(DirLock::holder(dir.path()).unwrap(), Some(own.clone()));
        let error = DirLock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {own}")), "{error}");
        drop(lock);
        assert_eq!(DirLock::holder(dir.path()).unwrap(), None, "a file that was left is no lock");
        DirLock::take(dir.path()).unwrap();
    }
}
