//! A file that takes space while there is some, so that a full file system has room for what cannot wait: it is given up
//! when such a thing finds none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// The reserve of one directory.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: bool,
    /// The file system cannot set space aside.
    unsupported: bool,
}

impl Reserve {
    /// The one of `bytes` in the file `path`, as the run before left it.
    pub fn at(path: PathBuf, bytes: u64) -> Self {
        Self { held: takes_bytes(&path) >= bytes, path, bytes, unsupported: false }
    }

    /// Takes it, if it was given up and there is room by now.
    pub fn refill(&mut self) {
        if !self.held && !self.unsupported {
            let taken = self.allocate();
            self.took(taken);
        }
    }

    fn took(&mut self, taken: io::Result<()>) {
        self.held = taken.is_ok();
        self.unsupported = taken.is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP));
        if self.unsupported {
            tracing::warn!(path = %self.path.display(), "the file system cannot set space aside: there is no reserve for a full disk");
        }
    }

    /// Gives it up. True if that freed anything.
    pub fn release(&mut self) -> bool {
        self.held = false;
        // Also one that is not whole.
        takes_bytes(&self.path) > 0 && fs::remove_file(&self.path).is_ok()
    }

    fn allocate(&self) -> io::Result<()> {
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&self.path)?;
        let allocated = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.bytes);
        if let Err(error) = allocated {
            drop(file);
            fs::remove_file(&self.path)?;
            return Err(error.into());
        }
        Ok(())
    }
}

/// What it takes on the file system: a file with holes, or a shorter one, gives back less than its length says.
fn takes_bytes(path: &Path) -> u64 {
    // The system counts in blocks of 512, whatever the file system's are.
    fs::metadata(path).map_or(0, |file| file.blocks().saturating_mul(512))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_up_once_and_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let mut reserve = Reserve::at(path.clone(), 4096);
        assert!(!reserve.release());
        reserve.refill();
        assert_eq!(fs::metadata(&path).unwrap().len(), 4096);
        let mut next_run = Reserve::at(path.clone(), 4096);
        assert!(next_run.release() && !path.exists());
        assert!(!next_run.release());
    }

    #[test]
    fn a_leftover_that_takes_no_space_is_not_held_until_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        for bytes in [64 * 1024, 100] {
            File::create(&path).unwrap().set_len(bytes).unwrap();
            let mut reserve = Reserve::at(path.clone(), 64 * 1024);
            assert!(!reserve.release(), "{bytes}");
            reserve.refill();
            assert!(takes_bytes(&path) >= 64 * 1024, "{bytes}");
            assert!(reserve.release());
        }
    }

    #[test]
    fn a_file_system_that_cannot_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let mut reserve = Reserve::at(path.clone(), 4096);
        reserve.took(Err(Errno::NOSPC.into()));
        reserve.refill();
        assert!(reserve.release(), "no room passes");
        reserve.took(Err(Errno::OPNOTSUPP.into()));
        reserve.refill();
        assert!(!path.exists() && !reserve.release());
    }
}
