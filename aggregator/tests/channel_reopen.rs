//! The channel under crashes: whatever was answered durable and not released is there after every reopen, with its
//! bytes; what was released goes from the disk in the end.
//!
//! A crash is a copy of the data directory taken while the owner runs, opened elsewhere; some lose the ledger, some have
//! a torn tail.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aggregator::channel::{
    AppendAnswer, AppendJob, Appended, ChannelEvent, ChannelHandle, ChannelOptions, Location, Released,
};
use bytes::Bytes;
use common::record_log::{RecordAt, RecordReader};
use proptest::prelude::*;
use proto::header::Header;
use proto::ids::{AgentName, BatchId, Origin};
use proto::intervals::IntervalSet;
use proto::wire;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

#[derive(Debug, Clone)]
enum Step {
    Append { agent: u8, count: u8, bytes: u16 },
    Again { nth: u8 },
    Release { nth: u8, count: u8 },
    Wait,
    Crash { ledger: bool, torn: Option<u8> },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..3, 1u8..20, 1u16..2000).prop_map(|(agent, count, bytes)| Step::Append { agent, count, bytes }),
        1 => any::<u8>().prop_map(|nth| Step::Again { nth }),
        4 => (any::<u8>(), 1u8..20).prop_map(|(nth, count)| Step::Release { nth, count }),
        2 => Just(Step::Wait),
        2 => (any::<bool>(), prop::option::of(any::<u8>())).prop_map(|(ledger, torn)| Step::Crash { ledger, torn }),
    ]
}

/// What the forward side would know.
#[derive(Default)]
struct View {
    places: BTreeMap<BatchId, (Location, u64)>,
    counts: BTreeMap<u64, u32>,
    reader: Option<RecordReader>,
}

struct World {
    dir: TempDir,
    channel: ChannelHandle,
    events: mpsc::UnboundedReceiver<ChannelEvent>,
    view: View,
    payloads: BTreeMap<BatchId, Bytes>,
    released: BTreeSet<BatchId>,
    next_seq: [u64; 3],
}

fn options(dir: &Path) -> ChannelOptions {
    ChannelOptions {
        data_dir: dir.to_owned(),
        max_bytes: 1 << 30,
        segment_bytes: 16 * 1024,
        keep_free_bytes: 0,
        tick: Duration::from_millis(3),
        pinned_after: Duration::ZERO,
        unreadable_for: Duration::ZERO,
    }
}

fn open(dir: &Path) -> (ChannelHandle, mpsc::UnboundedReceiver<ChannelEvent>) {
    ChannelHandle::open(options(dir), Arc::new(|_| {})).unwrap()
}

fn agent(n: u8) -> AgentName {
    AgentName::new(&format!("web-{n}")).unwrap()
}

fn batch(id: &BatchId, payload: &Bytes) -> Header {
    let kind = match id.seq {
        0 => wire::batch_header::Kind::Open(wire::Open::default()),
        _ => wire::batch_header::Kind::Data(wire::Data {
            dataset: "d".into(),
            partition: Some(wire::Partition { date: 20_000, hour: None }),
            codec: wire::Codec::None as i32,
            framing: wire::Framing::Lines as i32,
            events: 1,
            payload_bytes: payload.len() as u64,
            payload_crc32c: crc32c::crc32c(payload),
            ..Default::default()
        }),
    };
    Header::encode(id.origin, id.seq, kind).unwrap()
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (channel, events) = open(dir.path());
        let mut world = Self {
            dir,
            channel,
            events,
            view: View::default(),
            payloads: BTreeMap::new(),
            released: BTreeSet::new(),
            next_seq: [0; 3],
        };
        world.look();
        world
    }

    fn look(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            let view = &mut self.view;
            match event {
                ChannelEvent::Reset(snapshot) => {
                    *view = View { reader: Some(snapshot.reader.clone()), ..View::default() };
                    for (segment, index, answered) in &snapshot.segments {
                        for ordinal in (0..index.entries.len() as u32).filter(|o| !answered.get(*o)) {
                            let place = Location { segment: *segment, ordinal };
                            let offset = u64::from(index.entries[ordinal as usize].offset);
                            let before = view.places.insert(index.id(ordinal), (place, offset));
                            assert_eq!(before, None, "held once");
                        }
                    }
                }
                ChannelEvent::Appended { segment, entries } => {
                    for (entry, from) in entries {
                        let count = view.counts.entry(segment).or_insert(0);
                        let place = Location { segment, ordinal: *count };
                        *count += 1;
                        match from {
                            // A copy of what was released in between stays released.
                            Some(from) if view.places.get(&entry.id).is_none_or(|(at, _)| *at != from) => {}
                            _ => {
                                view.places.insert(entry.id.clone(), (place, u64::from(entry.offset)));
                            }
                        }
                    }
                }
                ChannelEvent::Sealed { segment, index } => {
                    assert_eq!(view.counts[&segment] as usize, index.entries.len());
                }
                ChannelEvent::Removed { segment } => {
                    let lost = view.places.values().filter(|(at, _)| at.segment == segment).count();
                    assert_eq!(lost, 0, "a segment went with batches in it");
                }
            }
        }
    }

    fn append(&mut self, ids: Vec<(BatchId, Bytes)>) {
        let mut waiting = Vec::new();
        for (id, payload) in &ids {
            let (reply, answered) = oneshot::channel();
            let header = batch(id, payload);
            let job = AppendJob { agent: id.agent.clone(), header, payload: payload.clone(), permit: None, reply };
            self.channel.append(job);
            waiting.push(answered);
        }
        for answered in waiting {
            let AppendAnswer { appended, .. } = answered.blocking_recv().unwrap();
            assert_eq!(appended, Appended::Durable);
        }
        self.look();
        self.payloads.extend(ids);
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Append { agent: n, count, bytes } => {
                let next = &mut self.next_seq[usize::from(n)];
                let seqs = *next..*next + u64::from(count);
                *next = seqs.end;
                let new = seqs.map(|seq| {
                    let fill = if seq == 0 { 0 } else { usize::from(bytes) };
                    let id = BatchId { agent: agent(n), origin: Origin([n; 16]), seq };
                    (id, Bytes::from(vec![seq as u8; fill]))
                });
                self.append(new.collect());
            }
            Step::Again { nth } => {
                let known: Vec<_> = self.payloads.iter().map(|(id, p)| (id.clone(), p.clone())).collect();
                if !known.is_empty() {
                    let (id, payload) = known[usize::from(nth) % known.len()].clone();
                    self.append(vec![(id, payload)]);
                }
            }
            Step::Release { nth, count } => {
                let held: Vec<BatchId> = self.view.places.keys().cloned().collect();
                let from = usize::from(nth) * held.len() / 256;
                self.release(held.into_iter().skip(from).take(usize::from(count)).collect());
            }
            Step::Wait => {
                std::thread::sleep(Duration::from_millis(10));
                self.look();
            }
            Step::Crash { ledger, torn } => self.crash(ledger, torn),
        }
        self.check();
    }

    fn release(&mut self, ids: Vec<BatchId>) {
        let release = ids.iter().map(|id| {
            let (at, _) = self.view.places.remove(id).unwrap();
            let intervals: IntervalSet = [id.seq].into_iter().collect();
            Released { at, id: id.clone(), intervals, refused: None }
        });
        let release = release.collect();
        self.channel.release(release);
        self.released.extend(ids);
    }

    fn crash(&mut self, ledger: bool, torn: Option<u8>) {
        let stop = || tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(self.channel.stop());
        if ledger {
            // The ledger is never ahead of the segments: both as of the last tick.
            stop();
        }
        let copy = copy_segments(self.dir.path());
        if let Some(seed) = torn {
            tear(copy.path(), seed);
        }
        if ledger {
            copy_dir(&self.dir.path().join("ledger"), &copy.path().join("ledger"));
        } else {
            stop();
        }
        self.look();
        let (channel, events) = open(copy.path());
        self.channel = channel;
        self.events = events;
        self.dir = copy;
        self.look();
        // What was released may be back, when its segment was still there.
        self.released.retain(|id| !self.view.places.contains_key(id));
    }

    fn check(&mut self) {
        self.look();
        let reader = self.view.reader.clone().unwrap();
        for (id, payload) in &self.payloads {
            if self.released.contains(id) {
                continue;
            }
            let Some((at, offset)) = self.view.places.get(id) else { panic!("{id} is lost") };
            match reader.read(RecordAt { segment: at.segment, offset: *offset }) {
                Ok(record) => assert_eq!(record.body, *payload),
                // It was copied forward a moment ago; the event is on its way.
                Err(error) => assert!(matches!(error, common::record_log::ReadError::NotFound { .. }), "{error}"),
            }
        }
    }

    fn finish(&mut self) {
        for _ in 0..500 {
            self.look();
            let held: Vec<BatchId> = self.view.places.keys().cloned().collect();
            self.release(held);
            let stats = self.channel.stats();
            let left = stats.segment_bytes.load(Ordering::Relaxed);
            if stats.held_batches.load(Ordering::Relaxed) == 0 && left < 20_000 && self.view.places.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let stats = self.channel.stats();
        panic!("the disk is not given back: {stats:?}");
    }
}

fn segment_names(dir: &Path) -> BTreeSet<OsString> {
    fs::read_dir(dir.join("seg")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// The segments as a crash would leave them: again from the start when one came or went meanwhile.
fn copy_segments(dir: &Path) -> TempDir {
    loop {
        let copy = tempfile::tempdir().unwrap();
        fs::create_dir(copy.path().join("seg")).unwrap();
        let names = segment_names(dir);
        let copied =
            names.iter().all(|name| fs::copy(dir.join("seg").join(name), copy.path().join("seg").join(name)).is_ok());
        if copied && names == segment_names(dir) {
            return copy;
        }
    }
}

/// Bytes of a record that was being written, behind the newest segment.
fn tear(dir: &Path, seed: u8) {
    let Some(last) = segment_names(dir).into_iter().rfind(|name| name.to_string_lossy().ends_with(".seg")) else {
        return;
    };
    let path = dir.join("seg").join(last);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend(std::iter::repeat_n(seed, usize::from(seed) + 1));
    fs::write(path, bytes).unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).map(drop).unwrap()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn nothing_that_is_held_is_lost(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
        }
        world.finish();
        prop_assert_eq!(world.channel.stats().corruptions.load(Ordering::Relaxed), 0);
    }
}
