//! A file that takes space while there is some, so that a full file system has room for what has no data: it is given up
//! when a start, a mark, a void, a close, or the giving back of space finds none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::room::{self, FileSystem, RESERVE_BYTES};

/// The reserve of one state directory.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    held: bool,
}

impl Reserve {
    /// The one in the file `path`, as the run before left it.
    pub fn at(path: PathBuf) -> Self {
        Self { held: path.exists(), path }
    }

    /// Takes it, if it was given up and there is plenty of room by now.
    pub fn refill(&mut self, fs: FileSystem) {
        if !self.held && room::may_take_reserve(fs) {
            self.held = self.allocate().is_ok();
        }
    }

    /// Gives it up. True if that freed anything.
    pub fn release(&mut self) -> bool {
        std::mem::take(&mut self.held) && fs::remove_file(&self.path).is_ok()
    }

    fn allocate(&self) -> io::Result<()> {
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&self.path)?;
        let allocated = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES);
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
    fn it_is_given_up_once_and_taken_again_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let plenty = FileSystem { total_bytes: 1 << 30, free_bytes: 1 << 29 };
        let mut reserve = Reserve::at(path.clone());
        assert!(!reserve.release());
        reserve.refill(FileSystem { free_bytes: RESERVE_BYTES, ..plenty });
        assert!(!path.exists(), "taken from the last bytes");
        reserve.refill(plenty);
        assert_eq!(fs::metadata(&path).unwrap().len(), RESERVE_BYTES);
        let mut next_run = Reserve::at(path.clone());
        assert!(next_run.release() && !path.exists());
        assert!(!next_run.release());
    }
}
