//! How an agent stops: after `--once` has read everything, or when it is told to.
//!
//! Invariants: *left* and the last mark are said only if everything that was noted is stored; no end is clean whose
//! close is not stored; whatever is not finished
//! within the deadline stays in the outbox and is sent by the next run.

use std::time::{Duration, Instant};

use super::marks::{all_stored, note_all};
use super::owner::{End, Owner, OwnerError};
use super::source::Source;
use crate::run::Run;
use crate::ship::messages::{DrainUntil, ToShip};

/// Part of the drain deadline in which files are still read for the last mark.
const READING_SHARE: u32 = 3;
/// Longest time `--once` waits for bytes that were noted and do not appear.
const NOTE_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Reading, without an end in sight (or, for `--once`, to the end of all files).
    Reading,
    /// Everything noted at this aggregator time is being cut, at most until then.
    Cutting { at: Option<i64>, until: Instant },
    /// The close is appended; a full file system may keep it from being stored.
    Closing { left: bool, complete: bool },
    /// The close is stored; batches are being sent.
    Sending,
}

/// Where the agent is on its way to the end.
#[derive(Debug)]
pub struct Drain {
    once: bool,
    stage: Stage,
    /// Told to stop: until when.
    deadline: Option<Instant>,
    /// The last mark is appended: one is enough, however often the close is tried.
    marked: bool,
    drained: bool,
    abandoned: bool,
    problems: Vec<String>,
}

/// Is it over?
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// Not yet.
    NotYet,
    /// Yes.
    Over(End),
}

impl Drain {
    /// Not begun.
    pub fn new(once: bool) -> Self {
        let (marked, drained, abandoned) = (false, false, false);
        Self { once, stage: Stage::Reading, deadline: None, marked, drained, abandoned, problems: Vec::new() }
    }

    /// The process is to end within `deadline`.
    pub fn stop(&mut self, now: Instant, deadline: Duration) {
        self.deadline.get_or_insert(now + deadline);
    }

    /// The agent is to read to the end, send everything and leave, without a deadline.
    pub fn leave(&mut self) {
        self.once = true;
    }

    /// Told to stop?
    pub fn is_stopping(&self) -> bool {
        self.deadline.is_some() || self.abandoned
    }

    /// Not closed, and no end in sight?
    pub fn is_reading(&self) -> bool {
        self.stage == Stage::Reading
    }

    /// Are chunks cut as they are?
    pub fn is_flushing(&self) -> bool {
        self.stage != Stage::Reading
    }

    /// Has the origin its close? Nothing is appended behind that.
    pub fn is_closed(&self) -> bool {
        matches!(self.stage, Stage::Closing { .. } | Stage::Sending)
    }

    fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|until| now >= until)
    }

    /// Everything that was asked for has been sent.
    pub fn drained(&mut self) {
        self.drained = true;
    }

    /// Nobody ships any more.
    pub fn abandon(&mut self) {
        self.abandoned = true;
    }
}

impl Owner {
    /// Asked to leave: from now on this is a run with `--once`. Too late for an agent that is stopping already.
    pub(super) fn leave(&mut self) {
        if !self.drain.is_reading() {
            tracing::warn!("asked to leave, but the agent is stopping already: say `leave` again when it has ended");
            return;
        }
        tracing::info!("asked to leave: reading to the end");
        self.drain.leave();
        self.gauges.say("leaving", Some("reading to the end".into()));
    }

    /// One step on the way to the end.
    pub(super) fn drain_step(&mut self, now: Instant) -> Result<Ending, OwnerError> {
        if self.drain.abandoned {
            return Ok(self.over("shipping ended"));
        }
        match self.drain.stage {
            Stage::Reading if self.drain.is_stopping() || self.once_is_read() => self.begin_cutting(now),
            Stage::Reading => {}
            Stage::Closing { left, complete } if self.outbox.is_stored() => self.closed(left, complete),
            Stage::Cutting { .. } | Stage::Closing { .. } if self.space.full && self.drain.is_late(now) => {
                return Ok(self.over_without_close());
            }
            Stage::Closing { .. } => {}
            Stage::Cutting { at, until } => self.cut_or_close(at, until, now)?,
            Stage::Sending if self.drain.drained => return Ok(self.over("")),
            Stage::Sending if self.drain.is_late(now) => {
                let text = format!(
                    "the drain deadline is over: {} batches are kept and sent by the next run",
                    self.gauges.undelivered_batches.get()
                );
                tracing::warn!(undelivered = self.gauges.undelivered_batches.get(), "drain deadline is over");
                return Ok(self.over(&text));
            }
            Stage::Sending => {}
        }
        Ok(Ending::NotYet)
    }

    /// Does this agent not come back, as far as it knows?
    fn is_for_good(&self) -> bool {
        self.drain.once || self.options.leave_on_stop
    }

    fn once_is_read(&self) -> bool {
        self.drain.once && self.sources.iter().all(|source| source.is_done() || source.is_at_end())
    }

    /// Notes all files; with an end for good, last partial lines are emitted too.
    fn begin_cutting(&mut self, now: Instant) {
        let clock = &self.clock;
        let noted = note_all(|| clock.now_ms(now), &mut self.sources, now);
        let complete = noted.problems.is_empty();
        self.drain.problems.extend(noted.problems);
        if self.is_for_good() {
            self.sources.iter_mut().for_each(Source::finish);
        }
        if let Some(run) = &mut self.run {
            run.begin_drain();
        }
        let patience = match self.drain.deadline {
            Some(_) => self.options.drain_deadline / READING_SHARE,
            None => NOTE_PATIENCE,
        };
        let at = complete.then(|| noted.at.unwrap_or(0));
        self.drain.stage = Stage::Cutting { at, until: now + patience };
        self.say_leaving("cutting what was noted");
    }

    fn say_leaving(&self, what: &str) {
        if self.drain.once {
            self.gauges.say("leaving", Some(what.to_owned()));
        }
    }

    fn cut_or_close(&mut self, at: Option<i64>, until: Instant, now: Instant) -> Result<(), OwnerError> {
        let read = !self.is_for_good() || self.sources.iter().all(Source::is_done);
        if all_stored(&mut self.sources) && read {
            return self.close(at, at.is_some());
        }
        // A `--once` whose outbox is full, or whose dataset is not declared yet, waits: it was asked to load.
        let until = self.drain.deadline.map_or(until, |end| until.min(end - self.options.drain_deadline / 2));
        let waiting = self.full || self.undeclared;
        let hurried = self.drain.deadline.is_some();
        if now >= until && (hurried || !waiting) {
            if self.sources.iter().any(|source| !source.is_stored()) {
                self.drain.problems.push("not everything could be read before the end".into());
            }
            return self.close(at, false);
        }
        if waiting && !hurried {
            self.drain.stage = Stage::Cutting { at, until: now + NOTE_PATIENCE };
        }
        Ok(())
    }

    /// Appends what may be said; once that is stored, everything is sent.
    fn close(&mut self, at: Option<i64>, complete: bool) -> Result<(), OwnerError> {
        if !self.has_space()? {
            // Tried again with the next step.
            return Ok(());
        }
        let may_mark = self.run.as_ref().is_some_and(Run::may_mark);
        if self.drain.once && !may_mark {
            self.drain.problems.push("not left: this state directory is a copy, see restored_or_copied".into());
        }
        let complete = complete && may_mark;
        let left = complete && self.is_for_good();
        let at = at.filter(|at| complete && *at > 0);
        if complete
            && !left
            && !self.drain.marked
            && let Some(at) = at
        {
            self.drain.marked = true;
            self.append_mark(at)?;
            if !self.has_space()? {
                // The mark took the last room: the close has to wait for more.
                return Ok(());
            }
        }
        self.outbox.append_close(self.origin(), at.unwrap_or(0), left)?;
        self.drain.stage = Stage::Closing { left, complete };
        self.commit()?;
        if self.outbox.is_stored() {
            self.closed(left, complete);
        }
        Ok(())
    }

    /// The close is stored and handed over: what is left is to be sent.
    fn closed(&mut self, left: bool, complete: bool) {
        tracing::info!(left, complete, "origin closed");
        self.sources.iter_mut().for_each(|source| source.forget_note());
        let until = if self.drain.once { DrainUntil::Acked } else { DrainUntil::Delivered };
        self.tell(ToShip::Drain(until));
        self.drain.stage = Stage::Sending;
        self.say_leaving(if left { "left, waiting for acks" } else { "closed without left, waiting for acks" });
    }

    /// Whatever the agent was asked for, this is no clean end: the next start finds a run without a close, and may not
    /// find what was held open.
    fn over_without_close(&mut self) -> Ending {
        let text = "the file system of state_dir is full: this run could not be closed; make room on it and start the \
                    agent again";
        let mut problems = std::mem::take(&mut self.drain.problems);
        problems.push(text.to_owned());
        Ending::Over(End::Unfinished(problems))
    }

    fn over(&mut self, unfinished: &str) -> Ending {
        let mut problems = std::mem::take(&mut self.drain.problems);
        if !unfinished.is_empty() {
            problems.push(unfinished.to_owned());
        }
        let voided = self.gauges.voided_batches.get();
        if self.drain.once && voided > 0 {
            problems
                .push(format!("{voided} batches were rejected; their bytes lie in rejected/ in the state directory"));
        }
        // A stop that leaves work for the next run is no failure of this one.
        let clean = problems.is_empty() || !self.drain.once;
        Ending::Over(if clean { End::Clean } else { End::Unfinished(problems) })
    }
}
