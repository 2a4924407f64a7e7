//! What is known of the batches in one segment: 32 bytes per batch beside small tables, and their form as a footer.
//!
//! Invariant: a footer read back gives exactly the index that was sealed; anything else is refused as a whole.

use std::collections::HashMap;

use proto::header::{Header, Kind};
use proto::ids::{AgentName, BatchId, DatasetName, Origin, Partition};

/// Format version of footers.
const FORMAT: u32 = 1;
/// Bytes of one entry in a footer (and in memory).
pub const ENTRY_BYTES: usize = 32;
const NO_HOUR: u8 = 255;

/// One batch in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where its record begins in the segment file.
    pub offset: u32,
    /// Length of the payload in bytes.
    pub payload_bytes: u32,
    /// Its number within its origin.
    pub seq: u64,
    /// Position in [`SegmentIndex::origins`].
    pub origin: u32,
    /// Position in [`SegmentIndex::routes`].
    pub route: u32,
    /// Length of the encoded header in bytes.
    pub header_bytes: u32,
    /// What kind of seq it is.
    pub kind: SeqKind,
}

impl Entry {
    /// What the batch costs of a collector's credit: header and payload bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.payload_bytes) + u64::from(self.header_bytes)
    }
}

/// The kind of a seq; numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SeqKind {
    /// Seq 0.
    Open = 0,
    /// Events.
    Data = 1,
    /// What was lost.
    Void = 2,
    /// Everything noted is cut.
    Mark = 3,
    /// The last seq.
    Close = 4,
}

impl SeqKind {
    /// The kind of a decoded header.
    pub fn of(header: &Header) -> Self {
        match header.kind {
            Kind::Open(_) => Self::Open,
            Kind::Data(_) => Self::Data,
            Kind::Void(_) => Self::Void,
            Kind::Mark(_) => Self::Mark,
            Kind::Close(_) => Self::Close,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        [Self::Open, Self::Data, Self::Void, Self::Mark, Self::Close].get(code as usize).copied()
    }
}

/// Where the events of a batch go: what waits alone when a collector says that a partition is busy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Route {
    /// A seq without events.
    Control,
    /// Events of one partition of one dataset.
    Data {
        /// The dataset.
        dataset: DatasetName,
        /// Its partition.
        partition: Partition,
        /// They are dead letters.
        dead_letters: bool,
    },
}

impl Route {
    /// The route of a decoded header.
    pub fn of(header: &Header) -> Self {
        header.data().map_or(Self::Control, |data| Self::Data {
            dataset: data.dataset.clone(),
            partition: data.partition,
            dead_letters: data.wire.dead_letters,
        })
    }
}

/// A batch that was just appended, before it has a place in the tables of its segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// Its identity.
    pub id: BatchId,
    /// Where its record begins in the segment file.
    pub offset: u32,
    /// Length of the payload in bytes.
    pub payload_bytes: u32,
    /// Length of the encoded header in bytes.
    pub header_bytes: u32,
    /// What kind of seq it is.
    pub kind: SeqKind,
    /// Where its events go.
    pub route: Route,
}

/// All batches of one segment, in the order they were appended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentIndex {
    /// Milliseconds since the epoch at which the first batch was appended.
    pub created_unix_ms: u64,
    /// Names of agents.
    pub agents: Vec<AgentName>,
    /// Position in `agents`, origin.
    pub origins: Vec<(u32, Origin)>,
    /// Where events go.
    pub routes: Vec<Route>,
    /// The batches.
    pub entries: Vec<Entry>,
}

/// Why a footer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// A newer release wrote it.
    #[error("the footer has format {0}, this release reads up to {FORMAT}; start the newer release again")]
    Newer(u32),
    /// It contradicts itself.
    #[error("the footer is malformed: {0}")]
    Malformed(&'static str),
}

impl SegmentIndex {
    /// Identity of the batch at `ordinal`; panics when there is none.
    pub fn id(&self, ordinal: u32) -> BatchId {
        let entry = &self.entries[ordinal as usize];
        let (agent, origin) = self.origin_of(entry);
        BatchId { agent: agent.clone(), origin, seq: entry.seq }
    }

    /// Agent and origin of an entry of this index.
    pub fn origin_of(&self, entry: &Entry) -> (&AgentName, Origin) {
        let (agent, origin) = self.origins[entry.origin as usize];
        (&self.agents[agent as usize], origin)
    }

    /// Route of an entry of this index.
    pub fn route_of(&self, entry: &Entry) -> &Route {
        &self.routes[entry.route as usize]
    }

    /// Drops spare capacity; done once when a segment is sealed.
    pub fn shrink(&mut self) {
        self.agents.shrink_to_fit();
        self.origins.shrink_to_fit();
        self.routes.shrink_to_fit();
        self.entries.shrink_to_fit();
    }

    /// As a footer. Little endian, tables first.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.agents.len() * 24 + self.entries.len() * ENTRY_BYTES);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.created_unix_ms.to_le_bytes());
        for count in [self.agents.len(), self.origins.len(), self.routes.len(), self.entries.len()] {
            out.extend_from_slice(&(count as u32).to_le_bytes());
        }
        for agent in &self.agents {
            put_text(&mut out, agent.as_str());
        }
        for (agent, origin) in &self.origins {
            out.extend_from_slice(&agent.to_le_bytes());
            out.extend_from_slice(&origin.0);
        }
        for route in &self.routes {
            put_route(&mut out, route);
        }
        for entry in &self.entries {
            out.extend_from_slice(&entry.offset.to_le_bytes());
            out.extend_from_slice(&entry.payload_bytes.to_le_bytes());
            out.extend_from_slice(&entry.seq.to_le_bytes());
            out.extend_from_slice(&entry.origin.to_le_bytes());
            out.extend_from_slice(&entry.route.to_le_bytes());
            out.extend_from_slice(&entry.header_bytes.to_le_bytes());
            out.extend_from_slice(&(entry.kind as u32).to_le_bytes());
        }
        out
    }

    /// Reads a footer back.
    pub fn decode(bytes: &[u8]) -> Result<Self, FooterError> {
        let mut input = Input(bytes);
        let format = input.u32()?;
        if format > FORMAT {
            return Err(FooterError::Newer(format));
        }
        let created_unix_ms = input.u64()?;
        let counts = [input.count(1)?, input.count(20)?, input.count(1)?, input.count(ENTRY_BYTES)?];
        let mut index = Self { created_unix_ms, ..Self::default() };
        for _ in 0..counts[0] {
            index.agents.push(AgentName::new(input.text()?).map_err(|_| FooterError::Malformed("agent name"))?);
        }
        for _ in 0..counts[1] {
            let agent = input.u32()?;
            if agent as usize >= index.agents.len() {
                return Err(FooterError::Malformed("agent position"));
            }
            index.origins.push((agent, Origin(input.take(16)?.try_into().expect("16 bytes"))));
        }
        for _ in 0..counts[2] {
            index.routes.push(input.route()?);
        }
        index.entries.reserve_exact(counts[3]);
        for _ in 0..counts[3] {
            let entry = input.entry()?;
            if entry.origin as usize >= index.origins.len() || entry.route as usize >= index.routes.len() {
                return Err(FooterError::Malformed("entry position"));
            }
            index.entries.push(entry);
        }
        if !input.0.is_empty() {
            return Err(FooterError::Malformed("bytes after the end"));
        }
        index.shrink();
        Ok(index)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn put_route(out: &mut Vec<u8>, route: &Route) {
    match route {
        Route::Control => out.push(0),
        Route::Data { dataset, partition, dead_letters } => {
            out.push(if *dead_letters { 2 } else { 1 });
            put_text(out, dataset.as_str());
            out.extend_from_slice(&partition.date().to_le_bytes());
            out.push(partition.hour().unwrap_or(NO_HOUR));
        }
    }
}

/// What is left of a footer.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FooterError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(FooterError::Malformed("cut short"))?;
        self.0 = tail;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, FooterError> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, FooterError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("4 bytes")))
    }

    fn u64(&mut self) -> Result<u64, FooterError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("8 bytes")))
    }

    /// A count of items of at least `least` bytes each, checked before anything is allocated for them.
    fn count(&mut self, least: usize) -> Result<usize, FooterError> {
        let count = self.u32()? as usize;
        if count.saturating_mul(least) > self.0.len() { Err(FooterError::Malformed("count")) } else { Ok(count) }
    }

    fn text(&mut self) -> Result<&'a str, FooterError> {
        let len = self.u8()? as usize;
        std::str::from_utf8(self.take(len)?).map_err(|_| FooterError::Malformed("text"))
    }

    fn route(&mut self) -> Result<Route, FooterError> {
        let tag = self.u8()?;
        if tag == 0 {
            return Ok(Route::Control);
        }
        if tag > 2 {
            return Err(FooterError::Malformed("route"));
        }
        let dataset = DatasetName::new(self.text()?).map_err(|_| FooterError::Malformed("dataset"))?;
        let date = self.u32()? as i32;
        let hour = self.u8()?;
        let partition = Partition::new(date, (hour != NO_HOUR).then_some(u32::from(hour)))
            .map_err(|_| FooterError::Malformed("partition"))?;
        Ok(Route::Data { dataset, partition, dead_letters: tag == 2 })
    }

    fn entry(&mut self) -> Result<Entry, FooterError> {
        Ok(Entry {
            offset: self.u32()?,
            payload_bytes: self.u32()?,
            seq: self.u64()?,
            origin: self.u32()?,
            route: self.u32()?,
            header_bytes: self.u32()?,
            kind: SeqKind::from_code(self.u32()?).ok_or(FooterError::Malformed("kind"))?,
        })
    }
}

/// An index that still grows, with what is needed to find a name's place in its tables.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    index: SegmentIndex,
    agents: HashMap<AgentName, u32>,
    origins: HashMap<(u32, Origin), u32>,
    routes: HashMap<Route, u32>,
}

impl IndexBuilder {
    /// An empty one.
    pub fn new(created_unix_ms: u64) -> Self {
        Self { index: SegmentIndex { created_unix_ms, ..SegmentIndex::default() }, ..Self::default() }
    }

    /// Adds a batch; its ordinal.
    pub fn push(&mut self, new: &NewEntry) -> u32 {
        let agent = place(&mut self.agents, &mut self.index.agents, new.id.agent.clone());
        let origin = place(&mut self.origins, &mut self.index.origins, (agent, new.id.origin));
        let route = place(&mut self.routes, &mut self.index.routes, new.route.clone());
        self.index.entries.push(Entry {
            offset: new.offset,
            payload_bytes: new.payload_bytes,
            seq: new.id.seq,
            origin,
            route,
            header_bytes: new.header_bytes,
            kind: new.kind,
        });
        self.index.entries.len() as u32 - 1
    }

    /// What is in so far.
    pub fn index(&self) -> &SegmentIndex {
        &self.index
    }

    /// The finished index.
    pub fn finish(mut self) -> SegmentIndex {
        self.index.shrink();
        self.index
    }
}

fn place<K: Clone + Eq + std::hash::Hash>(places: &mut HashMap<K, u32>, table: &mut Vec<K>, key: K) -> u32 {
    *places.entry(key).or_insert_with_key(|key| {
        table.push(key.clone());
        table.len() as u32 - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SegmentIndex {
        let mut builder = IndexBuilder::new(1_763_700_000_000);
        let route = Route::Data {
            dataset: DatasetName::new("clickstream").unwrap(),
            partition: Partition::new(20_777, None).unwrap(),
            dead_letters: false,
        };
        for (seq, kind, route) in [(0, SeqKind::Open, Route::Control), (1, SeqKind::Data, route)] {
            builder.push(&NewEntry {
                id: BatchId {
                    agent: AgentName::new("web-17").unwrap(),
                    origin: Origin::mint(1_763_700_000_000, 7),
                    seq,
                },
                offset: 64 * seq as u32,
                payload_bytes: 3 * seq as u32,
                header_bytes: 40,
                kind,
                route,
            });
        }
        builder.finish()
    }

    #[test]
    fn golden_bytes() {
        let hex: String = sample().encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "01000000",
                "0045b6a49a010000",
                "01000000010000000200000002000000",
                "067765622d3137",
                "00000000019aa4b6450000000000000000000007",
                "00",
                "010b636c69636b73747265616d29510000ff",
                "0000000000000000000000000000000000000000000000002800000000000000",
                "4000000003000000010000000000000000000000010000002800000001000000"
            )
        );
        assert_eq!(SegmentIndex::decode(&sample().encode()).unwrap(), sample());
        assert_eq!(std::mem::size_of::<Entry>(), ENTRY_BYTES);
    }

    #[test]
    fn damaged_footers_are_refused_whole() {
        let whole = sample().encode();
        for cut in 0..whole.len() {
            assert!(SegmentIndex::decode(&whole[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(SegmentIndex::decode(&longer).is_err());
        let mut newer = whole.clone();
        newer[0] = 2;
        assert_eq!(SegmentIndex::decode(&newer), Err(FooterError::Newer(2)));
        let mut many = whole;
        many[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(SegmentIndex::decode(&many), Err(FooterError::Malformed("count")));
    }
}
