//! The small part of a channel record: who sent the batch, and its header exactly as it came.

use bytes::Bytes;
use proto::header::{Header, HeaderError};
use proto::ids::{AgentName, IdError};

const FORMAT: u8 = 1;
/// Bytes beside name and header.
pub const OVERHEAD_BYTES: u64 = 2;

/// Why the small part of a record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// Cut short, or of another format.
    #[error("the record's description is malformed")]
    Malformed,
    /// Its agent.
    #[error(transparent)]
    Agent(#[from] IdError),
    /// Its header.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

/// Format, length of the name, name, header.
pub fn encode_meta(agent: &AgentName, header: &[u8]) -> Vec<u8> {
    let name = agent.as_str().as_bytes();
    let mut meta = Vec::with_capacity(2 + name.len() + header.len());
    meta.extend_from_slice(&[FORMAT, name.len() as u8]);
    meta.extend_from_slice(name);
    meta.extend_from_slice(header);
    meta
}

/// Agent and header bytes of a record; the header is not decoded.
pub fn decode_meta(meta: &Bytes) -> Result<(AgentName, Bytes), MetaError> {
    let [FORMAT, len, ..] = meta[..] else { return Err(MetaError::Malformed) };
    let end = 2 + usize::from(len);
    let name = meta.get(2..end).ok_or(MetaError::Malformed)?;
    let name = std::str::from_utf8(name).map_err(|_| MetaError::Malformed)?;
    Ok((AgentName::new(name)?, meta.slice(end..)))
}

/// Agent and decoded header.
pub fn decode_header(meta: &Bytes) -> Result<(AgentName, Header), MetaError> {
    let (agent, header) = decode_meta(meta)?;
    Ok((agent, Header::decode(header)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let agent = AgentName::new("web-17").unwrap();
        let meta = Bytes::from(encode_meta(&agent, b"header"));
        assert_eq!(&meta[..], b"\x01\x06web-17header");
        assert_eq!(decode_meta(&meta), Ok((agent, Bytes::from_static(b"header"))));
        assert_eq!(decode_meta(&Bytes::from_static(b"\x01\x09web")), Err(MetaError::Malformed));
        assert_eq!(decode_meta(&Bytes::from_static(b"\x02\x01w")), Err(MetaError::Malformed));
        assert_eq!(decode_meta(&Bytes::new()), Err(MetaError::Malformed));
    }
}
