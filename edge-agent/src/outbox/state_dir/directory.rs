//! The directory itself: made with mode 0700, or taken if it is empty or an agent's already. What is somebody else's is
//! refused before anything of it is changed.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::StateDirError;

const MODE: u32 = 0o700;
/// What an agent makes in it, finished or not, and what a file system of its own has at its root.
const OURS: &[&str] = &[
    "identity",
    "identity.draft",
    "lock",
    "outbox",
    "rejected",
    "declarations",
    "declarations.draft",
    "reserve",
    "lost+found",
];

/// Makes the directory, or takes the one that is there; its mode is 0700 then.
pub fn take(path: &Path) -> Result<(), StateDirError> {
    let io = |error| StateDirError::Io { path: path.to_owned(), error };
    match fs::metadata(path) {
        Ok(meta) => {
            if let Some(found) = foreign_entry(path).map_err(io)? {
                return Err(StateDirError::NotOurs { path: path.to_owned(), found });
            }
            if meta.permissions().mode() & 0o7777 != MODE {
                fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(io)?;
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(MODE).create(path).map_err(io)?;
            // The umask may have taken bits away.
            fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

/// An entry that no agent made, if the directory is not an agent's.
fn foreign_entry(path: &Path) -> io::Result<Option<String>> {
    let mut foreign = None;
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == "identity" {
            return Ok(None);
        }
        if !OURS.contains(&name.as_str()) {
            foreign.get_or_insert(name);
        }
    }
    Ok(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_somebody_elses_is_refused_and_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        set_mode(root.path(), 0o755);
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::create_dir(root.path().join("lost+found")).unwrap();
        let error = take(root.path()).unwrap_err().to_string();
        assert!(error.contains("\"bin\"") && error.contains("state_dir"), "{error}");
        assert_eq!(mode(root.path()), 0o755);
        fs::write(root.path().join("identity"), "{}").unwrap();
        take(root.path()).unwrap();
        assert_eq!(mode(root.path()), 0o700, "with an identity it is an agent's, whatever else lies in it");
    }

    #[test]
    fn a_new_one_an_empty_one_and_one_of_a_first_start_cut_short_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let new = root.path().join("a/b");
        take(&new).unwrap();
        assert_eq!(mode(&new), 0o700);
        set_mode(&new, 0o755);
        take(&new).unwrap();
        assert_eq!(mode(&new), 0o700);
        fs::write(new.join("lock"), "").unwrap();
        fs::create_dir(new.join("outbox")).unwrap();
        take(&new).unwrap();
    }
}
