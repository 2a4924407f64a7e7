//! One file of a group: bytes wait in memory until there are enough of them to open it.
//!
//! Invariant: `written` and `crc32c` cover exactly the bytes handed to the store, and a close whose length is another
//! one is an error. Until the file exists an outage costs nothing but time: a store that says "not now" is asked again,
//! and a create that was not answered is followed by one of another name (names are used once). Then every error is final.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::store::{StagedFile, Store, StoreError};

/// A file is opened when more than this waits for it.
pub(super) const OPEN_AT_BYTES: u64 = 8 << 20;
/// What waits for an open file is written when it is at least this much.
const WRITE_AT_BYTES: u64 = 1 << 20;
/// Between attempts to create a file.
const CREATE_PAUSE: Duration = Duration::from_secs(1);
/// Names tried for one file; each may leave an empty file behind that nothing ever names.
const MAX_ATTEMPTS: usize = 100;

/// Length and checksum of a closed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    pub bytes: u64,
    pub crc32c: u32,
}

pub(super) struct Outlet {
    /// Where the first attempt to create it goes.
    base: String,
    /// Every path for which a create was sent; the last one is the file's.
    sent: Vec<String>,
    waiting: VecDeque<Bytes>,
    waiting_bytes: u64,
    file: Option<Box<dyn StagedFile>>,
    written: Written,
}

impl Outlet {
    pub fn new(base: String) -> Self {
        let written = Written { bytes: 0, crc32c: 0 };
        Self { base, sent: Vec::new(), waiting: VecDeque::new(), waiting_bytes: 0, file: None, written }
    }

    /// Every path under which there may be a file; the last one is the one that is written.
    pub fn paths(&self) -> &[String] {
        &self.sent
    }

    pub fn push(&mut self, parts: Vec<Bytes>) {
        for part in parts {
            self.waiting_bytes += part.len() as u64;
            self.waiting.push_back(part);
        }
    }

    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    pub fn written_bytes(&self) -> u64 {
        self.written.bytes
    }

    /// Opens the file if it is time, and writes what is due.
    pub async fn advance(&mut self, store: &dyn Store, given_up: &AtomicBool) -> Result<(), StoreError> {
        if self.file.is_none() && self.waiting_bytes <= OPEN_AT_BYTES {
            return Ok(());
        }
        if self.waiting_bytes < WRITE_AT_BYTES {
            return Ok(());
        }
        self.write(store, given_up).await
    }

    /// Writes everything and closes the file; none if there was never a byte for it.
    pub async fn close(&mut self, store: &dyn Store, given_up: &AtomicBool) -> Result<Option<Written>, StoreError> {
        if self.file.is_none() && self.waiting.is_empty() {
            return Ok(None);
        }
        self.write(store, given_up).await?;
        let Some(file) = self.file.take() else { return Ok(None) };
        let stored = file.close().await?;
        if stored != self.written.bytes {
            let detail = format!("it has {stored} bytes, {} were written", self.written.bytes);
            return Err(StoreError::Other { op: "close", path: self.base.clone(), detail });
        }
        Ok(Some(self.written))
    }

    /// Forgets what waits and lets go of the file, unclosed.
    pub fn drop_all(&mut self) {
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.file = None;
    }

    async fn write(&mut self, store: &dyn Store, given_up: &AtomicBool) -> Result<(), StoreError> {
        if self.file.is_none() {
            self.file = Some(self.create(store, given_up).await?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        while let Some(part) = self.waiting.pop_front() {
            let bytes = part.len() as u64;
            self.written.crc32c = crc32c::crc32c_append(self.written.crc32c, &part);
            self.written.bytes += bytes;
            self.waiting_bytes -= bytes;
            file.append(part).await?;
        }
        Ok(())
    }

    /// Creates the file, as soon as the store can.
    async fn create(&mut self, store: &dyn Store, given_up: &AtomicBool) -> Result<Box<dyn StagedFile>, StoreError> {
        let mut path = attempt_path(&self.base, self.sent.len());
        self.sent.push(path.clone());
        loop {
            let error = match store.create(&path).await {
                Ok(file) => return Ok(file),
                Err(error) => error,
            };
            match error {
                _ if given_up.load(Ordering::Acquire) => return Err(error),
                // Nothing was done: the name is still unused.
                StoreError::Unavailable { .. } | StoreError::Full { .. } | StoreError::Permission { .. } => {}
                StoreError::Unanswered { .. } if self.sent.len() < MAX_ATTEMPTS => {
                    path = attempt_path(&self.base, self.sent.len());
                    self.sent.push(path.clone());
                }
                _ => return Err(error),
            }
            tokio::time::sleep(CREATE_PAUSE).await;
        }
    }
}

/// `7.log.zst`, then `7-1.log.zst`, `7-2.log.zst` ...
fn attempt_path(base: &str, attempt: usize) -> String {
    let name_at = base.rfind('/').map_or(0, |slash| slash + 1);
    match base[name_at..].split_once('.') {
        Some((number, extension)) if attempt > 0 => {
            format!("{}{number}-{attempt}.{extension}", &base[..name_at])
        }
        _ => base.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::attempt_path;

    #[test]
    fn every_attempt_has_a_name_of_its_own() {
        assert_eq!(attempt_path("_catchment/staging/col-1/7.log.zst", 0), "_catchment/staging/col-1/7.log.zst");
        assert_eq!(attempt_path("_catchment/staging/col.1/7.log.zst", 2), "_catchment/staging/col.1/7-2.log.zst");
    }
}
