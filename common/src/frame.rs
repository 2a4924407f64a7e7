//! Payload frames: exactly one complete zstd frame or gzip member (or plain bytes), so that frames can be appended to
//! each other in a file without being decoded.
//!
//! Nothing that comes from outside is trusted: [`check`] and [`decode`] accept one frame with an exact end, whose own
//! content size is the declared one, and whose window a reader can afford. Memory never follows a claim: sizes over
//! [`proto::MAX_RAW_BYTES`] are refused before anything is allocated.

mod zstd_walk;

use std::cell::RefCell;

use libdeflater::{CompressionLvl, Compressor, DecompressionError, Decompressor};
use proto::wire::Codec;

/// Largest window a frame may ask a reader to hold, in bytes.
pub const MAX_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Level used for 0. Measured on access logs: level 3 costs twice the CPU of level 1 for a tenth less size.
const DEFAULT_LEVEL: i32 = 1;
/// From level 20 on zstd makes windows over [`MAX_WINDOW_BYTES`].
const MAX_ZSTD_LEVEL: i32 = 19;
/// Fast levels below 1 trade size for speed; past this one there is little left to trade.
const MIN_ZSTD_LEVEL: i32 = -7;
const MAX_GZIP_LEVEL: i32 = 12;
/// A scratch buffer over this size is given back after use.
const KEEP_SCRATCH_BYTES: usize = 4 * 1024 * 1024;

/// Why bytes are not a usable frame. The texts are constant but for numbers, so they can be counted by kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No codec is named.
    #[error("the payload's codec is not one this release knows")]
    Codec,
    /// Over [`proto::MAX_RAW_BYTES`].
    #[error("the frame claims {raw_bytes} decoded bytes, the limit is {limit}")]
    TooLarge {
        /// Declared, or found in the frame.
        raw_bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// It begins with something else (a skippable frame is something else too).
    #[error("the payload does not begin with a frame of its codec")]
    NotAFrame,
    /// It ends inside the frame.
    #[error("the frame is truncated")]
    Truncated,
    /// Bytes behind the end of the frame: a second frame, or garbage.
    #[error("bytes follow the end of the frame")]
    Trailing,
    /// The frame's own size is not the declared one.
    #[error("the frame has {found} decoded bytes, {declared} were declared")]
    ContentSize {
        /// What the frame says or has.
        found: u64,
        /// What the header says.
        declared: u64,
    },
    /// The frame does not say how large its content is.
    #[error("the frame does not state its content size")]
    NoContentSize,
    /// Over [`MAX_WINDOW_BYTES`].
    #[error("the frame needs a window of {bytes} bytes, the limit is {MAX_WINDOW_BYTES}")]
    Window {
        /// What it asks for.
        bytes: u64,
    },
    /// It needs a dictionary, and there are none.
    #[error("the frame needs a dictionary")]
    Dictionary,
    /// Its insides are not well formed, or its checksum does not match.
    #[error("the frame is damaged")]
    Damaged,
    /// The compressor failed; cannot happen with enough memory.
    #[error("the frame cannot be made: {0}")]
    Encode(String),
}

/// Makes frames of one codec; its context is used again, nothing is allocated per frame.
pub struct FrameEncoder {
    inner: Encoder,
}

enum Encoder {
    Plain,
    Zstd(Box<zstd::bulk::Compressor<'static>>),
    Gzip(Compressor),
    Unknown,
}

impl std::fmt::Debug for FrameEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.inner {
            Encoder::Plain => "FrameEncoder(none)",
            Encoder::Zstd(_) => "FrameEncoder(zstd)",
            Encoder::Gzip(_) => "FrameEncoder(gzip)",
            Encoder::Unknown => "FrameEncoder(unknown)",
        })
    }
}

impl FrameEncoder {
    /// `level` 0 is the default (zstd 1, gzip 1); others are brought into zstd -7 ..= 19, gzip 1 ..= 12.
    pub fn new(codec: Codec, level: i32) -> Self {
        let level = if level == 0 { DEFAULT_LEVEL } else { level };
        let inner = match codec {
            Codec::None => Encoder::Plain,
            Codec::Zstd => match zstd::bulk::Compressor::new(level.clamp(MIN_ZSTD_LEVEL, MAX_ZSTD_LEVEL)) {
                Ok(compressor) => Encoder::Zstd(Box::new(compressor)),
                Err(_) => Encoder::Unknown,
            },
            Codec::Gzip => {
                let level = CompressionLvl::new(level.clamp(1, MAX_GZIP_LEVEL)).unwrap_or_default();
                Encoder::Gzip(Compressor::new(level))
            }
            Codec::Unspecified => Encoder::Unknown,
        };
        Self { inner }
    }

    /// Replaces `out` by one complete frame of `raw`, with its content size. At most [`proto::MAX_RAW_BYTES`].
    pub fn encode(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        within_limit(raw.len() as u64)?;
        out.clear();
        match &mut self.inner {
            Encoder::Plain => out.extend_from_slice(raw),
            Encoder::Zstd(compressor) => {
                out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
                compressor.compress_to_buffer(raw, out).map_err(|e| FrameError::Encode(e.to_string()))?;
            }
            Encoder::Gzip(compressor) => {
                out.resize(compressor.gzip_compress_bound(raw.len()), 0);
                let made = compressor.gzip_compress(raw, out).map_err(|e| FrameError::Encode(e.to_string()))?;
                out.truncate(made);
            }
            Encoder::Unknown => return Err(FrameError::Codec),
        }
        Ok(())
    }
}

thread_local! {
    static ZSTD: RefCell<zstd::bulk::Decompressor<'static>> = RefCell::default();
    static GZIP: RefCell<(Decompressor, Vec<u8>)> = RefCell::default();
}

/// Replaces `out` by the decoded content: exactly one frame, exact end, exactly `raw_bytes`.
pub fn decode(codec: Codec, payload: &[u8], raw_bytes: u64, out: &mut Vec<u8>) -> Result<(), FrameError> {
    within_limit(raw_bytes)?;
    out.clear();
    match codec {
        Codec::None => {
            same_size(payload.len() as u64, raw_bytes)?;
            out.extend_from_slice(payload);
            Ok(())
        }
        Codec::Zstd => {
            zstd_walk::walk(payload, raw_bytes)?;
            out.reserve_exact(raw_bytes as usize);
            ZSTD.with_borrow_mut(|zstd| zstd.decompress_to_buffer(payload, out)).map_err(|_| FrameError::Damaged)?;
            same_size(out.len() as u64, raw_bytes)
        }
        Codec::Gzip => GZIP.with_borrow_mut(|(gzip, _)| {
            out.resize(raw_bytes as usize, 0);
            gunzip(gzip, payload, out).inspect_err(|_| out.clear())
        }),
        Codec::Unspecified => Err(FrameError::Codec),
    }
}

/// Is this a payload that may be appended to a file as it is? zstd: walks the frame's block headers, without decoding
/// (so only [`decode`] finds damage inside a block); gzip: decodes; none: compares the length.
pub fn check(codec: Codec, payload: &[u8], raw_bytes: u64) -> Result<(), FrameError> {
    within_limit(raw_bytes)?;
    match codec {
        Codec::None => same_size(payload.len() as u64, raw_bytes),
        Codec::Zstd => zstd_walk::walk(payload, raw_bytes),
        Codec::Gzip => GZIP.with_borrow_mut(|(gzip, scratch)| {
            scratch.resize(raw_bytes as usize, 0);
            let checked = gunzip(gzip, payload, scratch);
            if scratch.capacity() > KEEP_SCRATCH_BYTES {
                *scratch = Vec::new();
            }
            checked
        }),
        Codec::Unspecified => Err(FrameError::Codec),
    }
}

/// One member that fills `out` and ends with the payload.
fn gunzip(gzip: &mut Decompressor, payload: &[u8], out: &mut [u8]) -> Result<(), FrameError> {
    if !payload.starts_with(&[0x1f, 0x8b]) {
        return Err(FrameError::NotAFrame);
    }
    // The decoder does not say where the member ended, but one that ends with the payload cannot do without its last
    // byte. This attempt comes first, because what it leaves in `out` when it fails is nothing to rely on.
    if gzip.gzip_decompress(&payload[..payload.len() - 1], out).is_ok() {
        return Err(FrameError::Trailing);
    }
    let declared = out.len() as u64;
    match gzip.gzip_decompress(payload, out) {
        Ok(found) => same_size(found as u64, declared),
        Err(DecompressionError::InsufficientSpace) => Err(FrameError::ContentSize { found: declared + 1, declared }),
        Err(DecompressionError::BadData) => Err(FrameError::Damaged),
    }
}

fn within_limit(raw_bytes: u64) -> Result<(), FrameError> {
    let limit = proto::MAX_RAW_BYTES;
    if raw_bytes <= limit { Ok(()) } else { Err(FrameError::TooLarge { raw_bytes, limit }) }
}

fn same_size(found: u64, declared: u64) -> Result<(), FrameError> {
    if found == declared { Ok(()) } else { Err(FrameError::ContentSize { found, declared }) }
}

#[cfg(test)]
mod tests;
