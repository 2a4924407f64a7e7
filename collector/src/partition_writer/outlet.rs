//! One file of a group: bytes wait in memory until there are enough of them to open it.
//!
//! Invariant: `written` and `crc32c` cover exactly the bytes handed to the store, and a close whose length is another
//! one is an error. As long as nothing was done for the file, it waits for a store that says "not now" (an outage of
//! hours then costs nothing but time); once it was created, every error is final.

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

/// Length and checksum of a closed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    pub bytes: u64,
    pub crc32c: u32,
}

pub(super) struct Outlet {
    path: String,
    waiting: VecDeque<Bytes>,
    waiting_bytes: u64,
    file: Option<Box<dyn StagedFile>>,
    /// A create was sent: there may be a file to delete.
    touched: bool,
    written: Written,
}

impl Outlet {
    pub fn new(path: String) -> Self {
        let written = Written { bytes: 0, crc32c: 0 };
        Self { path, waiting: VecDeque::new(), waiting_bytes: 0, file: None, touched: false, written }
    }

    /// The path, if there may be a file.
    pub fn touched_path(&self) -> Option<String> {
        self.touched.then(|| self.path.clone())
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
            return Err(StoreError::Other { op: "close", path: self.path.clone(), detail });
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
        let file = match &mut self.file {
            Some(file) => file,
            empty => {
                self.touched = true;
                empty.insert(create(store, &self.path, given_up).await?)
            }
        };
        while let Some(part) = self.waiting.pop_front() {
            let bytes = part.len() as u64;
            self.written.crc32c = crc32c::crc32c_append(self.written.crc32c, &part);
            self.written.bytes += bytes;
            self.waiting_bytes -= bytes;
            file.append(part).await?;
        }
        Ok(())
    }
}

/// Creates the file, as soon as the store can. Only an answer that says that nothing was done is worth another attempt.
async fn create(store: &dyn Store, path: &str, given_up: &AtomicBool) -> Result<Box<dyn StagedFile>, StoreError> {
    loop {
        match store.create(path).await {
            Err(StoreError::Unavailable { .. } | StoreError::Permission { .. })
                if !given_up.load(Ordering::Acquire) => {}
            answer => return answer,
        }
        tokio::time::sleep(CREATE_PAUSE).await;
    }
}
