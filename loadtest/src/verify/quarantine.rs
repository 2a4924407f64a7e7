//! Quarantine files as the verifier reads them: entries by their documented layout (`CTQF`, format, then length, CRC32C
//! and body each), and of each batch as many lines as its payload still gives.

use std::io::Read;

use anyhow::{Result, bail, ensure};
use bytes::{Buf, Bytes};
use proto::header::Header;
use proto::wire::Codec;

/// One quarantined batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Who sent it, as the transport named it.
    pub agent: String,
    /// Its number within its origin.
    pub seq: u64,
    /// Why it was refused.
    pub reason: String,
    /// The events that could be read from it; none if its payload cannot be decoded.
    pub lines: Vec<Vec<u8>>,
}

/// All batches of a file; damage is an error.
pub fn batches(file: &[u8]) -> Result<Vec<Batch>> {
    let mut rest = Bytes::copy_from_slice(file);
    ensure!(rest.len() >= 8 && rest.copy_to_bytes(4) == b"CTQF"[..], "it is no quarantine file");
    let format = rest.get_u32_le();
    ensure!(format == 1, "it has format {format}, this verifier reads format 1");
    let mut batches = Vec::new();
    while !rest.is_empty() {
        ensure!(rest.len() >= 8, "its last entry is cut short");
        let (length, crc) = (rest.get_u32_le() as usize, rest.get_u32_le());
        ensure!(rest.len() >= length, "its last entry is cut short");
        let body = rest.split_to(length);
        ensure!(crc32c::crc32c(&body) == crc, "an entry's CRC32C does not fit");
        batches.push(batch(body)?);
    }
    Ok(batches)
}

fn batch(mut body: Bytes) -> Result<Batch> {
    ensure!(body.len() >= 24, "an entry is too short to name a batch");
    body.advance(16);
    let seq = body.get_u64_le();
    let mut field = || -> Result<Bytes> {
        let length = body.try_get_u32_le()? as usize;
        if body.len() < length {
            bail!("an entry's lengths contradict each other");
        }
        Ok(body.split_to(length))
    };
    let (agent, reason, header, payload) = (field()?, field()?, field()?, field()?);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Batch { agent: text(&agent), seq, reason: text(&reason), lines: lines(header, &payload).unwrap_or_default() })
}

/// The events of a payload, if header and payload can be decoded after all.
fn lines(header: Bytes, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
    let header = Header::decode(header)?;
    let Some(data) = header.data() else { return Ok(Vec::new()) };
    let mut raw = Vec::new();
    let limit = proto::MAX_RAW_BYTES;
    match data.codec {
        Codec::Zstd => zstd::stream::read::Decoder::new(payload)?.take(limit).read_to_end(&mut raw)?,
        Codec::Gzip => flate2::read::MultiGzDecoder::new(payload).take(limit).read_to_end(&mut raw)?,
        _ => Read::take(payload, limit).read_to_end(&mut raw)?,
    };
    let mut lines = Vec::new();
    super::lines::for_each(&raw[..], |line| lines.push(line.bytes.to_vec()))?;
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{BufMut, BytesMut};

    fn file(reason: &str, payload: &[u8]) -> Vec<u8> {
        let mut body = BytesMut::new();
        body.put_bytes(7, 16);
        body.put_u64_le(3);
        for part in [b"web-01".as_slice(), reason.as_bytes(), b"\xff", payload] {
            body.put_u32_le(part.len() as u32);
            body.put_slice(part);
        }
        let mut file = BytesMut::new();
        file.put_slice(b"CTQF");
        file.put_u32_le(1);
        file.put_u32_le(body.len() as u32);
        file.put_u32_le(crc32c::crc32c(&body));
        file.put_slice(&body);
        file.to_vec()
    }

    #[test]
    fn an_undecodable_batch_is_named_with_its_reason() {
        let found = batches(&file("two frames", b"xyz")).unwrap();
        assert_eq!((found[0].agent.as_str(), found[0].seq, found[0].reason.as_str()), ("web-01", 3, "two frames"));
        assert!(found[0].lines.is_empty());
    }

    #[test]
    fn damage_is_an_error() {
        let mut bytes = file("two frames", b"xyz");
        *bytes.last_mut().unwrap() ^= 1;
        assert!(batches(&bytes).is_err());
        assert!(batches(&bytes[..bytes.len() - 1]).is_err());
        assert!(batches(b"CTQ").is_err());
    }
}
