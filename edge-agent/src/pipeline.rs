//! The pipeline of one source: decode, intercept, cut. From a chunk of the tail to batches, without any IO.
//!
//! Invariants: a chunk becomes batches as a whole or stays as it is; nothing of one chunk is kept for the next but memos
//! and empty buffers; the body of an event is masked before it is put anywhere, dead letters included.

mod config;

use std::sync::Arc;

use common::event_time::EventTime;
use proto::ids::{AgentName, DatasetName};

pub use self::config::{MaskConfig, MaskMode, PipelineConfig};
pub use crate::cut::{AuditDelta, Cut, CutBatch, Declarations, Undeclared};
use crate::cut::{Cutter, Letter, Reason, without_incomplete_end};
use crate::decode::{self, Events};
use crate::intercept::mask::{MaskError, MaskedLines, Masker};
use crate::intercept::{Chain, ChainError, Event};
use crate::tail::{Chunk, Piece, PieceKind};

/// What interceptors may make of an event at most; more would not fit into a batch.
const MAX_BODY_BYTES: usize = 8 << 20;

/// What pipelines of one agent have in common.
#[derive(Debug, Clone, Copy)]
pub struct PipelineContext<'a> {
    /// The agent's name.
    pub agent: &'a AgentName,
    /// The host name, for the header `host`.
    pub host: &'a str,
    /// `[mask]`.
    pub mask: &'a MaskConfig,
    /// Level for datasets that declare none; 0: the codec's default.
    pub compression_level: i32,
}

/// Why a pipeline cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The dataset's name.
    #[error("dataset: {0}")]
    Dataset(#[from] proto::ids::IdError),
    /// The time format.
    #[error("time: {0}")]
    Time(#[from] common::event_time::TimeFormatError),
    /// An interceptor.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Masking, or its key.
    #[error(transparent)]
    Mask(#[from] MaskError),
}

/// One source's pipeline. Owned by one thread.
#[derive(Debug)]
pub struct Pipeline {
    agent: String,
    source: String,
    time: EventTime,
    chain: Chain,
    cutter: Cutter,
    scratch: Vec<u8>,
    /// The file of the piece in hand: as it is named, and that masked.
    file: (Arc<str>, String),
}

impl Pipeline {
    /// Compiles the configuration of the source named `source`. Reads the masking key, nothing else.
    pub fn new(source: &str, config: &PipelineConfig, context: PipelineContext<'_>) -> Result<Self, PipelineError> {
        let routed = config.interceptors.iter().flat_map(|one| one.datasets());
        let mut datasets: Vec<DatasetName> = Vec::new();
        for name in std::iter::once(config.dataset.as_str()).chain(routed) {
            let name = DatasetName::new(name)?;
            if !datasets.contains(&name) {
                datasets.push(name);
            }
        }
        let masker = context.mask.enabled.then(|| Masker::new(context.mask)).transpose()?;
        let index = |name: &str| datasets.iter().position(|known| known.as_str() == name).unwrap_or(0) as u16;
        let chain = Chain::new(&config.interceptors, masker, context.host, index)?;
        Ok(Self {
            agent: context.agent.to_string(),
            source: source.to_owned(),
            time: EventTime::new(&config.time)?,
            chain,
            cutter: Cutter::new(source, datasets, context.compression_level),
            scratch: Vec::new(),
            file: (Arc::from(""), String::new()),
        })
    }

    /// Cuts a chunk; `now_us` is aggregator time in microseconds since the epoch. An error leaves everything as it was:
    /// the chunk is kept and cut again once the dataset is declared.
    pub fn run(&mut self, chunk: &Chunk, now_us: i64, datasets: &Declarations) -> Result<Cut, Undeclared> {
        self.cutter.begin(now_us, datasets);
        self.time.set_now(now_us);
        for piece in &chunk.pieces {
            self.name_file(&piece.path);
            match piece.kind {
                PieceKind::Lines => self.lines(piece, now_us)?,
                PieceKind::Partial => {
                    let end = decode::without_cr(&piece.bytes, 0, piece.bytes.len());
                    self.event(piece, &mut MaskedLines::new(&piece.bytes), 0..end, now_us)?;
                }
                PieceKind::TooLong { total_bytes } => self.too_long(piece, total_bytes, now_us)?,
            }
        }
        let chain = &self.chain;
        Ok(self.cutter.finish(|bits| chain.headers(bits)))
    }

    /// The time of one event by this source's rules, in microseconds since the epoch; `now_us` serves formats that
    /// leave out the year. A line end may be there or not.
    pub fn event_time_of(&mut self, line: &[u8], now_us: i64) -> Option<i64> {
        self.time.set_now(now_us);
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        self.time.extract(&line[..decode::without_cr(line, 0, line.len())])
    }

    /// A path may name a person too.
    fn name_file(&mut self, path: &Arc<str>) {
        if self.file.0 != *path {
            let masked = self.chain.masker().is_some_and(|masker| masker.mask(path.as_bytes(), &mut self.scratch));
            let name = if masked { String::from_utf8_lossy(&self.scratch).into_owned() } else { path.to_string() };
            self.file = (path.clone(), name);
        }
    }

    fn lines(&mut self, piece: &Piece, now_us: i64) -> Result<(), Undeclared> {
        let mut masked = MaskedLines::new(&piece.bytes);
        Events::new(&piece.bytes).try_for_each(|range| self.event(piece, &mut masked, range, now_us))
    }

    #[inline]
    fn event(
        &mut self,
        piece: &Piece,
        masked: &mut MaskedLines<'_>,
        range: std::ops::Range<usize>,
        now_us: i64,
    ) -> Result<(), Undeclared> {
        let slice = &piece.bytes[range.clone()];
        let mut event = Event { time_us: self.time.extract(slice), dataset: 0, headers: 0 };
        let body = self.chain.apply(&piece.bytes, masked, range.clone(), now_us, &mut event);
        let Some(body) = body else {
            self.cutter.filtered(event.dataset, event.time_us);
            return Ok(());
        };
        let place = match self.cutter.partition(event.dataset, event.time_us)? {
            Ok(_) if body.len() > MAX_BODY_BYTES => Err(Reason::Grown),
            place => place,
        };
        match place {
            Ok(partition) => {
                let time_us = event.time_us.unwrap_or(now_us);
                self.cutter.event(event.dataset, partition, event.headers, time_us, body);
                Ok(())
            }
            Err(reason) => {
                let letter = Letter {
                    time: &rfc3339(now_us),
                    agent: &self.agent,
                    dataset: self.cutter.dataset(event.dataset).as_str(),
                    source: &self.source,
                    file: &self.file.1,
                    offset: piece.offset + range.start as u64,
                    reason,
                    body_bytes: range.len() as u64,
                };
                let line = letter.to_line(body);
                self.cutter.dead_letter(event.dataset, event.headers, event.time_us, &line)
            }
        }
    }

    /// An event of which only the beginning is at hand: never filtered or routed, only set aside.
    fn too_long(&mut self, piece: &Piece, total_bytes: u64, now_us: i64) -> Result<(), Undeclared> {
        let bytes = &piece.bytes[..];
        let body = match self.chain.masker().map(|masker| masker.mask(bytes, &mut self.scratch)) {
            Some(true) => without_incomplete_end(&self.scratch),
            Some(false) => without_incomplete_end(bytes),
            None => bytes,
        };
        let letter = Letter {
            time: &rfc3339(now_us),
            agent: &self.agent,
            dataset: self.cutter.dataset(0).as_str(),
            source: &self.source,
            file: &self.file.1,
            offset: piece.offset,
            reason: Reason::TooLong,
            body_bytes: total_bytes,
        };
        let line = letter.to_line(body);
        self.scratch.clear();
        self.cutter.dead_letter(0, self.chain.fixed_headers(), None, &line)
    }
}

fn rfc3339(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| us.to_string(), |time| time.to_string())
}
