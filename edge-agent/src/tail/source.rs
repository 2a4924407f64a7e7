//! The tail source: when to look, which file to read next, what to hold and what to let go.
//!
//! Invariant: files with something to do stand in one queue and each gets one quantum per turn, so a busy file never
//! starves a quiet one; everything unread is in a readable file, held open, looked for, or counted as destroyed.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::config::{Problems, Validate};

use super::chunk::{Chunk, StateUpdate};
use super::config::{Start, TailConfig};
use super::cursor::{Cursor, Moment, Standing, Verdict};
use super::files::{Destroyed, DestroyedBy, Entry, Files};
use super::identity::Patience;
use super::listing::{Lister, Look};
use super::position::{self, Position, STARTED_KEY};
use super::problem::TailProblem;
use super::reading::{Reader, Step, skip_hole};
use super::{Note, PollOutcome, TailError, TailStats};

/// Idle time after which a partial event of a renamed or deleted file is emitted where `partial_idle` is 0.
const GONE_PARTIAL_IDLE: Duration = Duration::from_secs(5);
/// Walks that take longer than this are made less often.
const LONG_LISTING: Duration = Duration::from_millis(50);
/// Long walks take this part of the time between two of them.
const LISTING_SHARE: u32 = 10;

/// Tails the files of one source. All calls block and are made by one owner.
#[derive(Debug)]
pub struct TailSource {
    config: TailConfig,
    lister: Lister,
    files: Files,
    reader: Reader,
    queue: VecDeque<u64>,
    queued: HashSet<u64>,
    list_problems: Vec<TailProblem>,
    read_problems: BTreeMap<u64, TailProblem>,
    next_look: Instant,
    next_list: Instant,
    finishing: bool,
    tell_started: bool,
    last: Instant,
}

impl TailSource {
    /// Opens a source with the positions saved by its earlier runs (none at the very first start) and lists its files.
    /// Errors: a configuration that does not validate, a saved position that cannot be used.
    pub fn open(
        name: &str,
        config: &TailConfig,
        saved: Vec<(Vec<u8>, Vec<u8>)>,
        now: Instant,
    ) -> Result<Self, TailError> {
        let mut problems = Problems::default();
        config.validate(&mut problems);
        if let Some((key, problem)) = problems.iter().next() {
            return Err(TailError::Config { name: name.to_owned(), reason: format!("{key} {problem}") });
        }
        let lister = Lister::new(&config.paths, &config.exclude, config.include_compressed)
            .map_err(|reason| TailError::Config { name: name.to_owned(), reason })?;
        let next_id = saved.iter().filter_map(|(key, _)| position::id_of(key)).max().map_or(0, |id| id + 1);
        let is_first = saved.is_empty();
        let mut source = Self {
            lister,
            files: Files::new(config.max_open_files, next_id),
            reader: Reader::new(config.max_event_bytes.bytes(), config.quantum.bytes() as usize),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            list_problems: Vec::new(),
            read_problems: BTreeMap::new(),
            next_look: now,
            next_list: now,
            finishing: false,
            last: now,
            tell_started: is_first,
            config: config.clone(),
        };
        for (key, value) in saved {
            let Some(id) = position::id_of(&key) else { continue };
            let saved = Position::decode(&value)
                .map_err(|error| TailError::Saved { name: name.to_owned(), reason: error.to_string() })?;
            source.files.insert(Cursor::restore(id, saved, moment(now)), None);
        }
        source.list(is_first && config.start == Start::End, now);
        Ok(source)
    }

    /// Reads complete events into `chunk` until it holds `budget` raw bytes or every file had its turn. Call it regularly even while a chunk waits
    /// (with budget 0): it also looks after rotated and deleted files.
    pub fn poll(&mut self, chunk: &mut Chunk, budget: usize, now: Instant) -> PollOutcome {
        self.last = now;
        if now >= self.next_look {
            self.look(now);
        }
        if now >= self.next_list {
            self.list(false, now);
        }
        let (progressed, full) = self.read_round(chunk, budget, now);
        self.close_gone(now);
        self.tell(chunk);
        let waiting =
            self.finishing && self.files.entries.values().any(|entry| entry.cursor.standing == Standing::Waiting);
        PollOutcome { progressed, full, at_end: !full && self.queue.is_empty() && !waiting }
    }

    /// From now on every file is read to its end once and its last partial event emitted by the next polls; `at_end` then means that all
    /// of that has been done. Events that are written later belong to the next run.
    pub fn finish(&mut self) {
        self.finishing = true;
        (self.next_look, self.next_list) = (self.last, self.last);
        let ids: Vec<u64> = self.files.entries.keys().copied().collect();
        ids.into_iter().for_each(|id| self.enqueue(id));
    }

    /// Lists and stats afresh and notes how far every file reaches. Errors: what could not be looked at; nothing may then be said to be complete.
    pub fn note(&mut self, now: Instant) -> Result<Note, Vec<TailProblem>> {
        self.list(false, now);
        let mut unreached = self.verify_changed(now);
        if !unreached.is_empty() {
            // A rotation since the listing is no fault: what is where now is seen by another one.
            self.list(false, now);
            unreached = self.verify_changed(now);
        }
        let mut problems = self.problems();
        problems.append(&mut unreached);
        if !problems.is_empty() {
            return Err(problems);
        }
        let ends = self
            .files
            .entries
            .values()
            .filter(|entry| !entry.cursor.is_cut(entry.cursor.look.len, self.files.shrinks))
            .map(|entry| (entry.cursor.id, entry.cursor.look.len))
            .collect();
        Ok(Note { ends, shrinks: self.files.shrinks })
    }

    /// Verifies what changed in files that were closed to make room for others: one that was overwritten must not be noted
    /// with the length, and as read as far, as what it held before. Returns what could not be reached.
    fn verify_changed(&mut self, now: Instant) -> Vec<TailProblem> {
        let is_unsure = |entry: &&Entry| {
            let cursor = &entry.cursor;
            cursor.suspect && cursor.standing == Standing::Listed && !cursor.done
        };
        let unsure: Vec<u64> = self.files.entries.values().filter(is_unsure).map(|entry| entry.cursor.id).collect();
        let mut unreached = Vec::new();
        for id in unsure {
            let error = match self.files.ensure_open(id) {
                Ok(true) => {
                    self.consider(id, now);
                    continue;
                }
                Ok(false) => io::Error::other("it was moved or deleted while it was looked at"),
                Err(error) => error,
            };
            unreached.extend(self.files.entries.get(&id).map(|entry| TailProblem::of(&entry.cursor.path, &error)));
        }
        self.enqueue_woken();
        unreached
    }

    /// True if every byte of a complete event that was there at the note has been handed out in a chunk, or is known to be destroyed.
    pub fn is_cut(&self, note: &Note) -> bool {
        note.ends.iter().all(|(id, end)| {
            let id = self.files.moved.get(id).unwrap_or(id);
            self.files.entries.get(id).is_none_or(|entry| entry.cursor.is_cut(*end, note.shrinks))
        })
    }

    /// What was destroyed unread since the last call.
    pub fn take_destroyed(&mut self) -> Vec<Destroyed> {
        std::mem::take(&mut self.files.destroyed)
    }

    /// Numbers for metrics and readiness.
    pub fn stats(&self) -> TailStats {
        let mut stats =
            TailStats { problems: self.problems(), open_files: self.files.open_count(), ..TailStats::default() };
        for entry in self.files.entries.values() {
            let cursor = &entry.cursor;
            match cursor.standing {
                Standing::Waiting => stats.waiting_files += 1,
                Standing::Listed => stats.files += 1,
                Standing::Lost { .. } => stats.lost_bytes += cursor.unread(),
                Standing::Gone { since } => {
                    stats.held_files += 1;
                    stats.held_bytes += cursor.unread();
                    if cursor.unread() > 0 {
                        let age = self.last.saturating_duration_since(since);
                        stats.oldest_held = stats.oldest_held.max(Some(age));
                    }
                }
            }
            if matches!(cursor.standing, Standing::Listed | Standing::Gone { .. }) {
                stats.unread_bytes += cursor.unread();
            }
        }
        stats
    }

    fn problems(&self) -> Vec<TailProblem> {
        let mut problems: Vec<_> = self.list_problems.iter().chain(self.read_problems.values()).cloned().collect();
        problems.sort();
        problems.dedup();
        problems
    }

    fn list(&mut self, from_end: bool, now: Instant) {
        let started = Instant::now();
        let listing = self.lister.list();
        let patience = Patience { copy_wait: self.config.copy_wait.get(), absent: self.config.hold_deleted.age.get() };
        self.list_problems = self.files.take_listing(listing, from_end, moment(now), patience);
        self.stat_known(true, now);
        self.consider_all(now);
        self.open_unread();
        let files = &self.files;
        self.read_problems.retain(|id, _| files.entries.contains_key(id));
        let (took, rescan) = (started.elapsed(), self.config.rescan.get());
        self.next_list = now + if took > LONG_LISTING { rescan.max(took * LISTING_SHARE) } else { rescan };
        self.next_look = now + self.config.poll.get();
    }

    /// Keeps unread files open from the moment they are known, as far as descriptors go, so that their deletion loses nothing.
    fn open_unread(&mut self) {
        let unread = |entry: &&Entry| {
            entry.file.is_none() && entry.cursor.standing == Standing::Listed && entry.cursor.unread() > 0
        };
        let room = self.config.max_open_files.saturating_sub(self.files.open_count());
        let ids: Vec<u64> =
            self.files.entries.values().filter(unread).map(|entry| entry.cursor.id).take(room).collect();
        for id in ids {
            let opened = self.files.ensure_open(id);
            self.report(id, opened.map(|_| ()));
        }
    }

    /// Looks at every known file without listing directories.
    fn look(&mut self, now: Instant) {
        self.next_look = now + self.config.poll.get();
        if self.stat_known(false, now) {
            self.next_list = now;
        }
        self.consider_all(now);
    }

    /// Stats known files, or only those that no path leads to; true if a path leads to another file than before.
    fn stat_known(&mut self, only_gone: bool, now: Instant) -> bool {
        let at = moment(now);
        let mut changed = false;
        for entry in self.files.entries.values_mut() {
            let metadata = match (&entry.file, entry.cursor.standing) {
                (_, Standing::Lost { .. }) => continue,
                (Some(file), Standing::Gone { .. } | Standing::Waiting) => file.metadata(),
                _ if only_gone => continue,
                _ => std::fs::metadata(&entry.cursor.path),
            };
            match metadata.map(|metadata| Look::of(&metadata)) {
                Ok(look) if look.inode == entry.cursor.look.inode => entry.cursor.observe(look, at.wall, now),
                _ => changed = true,
            }
        }
        changed
    }

    fn consider_all(&mut self, now: Instant) {
        let ids: Vec<u64> = self.files.entries.keys().copied().collect();
        ids.into_iter().for_each(|id| self.consider(id, now));
        self.enqueue_woken();
    }

    /// Puts a file in the queue if there is something to do; verifies what changed at once, even if nothing can be read now, so that
    /// what is destroyed from here on is known.
    fn consider(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.files.entries.get(&id) else { return };
        if !entry.cursor.is_readable() {
            return;
        }
        if entry.cursor.suspect && entry.file.is_some() {
            let verified = self.files.verify(id, moment(now).wall, now);
            let verdict = *verified.as_ref().unwrap_or(&Verdict::Same);
            self.report(id, verified.map(|_| ()));
            if self.is_undecided(id, verdict, now) {
                return;
            }
        }
        let Some(Entry { cursor, .. }) = self.files.entries.get(&id) else { return };
        if !cursor.is_quiet() || self.partial_is_due(cursor, now) {
            self.enqueue(id);
        }
    }

    fn partial_is_due(&self, cursor: &Cursor, now: Instant) -> bool {
        let idle = self.config.partial_idle.get();
        let only_gone = idle.is_zero();
        let idle = if only_gone { GONE_PARTIAL_IDLE } else { idle };
        cursor.partial_is_due(self.finishing, idle, only_gone, now)
    }

    fn enqueue(&mut self, id: u64) {
        if self.queued.insert(id) {
            self.queue.push_back(id);
        }
    }

    fn enqueue_woken(&mut self) {
        for id in std::mem::take(&mut self.files.woken) {
            self.enqueue(id);
        }
    }

    /// Gives every queued file one quantum after another until the chunk is full or nothing is left; returns (progressed, full).
    fn read_round(&mut self, chunk: &mut Chunk, budget: usize, now: Instant) -> (bool, bool) {
        let mut progressed = false;
        for _ in 0..self.queue.len() {
            if chunk.raw_bytes >= budget {
                return (progressed, true);
            }
            let Some(id) = self.queue.pop_front() else { break };
            let before = chunk.raw_bytes;
            let step = self.visit(id, chunk, budget, now);
            progressed |= chunk.raw_bytes > before || matches!(step, Step::More | Step::Replaced);
            match step {
                Step::More => self.queue.push_back(id),
                Step::Full => {
                    self.queue.push_front(id);
                    return (progressed, true);
                }
                Step::AtEnd | Step::Replaced => {
                    self.queued.remove(&id);
                }
            }
            self.enqueue_woken();
        }
        (progressed, false)
    }

    fn visit(&mut self, id: u64, chunk: &mut Chunk, budget: usize, now: Instant) -> Step {
        let visited = self.try_visit(id, chunk, budget, now);
        let step = *visited.as_ref().unwrap_or(&Step::AtEnd);
        self.report(id, visited.map(|_| ()));
        step
    }

    fn try_visit(&mut self, id: u64, chunk: &mut Chunk, budget: usize, now: Instant) -> io::Result<Step> {
        if !self.files.entries.get(&id).is_some_and(|entry| entry.cursor.is_readable()) {
            return Ok(Step::AtEnd);
        }
        if !self.files.ensure_open(id)? {
            self.next_list = now;
            return Ok(Step::AtEnd);
        }
        let verdict = self.files.verify(id, moment(now).wall, now)?;
        if self.is_undecided(id, verdict, now) {
            return Ok(Step::Replaced);
        }
        let Some(entry) = self.files.entries.get_mut(&id) else { return Ok(Step::AtEnd) };
        let (Some(file), cursor) = (&entry.file, &mut entry.cursor) else { return Ok(Step::AtEnd) };
        if cursor.offset == 0 && cursor.scanned == 0 {
            skip_hole(cursor, file)?;
        }
        let mut step = self.reader.step(cursor, file, chunk, budget, now)?;
        let at_end = step == Step::AtEnd && cursor.scanned >= cursor.look.len;
        let (idle, finishing) = (self.config.partial_idle.get(), self.finishing);
        let gone_idle = if idle.is_zero() { GONE_PARTIAL_IDLE } else { idle };
        if at_end && cursor.partial_is_due(finishing, gone_idle, idle.is_zero(), now) {
            step = self.reader.emit_partial(cursor, file, chunk, budget, now)?;
        }
        if finishing && step == Step::AtEnd && !cursor.has_unfinished() {
            cursor.done = true;
        }
        if step == Step::Replaced {
            self.is_undecided(id, Verdict::Replaced, now);
        }
        Ok(step)
    }

    /// Acts on a verdict: true if the cursor does not stand for the file's content any more, or not yet.
    fn is_undecided(&mut self, id: u64, verdict: Verdict, now: Instant) -> bool {
        let waits = self.files.entries.get(&id).is_some_and(|entry| entry.cursor.standing == Standing::Waiting);
        match verdict {
            Verdict::Replaced => self.files.replace(id, moment(now)),
            Verdict::Same | Verdict::Shrunk if !waits => return false,
            Verdict::Same | Verdict::Shrunk => {}
        }
        let patience = Patience { copy_wait: self.config.copy_wait.get(), absent: self.config.hold_deleted.age.get() };
        self.files.decide_waiting(moment(now), patience);
        true
    }

    fn report(&mut self, id: u64, outcome: io::Result<()>) {
        let path = self.files.entries.get(&id).map(|entry| entry.cursor.path.clone());
        match (outcome, path) {
            (Err(error), Some(path)) if error.kind() != io::ErrorKind::NotFound => {
                self.read_problems.insert(id, TailProblem::of(&path, &error));
            }
            _ => {
                self.read_problems.remove(&id);
            }
        }
    }

    /// Lets go of files without a path: those that are read and quiet, and those beyond the limits of holding.
    fn close_gone(&mut self, now: Instant) {
        let mut held = Vec::new();
        let mut read = Vec::new();
        for entry in self.files.entries.values() {
            let Standing::Gone { since } = entry.cursor.standing else { continue };
            let quiet = now.saturating_duration_since(since.max(entry.cursor.grown));
            if entry.cursor.unread() > 0 {
                held.push((since, entry.cursor.id, entry.cursor.unread()));
            } else if quiet >= self.config.close_gone.get() && entry.cursor.is_quiet() {
                read.push((entry.cursor.id, entry.cursor.look.links > 0));
            }
        }
        for (id, elsewhere) in read {
            self.files.lose(id, elsewhere, moment(now));
        }
        held.sort_unstable();
        let mut bytes: u64 = held.iter().map(|(_, _, unread)| unread).sum();
        for (since, id, unread) in held {
            let too_old = now.saturating_duration_since(since) > self.config.hold_deleted.age.get();
            if !too_old && bytes <= self.config.hold_deleted.bytes.bytes() {
                break;
            }
            bytes -= unread;
            self.files.give_up(id, DestroyedBy::HoldLimit);
        }
    }

    /// Adds the positions that changed since the last chunk.
    fn tell(&mut self, chunk: &mut Chunk) {
        if std::mem::take(&mut self.tell_started) {
            chunk.update(StateUpdate { key: STARTED_KEY.to_vec(), value: Some(Vec::new()) }, &mut { usize::MAX });
        }
        for entry in self.files.entries.values_mut() {
            let cursor = &mut entry.cursor;
            if std::mem::take(&mut cursor.dirty) {
                cursor.saved = true;
                let value = Some(cursor.position().encode());
                chunk.update(StateUpdate { key: position::key(cursor.id), value }, &mut cursor.slot);
            }
        }
        for id in std::mem::take(&mut self.files.forgotten) {
            chunk.update(StateUpdate { key: position::key(id), value: None }, &mut { usize::MAX });
        }
    }
}

fn moment(now: Instant) -> Moment {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
    Moment { now, wall }
}
