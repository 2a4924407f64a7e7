//! The thread that owns the channel: takes the queue, appends all of it, syncs once, publishes, answers.
//!
//! Invariants: nothing is answered durable before its sync returned (I1); after the first storage error everything is
//! answered *failed* until log, ledger and state were opened anew (I6).

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::record_log::LogError;
use common::reserve::Reserve;
use proto::header::Kind;
use proto::ids::BatchId;
use proto::wire;
use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::disk;
use super::index::{NewEntry, Route, SeqKind};
use super::lock::DirLock;
use super::meta::encode_meta;
use super::recover::{self, Opened};
use super::refusals::Refusal;
use super::salvage::Seen;
use super::state::Admission;
use super::unreadable::Unreadable;
use super::upkeep::SWEEP_EVERY;
use super::{
    AppendAnswer, AppendJob, Appended, ChannelError, ChannelEvent, ChannelOptions, ChannelStats, Command, Location,
    MAX_SEGMENT_BATCHES, ProgressAnswer, Refused, SyncObserver,
};

/// Most bytes of payload behind one sync.
const GROUP_BYTES: usize = 32 * 1024 * 1024;
/// How long a failed channel waits before it is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(5);

/// A reply that waits for the sync.
type Waiting = (oneshot::Sender<AppendAnswer>, super::state::OriginKey, Option<tokio::sync::OwnedSemaphorePermit>);

/// The owner.
pub struct Owner {
    pub(super) options: ChannelOptions,
    pub(super) opened: Option<Opened>,
    pub(super) failed: Option<(String, Instant)>,
    pub(super) events: async_mpsc::UnboundedSender<ChannelEvent>,
    pub(super) stats: Arc<ChannelStats>,
    pub(super) reserve: Reserve,
    pub(super) low_disk: bool,
    /// Appended, not told yet: segment, batch, and its old place if it is a copy.
    pub(super) stored: Vec<(u64, NewEntry, Option<Location>)>,
    /// Places that could not be read when they were to be copied.
    pub(super) unreadable: Unreadable,
    /// To be given up as soon as their segments' files can be kept.
    pub(super) giving_up: Vec<(Location, BatchId)>,
    /// Being opened: the forward side is told of the outcome, not of the steps.
    quiet: bool,
    /// What was found at each opening.
    pub(super) seen: Seen,
    queue: Receiver<Command>,
    _lock: DirLock,
    on_sync: SyncObserver,
    started: Instant,
    next_tick: Instant,
    pub(super) next_sweep: Instant,
}

impl Owner {
    /// Opens the channel.
    pub fn open(
        options: ChannelOptions,
        queue: mpsc::Receiver<Command>,
        events: async_mpsc::UnboundedSender<ChannelEvent>,
        stats: Arc<ChannelStats>,
        on_sync: SyncObserver,
    ) -> Result<Self, ChannelError> {
        let lock = recover::lock(&options.data_dir)?;
        let mut seen = Seen::default();
        let opened = match recover::open(&options, &stats, &mut seen, unix_ms(), 0) {
            // It may be a cable: the process is up and tries again, as after a storage error.
            Err(error @ ChannelError::Unreadable { .. }) => Err(error),
            opened => Ok(opened?),
        };
        let mut reserve = disk::reserve(&options.data_dir);
        reserve.refill();
        let now = Instant::now();
        let mut owner = Self {
            options,
            opened: None,
            failed: None,
            events,
            stats,
            reserve,
            low_disk: false,
            stored: Vec::new(),
            unreadable: Unreadable::default(),
            giving_up: Vec::new(),
            quiet: false,
            seen,
            queue,
            _lock: lock,
            on_sync,
            started: now,
            next_tick: now,
            next_sweep: now + SWEEP_EVERY,
        };
        match opened {
            Ok(opened) => owner.begin(opened),
            Err(error) => owner.stay_closed(&error),
        }
        Ok(owner)
    }

    /// Takes over freshly opened parts. What lies in a segment without a footer is in doubt even where it reads back:
    /// a sync of it may have failed, in this process or before, and then the kernel may have dropped the pages. So it is
    /// written anew before anything of it is said to be held. When that fails (a full disk), nothing is acknowledged, and
    /// what can be read is delivered all the same.
    pub(super) fn begin(&mut self, opened: Opened) {
        let doubtful = opened.doubtful.clone();
        // Copies that the state before did not come to tell of say nothing of this one: they are not on the disk.
        self.stored.clear();
        // The forward side begins anew, and asks again.
        self.giving_up.clear();
        self.opened = Some(opened);
        self.failed = None;
        self.quiet = true;
        match self.write_anew(&doubtful) {
            Ok(()) => self.unreadable.clear(),
            // What could not be read is tried again by the next opening, and its minute goes on.
            Err(error) => self.fail(&error),
        }
        self.quiet = false;
        self.stats.failed.store(self.failed.is_some(), Ordering::Relaxed);
        if let Some(opened) = &self.opened {
            let snapshot = recover::snapshot(&opened.state, opened.log.reader());
            self.tell(ChannelEvent::Reset(Box::new(snapshot)));
        }
        self.count();
    }

    /// The forward side hears of the outcome only.
    fn write_anew(&mut self, doubtful: &[u64]) -> Result<(), LogError> {
        // Room first: what was delivered meanwhile, and what an attempt on a full disk left behind, goes.
        self.write_ledger();
        self.unlink_finished()?;
        for &segment in doubtful {
            let batches = self.try_copy_forward(segment)?;
            tracing::info!(segment, batches, "what lay in a segment without a footer was written anew");
        }
        // A sync that failed on the way has latched by now, and the seal says so.
        if let Some((id, _)) = self.opened.as_ref().and_then(|opened| opened.log.active()) {
            self.seal(id)?;
        }
        // The row first: without it an unlinked segment would look like one that was lost.
        self.write_ledger();
        self.unlink_finished()?;
        doubtful.iter().try_for_each(|&segment| self.none_left(segment))
    }

    /// Runs until it is stopped or nobody holds a handle.
    pub fn run(mut self) {
        loop {
            let mut commands = Vec::new();
            let mut bytes = 0;
            match self.queue.recv_timeout(self.next_tick.saturating_duration_since(Instant::now())) {
                Ok(command) => {
                    bytes += size(&command);
                    commands.push(command);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while bytes < GROUP_BYTES
                && let Ok(command) = self.queue.try_recv()
            {
                bytes += size(&command);
                commands.push(command);
            }
            let stop = self.handle(commands);
            if stop.is_some() || Instant::now() >= self.next_tick {
                self.next_tick = Instant::now() + self.options.tick;
                self.tick();
            }
            self.count();
            if let Some(done) = stop {
                // Whoever waits may open the directory again.
                drop(self);
                // Whoever asked may be gone already.
                let _ = done.send(());
                return;
            }
        }
        self.tick();
    }

    pub(super) fn handle(&mut self, commands: Vec<Command>) -> Option<oneshot::Sender<()>> {
        let mut stop = None;
        let mut waiting: Vec<Waiting> = Vec::new();
        for command in commands {
            match command {
                Command::Append(job) => self.append(*job, &mut waiting),
                Command::Stop { reply } => stop = Some(reply),
                other => self.note(other),
            }
        }
        self.finish_group(waiting);
        stop
    }

    /// Everything but appends.
    fn note(&mut self, command: Command) {
        let now = self.now();
        let Some(opened) = &mut self.opened else { return };
        match command {
            // What is in memory may not be on disk then: the reply is dropped, which says that nothing is known.
            Command::Progress { .. } if self.failed.is_some() => {}
            Command::Progress { agent, origin, reply } => {
                let key = (agent, origin);
                recover::know(&mut opened.state, &opened.ledger, &key);
                let committed = opened.state.committed(&key).map(wire::IntervalSet::from).unwrap_or_default();
                let held = opened.state.held(&key).map(|held| held.to_wire()).unwrap_or_default();
                let quarantined = opened.state.refusals.of(&key);
                // The agent may have given up asking.
                let _ = reply.send(ProgressAnswer { committed, held, quarantined });
            }
            Command::Describe { reply } => {
                // Whoever asked may be gone.
                let _ = reply.send(recover::describe(&opened.state, opened.log.active()));
            }
            Command::Release(released) => {
                let unix_ms = unix_ms();
                for batch in released {
                    recover::know(&mut opened.state, &opened.ledger, &(batch.id.agent.clone(), batch.id.origin));
                    if opened.state.release(batch.at, &batch.id, &batch.intervals, unix_ms, now) {
                        self.stats.released_batches.fetch_add(1, Ordering::Relaxed);
                    }
                    if let Some(Refused { dataset, reason }) = batch.refused {
                        opened.state.refusals.keep(batch.id, Refusal { unix_ms, dataset, reason });
                    }
                }
            }
            Command::Broken(counts) => {
                counts.into_iter().for_each(|(id, count)| opened.state.set_broken(id, count));
            }
            // It is the disk then, and no single batch: the places are looked at again when it is open again.
            Command::GiveUp { .. } if self.failed.is_some() => {}
            Command::GiveUp { at, id } => self.give_up_or_later(at, id),
            Command::Append(_) | Command::Stop { .. } => {}
        }
    }

    fn append(&mut self, job: AppendJob, waiting: &mut Vec<Waiting>) {
        let id = BatchId { agent: job.agent.clone(), origin: job.header.origin, seq: job.header.seq };
        let key = (id.agent.clone(), id.origin);
        if let Some((reason, _)) = &self.failed {
            return failed(job.reply, reason.clone());
        }
        let Some(opened) = &mut self.opened else { return };
        recover::know(&mut opened.state, &opened.ledger, &key);
        let bytes = (job.header.bytes.len() + job.payload.len()) as u64;
        let refused = match opened.state.admit(&id, bytes, opened.log.total_bytes()) {
            Admission::Store if self.low_disk => Some(Appended::Full),
            Admission::Store => None,
            Admission::Full => Some(Appended::Full),
            Admission::Share => Some(Appended::Share),
            Admission::Committed | Admission::Held => {
                self.stats.duplicate_batches.fetch_add(1, Ordering::Relaxed);
                // A batch of this very group is held, but not durable yet: the answer waits for the sync too.
                waiting.push((job.reply, key, job.permit));
                return;
            }
        };
        if let Some(refused) = refused {
            let committed = opened.state.committed(&key).map(wire::IntervalSet::from).unwrap_or_default();
            let quarantined = opened.state.refusals.of(&key);
            // The agent may have gone away: it asks again.
            let _ = job.reply.send(AppendAnswer { appended: refused, committed, quarantined });
            return;
        }
        match self.store(&job, id) {
            Ok(()) => waiting.push((job.reply, key, job.permit)),
            Err(error) => {
                self.fail(&error);
                failed(job.reply, error.to_string());
            }
        }
    }

    fn store(&mut self, job: &AppendJob, id: BatchId) -> Result<(), LogError> {
        let now = self.now();
        self.roll_if_full()?;
        let opened = self.opened.as_mut().expect("checked by the caller");
        let meta = encode_meta(&job.agent, &job.header.bytes);
        let at = opened.log.append_parts(&meta, std::slice::from_ref(&job.payload))?;
        let entry = NewEntry {
            id,
            offset: at.offset as u32,
            payload_bytes: job.payload.len() as u32,
            header_bytes: job.header.bytes.len() as u32,
            kind: SeqKind::of(&job.header),
            route: Route::of(&job.header),
        };
        let mark_at = match &job.header.kind {
            Kind::Mark(mark) => Some(mark.at_unix_ms),
            _ => None,
        };
        opened.state.append(at.segment, &entry, unix_ms(), mark_at, now);
        self.stored.push((at.segment, entry, None));
        Ok(())
    }

    /// Seals the segment that is written when it is full. What is sealed is told after what was stored in it.
    pub(super) fn roll_if_full(&mut self) -> Result<(), LogError> {
        let Some(opened) = &mut self.opened else { return Ok(()) };
        let Some((id, _)) = opened.log.active() else { return Ok(()) };
        let batches = opened.state.segment(id).map_or(0, |segment| segment.index().entries.len());
        if opened.log.is_full() || batches >= MAX_SEGMENT_BATCHES as usize {
            self.seal(id)?;
        }
        Ok(())
    }

    /// Seals the segment that is written.
    pub(super) fn seal(&mut self, id: u64) -> Result<(), LogError> {
        let Some(opened) = &mut self.opened else { return Ok(()) };
        let Some(segment) = opened.state.segment(id) else { return Ok(()) };
        let begun = Instant::now();
        let footer = segment.index().encode();
        let bytes = opened.log.active().map_or(0, |(_, bytes)| bytes) + footer.len() as u64;
        opened.log.seal(&footer)?;
        (self.on_sync)(begun.elapsed().as_secs_f64());
        let index = opened.state.seal(id, bytes);
        self.publish();
        if let Some(index) = index {
            self.tell(ChannelEvent::Sealed { segment: id, index });
        }
        Ok(())
    }

    /// Tells of what is durable by now.
    pub(super) fn publish(&mut self) {
        if self.failed.is_some() {
            return self.stored.clear();
        }
        let mut groups: Vec<(u64, Vec<super::StoredEntry>)> = Vec::new();
        let now = self.now();
        for (segment, entry, from) in std::mem::take(&mut self.stored) {
            if let (Some(from), Some(opened)) = (from, &mut self.opened) {
                opened.state.copied(from, now);
            }
            self.stats.stored_batches.fetch_add(u64::from(from.is_none()), Ordering::Relaxed);
            match groups.last_mut() {
                Some((last, entries)) if *last == segment => entries.push((entry, from)),
                _ => groups.push((segment, vec![(entry, from)])),
            }
        }
        for (segment, entries) in groups {
            self.tell(ChannelEvent::Appended { segment, entries });
        }
    }

    /// One sync for everything that was appended, then the forward side hears of it, then everybody is answered.
    fn finish_group(&mut self, waiting: Vec<Waiting>) {
        if waiting.is_empty() {
            return;
        }
        if !self.stored.is_empty() && self.failed.is_none() {
            self.sync();
        }
        self.publish();
        if let Some((reason, _)) = &self.failed {
            for (reply, _, permit) in waiting {
                drop(permit);
                failed(reply, reason.clone());
            }
            return;
        }
        // Before anybody is answered: who sees no append in flight has to see what is held.
        self.count();
        for (reply, key, permit) in waiting {
            let state = self.opened.as_ref().map(|opened| &opened.state);
            let committed = state.and_then(|state| state.committed(&key)).map(wire::IntervalSet::from);
            let quarantined = state.map(|state| state.refusals.of(&key)).unwrap_or_default();
            drop(permit);
            let committed = committed.unwrap_or_default();
            // The agent may have gone away: it asks again.
            let _ = reply.send(AppendAnswer { appended: Appended::Durable, committed, quarantined });
        }
    }

    /// Makes everything appended durable; a failure latches.
    pub(super) fn sync(&mut self) {
        let Some(opened) = &mut self.opened else { return };
        let begun = Instant::now();
        match opened.log.sync() {
            Ok(()) => (self.on_sync)(begun.elapsed().as_secs_f64()),
            Err(error) => self.fail(&error),
        }
    }

    /// Latches a storage error.
    pub(super) fn fail(&mut self, error: &LogError) {
        // What was appended and not synced is never told.
        self.stored.clear();
        if self.failed.is_none() {
            tracing::error!(%error, "the channel's storage failed: nothing is acknowledged until it is opened again");
            self.stats.failed.store(true, Ordering::Relaxed);
            self.failed = Some((error.to_string(), Instant::now() + REOPEN_AFTER));
        }
    }

    /// Opens a failed channel again.
    pub(super) fn reopen(&mut self) {
        self.opened = None;
        let now = self.now();
        match recover::open(&self.options, &self.stats, &mut self.seen, unix_ms(), now) {
            Ok(opened) => {
                self.begin(opened);
                if self.failed.is_none() {
                    tracing::warn!("the channel is open again");
                }
            }
            Err(error) => self.stay_closed(&error),
        }
    }

    fn stay_closed(&mut self, error: &ChannelError) {
        tracing::error!(%error, "the channel cannot be opened yet");
        self.stats.failed.store(true, Ordering::Relaxed);
        self.failed = Some((error.to_string(), Instant::now() + REOPEN_AFTER));
    }

    pub(super) fn tell(&self, event: ChannelEvent) {
        if !self.quiet && self.events.send(event).is_err() {
            tracing::debug!("nobody forwards any more");
        }
    }

    /// Milliseconds since the owner began.
    pub(super) fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Publishes the numbers.
    fn count(&self) {
        let Some(opened) = &self.opened else { return };
        self.stats.held_batches.store(opened.state.held_batches(), Ordering::Relaxed);
        self.stats.held_bytes.store(opened.state.held_bytes(), Ordering::Relaxed);
        self.stats.segment_bytes.store(opened.log.total_bytes(), Ordering::Relaxed);
        let oldest = opened.state.segments().find(|(_, segment)| segment.live() > 0);
        let oldest = oldest.map_or(0, |(_, segment)| segment.index().created_unix_ms);
        self.stats.oldest_unix_ms.store(oldest, Ordering::Relaxed);
        self.stats.opened.store(true, Ordering::Relaxed);
        self.stats.dropped_reasons.store(opened.state.refusals.dropped(), Ordering::Relaxed);
    }

    /// Is the file system nearly full?
    pub(super) fn look_at_disk(&mut self) {
        match disk::free_bytes(&self.options.data_dir) {
            Ok(free) => {
                let low = free < self.options.keep_free_bytes;
                if low != self.low_disk {
                    tracing::warn!(free_bytes = free, low, "free space on the channel's file system");
                }
                self.low_disk = low;
                if free > self.options.keep_free_bytes.max(2 * disk::RESERVE_BYTES) {
                    self.reserve.refill();
                }
            }
            Err(error) => tracing::warn!(%error, "the free space of the channel's file system is unknown"),
        }
    }
}

fn failed(reply: oneshot::Sender<AppendAnswer>, reason: String) {
    let appended = Appended::Failed(reason);
    // The agent may have gone away: it asks again.
    let _ = reply.send(AppendAnswer { appended, committed: wire::IntervalSet::default(), quarantined: Vec::new() });
}

fn size(command: &Command) -> usize {
    match command {
        Command::Append(job) => job.payload.len(),
        _ => 0,
    }
}

pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
