//! One HDFS file while it is written.
//!
//! Invariant: after the first error, time-out or dropped call the writer is gone, so nothing is written to the file or
//! closed again. (After an error of `write` the crate's own `close` may still answer that all is well.)

use bytes::Bytes;
use hdfs_native::Client;
use hdfs_native::file::FileWriter;

use super::{Effect, Limits, bounded};
use crate::store::{StagedFile, StoreError, StoreFuture};

/// Written per time-out; a longer append is cut into such pieces.
const PIECE_BYTES: usize = 1 << 20;

/// `writer` is none after an error and while a call is under way.
pub struct HdfsFile {
    writer: Option<FileWriter>,
    client: Client,
    path: String,
    at: String,
    limits: Limits,
}

impl HdfsFile {
    pub fn new(writer: FileWriter, client: Client, path: String, at: String, limits: Limits) -> Self {
        Self { writer: Some(writer), client, path, at, limits }
    }

    fn take(&mut self, op: &'static str) -> Result<FileWriter, StoreError> {
        self.writer.take().ok_or_else(|| StoreError::Other {
            op,
            path: self.path.clone(),
            detail: "an earlier write to this file failed, so nothing more is written to it".into(),
        })
    }
}

impl StagedFile for HdfsFile {
    fn append(&mut self, mut bytes: Bytes) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let mut writer = self.take("write")?;
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
                let limit = self.limits.write;
                bounded("write", &self.path, Effect::Write, limit, Box::pin(writer.write_bytes(piece))).await?;
            }
            self.writer = Some(writer);
            Ok(())
        })
    }

    fn close(mut self: Box<Self>) -> StoreFuture<'static, u64> {
        Box::pin(async move {
            let mut writer = self.take("close")?;
            let Limits { close, call, .. } = self.limits;
            bounded("close", &self.path, Effect::Write, close, Box::pin(writer.close())).await?;
            let status = self.client.get_file_info(&self.at);
            let status = bounded("stat", &self.path, Effect::None, call, status).await?;
            Ok(status.length as u64)
        })
    }
}
