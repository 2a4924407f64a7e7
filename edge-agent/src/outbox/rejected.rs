//! Bytes that became a void are kept for people to look at: one file per batch under `rejected/`, mode 0600, durable
//! before the void is stored. A file is: magic, the lengths of header and payload (u32, big endian), both.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use proto::ids::Origin;

use super::read::BatchBytes;

const MAGIC: &[u8; 4] = b"CRJ1";

/// Keeps one batch. Does nothing if it is there already.
pub fn keep(dir: &Path, origin: Origin, seq: u64, batch: &BatchBytes) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(12 + batch.header.len() + batch.payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(batch.header.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&(batch.payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&batch.header);
    bytes.extend_from_slice(&batch.payload);
    let name = format!("{origin}-{seq}.batch");
    write(dir, &name, |file| file.write_all(&bytes))
}

/// Keeps a copy of a damaged file. One that held nothing valid at all is gone already: then there is nothing to keep.
pub fn keep_copy(dir: &Path, from: &Path, name: &str) -> io::Result<()> {
    if dir.join(name).exists() {
        return Ok(());
    }
    let mut source = match File::open(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    write(dir, name, |file| io::copy(&mut source, file).map(drop))
}

/// There was no room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Bytes kept there.
pub fn bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

fn write(dir: &Path, name: &str, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let draft = dir.join(format!("{name}.draft"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    if let Err(error) = fill(&mut file).and_then(|()| file.sync_all()) {
        // Half a copy is none, and may have taken the last space.
        fs::remove_file(&draft)?;
        return Err(error);
    }
    fs::rename(&draft, dir.join(name))?;
    File::open(dir)?.sync_all()
}
