//! What the channel asks of the file system beside segments and ledger: free space, and a reserve that is given up so
//! that the ledger can still be written when the disk is full.

use std::io;
use std::path::Path;

use common::reserve::Reserve;

/// Bytes kept for the ledger on a full disk.
pub const RESERVE_BYTES: u64 = 8 * 1024 * 1024;

/// Bytes of the file system that an unprivileged process may still use.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The reserve of a data directory.
pub fn reserve(data_dir: &Path) -> Reserve {
    Reserve::at(data_dir.join("reserve"), RESERVE_BYTES)
}
