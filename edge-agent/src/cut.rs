//! Cut: the events of a chunk, split by dataset and partition, become batches: one compressed frame each, with a filled
//! header. Dead letters get batches of their own.
//!
//! Invariant: a chunk is cut as a whole or not at all; each event that was not filtered out is in exactly one batch.

mod audit;
mod dead_letters;
mod declarations;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use common::event_time::Zone;
use common::event_time::civil::{DAY_US, HOUR_US};
use common::frame::FrameEncoder;
use proto::ids::{DatasetName, Partition};
use proto::wire;

pub use self::audit::AuditDelta;
pub(crate) use self::audit::{Fate, Hours, Tally};
pub(crate) use self::dead_letters::{Letter, Reason, without_incomplete_end};
pub use self::declarations::{Declarations, Undeclared};

/// Raw bytes after which a further batch of the same partition is begun (a chunk of 1 MiB whose events grew by masking
/// is still one); one longer event alone may exceed it.
const MAX_BATCH_RAW_BYTES: usize = (1 << 20) + (1 << 18);
/// Events dated further ahead of the present are dead letters.
const MAX_AHEAD_US: i64 = DAY_US;
/// Buffers kept for the next chunk, and the most that one of them may hold.
const KEPT_BUFFERS: usize = 1;
const KEPT_BUFFER_BYTES: usize = 2 << 20;

/// What a chunk became.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    /// In the order in which their first events were read.
    pub batches: Vec<CutBatch>,
    /// What happened to the events.
    pub audit: AuditDelta,
}

/// A batch without its identity.
#[derive(Debug, Clone, PartialEq)]
pub struct CutBatch {
    /// The header's fields.
    pub data: wire::Data,
    /// One complete frame.
    pub payload: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    dataset: u16,
    /// None: dead letters.
    partition: Option<Partition>,
    headers: u64,
}

/// A batch in the making.
#[derive(Debug)]
struct Slot {
    key: Key,
    raw: Vec<u8>,
    /// Once it takes no more: its frame.
    sealed: Option<Sealed>,
    events: u64,
    min_us: i64,
    max_us: i64,
    hours: Hours,
}

#[derive(Debug)]
struct Sealed {
    codec: wire::Codec,
    raw_bytes: u64,
    payload: Bytes,
}

/// A dataset of the source, with what is declared of it.
#[derive(Debug)]
struct Target {
    name: DatasetName,
    declared: Option<(wire::DatasetDeclaration, wire::Codec, Zone)>,
}

/// Collects the events of one chunk at a time. Owned by one pipeline.
#[derive(Debug)]
pub(crate) struct Cutter {
    source: Arc<str>,
    /// For datasets that declare none: zstd and gzip level.
    level: i32,
    targets: Vec<Target>,
    now_us: i64,
    slots: Vec<Slot>,
    open: HashMap<Key, usize>,
    last: usize,
    tally: Tally,
    encoders: HashMap<(i32, i32), FrameEncoder>,
    frame: Vec<u8>,
    free: Vec<Vec<u8>>,
}

impl Cutter {
    /// `datasets` are the ones that events can go to; they are named by their index from here on.
    pub fn new(source: &str, datasets: Vec<DatasetName>, level: i32) -> Self {
        Self {
            source: source.into(),
            level,
            targets: datasets.into_iter().map(|name| Target { name, declared: None }).collect(),
            now_us: 0,
            slots: Vec::new(),
            open: HashMap::new(),
            last: 0,
            tally: Tally::default(),
            encoders: HashMap::new(),
            frame: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Begins a chunk: throws away what is left of one that failed, takes the declarations as they are now.
    pub fn begin(&mut self, now_us: i64, declarations: &Declarations) {
        self.now_us = now_us;
        while let Some(slot) = self.slots.pop() {
            self.keep_buffer(slot.raw);
        }
        self.open.clear();
        self.last = 0;
        self.tally.take(|_| String::new());
        for target in &mut self.targets {
            let declaration = declarations.map.get(target.name.as_str());
            if target.declared.as_ref().map(|(known, ..)| known) != declaration {
                target.declared = declaration.and_then(|declaration| {
                    let zone = Zone::new(&declaration.zone).ok()?;
                    Some((declaration.clone(), declarations::usable(declaration)?, zone))
                });
            }
        }
    }

    /// The name of a dataset.
    pub fn dataset(&self, index: u16) -> &DatasetName {
        &self.targets[usize::from(index)].name
    }

    /// Places an event, or says why it is a dead letter. An error leaves the chunk to be cut again later.
    pub fn partition(&mut self, dataset: u16, time_us: Option<i64>) -> Result<Result<Partition, Reason>, Undeclared> {
        let target = &mut self.targets[usize::from(dataset)];
        let Some((declaration, _, zone)) = &mut target.declared else {
            return Err(Undeclared(target.name.to_string()));
        };
        let Some(time_us) = time_us else { return Ok(Err(Reason::NoTime)) };
        if time_us > self.now_us.saturating_add(MAX_AHEAD_US) {
            return Ok(Err(Reason::Future));
        }
        let day = zone.day(time_us);
        if declaration.oldest.is_some_and(|oldest| day < oldest) {
            return Ok(Err(Reason::TooOld));
        }
        let hour = declaration.hourly.then(|| zone.hour(time_us));
        Ok(Partition::new(day, hour).map_err(|_| Reason::OutOfRange))
    }

    /// Adds an event to its batch.
    #[inline]
    pub fn event(&mut self, dataset: u16, partition: Partition, headers: u64, time_us: i64, body: &[u8]) {
        let slot = self.slot(Key { dataset, partition: Some(partition), headers }, body.len() + 1);
        slot.raw.extend_from_slice(body);
        slot.raw.push(b'\n');
        slot.events += 1;
        slot.min_us = slot.min_us.min(time_us);
        slot.max_us = slot.max_us.max(time_us);
        let hour = slot.hours.count(Some(time_us.div_euclid(HOUR_US)));
        self.tally.count(dataset, hour, Fate::Published);
    }

    /// Adds a dead letter, a JSON line; `time_us` only says under which hour it is counted.
    pub fn dead_letter(
        &mut self,
        dataset: u16,
        headers: u64,
        time_us: Option<i64>,
        line: &[u8],
    ) -> Result<(), Undeclared> {
        let target = &self.targets[usize::from(dataset)];
        if target.declared.is_none() {
            return Err(Undeclared(target.name.to_string()));
        }
        let now_us = self.now_us;
        let slot = self.slot(Key { dataset, partition: None, headers }, line.len());
        slot.raw.extend_from_slice(line);
        slot.events += 1;
        (slot.min_us, slot.max_us) = (now_us, now_us);
        let hour = slot.hours.count(time_us.map(|us| us.div_euclid(HOUR_US)));
        self.tally.count(dataset, hour, Fate::DeadLettered);
        Ok(())
    }

    /// Counts an event that a filter dropped.
    pub fn filtered(&mut self, dataset: u16, time_us: Option<i64>) {
        self.tally.count(dataset, time_us.map(|us| us.div_euclid(HOUR_US)), Fate::Filtered);
    }

    /// The slot of `key` with room for `bytes`. Consecutive events mostly go to the same.
    #[inline]
    fn slot(&mut self, key: Key, bytes: usize) -> &mut Slot {
        let fits =
            |slot: &Slot| slot.key == key && (slot.raw.is_empty() || slot.raw.len() + bytes <= MAX_BATCH_RAW_BYTES);
        if !self.slots.get(self.last).is_some_and(fits) {
            self.last = match self.open.get(&key).copied() {
                Some(at) if fits(&self.slots[at]) => at,
                full => {
                    // Dead letters of short lines are many times their size: held compressed, not as they are.
                    full.into_iter().for_each(|at| self.seal(at));
                    let raw = self.free.pop().unwrap_or_default();
                    let (min_us, max_us, hours) = (i64::MAX, i64::MIN, Hours::default());
                    self.slots.push(Slot { key, raw, sealed: None, events: 0, min_us, max_us, hours });
                    self.open.insert(key, self.slots.len() - 1);
                    self.slots.len() - 1
                }
            };
        }
        &mut self.slots[self.last]
    }

    /// Compresses a batch that takes no more; nothing to do for one that is.
    fn seal(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        if slot.sealed.is_some() {
            return;
        }
        let (raw, dataset) = (std::mem::take(&mut slot.raw), slot.key.dataset);
        let declared = self.targets[usize::from(dataset)].declared.as_ref();
        let (declaration, codec, _) = declared.expect("an event was placed by its declaration");
        let level = if declaration.level == 0 { self.level } else { declaration.level };
        let codec = *codec;
        let encoder = self.encoders.entry((codec as i32, level)).or_insert_with(|| FrameEncoder::new(codec, level));
        self.frame.clear();
        encoder.encode(&raw, &mut self.frame).expect("compressing to memory does not fail");
        let (raw_bytes, payload) = (raw.len() as u64, Bytes::copy_from_slice(&self.frame));
        slot.sealed = Some(Sealed { codec, raw_bytes, payload });
        self.keep_buffer(raw);
    }

    /// Compresses what was collected; `headers` gives the headers that a bit set stands for.
    pub fn finish(&mut self, headers: impl Fn(u64) -> BTreeMap<String, String>) -> Cut {
        (0..self.slots.len()).for_each(|at| self.seal(at));
        self.open.clear();
        self.last = 0;
        let slots = std::mem::take(&mut self.slots);
        let batches = slots.into_iter().filter_map(|slot| self.batch(slot, &headers)).collect();
        self.frame.shrink_to(KEPT_BUFFER_BYTES);
        let targets = &self.targets;
        Cut { batches, audit: self.tally.take(|index| targets[usize::from(index)].name.to_string()) }
    }

    fn batch(&self, slot: Slot, headers: impl Fn(u64) -> BTreeMap<String, String>) -> Option<CutBatch> {
        let target = &self.targets[usize::from(slot.key.dataset)];
        let (_, _, zone) = target.declared.as_ref()?;
        let Sealed { codec, raw_bytes, payload } = slot.sealed?;
        let dead_letters = slot.key.partition.is_none();
        let today = self.now_us.div_euclid(DAY_US) as i32;
        let partition = slot.key.partition.map_or(wire::Partition { date: today, hour: None }, wire::Partition::from);
        let data = wire::Data {
            dataset: target.name.to_string(),
            partition: Some(partition),
            dead_letters,
            codec: codec as i32,
            framing: wire::Framing::Lines as i32,
            events: slot.events,
            raw_bytes,
            payload_bytes: payload.len() as u64,
            payload_crc32c: crc32c::crc32c(&payload),
            min_event_time_us: slot.min_us,
            max_event_time_us: slot.max_us,
            zone: if dead_letters { "UTC".to_owned() } else { zone.name().to_owned() },
            source: self.source.to_string(),
            headers: headers(slot.key.headers),
            hours: slot.hours.into_counts(dead_letters),
        };
        Some(CutBatch { data, payload })
    }

    fn keep_buffer(&mut self, mut raw: Vec<u8>) {
        if self.free.len() < KEPT_BUFFERS && raw.capacity() <= KEPT_BUFFER_BYTES {
            raw.clear();
            self.free.push(raw);
        }
    }
}
