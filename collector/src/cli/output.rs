//! Where replayed events go: a new local file of lines, with a note beside it that says what was replayed.
//!
//! The file is read by an edge agent like any other (`edge-agent --once`), so its events get a new identity and take the
//! same path as all others. Nothing is overwritten, and what a note in the same directory names is not replayed again
//! unless that is asked for.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// What comes behind the name of the output.
const NOTE: &str = ".replayed.json";

/// What was replayed, and where from.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    /// The destination.
    pub from: String,
    /// `deadletter` or `quarantine`.
    pub what: String,
    /// When, RFC 3339.
    pub at: String,
    /// Which part was chosen.
    pub filter: String,
    /// Lines in the output.
    pub lines: u64,
    /// Lines by the file they come from, or by batch.
    pub sources: BTreeMap<String, u64>,
}

/// A file that is written under another name until it is whole.
#[derive(Debug)]
pub(super) struct Output {
    to: PathBuf,
    partial: PathBuf,
    file: File,
    lines: u64,
    sources: BTreeMap<String, u64>,
}

/// Refuses an output that is there.
pub(super) fn check(to: &Path) -> anyhow::Result<()> {
    for path in [to.to_owned(), beside(to, ".partial"), beside(to, NOTE)] {
        if path.symlink_metadata().is_ok() {
            bail!("{}: it exists already; nothing is overwritten: give another name", path.display());
        }
    }
    Ok(())
}

/// Sources that notes in the directory of `to` name, with the note.
pub(super) fn replayed(to: &Path, from: &str, what: &str) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut known = BTreeMap::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("{} cannot be listed", dir.display()))? {
        let path = entry?.path();
        if !path.to_string_lossy().ends_with(NOTE) {
            continue;
        }
        let bytes = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let note: Note = serde_json::from_slice(&bytes).with_context(|| format!("{} is no note", path.display()))?;
        if note.from == from && note.what == what {
            known.extend(note.sources.into_keys().map(|source| (source, path.clone())));
        }
    }
    Ok(known)
}

impl Output {
    pub fn create(to: &Path) -> anyhow::Result<Self> {
        check(to)?;
        let partial = beside(to, ".partial");
        let file = create_new(&partial)?;
        Ok(Self { to: to.to_owned(), partial, file, lines: 0, sources: BTreeMap::new() })
    }

    /// Adds a line, without LF.
    pub fn line(&mut self, source: &str, line: &[u8]) -> anyhow::Result<()> {
        let mut whole = Vec::with_capacity(line.len() + 1);
        whole.extend_from_slice(line);
        whole.push(b'\n');
        self.file.write_all(&whole).with_context(|| format!("{} cannot be written", self.partial.display()))?;
        self.lines += 1;
        *self.sources.entry(source.to_owned()).or_default() += 1;
        Ok(())
    }

    /// Leaves nothing behind.
    pub fn take_back(self) {
        // What cannot be deleted is in nobody's way: an agent never reads it under that name.
        let _ = std::fs::remove_file(&self.partial);
    }

    /// Makes note and file durable, the note first: a crash between the two replays nothing.
    pub fn end(self, from: &str, what: &str, at: String, filter: String) -> anyhow::Result<u64> {
        self.file.sync_all()?;
        let note = Note { from: from.into(), what: what.into(), at, filter, lines: self.lines, sources: self.sources };
        let mut file = create_new(&beside(&self.to, NOTE))?;
        file.write_all(&serde_json::to_vec_pretty(&note)?)?;
        file.sync_all()?;
        // Fails if somebody made a file of that name meanwhile.
        std::fs::hard_link(&self.partial, &self.to).with_context(|| format!("{} cannot be made", self.to.display()))?;
        std::fs::remove_file(&self.partial)?;
        Ok(self.lines)
    }
}

fn create_new(path: &Path) -> anyhow::Result<File> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.with_context(|| format!("{} cannot be made", path.display()))
}

fn beside(to: &Path, end: &str) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(end);
    name.into()
}
