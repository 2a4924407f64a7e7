//! The owner without its thread: storage errors, capacity, shares, copies.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::record_log::{ReadError, Record, RecordAt, StorageOp};
use proto::header::Header;
use proto::ids::{AgentName, BatchId, Origin};
use proto::wire;
use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::disk;
use super::owner::Owner;
use super::*;

struct Bench {
    dir: tempfile::TempDir,
    owner: Owner,
    events: async_mpsc::UnboundedReceiver<ChannelEvent>,
    /// Locations by id, as the forward side knows them.
    places: HashMap<BatchId, Location>,
    counts: HashMap<u64, u32>,
    resets: usize,
    _commands: mpsc::Sender<Command>,
}

fn options(dir: &std::path::Path, max_bytes: u64, segment_bytes: u64) -> ChannelOptions {
    ChannelOptions {
        data_dir: dir.to_owned(),
        max_bytes,
        segment_bytes,
        keep_free_bytes: 0,
        tick: Duration::from_millis(200),
        pinned_after: Duration::ZERO,
        unreadable_for: Duration::from_secs(3600),
    }
}

impl Bench {
    fn new(max_bytes: u64, segment_bytes: u64) -> Self {
        Self::open(tempfile::tempdir().unwrap(), max_bytes, segment_bytes)
    }

    fn open(dir: tempfile::TempDir, max_bytes: u64, segment_bytes: u64) -> Self {
        let (commands, queue) = mpsc::channel();
        let (sender, events) = async_mpsc::unbounded_channel();
        let options = options(dir.path(), max_bytes, segment_bytes);
        let owner = Owner::open(options, queue, sender, Arc::default(), Arc::new(|_| {})).unwrap();
        let (places, counts) = (HashMap::new(), HashMap::new());
        let mut bench = Self { dir, owner, events, places, counts, resets: 0, _commands: commands };
        bench.look();
        bench
    }

    fn reopen(self, max_bytes: u64, segment_bytes: u64) -> Self {
        let Self { dir, owner, .. } = self;
        drop(owner);
        Self::open(dir, max_bytes, segment_bytes)
    }

    fn look(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            match event {
                ChannelEvent::Reset(snapshot) => {
                    self.resets += 1;
                    self.places.clear();
                    for (segment, index, answered) in snapshot.segments {
                        for ordinal in (0..answered.len()).filter(|ordinal| !answered.get(*ordinal)) {
                            self.places.insert(index.id(ordinal), Location { segment, ordinal });
                        }
                    }
                }
                ChannelEvent::Appended { segment, entries } => {
                    for (entry, _) in entries {
                        let ordinal = self.counts.entry(segment).or_insert(0);
                        self.places.insert(entry.id, Location { segment, ordinal: *ordinal });
                        *ordinal += 1;
                    }
                }
                ChannelEvent::Sealed { .. } | ChannelEvent::Removed { .. } => {}
            }
        }
    }

    fn append(&mut self, agent: &str, seq: u64, bytes: usize) -> Appended {
        let payload = Bytes::from(vec![seq as u8; bytes]);
        let data = wire::Data {
            dataset: "d".into(),
            partition: Some(wire::Partition { date: 20_000, hour: None }),
            codec: wire::Codec::None as i32,
            framing: wire::Framing::Lines as i32,
            events: 1,
            payload_bytes: bytes as u64,
            payload_crc32c: crc32c::crc32c(&payload),
            ..Default::default()
        };
        let header = Header::encode(Origin([1; 16]), seq, wire::batch_header::Kind::Data(data)).unwrap();
        let (reply, answered) = oneshot::channel();
        let agent = AgentName::new(agent).unwrap();
        self.owner.handle(vec![Command::Append(Box::new(AppendJob { agent, header, payload, permit: None, reply }))]);
        self.look();
        answered.blocking_recv().unwrap().appended
    }

    fn release(&mut self, agent: &str, seq: u64) {
        let id = id(agent, seq);
        let at = self.places.remove(&id).unwrap();
        let intervals = [seq].into_iter().collect();
        self.owner.handle(vec![Command::Release(vec![Released { at, id, intervals, refused: None }])]);
    }

    fn tick(&mut self) {
        // A tick looks at a clock of milliseconds.
        std::thread::sleep(Duration::from_millis(2));
        self.owner.tick();
        self.look();
    }

    fn stats(&self) -> &ChannelStats {
        &self.owner.stats
    }
}

fn id(agent: &str, seq: u64) -> BatchId {
    BatchId { agent: AgentName::new(agent).unwrap(), origin: Origin([1; 16]), seq }
}

#[test]
fn the_first_storage_error_latches_until_everything_is_opened_again() {
    let mut bench = Bench::new(1 << 30, 1 << 20);
    assert_eq!(bench.append("a", 1, 100), Appended::Durable);
    let failing = Arc::new(AtomicBool::new(true));
    let hook = failing.clone();
    let fail = move |op| match op {
        StorageOp::SyncData if hook.load(Ordering::SeqCst) => Err(io::Error::other("injected")),
        _ => Ok(()),
    };
    bench.owner.opened.as_mut().unwrap().log.set_fault_hook(Arc::new(fail));
    assert!(matches!(bench.append("a", 2, 100), Appended::Failed(_)));
    failing.store(false, Ordering::SeqCst);
    assert!(matches!(bench.append("a", 3, 100), Appended::Failed(_)), "latched");
    assert!(matches!(bench.append("a", 1, 100), Appended::Failed(_)), "even for what is held");
    let (reply, answered) = oneshot::channel();
    let agent = AgentName::new("a").unwrap();
    bench.owner.handle(vec![Command::Progress { agent, origin: Origin([1; 16]), reply }]);
    assert!(answered.blocking_recv().is_err(), "nor is anything said to be held");
    assert!(bench.stats().failed.load(Ordering::SeqCst));
    bench.tick();
    assert!(bench.stats().failed.load(Ordering::SeqCst), "not before its time");
    bench.owner.failed.as_mut().unwrap().1 = Instant::now();
    bench.tick();
    assert!(!bench.stats().failed.load(Ordering::SeqCst));
    assert_eq!(bench.resets, 2);
    for seq in 1..=3 {
        assert_eq!(bench.append("a", seq, 100), Appended::Durable);
    }
    assert_eq!(bench.places.len(), 3);
    // What was written before the error lies in another file now: nothing rests on pages that were never synced.
    let state = &bench.owner.opened.as_ref().unwrap().state;
    assert!(state.segment(0).is_none(), "its batches were written anew");
}

/// What the sync had not made durable reads back from memory for as long as the machine runs, also in a new process.
#[test]
fn what_a_failed_sync_left_behind_is_written_anew_by_the_next_process() {
    let mut bench = Bench::new(1 << 30, 1 << 20);
    assert_eq!(bench.append("a", 1, 100), Appended::Durable);
    let fail = |op| if op == StorageOp::SyncData { Err(io::Error::other("injected")) } else { Ok(()) };
    bench.owner.opened.as_mut().unwrap().log.set_fault_hook(Arc::new(fail));
    assert!(matches!(bench.append("a", 2, 100), Appended::Failed(_)));
    let doubtful = bench.places[&id("a", 1)].segment;
    let mut bench = bench.reopen(1 << 30, 1 << 20);
    let seg = bench.dir.path().join("seg");
    assert!(!seg.join(format!("{doubtful:016x}.seg")).exists(), "nothing is held in it");
    assert_eq!(bench.append("a", 2, 100), Appended::Durable);
    for seq in [1, 2] {
        let at = bench.places[&id("a", seq)];
        assert_ne!(at.segment, doubtful);
        let segment = bench.owner.opened.as_ref().unwrap().state.segment(at.segment).unwrap();
        assert!(segment.sealed().is_some(), "it was synced before it was said to be held");
    }
    let copies = bench.places[&id("a", 1)].segment;
    let bench = bench.reopen(1 << 30, 1 << 20);
    assert_eq!(bench.places[&id("a", 1)].segment, copies, "a sealed segment is not in doubt");
    assert_eq!(bench.places.len(), 2);
}

/// A process that ended between the copy and the unlink leaves both, here the old one with batches that it answered.
#[test]
fn a_batch_in_a_sealed_segment_and_in_a_doubtful_one_is_held_once_in_the_sealed_one() {
    let mut bench = Bench::new(1 << 30, 1 << 20);
    for seq in 1..=3 {
        assert_eq!(bench.append("a", seq, 100), Appended::Durable);
    }
    let doubtful = bench.dir.path().join("seg/0000000000000000.seg");
    let kept = std::fs::read(&doubtful).unwrap();
    let bench = bench.reopen(1 << 30, 1 << 20);
    let places = bench.places.clone();
    std::fs::write(&doubtful, kept).unwrap();
    let bench = bench.reopen(1 << 30, 1 << 20);
    assert_eq!(bench.places, places);
    assert!(!doubtful.exists());
    assert_eq!(bench.stats().corruptions.load(Ordering::Relaxed), 0, "it is no damage");
}

#[test]
fn capacity_and_shares_are_counted_in_bytes() {
    let mut bench = Bench::new(1 << 20, 64 << 10);
    let mut seq = 0;
    let mut fill = |bench: &mut Bench, agent: &str| loop {
        seq += 1;
        let appended = bench.append(agent, seq, 10_000);
        if appended != Appended::Durable {
            return appended;
        }
    };
    assert_eq!(fill(&mut bench, "greedy"), Appended::Share, "half of the channel, more than a quarter its own");
    assert!(bench.owner.opened.as_ref().unwrap().log.total_bytes() > 1 << 19);
    assert_eq!(bench.append("modest", 1, 10_000), Appended::Durable);
    let held = bench.places.len();
    for agent in ["b", "c", "d", "e"] {
        if fill(&mut bench, agent) == Appended::Full {
            break;
        }
    }
    assert!(bench.places.len() > held);
    assert_eq!(bench.append("f", 1, 30_000), Appended::Full);
    assert!(bench.owner.opened.as_ref().unwrap().log.total_bytes() <= 1 << 20);
    // Delivery makes room.
    let all: Vec<BatchId> = bench.places.keys().cloned().collect();
    all.iter().for_each(|id| bench.release(id.agent.as_str(), id.seq));
    bench.tick();
    bench.tick();
    assert_eq!(bench.append("f", 1, 30_000), Appended::Durable);
}

#[test]
fn a_low_disk_refuses_and_the_ledger_outlives_it() {
    let mut bench = Bench::new(1 << 30, 1 << 20);
    assert_eq!(bench.append("a", 1, 100), Appended::Durable);
    bench.owner.options.keep_free_bytes = u64::MAX;
    bench.tick();
    assert_eq!(bench.append("a", 2, 100), Appended::Full);
    assert_eq!(bench.append("a", 1, 100), Appended::Durable, "held already");
    bench.owner.options.keep_free_bytes = 0;
    bench.tick();
    assert_eq!(bench.append("a", 2, 100), Appended::Durable);
    assert!(disk::reserve(bench.dir.path()).release(), "the reserve is there");
}

#[test]
fn a_pinned_segment_is_copied_forward_and_late_answers_find_the_copy() {
    let mut bench = Bench::new(1 << 30, 64 << 10);
    for seq in 1..=20 {
        assert_eq!(bench.append("a", seq, 6000), Appended::Durable);
    }
    let old = bench.places[&id("a", 3)];
    for seq in (1..=20).filter(|seq| *seq != 3) {
        bench.release("a", seq);
    }
    bench.tick();
    bench.tick();
    let new = bench.places[&id("a", 3)];
    assert_ne!(old, new, "copied");
    assert_eq!(bench.stats().copied_batches.load(Ordering::Relaxed), 1);
    let state = &bench.owner.opened.as_ref().unwrap().state;
    assert!(state.segment(old.segment).is_none(), "unlinked");
    assert_eq!((state.held_batches(), state.segment(new.segment).unwrap().live()), (1, 1));
    // The forward side may still name the old place.
    bench.places.insert(id("a", 3), old);
    bench.release("a", 3);
    assert_eq!(bench.owner.opened.as_ref().unwrap().state.held_batches(), 0);
}

/// What was to be told of copies that never came to the disk must not be told of the state that is opened next.
#[test]
fn a_copy_that_failed_leaves_the_batches_where_they_are() {
    let mut bench = Bench::new(1 << 30, 8 << 20);
    for seq in 1..=6 {
        assert_eq!(bench.append("a", seq, 1 << 20), Appended::Durable);
    }
    let mut bench = bench.reopen(1 << 30, 8 << 20);
    let pinned = bench.places[&id("a", 1)].segment;
    for _ in 0..2 {
        let owner = &mut bench.owner;
        // The first write is the head of a new segment.
        owner.opened.as_mut().unwrap().log.set_fault_hook(Arc::new(failing_from_the(2, StorageOp::Write)));
        owner.copy_forward(pinned);
        assert!(owner.failed.is_some() && owner.stored.is_empty(), "nothing is kept for the next state");
        owner.reopen();
        assert!(owner.failed.is_none());
        bench.look();
        assert_eq!(bench.append("b", 1, 10), Appended::Durable);
        bench.tick();
    }
    let bench = bench.reopen(1 << 30, 8 << 20);
    let opened = bench.owner.opened.as_ref().unwrap();
    for seq in 1..=6 {
        let at = bench.places[&id("a", seq)];
        let offset = opened.state.segment(at.segment).unwrap().index().entries[at.ordinal as usize].offset;
        let record = opened.log.reader().read(RecordAt { segment: at.segment, offset: u64::from(offset) }).unwrap();
        assert_eq!(record.body, vec![seq as u8; 1 << 20]);
    }
}

/// Lets all operations pass but `failing`, from the `nth` on.
fn failing_from_the(nth: usize, failing: StorageOp) -> impl Fn(StorageOp) -> io::Result<()> {
    let seen = std::sync::atomic::AtomicUsize::new(0);
    move |op| match op == failing && seen.fetch_add(1, Ordering::SeqCst) + 1 >= nth {
        true => Err(io::Error::other("injected")),
        false => Ok(()),
    }
}

/// What lies in a segment without a footer may be in memory only: while it cannot be written anew, nothing rests on it.
#[test]
fn a_doubtful_batch_that_cannot_be_read_now_is_not_said_to_be_held() {
    let mut bench = Bench::new(1 << 30, 1 << 20);
    assert_eq!(bench.append("a", 1, 100), Appended::Durable);
    let path = bench.dir.path().join("seg").join(format!("{:016x}.seg", bench.places[&id("a", 1)].segment));
    let elsewhere = bench.dir.path().join("elsewhere");
    let owner = &mut bench.owner;
    owner.opened = None;
    let opened = recover::open(&owner.options, &owner.stats, &mut owner.seen, 0, 0).unwrap();
    // Between the look at it and the copy.
    std::fs::rename(&path, &elsewhere).unwrap();
    owner.begin(opened);
    bench.look();
    assert!(matches!(bench.append("a", 1, 100), Appended::Failed(_)), "it may not be on the disk");
    assert!(bench.places.contains_key(&id("a", 1)), "it is delivered all the same");
    std::fs::rename(&elsewhere, &path).unwrap();
    bench.owner.failed.as_mut().unwrap().1 = Instant::now();
    bench.tick();
    assert_eq!(bench.append("a", 1, 100), Appended::Durable);
    assert!(bench.owner.failed.is_none() && !path.exists(), "written anew");
    assert_eq!(bench.stats().stored_batches.load(Ordering::Relaxed), 1, "and stored once");
}

/// A directory can be opened and none of its bytes can be read, like a file on a disk that fails.
#[test]
fn a_segment_that_cannot_be_read_now_is_waited_for_and_replaced_only_when_that_lasts() {
    let mut bench = Bench::new(1 << 30, 1 << 20);
    assert_eq!(bench.append("a", 1, 100), Appended::Durable);
    let bench = bench.reopen(1 << 30, 1 << 20);
    let path = bench.dir.path().join("seg").join(format!("{:016x}.seg", bench.places[&id("a", 1)].segment));
    let (elsewhere, aside) = (bench.dir.path().join("elsewhere"), path.with_extension("at-start.seg.damaged"));
    std::fs::rename(&path, &elsewhere).unwrap();
    std::fs::create_dir(&path).unwrap();
    let mut bench = bench.reopen(1 << 30, 1 << 20);
    let again = |bench: &mut Bench| {
        bench.owner.failed.as_mut().unwrap().1 = Instant::now();
        bench.tick();
    };
    for _ in 0..2 {
        again(&mut bench);
        assert!(path.is_dir() && !aside.exists() && bench.resets == 0, "nothing is changed");
        assert!(bench.stats().failed.load(Ordering::Relaxed) && !bench.stats().is_empty(), "nor said");
        assert!(matches!(bench.append("a", 2, 100), Appended::Failed(_)));
    }
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&elsewhere, &path).unwrap();
    again(&mut bench);
    assert!(bench.owner.failed.is_none() && bench.places.contains_key(&id("a", 1)), "nothing is lost");
    std::fs::rename(&path, &elsewhere).unwrap();
    std::fs::create_dir(&path).unwrap();
    let mut bench = bench.reopen(1 << 30, 1 << 20);
    bench.owner.options.unreadable_for = Duration::ZERO;
    again(&mut bench);
    assert!(bench.owner.failed.is_none() && !path.is_dir() && aside.exists());
    assert_eq!(bench.append("a", 1, 100), Appended::Durable);
    assert!(bench.places.contains_key(&id("a", 1)), "its agent gives it again");
}

/// What is damaged today may be read by other means: the file in which it lies does not go with it.
#[test]
fn the_file_of_a_batch_that_is_given_up_is_kept() {
    for copied in [false, true] {
        let mut bench = Bench::new(1 << 30, 1 << 20);
        for seq in 1..=3 {
            assert_eq!(bench.append("a", seq, 100), Appended::Durable);
        }
        let mut bench = bench.reopen(1 << 30, 1 << 20);
        let at = bench.places[&id("a", 2)];
        let opened = bench.owner.opened.as_ref().unwrap();
        let offset = opened.state.segment(at.segment).unwrap().index().entries[at.ordinal as usize].offset;
        let path = bench.dir.path().join("seg").join(format!("{:016x}.seg", at.segment));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[offset as usize + 150] ^= 0xff;
        std::fs::write(&path, &bytes).unwrap();
        match copied {
            true => bench.owner.copy_forward(at.segment),
            false => {
                bench.owner.handle(vec![Command::GiveUp { at, id: id("a", 2) }]);
                bench.release("a", 1);
                bench.release("a", 3);
            }
        }
        bench.tick();
        assert_eq!(bench.stats().given_up_batches.load(Ordering::Relaxed), 1);
        assert!(!path.exists(), "nothing in it is held");
        assert!(std::fs::read(path.with_extension("given-up.seg.damaged")).unwrap() == bytes);
        assert_eq!(bench.append("a", 2, 100), Appended::Durable);
        assert!(bench.places.contains_key(&id("a", 2)), "its agent gives it again");
    }
}

/// The disk gave it back after the forward side had taken it for lost.
#[test]
fn a_batch_that_was_copied_well_is_not_given_up_but_told_again() {
    let mut bench = Bench::new(1 << 30, 1 << 20);
    for seq in 1..=3 {
        assert_eq!(bench.append("a", seq, 100), Appended::Durable);
    }
    let mut bench = bench.reopen(1 << 30, 1 << 20);
    let at = bench.places[&id("a", 2)];
    bench.owner.copy_forward(at.segment);
    bench.tick();
    assert_eq!(bench.append("a", 4, 100), Appended::Durable);
    let resets = bench.resets;
    bench.owner.handle(vec![Command::GiveUp { at, id: id("a", 2) }]);
    bench.look();
    assert_eq!((bench.resets, bench.places.len()), (resets + 1, 4), "all of it is to be delivered");
    assert_ne!(bench.places[&id("a", 2)], at);
    let state = &bench.owner.opened.as_ref().unwrap().state;
    assert_eq!((state.held_batches(), bench.stats().given_up_batches.load(Ordering::Relaxed)), (4, 0));
    assert_eq!(bench.append("a", 5, 100), Appended::Durable);
    (1..=5).for_each(|seq| bench.release("a", seq));
    bench.tick();
    bench.tick();
    assert_eq!(bench.owner.opened.as_ref().unwrap().state.held_batches(), 0);
}

#[test]
fn only_what_is_held_or_committed_is_deduplicated() {
    let mut bench = Bench::new(1 << 30, 1 << 20);
    // Higher seqs say nothing about lower ones, held or committed.
    for seq in [5, 9] {
        assert_eq!(bench.append("a", seq, 10), Appended::Durable);
    }
    bench.release("a", 9);
    bench.tick();
    for seq in [4, 8] {
        bench.append("a", seq, 10);
        assert!(bench.places.contains_key(&id("a", seq)), "{seq} is stored");
    }
    let stored = bench.stats().stored_batches.load(Ordering::Relaxed);
    for seq in [5, 9] {
        assert_eq!(bench.append("a", seq, 10), Appended::Durable);
    }
    assert_eq!(bench.stats().stored_batches.load(Ordering::Relaxed), stored, "held, and committed");
    // A ledger that outlives its segments answers for nothing but what is committed.
    let dir = bench.dir.path().join("seg");
    let mut bench = {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "seg") {
                std::fs::remove_file(path).unwrap();
            }
        }
        bench.reopen(1 << 30, 1 << 20)
    };
    assert!(bench.places.is_empty());
    assert_eq!(bench.append("a", 5, 10), Appended::Durable);
    assert!(bench.places.contains_key(&id("a", 5)), "stored again");
    assert_eq!(bench.append("a", 9, 10), Appended::Durable);
    assert!(!bench.places.contains_key(&id("a", 9)), "committed is committed");
}

#[test]
fn a_batch_twice_in_one_group_is_stored_once_and_both_wait_for_the_sync() {
    let mut bench = Bench::new(1 << 30, 1 << 20);
    let header = Header::encode(Origin([1; 16]), 1, wire::batch_header::Kind::Void(wire::Void::default())).unwrap();
    let mut jobs = Vec::new();
    let mut answers = Vec::new();
    for _ in 0..2 {
        let (reply, answered) = oneshot::channel();
        let (agent, header) = (AgentName::new("a").unwrap(), header.clone());
        jobs.push(Command::Append(Box::new(AppendJob { agent, header, payload: Bytes::new(), permit: None, reply })));
        answers.push(answered);
    }
    bench.owner.handle(jobs);
    bench.look();
    for answered in answers {
        assert_eq!(answered.blocking_recv().unwrap().appended, Appended::Durable);
    }
    assert_eq!(bench.counts.values().sum::<u32>(), 1);
}

/// Answered batches are known by their position in the segment, which damage in front of them changes.
#[test]
fn a_damaged_record_does_not_make_others_count_as_answered() {
    let mut bench = Bench::new(1 << 30, 1 << 20);
    for seq in 1..=10 {
        assert_eq!(bench.append("a", seq, 100), Appended::Durable);
    }
    let damaged = bench.places[&id("a", 2)];
    let opened = bench.owner.opened.as_ref().unwrap();
    let offset = opened.state.segment(damaged.segment).unwrap().index().entries[damaged.ordinal as usize].offset;
    // Answered, and in the ledger; the row of the origin must not hide what the bits do.
    let at = bench.places[&id("a", 7)];
    bench.owner.opened.as_mut().unwrap().state.give_up(at, &id("a", 7), 0);
    bench.tick();
    for seq in 11..=14 {
        assert_eq!(bench.append("a", seq, 100), Appended::Durable);
    }
    let path = bench.dir.path().join("seg").join(format!("{:016x}.seg", damaged.segment));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[offset as usize + 150] ^= 0xff;
    std::fs::write(&path, bytes).unwrap();
    for _ in 0..2 {
        bench = bench.reopen(1 << 30, 1 << 20);
        for seq in [1, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14] {
            assert!(bench.places.contains_key(&id("a", seq)), "{seq} is still to be delivered");
        }
    }
}

/// Reads as `bench` would, but for one place.
fn reading_all_but(bad: RecordAt, dir: &std::path::Path) -> impl Fn(RecordAt) -> Result<Record, ReadError> + use<> {
    let reader = RecordReader::new(dir.join("seg"));
    move |at| match at == bad {
        true => Err(ReadError::Io { segment: at.segment, reason: Arc::new(io::Error::from_raw_os_error(5)) }),
        false => reader.read(at),
    }
}

#[test]
fn a_repair_loses_the_one_record_that_cannot_be_read_and_holds_the_lock_while_it_looks() {
    let mut bench = Bench::new(1 << 30, 1 << 20);
    for seq in 1..=10 {
        assert_eq!(bench.append("a", seq, 100), Appended::Durable);
    }
    // A second start has footers only.
    let bench = bench.reopen(1 << 30, 1 << 20);
    let at = bench.places[&id("a", 4)];
    let opened = bench.owner.opened.as_ref().unwrap();
    let offset = opened.state.segment(at.segment).unwrap().index().entries[at.ordinal as usize].offset;
    let Bench { dir, owner, .. } = bench;
    drop(owner);
    let read = reading_all_but(RecordAt { segment: at.segment, offset: u64::from(offset) }, dir.path());
    let locked = std::cell::Cell::new(0);
    let watched = |at: RecordAt| {
        locked.set(locked.get() + u32::from(lock::DirLock::holder(dir.path()).unwrap().is_some()));
        read(at)
    };
    let (survey, plan) = repair::repair_reading(dir.path(), 0, &watched).unwrap();
    assert_eq!(locked.get(), 10, "nobody else can change what is looked at");
    assert_eq!(survey.findings.iter().map(|found| found.kind).collect::<Vec<_>>(), [finding::Kind::Unreadable]);
    assert_eq!(plan.losses.iter().map(|loss| loss.seqs.clone()).collect::<Vec<_>>(), [vec![(4, 4)]]);
    let bench = Bench::open(dir, 1 << 30, 1 << 20);
    let mut held: Vec<u64> = bench.places.keys().map(|id| id.seq).collect();
    held.sort_unstable();
    assert_eq!(held, [1, 2, 3, 5, 6, 7, 8, 9, 10]);
}

fn segment_rows(bench: &Bench) -> Vec<u64> {
    let rows = bench.owner.opened.as_ref().unwrap().ledger.rows();
    rows.filter_map(|row| rows::segment_of(&row.unwrap().0)).collect()
}

#[test]
fn the_ledger_has_no_rows_of_segments_that_are_gone_nor_of_origins_that_are_long_gone() {
    let mut bench = Bench::new(1 << 30, 32 << 10);
    for seq in 1..=200 {
        assert_eq!(bench.append("a", seq, 3000), Appended::Durable);
        if seq > 5 {
            bench.release("a", seq - 5);
        }
        if seq % 8 == 0 {
            bench.tick();
        }
    }
    bench.tick();
    bench.tick();
    let state = &bench.owner.opened.as_ref().unwrap().state;
    assert!(bench.counts.len() > 15, "many came");
    let there: Vec<u64> = state.segments().map(|(id, _)| id).collect();
    assert!(there.len() < 5, "and went");
    assert!(segment_rows(&bench).iter().all(|id| there.contains(id)), "{:?} {there:?}", segment_rows(&bench));
    // One origin of old and one that is held: only the first goes, when its time has come.
    let old = AgentName::new("old").unwrap();
    let mut changes = ledger::Changes::default();
    for (agent, origin) in [(&old, Origin([9; 16])), (&id("a", 1).agent, Origin([1; 16]))] {
        changes.put(rows::origin_key(agent, origin), rows::origin_value(&rows::OriginRow::default()));
    }
    bench.owner.opened.as_ref().unwrap().ledger.apply(changes).unwrap();
    let known = |bench: &Bench, agent: &AgentName, origin| {
        bench.owner.opened.as_ref().unwrap().ledger.origin(agent, Origin([origin; 16])).is_some()
    };
    bench.tick();
    assert!(known(&bench, &old, 9), "not at every tick");
    bench.owner.next_sweep = Instant::now();
    bench.tick();
    assert!(!known(&bench, &old, 9) && known(&bench, &id("a", 1).agent, 1));
    assert!(bench.owner.next_sweep > Instant::now(), "and then tomorrow");
}
