//! Quarantine files: batches that nobody can decode or place, raw, each with its reason.
//!
//! A file is the magic `CTQF`, the format (u32 LE), then entries: length of the body (u32 LE), CRC32C of the body
//! (u32 LE), body. A body is origin (16 bytes), seq (u64 LE), then agent, reason, header and payload, each behind its
//! length (u32 LE). Invariant: every byte of a batch as it came is in here, and damage is reported, never skipped.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use proto::ids::{AgentName, BatchId, Origin};

/// First bytes of a quarantine file.
pub const MAGIC: [u8; 4] = *b"CTQF";
const FILE_HEADER_BYTES: usize = 8;
const ENTRY_HEADER_BYTES: usize = 8;
/// Longest reason kept.
const MAX_REASON_BYTES: usize = 4096;

/// One batch that was refused for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantinedBatch {
    /// As the transport named it.
    pub id: BatchId,
    /// The header as it came; it need not be decodable.
    pub header: Bytes,
    /// The payload as it came.
    pub payload: Bytes,
    /// Why it was refused, for people.
    pub reason: String,
}

/// What is wrong with a quarantine file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuarantineError {
    /// Another kind of file, or one of a newer release.
    #[error("it is no quarantine file of a format that this release reads (1 to {newest})", newest = proto::FORMAT)]
    NotOurs,
    /// An entry is cut short or damaged; what follows it cannot be read.
    #[error("the entry at offset {offset} is damaged: {detail}")]
    Damaged {
        /// Where it begins.
        offset: u64,
        /// What was seen.
        detail: &'static str,
    },
}

/// The bytes with which every file begins.
pub fn file_header() -> Bytes {
    let mut out = BytesMut::with_capacity(FILE_HEADER_BYTES);
    out.put_slice(&MAGIC);
    out.put_u32_le(proto::FORMAT);
    out.freeze()
}

/// One entry.
pub fn encode(batch: &QuarantinedBatch) -> Bytes {
    let agent = batch.id.agent.as_str().as_bytes();
    let reason = cut(&batch.reason).as_bytes();
    let body = 16 + 8 + 4 * 4 + agent.len() + reason.len() + batch.header.len() + batch.payload.len();
    let mut out = BytesMut::with_capacity(ENTRY_HEADER_BYTES + body);
    out.put_u32_le(length(body));
    out.put_u32_le(0);
    out.put_slice(&batch.id.origin.0);
    out.put_u64_le(batch.id.seq);
    for part in [agent, reason, &batch.header, &batch.payload] {
        out.put_u32_le(length(part.len()));
        out.put_slice(part);
    }
    let crc = crc32c::crc32c(&out[ENTRY_HEADER_BYTES..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// The entries of a file, in order; after an error there are no more.
pub fn read(file: Bytes) -> impl Iterator<Item = Result<QuarantinedBatch, QuarantineError>> {
    let mut rest = file;
    let total = rest.len() as u64;
    let mut state = Some(());
    let known = rest.len() >= FILE_HEADER_BYTES
        && rest.copy_to_bytes(4) == MAGIC[..]
        && (1..=proto::FORMAT).contains(&rest.get_u32_le());
    std::iter::from_fn(move || {
        state?;
        if known && rest.is_empty() {
            return None;
        }
        let offset = total - rest.len() as u64;
        let entry = if known { entry(&mut rest) } else { Err(None) };
        if entry.is_err() {
            state = None;
        }
        Some(entry.map_err(|detail| match detail {
            None => QuarantineError::NotOurs,
            Some(detail) => QuarantineError::Damaged { offset, detail },
        }))
    })
}

fn entry(rest: &mut Bytes) -> Result<QuarantinedBatch, Option<&'static str>> {
    if rest.len() < ENTRY_HEADER_BYTES {
        return Err(Some("it is cut short"));
    }
    let (bytes, crc) = (rest.get_u32_le() as usize, rest.get_u32_le());
    if rest.len() < bytes {
        return Err(Some("it is cut short"));
    }
    let mut body = rest.split_to(bytes);
    if crc32c::crc32c(&body) != crc {
        return Err(Some("its CRC32C is another"));
    }
    if body.len() < 24 {
        return Err(Some("it is too short to name a batch"));
    }
    let origin = Origin::from_bytes(&body.split_to(16)).map_err(|_| Some("its origin is none"))?;
    let seq = body.get_u64_le();
    let mut field = || {
        let wrong = Some("its lengths contradict each other");
        let bytes = body.try_get_u32_le().map_err(|_| wrong)? as usize;
        if body.len() < bytes { Err(wrong) } else { Ok(body.split_to(bytes)) }
    };
    let (agent, reason, header, payload) = (field()?, field()?, field()?, field()?);
    let agent = std::str::from_utf8(&agent).ok().and_then(|name| AgentName::new(name).ok());
    let agent = agent.ok_or(Some("its agent is no name"))?;
    let reason = String::from_utf8_lossy(&reason).into_owned();
    Ok(QuarantinedBatch { id: BatchId { agent, origin, seq }, header, payload, reason })
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("messages are far below 4 GiB")
}

fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(seq: u64) -> QuarantinedBatch {
        QuarantinedBatch {
            id: BatchId { agent: AgentName::new("web-1").unwrap(), origin: Origin::mint(1, 2), seq },
            header: Bytes::from_static(b"\xffnot a header"),
            payload: Bytes::from(vec![seq as u8; 1000]),
            reason: "two frames in one payload".into(),
        }
    }

    fn file() -> Vec<u8> {
        [file_header(), encode(&batch(1)), encode(&batch(2))].concat()
    }

    #[test]
    fn every_byte_comes_back() {
        let read: Vec<_> = read(file().into()).collect();
        assert_eq!(read, [Ok(batch(1)), Ok(batch(2))]);
    }

    #[test]
    fn any_damage_is_told_and_nothing_before_it_is_lost() {
        let whole = file();
        let second = FILE_HEADER_BYTES + encode(&batch(1)).len();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            let read: Vec<_> = read(damaged.into()).collect();
            assert!(read.last().unwrap().is_err(), "a flip at {at} went unseen");
            assert_eq!(read.len(), if at < second { 1 } else { 2 });
        }
        for end in 0..whole.len() {
            let read: Vec<_> = read(whole[..end].to_vec().into()).collect();
            let whole_entries = end == FILE_HEADER_BYTES || end == second;
            assert_eq!(read.iter().all(Result::is_ok), whole_entries, "cut at {end}");
        }
    }
}
