//! The forward side's view of the channel: what lies where, and which of it is spoken for.
//!
//! Invariant: a place is free only while its batch is unanswered and no collector has a claim on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::ids::{AgentName, BatchId};

use crate::channel::bitmap::Bitmap;
use crate::channel::index::{Entry, IndexBuilder, NewEntry, Route, SegmentIndex};
use crate::channel::{Location, OpenedSegment};

/// Before everything.
pub const START: Location = Location { segment: 0, ordinal: 0 };

#[derive(Debug)]
enum Contents {
    Growing(Box<IndexBuilder>),
    Sealed(Arc<SegmentIndex>),
}

#[derive(Debug)]
struct Part {
    contents: Contents,
    /// Answered, void, or claimed.
    taken: Bitmap,
}

impl Part {
    fn index(&self) -> &SegmentIndex {
        match &self.contents {
            Contents::Growing(builder) => builder.index(),
            Contents::Sealed(index) => index,
        }
    }
}

/// All segments.
#[derive(Debug, Default)]
pub struct Backlog {
    parts: BTreeMap<u64, Part>,
}

impl Backlog {
    /// The channel as it was opened: segments with the bits of answered batches.
    pub fn new(segments: Vec<OpenedSegment>) -> Self {
        let part = |(id, index, taken)| (id, Part { contents: Contents::Sealed(index), taken });
        Self { parts: segments.into_iter().map(part).collect() }
    }

    /// A batch was stored. Its place, which is free.
    pub fn push(&mut self, segment: u64, new: &NewEntry) -> Location {
        let part = self.parts.entry(segment).or_insert_with(|| Part {
            contents: Contents::Growing(Box::new(IndexBuilder::new(0))),
            taken: Bitmap::default(),
        });
        let ordinal = match &mut part.contents {
            Contents::Growing(builder) => builder.push(new),
            Contents::Sealed(_) => unreachable!("what lies in a segment is told before its seal"),
        };
        part.taken.push();
        Location { segment, ordinal }
    }

    /// The segment's index for good.
    pub fn seal(&mut self, segment: u64, index: Arc<SegmentIndex>) {
        if let Some(part) = self.parts.get_mut(&segment) {
            debug_assert_eq!(part.taken.len() as usize, index.entries.len());
            part.contents = Contents::Sealed(index);
        }
    }

    /// The segment is gone.
    pub fn remove(&mut self, segment: u64) {
        self.parts.remove(&segment);
    }

    /// Speaks for a place.
    pub fn take(&mut self, at: Location) {
        if let Some(part) = self.parts.get_mut(&at.segment) {
            part.taken.set(at.ordinal);
        }
    }

    /// Frees it again.
    pub fn untake(&mut self, at: Location) {
        if let Some(part) = self.parts.get_mut(&at.segment) {
            part.taken.clear(at.ordinal);
        }
    }

    /// Is it spoken for? A place that does not exist is.
    pub fn is_taken(&self, at: Location) -> bool {
        self.parts.get(&at.segment).is_none_or(|part| part.taken.get(at.ordinal))
    }

    /// The first free place at or after `from`.
    pub fn next_free(&self, from: Location) -> Option<Location> {
        self.parts.range(from.segment..).find_map(|(&segment, part)| {
            let begin = if segment == from.segment { from.ordinal } else { 0 };
            part.taken.next_clear(begin).map(|ordinal| Location { segment, ordinal })
        })
    }

    /// The entry at a place.
    pub fn entry(&self, at: Location) -> Option<&Entry> {
        self.parts.get(&at.segment)?.index().entries.get(at.ordinal as usize)
    }

    /// The agent of the batch at a place.
    pub fn agent(&self, at: Location) -> Option<&AgentName> {
        let index = self.parts.get(&at.segment)?.index();
        Some(index.origin_of(index.entries.get(at.ordinal as usize)?).0)
    }

    /// The route of the batch at a place.
    pub fn route(&self, at: Location) -> Option<&Route> {
        let index = self.parts.get(&at.segment)?.index();
        Some(index.route_of(index.entries.get(at.ordinal as usize)?))
    }

    /// The identity of the batch at a place.
    pub fn id(&self, at: Location) -> Option<BatchId> {
        let index = self.parts.get(&at.segment)?.index();
        ((at.ordinal as usize) < index.entries.len()).then(|| index.id(at.ordinal))
    }

    /// Every free place.
    pub fn free(&self) -> impl Iterator<Item = Location> + '_ {
        std::iter::successors(self.next_free(START), |at| {
            self.next_free(Location { segment: at.segment, ordinal: at.ordinal + 1 })
        })
    }
}
