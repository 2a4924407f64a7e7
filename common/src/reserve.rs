//! A file that takes space while there is some, so that a full file system has room for what cannot wait: it is given up
//! when such a thing finds none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// The reserve of one directory.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: bool,
}

impl Reserve {
    /// The one of `bytes` in the file `path`, as the run before left it.
    pub fn at(path: PathBuf, bytes: u64) -> Self {
        Self { held: path.exists(), path, bytes }
    }

    /// Takes it, if it was given up and there is room by now.
    pub fn refill(&mut self) {
        if !self.held {
            self.held = self.allocate().is_ok();
        }
    }

    /// Gives it up. True if that freed anything.
    pub fn release(&mut self) -> bool {
        std::mem::take(&mut self.held) && fs::remove_file(&self.path).is_ok()
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
}
