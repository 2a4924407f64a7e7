//! One host's `access.log` with its rotation: renamed away as `logrotate` does it, or copied and truncated, with lines
//! written in the gap between the two, which no reader can be sure to get; those are named in `destroyed.ids`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file that is written.
pub const LOG_NAME: &str = "access.log";
/// Beside it: one `eid=<host>.<number>` per line for every event that a truncation destroyed.
pub const DESTROYED_NAME: &str = "destroyed.ids";

/// What happens to a log that has become long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rotate {
    /// It grows for ever.
    None,
    /// `access.log` becomes `access.log.1`, older ones move up, a new file begins.
    Rename,
    /// `access.log` is copied to `access.log.1` and cut to nothing while it stays open.
    Copytruncate,
}

/// The open log of one host.
#[derive(Debug)]
pub struct LogFile {
    dir: PathBuf,
    file: File,
    bytes: u64,
    rotated: u32,
}

impl LogFile {
    /// Makes the folder and the empty log. A log that is there already is an error: ids would begin anew in it.
    pub fn create(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(LOG_NAME);
        if path.exists() {
            let text = format!("{} is there already; choose another folder or remove it", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Ok(Self { dir: dir.to_owned(), file: open(&path)?, bytes: 0, rotated: 0 })
    }

    /// Bytes in the file that is written now.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Renames the log away and begins a new one.
    pub fn rotate_by_rename(&mut self) -> io::Result<()> {
        self.move_up()?;
        let path = self.dir.join(LOG_NAME);
        fs::rename(&path, self.numbered(1))?;
        self.file = open(&path)?;
        self.bytes = 0;
        Ok(())
    }

    /// Copies the log, appends `between` as a server does that does not know of the copy, and cuts the log to nothing:
    /// `between` is destroyed, and `ids` (one per line) goes to the list of what was.
    pub fn rotate_by_copy(&mut self, between: &[u8], ids: &[u8]) -> io::Result<()> {
        self.move_up()?;
        fs::copy(self.dir.join(LOG_NAME), self.numbered(1))?;
        OpenOptions::new().append(true).create(true).open(self.dir.join(DESTROYED_NAME))?.write_all(ids)?;
        self.file.write_all(between)?;
        self.file.set_len(0)?;
        self.bytes = 0;
        Ok(())
    }

    fn move_up(&mut self) -> io::Result<()> {
        for number in (1..=self.rotated).rev() {
            fs::rename(self.numbered(number), self.numbered(number + 1))?;
        }
        self.rotated += 1;
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{LOG_NAME}.{number}"))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}
