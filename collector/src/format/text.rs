//! Text files: compressed frames of whole lines, one after the other.
//!
//! A frame in the file's own codec and of 64 KiB raw or more is appended as it came, after its frame was checked:
//! exactly one, with the declared size and end. Smaller ones, and those in another codec, are decoded, and joined
//! into frames of 1 MiB. Invariant: the file is a run of complete frames whose decoded bytes are whole lines.

use bytes::Bytes;
use common::frame::{self, FrameEncoder};
use proto::header::Data;
use proto::wire::{Codec, Framing};

use super::{Counts, EncodeError, decodes_all};
use crate::config::dataset::Verify;

/// Frames below this raw size are joined.
pub const SMALL_FRAME_BYTES: u64 = 64 * 1024;
/// Raw size of a joined frame.
pub const JOINED_FRAME_BYTES: usize = 1 << 20;

/// One text file.
pub struct TextFile {
    codec: Codec,
    verify: Verify,
    encoder: FrameEncoder,
    /// Decoded lines that wait for a frame of their own.
    joining: Vec<u8>,
    out: Vec<Bytes>,
    counts: Counts,
}

impl std::fmt::Debug for TextFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextFile").field("codec", &self.codec).field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl TextFile {
    /// A file in this codec; level 0 is the codec's default.
    pub fn new(codec: Codec, level: i32, verify: Verify) -> Self {
        let encoder = FrameEncoder::new(codec, level);
        Self { codec, verify, encoder, joining: Vec::new(), out: Vec::new(), counts: Counts::default() }
    }

    /// Will this batch be appended without being decoded?
    pub fn passes_unread(&self, data: &Data) -> bool {
        self.passes(data) && data.codec == Codec::Zstd && !decodes_all(self.verify)
    }

    fn passes(&self, data: &Data) -> bool {
        data.codec == self.codec && data.wire.raw_bytes >= SMALL_FRAME_BYTES
    }

    /// Appends the lines of a batch.
    pub fn append(&mut self, data: &Data, payload: &Bytes) -> Result<(), EncodeError> {
        if self.passes_unread(data) {
            check_framing(data)?;
            frame::check(data.codec, payload, data.wire.raw_bytes).map_err(|e| EncodeError::Refused(e.to_string()))?;
            self.out.push(payload.clone());
        } else {
            let lines = decode_lines(data, payload)?;
            if self.passes(data) {
                self.out.push(payload.clone());
            } else {
                self.join(lines);
            }
        }
        self.counts.events += data.wire.events;
        self.counts.raw_bytes += data.wire.raw_bytes;
        self.counts.batches += 1;
        Ok(())
    }

    /// Appends lines that were made here, each ended by LF, on behalf of one batch.
    pub fn append_lines(&mut self, lines: Vec<u8>, events: u64) {
        self.counts.events += events;
        self.counts.raw_bytes += lines.len() as u64;
        self.counts.batches += 1;
        self.join(lines);
    }

    fn join(&mut self, lines: Vec<u8>) {
        if self.codec == Codec::None {
            self.out.push(lines.into());
            return;
        }
        let mut rest = lines.as_slice();
        while !rest.is_empty() {
            let wanted = JOINED_FRAME_BYTES - self.joining.len().min(JOINED_FRAME_BYTES - 1);
            let end = match rest.get(wanted - 1..).and_then(|tail| memchr::memchr(b'\n', tail)) {
                Some(at) => wanted + at,
                None => rest.len(),
            };
            let (piece, after) = rest.split_at(end);
            // Only one event of nearly the largest size comes near the limit of a frame.
            if (self.joining.len() + piece.len()) as u64 > proto::MAX_RAW_BYTES {
                self.finish();
            }
            self.joining.extend_from_slice(piece);
            rest = after;
            if self.joining.len() >= JOINED_FRAME_BYTES {
                self.finish();
            }
        }
    }

    /// Turns what was joined so far into a frame.
    pub fn finish(&mut self) {
        if self.joining.is_empty() {
            return;
        }
        let mut frame = Vec::with_capacity(self.joining.len() / 4 + 256);
        self.encoder.encode(&self.joining, &mut frame).expect("a compressor with memory to spare cannot fail");
        self.joining = Vec::new();
        self.out.push(frame.into());
    }

    /// What is to be appended now.
    pub fn take(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.out)
    }

    /// Memory held for what has not come out yet.
    pub fn memory_bytes(&self) -> u64 {
        self.joining.capacity() as u64 + self.out.iter().map(|part| part.len() as u64).sum::<u64>()
    }

    /// Counts so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

fn check_framing(data: &Data) -> Result<(), EncodeError> {
    match data.framing {
        Framing::Lines => Ok(()),
        other => Err(EncodeError::Refused(format!("this release cannot place framing {}", other.as_str_name()))),
    }
}

/// The decoded lines of a batch: the declared size, the declared number, the last one ended.
pub fn decode_lines(data: &Data, payload: &[u8]) -> Result<Vec<u8>, EncodeError> {
    check_framing(data)?;
    let mut lines = Vec::new();
    frame::decode(data.codec, payload, data.wire.raw_bytes, &mut lines)
        .map_err(|e| EncodeError::Refused(e.to_string()))?;
    let events = memchr::memchr_iter(b'\n', &lines).count() as u64;
    if lines.last() != Some(&b'\n') {
        return Err(EncodeError::Refused("its last event is not ended by LF".into()));
    }
    if events != data.wire.events {
        return Err(EncodeError::Refused(format!("it holds {events} events, its header says {}", data.wire.events)));
    }
    Ok(lines)
}
