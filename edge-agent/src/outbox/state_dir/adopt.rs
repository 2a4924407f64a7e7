//! `outbox adopt`: an operator says that a state directory was moved, not copied. The next start then chains on to the
//! origins in it, as if nothing had happened.
//!
//! Said of a directory that *was* copied, while the original goes on, it hides nothing and loses nothing, but the marks
//! of the copy count until the log has a record that the original appended later: see `docs/state-directory.md`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use proto::ids::AgentName;
use serde::Serialize;

use super::{StateDirError, identity_now, read_identity, take_lock, write_identity};

/// Which directory an outbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its inode number.
    pub inode: u64,
    /// When it was made, in nanoseconds since the epoch; absent where the file system does not tell.
    pub birth_ns: Option<u64>,
}

/// What was, or would be, done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Adoption {
    /// Whose outbox it is.
    pub agent: String,
    /// The directory that the agent knows as its own; none: the identity file is missing.
    pub recorded: Option<Place>,
    /// The directory that is there.
    pub found: Place,
    /// It is the one recorded: there is nothing to adopt.
    pub already: bool,
    /// The new place was written down.
    pub written: bool,
}

/// Writes down that the outbox in `path` is the original. With `dry_run` nothing is changed. Refuses while an agent
/// runs on it.
pub fn adopt(path: &Path, agent: &AgentName, dry_run: bool) -> Result<Adoption, StateDirError> {
    if !path.join("outbox").is_dir() {
        return Err(StateDirError::NotThere { path: path.to_owned() });
    }
    if !dry_run {
        own_user(path)?;
    }
    let _lock = lock(path, dry_run)?;
    let (recorded, now) = (read_identity(path)?, identity_now(path, agent)?);
    if let Some(other) = recorded.as_ref().filter(|recorded| recorded.agent != now.agent) {
        return Err(StateDirError::OtherName {
            path: path.to_owned(),
            found: other.agent.clone(),
            wanted: now.agent.clone(),
        });
    }
    let already = recorded.as_ref().is_some_and(|recorded| recorded.is_same_directory(&now));
    let written = !already && !dry_run;
    if written {
        write_identity(path, &now)?;
    }
    let place = |identity: &super::Identity| Place { inode: identity.outbox_inode, birth_ns: identity.outbox_birth_ns };
    Ok(Adoption {
        agent: now.agent.clone(),
        recorded: recorded.as_ref().map(place),
        found: place(&now),
        already,
        written,
    })
}

/// A dry run makes not even the lock file: without one no agent has ever run there.
fn lock(dir: &Path, dry_run: bool) -> Result<Option<File>, StateDirError> {
    let path = dir.join("lock");
    let opened = match dry_run {
        true => File::open(&path),
        false => OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path),
    };
    match opened {
        Ok(lock) => take_lock(&lock, dir, &path).map(|()| Some(lock)),
        Err(error) if dry_run && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StateDirError::Io { path, error }),
    }
}

/// Is an agent running on this directory? Changes nothing, and disturbs no other look; a start waits for it.
pub fn is_locked(dir: &Path) -> bool {
    let lock = File::open(dir.join("lock"));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Does this process run as the user whose directory it is? A directory that is not there yet is nobody's.
pub fn own_user(dir: &Path) -> Result<(), StateDirError> {
    let owner = match std::fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| StateDirError::Io { path: dir.to_owned(), error })?.uid(),
    };
    let own = rustix::process::geteuid().as_raw();
    if owner == own { Ok(()) } else { Err(StateDirError::User { path: dir.to_owned(), owner, own }) }
}

/// Whose a state directory is, and whether it still is the directory that agent knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The recorded agent.
    pub agent: String,
    /// Another inode or birth time: the next start says *restored*, unless it is adopted.
    pub is_copy: bool,
}

/// Looks without the lock, changes nothing; none: no identity is recorded, or it cannot be read.
pub fn standing(path: &Path) -> Option<Standing> {
    let recorded = read_identity(path).ok()??;
    let now = identity_now(path, &AgentName::new(&recorded.agent).ok()?).ok()?;
    Some(Standing { is_copy: !recorded.is_same_directory(&now), agent: recorded.agent })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::StateDir;
    use super::*;

    fn name(text: &str) -> AgentName {
        AgentName::new(text).unwrap()
    }

    /// A state directory that lies elsewhere now.
    fn moved(root: &Path) -> std::path::PathBuf {
        let (from, to) = (root.join("old"), root.join("new"));
        drop(StateDir::open(&from, &name("web-1")).unwrap());
        fs::create_dir_all(to.join("outbox")).unwrap();
        fs::copy(from.join("identity"), to.join("identity")).unwrap();
        to
    }

    #[test]
    fn a_dry_run_changes_nothing_and_the_real_one_is_believed() {
        let root = tempfile::tempdir().unwrap();
        let to = moved(root.path());
        let before = fs::read(to.join("identity")).unwrap();
        let dry = adopt(&to, &name("web-1"), true).unwrap();
        assert!(!dry.already && !dry.written && dry.recorded != Some(dry.found));
        assert_eq!(fs::read(to.join("identity")).unwrap(), before);
        assert!(!to.join("lock").exists(), "a dry run makes no file");
        assert_eq!(standing(&to), Some(Standing { agent: "web-1".into(), is_copy: true }));
        assert!(StateDir::open(&to, &name("web-1")).unwrap().is_restored());
        assert!(adopt(&to, &name("web-1"), false).unwrap().written);
        assert!(!StateDir::open(&to, &name("web-1")).unwrap().is_restored());
        assert!(adopt(&to, &name("web-1"), false).unwrap().already);
        assert_eq!(standing(&to), Some(Standing { agent: "web-1".into(), is_copy: false }));
        assert_eq!(standing(root.path()), None);
    }

    #[test]
    fn it_refuses_while_an_agent_runs_and_under_another_name() {
        let root = tempfile::tempdir().unwrap();
        let to = moved(root.path());
        let error = adopt(&to, &name("web-2"), false).unwrap_err();
        assert!(error.to_string().contains("name = \"web-1\""), "{error}");
        let running = StateDir::open(&to, &name("web-1")).unwrap();
        for dry_run in [true, false] {
            let error = adopt(&to, &name("web-1"), dry_run).unwrap_err();
            assert!(matches!(error, StateDirError::Locked { .. }), "{error}");
        }
        assert!(is_locked(&to));
        drop(running);
        assert!(!is_locked(&to));
        let nothing = adopt(root.path(), &name("web-1"), false).unwrap_err();
        assert!(nothing.to_string().contains("holds no outbox"), "{nothing}");
        assert!(!root.path().join("lock").exists());
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn another_users_directory_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        drop(StateDir::open(&path, &AgentName::new("web-1").unwrap()).unwrap());
        own_user(&path).unwrap();
        own_user(&dir.path().join("missing")).unwrap();
        if std::os::unix::fs::chown(&path, Some(4711), None).is_err() {
            eprintln!("SKIPPED: only root can give a directory to another user");
            return;
        }
        let refused = adopt(&path, &AgentName::new("web-1").unwrap(), false).unwrap_err();
        assert!(matches!(refused, StateDirError::User { owner: 4711, .. }), "{refused}");
        assert!(refused.to_string().contains("sudo -u"), "{refused}");
    }

    #[test]
    fn a_start_waits_for_a_look_and_looks_disturb_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let name = AgentName::new("web-1").unwrap();
        drop(StateDir::open(&path, &name).unwrap());
        let look = File::open(path.join("lock")).unwrap();
        look.lock_shared().unwrap();
        assert!(!is_locked(&path), "a look is taken for an agent");
        let start = std::thread::spawn({
            let path = path.clone();
            move || StateDir::open(&path, &name).map(|_| is_locked(&path))
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(look);
        assert!(start.join().unwrap().unwrap(), "an agent that runs is not seen");
    }
}
