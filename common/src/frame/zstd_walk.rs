//! Walks the headers of a zstd frame (RFC 8878) without decoding it: a few bytes are looked at per 128 KiB of content.

use crate::frame::{FrameError, MAX_WINDOW_BYTES};

const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
const MAX_BLOCK_BYTES: u64 = 128 * 1024;

/// Exactly one frame, ending with the payload, stating `raw_bytes` as its content size, able to hold that much.
pub(super) fn walk(payload: &[u8], raw_bytes: u64) -> Result<(), FrameError> {
    let mut rest = Rest(payload);
    if rest.take(4)? != MAGIC {
        return Err(FrameError::NotAFrame);
    }
    let header = frame_header(&mut rest)?;
    if header.window > MAX_WINDOW_BYTES {
        return Err(FrameError::Window { bytes: header.window });
    }
    if header.content != raw_bytes {
        return Err(FrameError::ContentSize { found: header.content, declared: raw_bytes });
    }
    let block_limit = header.window.min(MAX_BLOCK_BYTES);
    let (mut least, mut most) = (0u64, 0u64);
    loop {
        let bytes = rest.take(3)?;
        let field = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
        let (last, kind, size) = (field & 1 == 1, (field >> 1) & 3, u64::from(field >> 3));
        if size > block_limit {
            return Err(FrameError::Damaged);
        }
        match kind {
            // Stored.
            0 => {
                rest.take(size as usize)?;
                least += size;
                most += size;
            }
            // One byte, repeated.
            1 => {
                rest.take(1)?;
                least += size;
                most += size;
            }
            // Compressed.
            2 => {
                rest.take(size as usize)?;
                most += block_limit;
            }
            _ => return Err(FrameError::Damaged),
        }
        if last {
            break;
        }
    }
    if header.checksum {
        rest.take(4)?;
    }
    if !rest.0.is_empty() {
        return Err(FrameError::Trailing);
    }
    if raw_bytes < least || raw_bytes > most {
        return Err(FrameError::ContentSize {
            found: if raw_bytes < least { least } else { most },
            declared: raw_bytes,
        });
    }
    Ok(())
}

struct FrameHeader {
    window: u64,
    content: u64,
    checksum: bool,
}

fn frame_header(rest: &mut Rest<'_>) -> Result<FrameHeader, FrameError> {
    let descriptor = rest.take(1)?[0];
    let single_segment = descriptor & 0x20 != 0;
    if descriptor & 0x08 != 0 {
        // Reserved: no frame of today has it.
        return Err(FrameError::Damaged);
    }
    let mut window = None;
    if !single_segment {
        let byte = rest.take(1)?[0];
        let base = 1u64 << (10 + u32::from(byte >> 3));
        window = Some(base + base / 8 * u64::from(byte & 7));
    }
    let dictionary = rest.take([0, 1, 2, 4][usize::from(descriptor & 3)])?;
    if dictionary.iter().any(|&byte| byte != 0) {
        return Err(FrameError::Dictionary);
    }
    let content = match (descriptor >> 6, single_segment) {
        (0, false) => return Err(FrameError::NoContentSize),
        (0, true) => rest.number(1)?,
        (1, _) => rest.number(2)? + 256,
        (2, _) => rest.number(4)?,
        _ => rest.number(8)?,
    };
    let checksum = descriptor & 0x04 != 0;
    Ok(FrameHeader { window: window.unwrap_or(content), content, checksum })
}

/// What has not been walked yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(FrameError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, bytes: usize) -> Result<u64, FrameError> {
        let mut all = [0; 8];
        all[..bytes].copy_from_slice(self.take(bytes)?);
        Ok(u64::from_le_bytes(all))
    }
}
