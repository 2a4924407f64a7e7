//! Bytes that became a void are kept for people to look at: one file per batch under `rejected/`, mode 0600, durable
//! before the void is stored. A file is: magic, the lengths of header and payload (u32, big endian), both.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use proto::ids::Origin;

use super::read::BatchBytes;

const MAGIC: &[u8; 4] = b"CRJ1";
/// Copied at once.
const PART_BYTES: u64 = 1024 * 1024;
/// What a disk that fails loses at least.
const BLOCK_BYTES: u64 = 4096;

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
    let source = match File::open(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let bytes = source.metadata()?.len();
    write(dir, name, |file| {
        let unreadable = copy_readable(|part, at| source.read_exact_at(part, at), bytes, file)?;
        if unreadable > 0 {
            tracing::error!(name, unreadable, "bytes of a damaged file cannot be read, they are zeros in the copy");
        }
        Ok(())
    })
}

/// Copies `bytes` bytes; those that cannot be read become zeros. Returns how many.
fn copy_readable(read: impl Fn(&mut [u8], u64) -> io::Result<()>, bytes: u64, to: &mut impl Write) -> io::Result<u64> {
    let (mut at, mut unreadable, mut part) = (0, 0, vec![0; PART_BYTES as usize]);
    while at < bytes {
        part.resize((bytes - at).min(PART_BYTES) as usize, 0);
        if read(&mut part, at).is_err() {
            for (n, block) in part.chunks_mut(BLOCK_BYTES as usize).enumerate() {
                if read(block, at + n as u64 * BLOCK_BYTES).is_err() {
                    block.fill(0);
                    unreadable += block.len() as u64;
                }
            }
        }
        to.write_all(&part)?;
        at += part.len() as u64;
    }
    Ok(unreadable)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_does_not_give_costs_its_block_alone() {
        let whole: Vec<u8> = (0..PART_BYTES * 2 + 5000).map(|n| (n % 251) as u8 + 1).collect();
        let bad = PART_BYTES + 2 * BLOCK_BYTES..PART_BYTES + 3 * BLOCK_BYTES;
        let read = |part: &mut [u8], at: u64| {
            let end = at + part.len() as u64;
            if at < bad.end && end > bad.start {
                return Err(io::Error::other("injected"));
            }
            part.copy_from_slice(&whole[at as usize..end as usize]);
            Ok(())
        };
        let mut copy = Vec::new();
        assert_eq!(copy_readable(read, whole.len() as u64, &mut copy).unwrap(), BLOCK_BYTES);
        let mut expected = whole.clone();
        expected[bad.start as usize..bad.end as usize].fill(0);
        assert!(copy == expected);
    }
}
