//! A new file while it is written: staged, of the own incarnation, under a name that is used once.
//!
//! Invariant: what [`Output::close`] says of the file is exactly what was handed to the store, and the store has as much.

use std::sync::Arc;

use bytes::Bytes;
use proto::wire;

use super::Kind;
use super::input::{PIECE_BYTES, Source, Tools};
use super::plan::Plan;
use crate::partition_writer::{GroupKind, GroupSpec, published_data};
use crate::store::{StagedFile, StoreError};

/// Everything the record says of a new file but its sizes and counts.
pub(super) fn named(plan: &Plan, kind: Kind, incarnation: &str, number: u64) -> wire::PublishedFile {
    let mut dataset = kind.dataset(&plan.dataset);
    dataset.name = plan.key.dataset.to_string();
    published_data(&GroupSpec {
        number,
        incarnation: incarnation.to_owned(),
        kind: GroupKind::Data,
        dataset: Arc::new(dataset),
        partition: plan.key.partition,
        opened_day_utc: 0,
    })
}

pub(super) struct Output<'a> {
    tools: Tools<'a>,
    file: Box<dyn StagedFile>,
    published: wire::PublishedFile,
}

impl<'a> Output<'a> {
    pub async fn create(tools: Tools<'a>, published: wire::PublishedFile) -> Result<Self, StoreError> {
        let file = tools.store.create(&published.staged).await?;
        Ok(Self { tools, file, published })
    }

    pub async fn append(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            let len = piece.len();
            self.tools.budget.spend(len).await;
            self.published.crc32c = crc32c::crc32c_append(self.published.crc32c, &piece);
            self.published.bytes += len as u64;
            self.file.append(piece).await?;
            self.tools.task.wrote(len as u64);
        }
        Ok(())
    }

    /// Closes the file, which holds the events of `sources`.
    pub async fn close(self, sources: &[Source]) -> Result<wire::PublishedFile, StoreError> {
        let Self { file, mut published, .. } = self;
        let stored = file.close().await?;
        if stored != published.bytes {
            let detail = format!("it has {stored} bytes, {} were written", published.bytes);
            return Err(StoreError::Other { op: "close", path: published.staged, detail });
        }
        published.events = sources.iter().map(|source| source.entry.events).sum();
        published.raw_bytes = sources.iter().map(|source| source.entry.raw_bytes).sum();
        Ok(published)
    }
}
