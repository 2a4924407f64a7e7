//! Reads a published file once from its beginning to its end, and compares it with what the log says.

use bytes::{Bytes, BytesMut};
use proto::wire;

use super::budget::Budget;
use super::progress::Task;
use super::{PlannedFile, Trouble};
use crate::store::Store;

/// Read and written at once, and paid for at once.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// What every step of a compaction needs.
#[derive(Clone, Copy)]
pub(super) struct Tools<'a> {
    pub store: &'a dyn Store,
    pub budget: &'a Budget,
    pub task: &'a Task,
}

/// An input with its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Source {
    /// Its final path.
    pub path: String,
    pub entry: wire::FileEntry,
}

impl Source {
    /// The inputs of a planned file, in order.
    pub fn all(dir: &str, planned: &PlannedFile) -> Vec<Self> {
        let source = |entry: &wire::FileEntry| Self { path: format!("{dir}/{}", entry.name), entry: entry.clone() };
        planned.inputs.iter().map(source).collect()
    }

    /// Is it there, and as long as the log says?
    pub async fn check(&self, tools: Tools<'_>) -> Result<(), Trouble> {
        match tools.store.stat(&self.path).await? {
            None => Err(Trouble::Missing),
            Some(stat) if stat.bytes != self.entry.bytes => Err(self.length(stat.bytes)),
            Some(_) => Ok(()),
        }
    }

    /// Bytes from `offset` on, all of them, at once: for what is small.
    pub async fn part(&self, tools: Tools<'_>, offset: u64, len: usize) -> Result<Bytes, Trouble> {
        tools.budget.spend(len).await;
        let bytes = tools.store.read_range(&self.path, offset, len).await?;
        if bytes.len() == len { Ok(bytes) } else { Err(self.length(offset + bytes.len() as u64)) }
    }

    fn length(&self, found: u64) -> Trouble {
        Trouble::Refused(format!("it has {found} bytes, the log says {}", self.entry.bytes))
    }
}

/// One pass over a source.
pub(super) struct Reader<'a> {
    tools: Tools<'a>,
    source: &'a Source,
    offset: u64,
    crc32c: u32,
}

impl<'a> Reader<'a> {
    pub fn new(tools: Tools<'a>, source: &'a Source) -> Self {
        Self { tools, source, offset: 0, crc32c: 0 }
    }

    /// Where the next byte comes from.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next piece before `end`; none there.
    pub async fn next(&mut self, end: u64) -> Result<Option<Bytes>, Trouble> {
        let left = end.min(self.source.entry.bytes).saturating_sub(self.offset);
        let len = left.min(PIECE_BYTES as u64) as usize;
        if len == 0 {
            return Ok(None);
        }
        let piece = self.source.part(self.tools, self.offset, len).await?;
        self.offset += piece.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &piece);
        self.tools.task.read(piece.len() as u64);
        Ok(Some(piece))
    }

    /// Everything up to `end`.
    pub async fn until(&mut self, end: u64) -> Result<Bytes, Trouble> {
        let len = end.min(self.source.entry.bytes).saturating_sub(self.offset);
        let mut all = BytesMut::with_capacity(usize::try_from(len).unwrap_or(0));
        while let Some(piece) = self.next(end).await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Reads what is left and throws it away.
    pub async fn skip(&mut self, end: u64) -> Result<(), Trouble> {
        while self.next(end).await?.is_some() {}
        Ok(())
    }

    /// Reads to the end and compares the checksum.
    pub async fn finish(mut self) -> Result<(), Trouble> {
        self.skip(u64::MAX).await?;
        if self.crc32c != self.source.entry.crc32c {
            let (found, logged) = (self.crc32c, self.source.entry.crc32c);
            return Err(Trouble::Refused(format!("its checksum is {found:08x}, the log says {logged:08x}")));
        }
        self.tools.task.input_done();
        Ok(())
    }
}
