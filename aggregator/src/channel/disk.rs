//! What the channel asks of the file system beside segments and ledger: free space, and a reserve that is given up so
//! that the ledger can still be written when the disk is full.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Bytes kept for the ledger on a full disk.
pub const RESERVE_BYTES: u64 = 8 * 1024 * 1024;

/// Bytes of the file system that an unprivileged process may still use.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The reserve file.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    held: bool,
}

impl Reserve {
    /// Takes the reserve in `dir` if there is room for it.
    pub fn take(dir: &Path) -> Self {
        let mut reserve = Self { path: dir.join("reserve"), held: false };
        reserve.refill();
        reserve
    }

    /// Takes it again if it was given up and there is room by now.
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
        let file = File::options().create(true).truncate(false).write(true).open(&self.path)?;
        let result = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES);
        if let Err(error) = result {
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
    fn the_reserve_is_given_up_once_and_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::take(dir.path());
        assert_eq!(fs::metadata(dir.path().join("reserve")).unwrap().len(), RESERVE_BYTES);
        assert!(reserve.release());
        assert!(!reserve.release());
        assert!(!dir.path().join("reserve").exists());
        reserve.refill();
        assert!(dir.path().join("reserve").exists());
        assert!(free_bytes(dir.path()).unwrap() > 0);
    }
}
