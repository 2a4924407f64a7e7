//! The batch header: decoded and checked once where it enters a process, its bytes kept as they came.

use bytes::Bytes;
use prost::Message;

use crate::ids::{DatasetName, IdError, Origin, Partition};
use crate::wire::{self, Codec, Framing, batch_header};

/// A header whose every field was checked, with the exact bytes it came as.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The run that cut the batch.
    pub origin: Origin,
    /// Its number there.
    pub seq: u64,
    /// What it is.
    pub kind: Kind,
    /// As it was made at the edge; forwarded and hashed as such.
    pub bytes: Bytes,
}

/// The five kinds of a seq.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Seq 0.
    Open(wire::Open),
    /// Events.
    Data(Box<Data>),
    /// What was lost under this seq.
    Void(wire::Void),
    /// All that was noted is cut.
    Mark(wire::Mark),
    /// The last seq.
    Close(wire::Close),
}

/// Checked fields of a data batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// Where the events go.
    pub dataset: DatasetName,
    /// Day or hour; for dead letters the UTC day they were made.
    pub partition: Partition,
    /// Compression of the payload.
    pub codec: Codec,
    /// How events stand in the decoded payload.
    pub framing: Framing,
    /// All fields, also those above.
    pub wire: wire::Data,
}

/// Why a header is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A newer release wrote it: keep it, answer *unsupported*.
    #[error("format {found} is newer than {newest}, the newest this release reads; upgrade this node first", newest = crate::FORMAT)]
    Unsupported {
        /// The format it claims.
        found: u32,
    },
    /// It cannot be decoded at all.
    #[error("the header cannot be decoded: {0}")]
    Decode(String),
    /// It is decodable, but no seq of ours can look like this; what could be read of its identity is given.
    #[error("the header is refused: {0}")]
    Invalid(String),
}

impl From<IdError> for HeaderError {
    fn from(error: IdError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl Header {
    /// Encodes a header once; the bytes are what is stored and sent from then on.
    pub fn encode(origin: Origin, seq: u64, kind: batch_header::Kind) -> Result<Self, HeaderError> {
        let message = wire::BatchHeader { format: crate::FORMAT, origin: origin.to_bytes(), seq, kind: Some(kind) };
        Self::decode(message.encode_to_vec().into())
    }

    /// Decodes and checks. The payload itself is not looked at: see [`Header::check_payload`].
    pub fn decode(bytes: Bytes) -> Result<Self, HeaderError> {
        if bytes.len() > crate::MAX_HEADER_BYTES {
            return Err(HeaderError::Invalid(format!(
                "it has {} bytes, the limit is {}",
                bytes.len(),
                crate::MAX_HEADER_BYTES
            )));
        }
        let message = wire::BatchHeader::decode(bytes.clone()).map_err(|e| HeaderError::Decode(e.to_string()))?;
        if message.format > crate::FORMAT {
            return Err(HeaderError::Unsupported { found: message.format });
        }
        if message.format == 0 {
            return Err(HeaderError::Decode("it carries no format version".into()));
        }
        let origin = Origin::from_bytes(&message.origin)?;
        if message.seq >= u64::MAX - 1 {
            return Err(HeaderError::Invalid("its seq is out of range".into()));
        }
        let kind = match message.kind {
            None => return Err(HeaderError::Decode("it is of no known kind".into())),
            Some(batch_header::Kind::Open(open)) => Kind::Open(open),
            Some(batch_header::Kind::Data(data)) => Kind::Data(Box::new(check_data(data)?)),
            Some(batch_header::Kind::Void(void)) => Kind::Void(void),
            Some(batch_header::Kind::Mark(mark)) => Kind::Mark(mark),
            Some(batch_header::Kind::Close(close)) => Kind::Close(close),
        };
        if matches!(kind, Kind::Open(_)) != (message.seq == 0) {
            return Err(HeaderError::Invalid(format!(
                "seq {} and its kind contradict: seq 0, and only it, is the open",
                message.seq
            )));
        }
        Ok(Self { origin, seq: message.seq, kind, bytes })
    }

    /// Checks length and CRC32C of the payload against the header. Costs one pass over the payload.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), PayloadError> {
        let (bytes, crc) = match &self.kind {
            Kind::Data(data) => (data.wire.payload_bytes, data.wire.payload_crc32c),
            _ => (0, 0),
        };
        if payload.len() as u64 != bytes {
            return Err(PayloadError::Length { found: payload.len() as u64, declared: bytes });
        }
        let found = crc32c::crc32c(payload);
        if found == crc { Ok(()) } else { Err(PayloadError::Crc { found, declared: crc }) }
    }

    /// The data fields, if it is a data batch.
    pub fn data(&self) -> Option<&Data> {
        match &self.kind {
            Kind::Data(data) => Some(data),
            _ => None,
        }
    }

    /// Events it carries.
    pub fn events(&self) -> u64 {
        self.data().map_or(0, |data| data.wire.events)
    }
}

/// A payload that is not what its header says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Another length.
    #[error("the payload has {found} bytes, its header says {declared}")]
    Length {
        /// Bytes received.
        found: u64,
        /// Bytes declared.
        declared: u64,
    },
    /// Other bytes.
    #[error("the payload's CRC32C is {found:08x}, its header says {declared:08x}")]
    Crc {
        /// Computed.
        found: u32,
        /// Declared.
        declared: u32,
    },
}

fn check_data(wire: wire::Data) -> Result<Data, HeaderError> {
    let invalid = |what: &str| Err(HeaderError::Invalid(what.to_owned()));
    let dataset = DatasetName::new(&wire.dataset)?;
    let Some(partition) = &wire.partition else { return invalid("a data batch without a partition") };
    let partition = Partition::try_from(partition)?;
    let codec = match Codec::try_from(wire.codec) {
        Ok(codec) if codec != Codec::Unspecified => codec,
        _ => return invalid("the codec is unknown"),
    };
    let framing = match Framing::try_from(wire.framing) {
        Ok(framing) if framing != Framing::Unspecified => framing,
        _ => return invalid("the framing is unknown"),
    };
    if wire.events == 0 {
        return invalid("a data batch without events");
    }
    if wire.payload_bytes > crate::MAX_PAYLOAD_BYTES as u64 || wire.raw_bytes > crate::MAX_RAW_BYTES {
        return Err(HeaderError::Invalid(format!(
            "it claims {} payload bytes and {} raw bytes, the limits are {} and {}",
            wire.payload_bytes,
            wire.raw_bytes,
            crate::MAX_PAYLOAD_BYTES,
            crate::MAX_RAW_BYTES
        )));
    }
    Ok(Data { dataset, partition, codec, framing, wire })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> wire::Data {
        wire::Data {
            dataset: "clickstream".into(),
            partition: Some(wire::Partition { date: 20_000, hour: None }),
            codec: Codec::Zstd as i32,
            framing: Framing::Lines as i32,
            events: 2,
            raw_bytes: 8,
            payload_bytes: 3,
            payload_crc32c: crc32c::crc32c(b"abc"),
            zone: "UTC".into(),
            source: "nginx".into(),
            ..Default::default()
        }
    }

    fn origin() -> Origin {
        Origin::mint(1_763_700_000_000, 0x0102_0304)
    }

    #[test]
    fn golden_bytes() {
        let header = Header::encode(origin(), 5, batch_header::Kind::Data(data())).unwrap();
        let hex: String = header.bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "08011210019aa4b645000000000000000102030418055a2e0a0b636c69636b73747265616d120408c0b802200228013002380840034db73f4b3662035554436a056e67696e78"
        );
    }

    #[test]
    fn round_trip_and_payload_check() {
        let header = Header::encode(origin(), 5, batch_header::Kind::Data(data())).unwrap();
        assert_eq!(Header::decode(header.bytes.clone()).unwrap(), header);
        assert_eq!(header.check_payload(b"abc"), Ok(()));
        assert!(matches!(header.check_payload(b"abd"), Err(PayloadError::Crc { .. })));
        assert!(matches!(header.check_payload(b"ab"), Err(PayloadError::Length { .. })));
    }

    #[test]
    fn hostile_headers_are_refused() {
        let refused = |change: fn(&mut wire::Data)| {
            let mut data = data();
            change(&mut data);
            Header::encode(origin(), 5, batch_header::Kind::Data(data)).unwrap_err()
        };
        refused(|d| d.payload_bytes = 10_000_000_000);
        refused(|d| d.raw_bytes = 10_000_000_000);
        refused(|d| d.partition = Some(wire::Partition { date: 2_932_896, hour: None }));
        refused(|d| d.dataset = "../etc".into());
        refused(|d| d.events = 0);
        refused(|d| d.codec = 77);
        assert!(Header::encode(origin(), 0, batch_header::Kind::Data(data())).is_err(), "data at seq 0");
        assert!(Header::encode(origin(), 1, batch_header::Kind::Open(wire::Open::default())).is_err());
        let newer = wire::BatchHeader { format: 2, ..Default::default() };
        assert_eq!(Header::decode(newer.encode_to_vec().into()), Err(HeaderError::Unsupported { found: 2 }));
        assert!(matches!(Header::decode(Bytes::from_static(b"\xff\xff")), Err(HeaderError::Decode(_))));
    }
}
