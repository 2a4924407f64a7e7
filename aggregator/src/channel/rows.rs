//! Keys and values of the ledger as bytes. A row that cannot be read counts as missing: the ledger is an optimisation,
//! so that costs a redelivery and nothing else.

use proto::ids::{AgentName, BatchId, Origin};
use proto::intervals::IntervalSet;

use super::bitmap::Bitmap;
use super::refusals::Refusal;

/// Format version: the first byte of every value.
const FORMAT: u8 = 1;
/// Most intervals kept of one origin; those above are forgotten (values stay below 128 KiB).
pub const MAX_SPANS: usize = 4096;

/// First byte of keys: bitmap of a segment.
pub const SEGMENT: u8 = b's';
/// First byte of keys: one origin of one agent.
pub const ORIGIN: u8 = b'o';
/// First byte of keys: one agent.
pub const AGENT: u8 = b'a';
/// First byte of keys: one batch whose streams broke.
pub const BROKEN: u8 = b'b';
/// First byte of keys: one batch that a collector refused for good.
pub const REFUSED: u8 = b'q';

/// The newest mark of an origin that was appended here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastMark {
    /// Its seq.
    pub seq: u64,
    /// Its time, aggregator milliseconds since the epoch.
    pub at_unix_ms: i64,
}

/// What the ledger knows of one origin of one agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginRow {
    /// When it was last changed, milliseconds since the epoch.
    pub updated_unix_ms: u64,
    /// Seqs that the log covers, as collectors have said.
    pub committed: IntervalSet,
    /// Its newest mark.
    pub mark: Option<LastMark>,
}

/// Key of the bitmap of a segment.
pub fn segment_key(segment: u64) -> Vec<u8> {
    let mut key = vec![SEGMENT];
    key.extend_from_slice(&segment.to_be_bytes());
    key
}

/// The segment behind such a key.
pub fn segment_of(key: &[u8]) -> Option<u64> {
    (key.first() == Some(&SEGMENT)).then(|| key[1..].try_into().ok().map(u64::from_be_bytes)).flatten()
}

/// Key of an origin.
pub fn origin_key(agent: &AgentName, origin: Origin) -> Vec<u8> {
    let mut key = vec![ORIGIN, agent.as_str().len() as u8];
    key.extend_from_slice(agent.as_str().as_bytes());
    key.extend_from_slice(&origin.0);
    key
}

/// The origin behind such a key.
pub fn origin_of(key: &[u8]) -> Option<(AgentName, Origin)> {
    let (&len, rest) = key.strip_prefix(&[ORIGIN])?.split_first()?;
    let (agent, origin) = rest.split_at_checked(usize::from(len))?;
    Some((AgentName::new(std::str::from_utf8(agent).ok()?).ok()?, Origin::from_bytes(origin).ok()?))
}

/// Key of an agent.
pub fn agent_key(agent: &AgentName) -> Vec<u8> {
    let mut key = vec![AGENT];
    key.extend_from_slice(agent.as_str().as_bytes());
    key
}

/// Key of a batch whose streams broke.
pub fn broken_key(id: &BatchId) -> Vec<u8> {
    batch_key(BROKEN, id)
}

/// Key of a batch that was refused for good.
pub fn refused_key(id: &BatchId) -> Vec<u8> {
    batch_key(REFUSED, id)
}

fn batch_key(tag: u8, id: &BatchId) -> Vec<u8> {
    let mut key = vec![tag, id.agent.as_str().len() as u8];
    key.extend_from_slice(id.agent.as_str().as_bytes());
    key.extend_from_slice(&id.origin.0);
    key.extend_from_slice(&id.seq.to_be_bytes());
    key
}

/// The batch behind a key of either kind.
pub fn batch_of(tag: u8, key: &[u8]) -> Option<BatchId> {
    let (&len, rest) = key.strip_prefix(&[tag])?.split_first()?;
    let (agent, rest) = rest.split_at_checked(usize::from(len))?;
    let (origin, seq) = rest.split_at_checked(16)?;
    Some(BatchId {
        agent: AgentName::new(std::str::from_utf8(agent).ok()?).ok()?,
        origin: Origin::from_bytes(origin).ok()?,
        seq: u64::from_be_bytes(seq.try_into().ok()?),
    })
}

/// Value: bits of answered batches.
pub fn bitmap_value(map: &Bitmap) -> Vec<u8> {
    let mut value = vec![FORMAT];
    value.extend_from_slice(&map.len().to_le_bytes());
    value.extend_from_slice(&map.to_bytes());
    value
}

/// Reads such a value; none unless it is for exactly `len` batches or fewer (a segment may have grown since).
pub fn read_bitmap(value: &[u8], len: u32) -> Option<Bitmap> {
    let rest = value.strip_prefix(&[FORMAT])?;
    let (count, bytes) = rest.split_at_checked(4)?;
    let count = u32::from_le_bytes(count.try_into().ok()?);
    if count > len {
        return None;
    }
    let mut map = Bitmap::from_bytes(count, bytes)?;
    while map.len() < len {
        map.push();
    }
    Some(map)
}

/// Value: an origin.
pub fn origin_value(row: &OriginRow) -> Vec<u8> {
    let mut value = vec![FORMAT];
    value.extend_from_slice(&row.updated_unix_ms.to_le_bytes());
    let mark = row.mark.unwrap_or(LastMark { seq: u64::MAX, at_unix_ms: 0 });
    value.extend_from_slice(&mark.seq.to_le_bytes());
    value.extend_from_slice(&mark.at_unix_ms.to_le_bytes());
    for (start, end) in row.committed.iter().take(MAX_SPANS) {
        value.extend_from_slice(&start.to_le_bytes());
        value.extend_from_slice(&end.to_le_bytes());
    }
    value
}

/// Reads such a value.
pub fn read_origin(value: &[u8]) -> Option<OriginRow> {
    let rest = value.strip_prefix(&[FORMAT])?;
    if rest.len() < 24 || rest.len() % 8 != 0 {
        return None;
    }
    let words: Vec<u64> = rest.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes"))).collect();
    let bounds = proto::wire::IntervalSet { bounds: words[3..].to_vec() };
    Some(OriginRow {
        updated_unix_ms: words[0],
        mark: (words[1] != u64::MAX).then_some(LastMark { seq: words[1], at_unix_ms: words[2] as i64 }),
        committed: IntervalSet::try_from(&bounds).ok()?,
    })
}

/// Value: why a batch was refused.
pub fn refused_value(refusal: &Refusal) -> Vec<u8> {
    let mut value = vec![FORMAT];
    value.extend_from_slice(&refusal.unix_ms.to_le_bytes());
    value.push(refusal.dataset.len() as u8);
    value.extend_from_slice(refusal.dataset.as_bytes());
    value.extend_from_slice(refusal.reason.as_bytes());
    value
}

/// Reads such a value.
pub fn read_refused(value: &[u8]) -> Option<Refusal> {
    let (unix_ms, rest) = value.strip_prefix(&[FORMAT])?.split_at_checked(8)?;
    let (&len, rest) = rest.split_first()?;
    let (dataset, reason) = rest.split_at_checked(usize::from(len))?;
    Some(Refusal {
        unix_ms: u64::from_le_bytes(unix_ms.try_into().ok()?),
        dataset: String::from_utf8(dataset.to_vec()).ok()?,
        reason: String::from_utf8(reason.to_vec()).ok()?,
    })
}

/// Value: a number (held bytes, broken sends).
pub fn number_value(number: u64) -> Vec<u8> {
    let mut value = vec![FORMAT];
    value.extend_from_slice(&number.to_le_bytes());
    value
}

/// Reads such a value.
pub fn read_number(value: &[u8]) -> Option<u64> {
    value.strip_prefix(&[FORMAT])?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn id() -> BatchId {
        BatchId { agent: AgentName::new("web-17").unwrap(), origin: Origin::mint(1_763_700_000_000, 7), seq: 5 }
    }

    #[test]
    fn golden_keys() {
        assert_eq!(hex(&segment_key(18)), "730000000000000012");
        assert_eq!(segment_of(&segment_key(18)), Some(18));
        let id = id();
        assert_eq!(hex(&origin_key(&id.agent, id.origin)), "6f067765622d3137019aa4b6450000000000000000000007");
        assert_eq!(hex(&agent_key(&id.agent)), "617765622d3137");
        assert_eq!(hex(&broken_key(&id)), "62067765622d3137019aa4b64500000000000000000000070000000000000005");
        assert_eq!(hex(&refused_key(&id)), "71067765622d3137019aa4b64500000000000000000000070000000000000005");
        assert_eq!(batch_of(REFUSED, &refused_key(&id)), Some(id.clone()));
        assert_eq!(batch_of(BROKEN, &broken_key(&id)), Some(id));
        assert_eq!(batch_of(BROKEN, b"bx"), None);
    }

    #[test]
    fn golden_values() {
        let mut map = Bitmap::new(11);
        map.set(0);
        map.set(10);
        assert_eq!(hex(&bitmap_value(&map)), "010b0000000104");
        assert_eq!(read_bitmap(&bitmap_value(&map), 11), Some(map.clone()));
        assert_eq!(read_bitmap(&bitmap_value(&map), 10), None, "a bitmap of another segment");
        assert!(read_bitmap(&bitmap_value(&map), 70).is_some_and(|grown| grown.get(10) && !grown.get(69)));
        let mut committed = IntervalSet::new();
        committed.insert_range(0, 4);
        committed.insert(9);
        let row = OriginRow { updated_unix_ms: 1, committed, mark: Some(LastMark { seq: 3, at_unix_ms: -2 }) };
        assert_eq!(
            hex(&origin_value(&row)),
            "0101000000000000000300000000000000feffffffffffffff0000000000000000040000000000000009000000000000000a00000000000000"
        );
        assert_eq!(read_origin(&origin_value(&row)), Some(row));
        assert_eq!(read_origin(b"\x01abc"), None);
        assert_eq!(read_origin(&[2; 33]), None, "a newer format");
        let refusal = Refusal { unix_ms: 2, dataset: "ab".into(), reason: "cut".into() };
        assert_eq!(hex(&refused_value(&refusal)), "010200000000000000026162637574");
        assert_eq!(read_refused(&refused_value(&refusal)), Some(refusal));
        assert_eq!(read_refused(b"\x01short"), None);
        assert_eq!(hex(&number_value(258)), "010201000000000000");
        assert_eq!(read_number(&number_value(258)), Some(258));
    }
}
