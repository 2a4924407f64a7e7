//! The state directory: its lock, whose it is, and whether it still is the directory it was.
//!
//! Invariants: one process per directory; a directory belongs to one agent name; a directory whose outbox has another
//! inode or birth time than recorded was restored or copied, and the next open says so. Mode 0700, files 0600.

pub mod adopt;
mod directory;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use proto::ids::AgentName;
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another process holds it.
    #[error("{path} is in use by another process: stop that agent first, or give this one a state_dir of its own")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It belongs to another agent name.
    #[error(
        "{path} belongs to agent {found:?}, this one is configured as {wanted:?}: set name = {found:?}, or use an empty state_dir \
         (what is unsent in the old one is then sent only by an agent with the old name)"
    )]
    OtherName {
        /// The directory.
        path: PathBuf,
        /// The recorded name.
        found: String,
        /// The configured name.
        wanted: String,
    },
    /// It exists, with files of somebody else.
    #[error(
        "{path} is not empty and no agent's state directory (it holds {found:?}): set `state_dir` to a directory of the \
         agent's own; nothing in this one was changed"
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Something that no agent made.
        found: String,
    },
    /// There is nothing of an agent there.
    #[error("{path} holds no outbox of an edge agent: check `state_dir`; the first start of an agent makes one")]
    NotThere {
        /// The directory.
        path: PathBuf,
    },
    /// A newer release wrote it.
    #[error("{path} has format {found}, this release reads up to {FORMAT}: start the newer release again")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The identity file is not readable as such.
    #[error("{path} cannot be understood ({detail}): restore it, or move the whole state directory away")]
    Identity {
        /// The file.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// Files of another user would lock the agent out.
    #[error(
        "{path} belongs to user {owner}, and this command runs as user {own}: run it as the agent's user (`sudo -u`), else \
         the agent could not open what it makes"
    )]
    User {
        /// The state directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs the command.
        own: u32,
    },
    /// The file system said no.
    #[error("{path} cannot be used: {error}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A tool that only looks holds the lock, shared, for an instant: a start waits that long for it.
const PATIENCE: [Duration; 20] = [Duration::from_millis(50); 20];

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    agent: String,
    outbox_inode: u64,
    /// Nanoseconds since the epoch; absent where the file system does not tell.
    outbox_birth_ns: Option<u64>,
}

impl Identity {
    /// The inode says it, and the birth time where both tell one: a file system may have none, and a newer kernel may
    /// tell what an older one did not. No device number is in it: those change at reboots.
    fn is_same_directory(&self, now: &Self) -> bool {
        let births = self.outbox_birth_ns.zip(now.outbox_birth_ns);
        self.outbox_inode == now.outbox_inode && births.is_none_or(|(recorded, now)| recorded == now)
    }
}

/// A locked state directory.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    agent: AgentName,
    restored: bool,
    _lock: File,
}

impl StateDir {
    /// Creates it (0700) or opens it if it is empty or an agent's, takes the lock and checks the name.
    pub fn open(path: &Path, agent: &AgentName) -> Result<Self, StateDirError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| StateDirError::Io { path, error }
        };
        directory::take(path)?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.map_err(io(&lock_path))?;
        take_lock(&lock, path, &lock_path)?;
        let mut dir = Self { path: path.to_owned(), agent: agent.clone(), restored: false, _lock: lock };
        dir.check()?;
        Ok(dir)
    }

    fn check(&mut self) -> Result<(), StateDirError> {
        let outbox = self.outbox();
        let fresh = !outbox.exists();
        if fresh {
            let made = fs::DirBuilder::new().mode(0o700).create(&outbox);
            made.map_err(|error| StateDirError::Io { path: outbox.clone(), error })?;
        }
        let recorded = self.read_identity()?;
        let now = self.identity_now()?;
        match recorded {
            Some(recorded) if recorded.agent != now.agent => {
                Err(StateDirError::OtherName { path: self.path.clone(), found: recorded.agent, wanted: now.agent })
            }
            Some(recorded) => {
                self.restored = !recorded.is_same_directory(&now);
                Ok(())
            }
            None => {
                // An outbox that has no identity beside it was put there by somebody else.
                let used = fs::read_dir(&outbox).is_ok_and(|mut entries| entries.next().is_some());
                self.restored = used && !fresh;
                if self.restored { Ok(()) } else { self.write_identity(&now) }
            }
        }
    }

    /// The directory was restored from a copy, or is one: the open must say so and name no end.
    pub fn is_restored(&self) -> bool {
        self.restored
    }

    /// From now on this directory is the original: after the open that says *restored* is durable, or by an operator
    /// who knows that it was moved.
    pub fn adopt(&mut self) -> Result<(), StateDirError> {
        let now = self.identity_now()?;
        self.write_identity(&now)?;
        self.restored = false;
        Ok(())
    }

    /// Directory of the outbox.
    pub fn outbox(&self) -> PathBuf {
        self.path.join("outbox")
    }

    /// Directory of what became a void.
    pub fn rejected(&self) -> PathBuf {
        self.path.join("rejected")
    }

    /// File that keeps space for a full file system.
    pub fn reserve(&self) -> PathBuf {
        self.path.join("reserve")
    }

    /// File of the dataset declarations received last.
    pub fn declarations(&self) -> PathBuf {
        self.path.join("declarations")
    }

    fn read_identity(&self) -> Result<Option<Identity>, StateDirError> {
        read_identity(&self.path)
    }

    fn identity_now(&self) -> Result<Identity, StateDirError> {
        identity_now(&self.path, &self.agent)
    }

    fn write_identity(&self, identity: &Identity) -> Result<(), StateDirError> {
        write_identity(&self.path, identity)
    }
}

fn read_identity(dir: &Path) -> Result<Option<Identity>, StateDirError> {
    let path = dir.join("identity");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StateDirError::Io { path, error }),
    };
    let identity: Identity = serde_json::from_str(&text)
        .map_err(|error| StateDirError::Identity { path: path.clone(), detail: error.to_string() })?;
    if identity.format > FORMAT {
        return Err(StateDirError::NewerFormat { path, found: identity.format });
    }
    Ok(Some(identity))
}

fn identity_now(dir: &Path, agent: &AgentName) -> Result<Identity, StateDirError> {
    let path = dir.join("outbox");
    let meta = fs::metadata(&path).map_err(|error| StateDirError::Io { path, error })?;
    let birth = meta.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(Identity {
        format: FORMAT,
        agent: agent.to_string(),
        outbox_inode: meta.ino(),
        outbox_birth_ns: birth.map(|time| time.as_nanos() as u64),
    })
}

fn write_identity(dir: &Path, identity: &Identity) -> Result<(), StateDirError> {
    let path = dir.join("identity");
    let text = serde_json::to_vec(identity)
        .map_err(|error| StateDirError::Identity { path: path.clone(), detail: error.to_string() })?;
    write_whole(&path, &text).map_err(|error| StateDirError::Io { path, error })
}

fn take_lock(lock: &File, dir: &Path, path: &Path) -> Result<(), StateDirError> {
    let mut patience = PATIENCE.iter();
    loop {
        match (lock.try_lock(), patience.next()) {
            (Ok(()), _) => return Ok(()),
            (Err(TryLockError::WouldBlock), Some(wait)) => std::thread::sleep(*wait),
            (Err(TryLockError::WouldBlock), None) => return Err(StateDirError::Locked { path: dir.to_owned() }),
            (Err(TryLockError::Error(error)), _) => return Err(StateDirError::Io { path: path.to_owned(), error }),
        }
    }
}

/// Replaces a file durably: a crash leaves the old or the new content. Mode 0600.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn name(text: &str) -> AgentName {
        AgentName::new(text).unwrap()
    }

    #[test]
    fn one_process_and_one_name() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state");
        let held = StateDir::open(&path, &name("web-1")).unwrap();
        assert!(!held.is_restored());
        assert!(matches!(StateDir::open(&path, &name("web-1")), Err(StateDirError::Locked { .. })));
        drop(held);
        let other = StateDir::open(&path, &name("web-2")).unwrap_err();
        assert!(other.to_string().contains("name = \"web-1\""), "{other}");
        assert!(!StateDir::open(&path, &name("web-1")).unwrap().is_restored());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(path.join("identity")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_copy_is_noticed_until_adopted() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state");
        drop(StateDir::open(&path, &name("web-1")).unwrap());
        fs::rename(path.join("outbox"), path.join("away")).unwrap();
        fs::create_dir(path.join("outbox")).unwrap();
        let mut copy = StateDir::open(&path, &name("web-1")).unwrap();
        assert!(copy.is_restored());
        drop(copy);
        copy = StateDir::open(&path, &name("web-1")).unwrap();
        assert!(copy.is_restored(), "said again until it was adopted");
        copy.adopt().unwrap();
        drop(copy);
        assert!(!StateDir::open(&path, &name("web-1")).unwrap().is_restored());
    }

    #[test]
    fn a_file_system_that_tells_no_birth_time_goes_by_the_inode() {
        let at = |inode, birth| Identity { format: 1, agent: "a".into(), outbox_inode: inode, outbox_birth_ns: birth };
        for (recorded, now, same) in [
            (at(7, Some(1)), at(7, Some(1)), true),
            (at(7, Some(1)), at(7, Some(2)), false),
            (at(7, None), at(7, None), true),
            (at(7, None), at(7, Some(2)), true),
            (at(7, Some(1)), at(7, None), true),
            (at(7, None), at(8, None), false),
            (at(7, Some(1)), at(8, Some(1)), false),
        ] {
            assert_eq!(recorded.is_same_directory(&now), same, "{recorded:?} {now:?}");
        }
    }

    #[test]
    fn the_identity_holds_no_device_number() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state");
        drop(StateDir::open(&path, &name("web-1")).unwrap());
        let text = fs::read_to_string(path.join("identity")).unwrap();
        let keys: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        let mut keys: Vec<&String> = keys.keys().collect();
        keys.sort_unstable();
        assert_eq!(keys, ["agent", "format", "outbox_birth_ns", "outbox_inode"]);
    }
}
