//! The envelope in which commit records and checkpoints lie in files:
//! magic (4), format (u32 LE), body length (u32 LE), CRC32C of the body (u32 LE), body (prost).
//!
//! A record is renamed into the log whole, so a damaged one is never a torn write: it is reported, never skipped.

use prost::Message;

use crate::wire;

/// First bytes of a commit record.
pub const RECORD_MAGIC: [u8; 4] = *b"CTCR";
/// First bytes of a checkpoint.
pub const CHECKPOINT_MAGIC: [u8; 4] = *b"CTCP";
const ENVELOPE_BYTES: usize = 16;

/// Why a file under `_catchment/` cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not such a file, cut short, or longer than it says.
    #[error("it is not a whole {what}: {detail}")]
    Malformed {
        /// Record or checkpoint.
        what: &'static str,
        /// The fact.
        detail: String,
    },
    /// Bytes changed on disk.
    #[error("its CRC32C is {found:08x}, it should be {expected:08x}: the file is damaged")]
    Crc {
        /// Computed.
        found: u32,
        /// Stored.
        expected: u32,
    },
    /// A newer release wrote it.
    #[error("it has format {found}, this release reads up to {newest}; upgrade this collector", newest = crate::FORMAT)]
    Unsupported {
        /// Stored format.
        found: u32,
    },
}

/// Encodes a commit record with its envelope.
pub fn encode_record(record: &wire::CommitRecord) -> Vec<u8> {
    seal_envelope(RECORD_MAGIC, &record.encode_to_vec())
}

/// Decodes a commit record.
pub fn decode_record(bytes: &[u8]) -> Result<wire::CommitRecord, RecordError> {
    decode("commit record", RECORD_MAGIC, bytes)
}

/// Encodes a checkpoint with its envelope.
pub fn encode_checkpoint(checkpoint: &wire::Checkpoint) -> Vec<u8> {
    seal_envelope(CHECKPOINT_MAGIC, &checkpoint.encode_to_vec())
}

/// Decodes a checkpoint.
pub fn decode_checkpoint(bytes: &[u8]) -> Result<wire::Checkpoint, RecordError> {
    decode("checkpoint", CHECKPOINT_MAGIC, bytes)
}

/// Name of record or checkpoint `n`: 20 digits, so that a listing is in order.
pub fn number_name(n: u64) -> String {
    format!("{n:020}")
}

/// The number behind such a name; none for anything else.
pub fn parse_number(name: &str) -> Option<u64> {
    (name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit())).then(|| name.parse().ok()).flatten()
}

fn seal_envelope(magic: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + body.len());
    out.extend_from_slice(&magic);
    out.extend_from_slice(&crate::FORMAT.to_le_bytes());
    out.extend_from_slice(&u32::try_from(body.len()).expect("records are far below 4 GiB").to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    out.extend_from_slice(body);
    out
}

fn decode<M: Message + Default>(what: &'static str, magic: [u8; 4], bytes: &[u8]) -> Result<M, RecordError> {
    let malformed = |detail: String| RecordError::Malformed { what, detail };
    if bytes.len() < ENVELOPE_BYTES || bytes[..4] != magic {
        return Err(malformed(format!("{} bytes, wrong or missing magic", bytes.len())));
    }
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    if word(4) > crate::FORMAT {
        return Err(RecordError::Unsupported { found: word(4) });
    }
    let body = &bytes[ENVELOPE_BYTES..];
    if body.len() != word(8) as usize {
        return Err(malformed(format!("the body has {} bytes, the envelope says {}", body.len(), word(8))));
    }
    let found = crc32c::crc32c(body);
    if found != word(12) {
        return Err(RecordError::Crc { found, expected: word(12) });
    }
    M::decode(body).map_err(|e| malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> wire::CommitRecord {
        wire::CommitRecord {
            format: 1,
            commit_id: vec![7; 16].into(),
            incarnation: "c1-0000".into(),
            collector: "c1".into(),
            time_unix_ms: 1_763_700_000_000,
            action: Some(wire::commit_record::Action::Publish(wire::Publish::default())),
        }
    }

    #[test]
    fn golden_bytes() {
        let hex: String = encode_record(&record()).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "4354435201000000\
            2a0000008e9b598c08011210070707070707070707070707070707071a0763312d3030303022026331288094b2cbd4665200"
        );
    }

    #[test]
    fn damage_is_told_apart() {
        let whole = encode_record(&record());
        assert_eq!(decode_record(&whole).unwrap(), record());
        assert!(matches!(decode_record(&whole[..whole.len() - 1]), Err(RecordError::Malformed { .. })));
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(matches!(decode_record(&flipped), Err(RecordError::Crc { .. })));
        let mut newer = whole;
        newer[4] = 2;
        assert_eq!(decode_record(&newer), Err(RecordError::Unsupported { found: 2 }));
        assert_eq!(parse_number(&number_name(17)), Some(17));
        assert_eq!(parse_number("17"), None);
    }
}
