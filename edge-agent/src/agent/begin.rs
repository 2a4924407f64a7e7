//! The beginning of a run, and the messages it takes from the shipping task.
//!
//! Invariants: everything old is handed over for sending before the new origin has a second seq; the open is durable
//! before anything of the run is sent; an answer never moves anything that is not in the outbox.

use std::time::{Duration, Instant};

use proto::header::{Header, Kind as HeaderKind};
use proto::ids::Origin;
use proto::intervals::IntervalSet;
use proto::wire;

use super::owner::{Owner, OwnerError};
use crate::outbox::read::BatchReadError;
use crate::outbox::{Outbox, Stored, rejected};
use crate::run::watch::Watch;
use crate::run::{Run, mint_time, plan_open};
use crate::ship::messages::{FromShip, ToShip};

impl Owner {
    /// How long an aggregator is still waited for before the run begins; none: not any more.
    pub(super) fn awaits_contact(&self, now: Instant) -> Option<Duration> {
        let waits = self.contact.is_none() && !self.drain.is_stopping() && now < self.contact_until;
        waits.then(|| self.contact_until - now)
    }

    /// Mints the origin, appends and sends the open, and sends everything unconfirmed again.
    pub(super) fn begin(&mut self, now: Instant) -> Result<(), OwnerError> {
        self.count_rejected();
        let newest = self.outbox.newest_origin();
        let more_known = self.contact.zip(newest).is_some_and(|(known_end, (_, end, _))| known_end > end);
        let restored = self.state_dir.is_restored() || more_known;
        if restored {
            self.say_restored(newest.map(|(origin, _, _)| origin));
        }
        if self.contact.is_none() {
            tracing::warn!("no aggregator answered, the origin is minted by this host's clock");
        }
        let (own_clock, newest_seen) = self.own_clock_or_newest();
        let origin = Origin::mint(mint_time(self.clock.now_ms(now), own_clock, newest_seen), self.origin_bits);
        let plan = plan_open(newest, restored);
        self.outbox.saw_time(origin.unix_ms() as i64);
        let old = self.outbox.kept();
        self.outbox.append_open(origin, plan.open)?;
        let stored = self.attempt(Outbox::commit)?;
        if stored.is_some() && self.state_dir.is_restored() {
            self.state_dir.adopt()?;
        }
        if plan.alone {
            self.tell(ToShip::CloseGate(origin));
        }
        tracing::info!(origin = %origin, unconfirmed = old.len(), alone = plan.alone, "run begins");
        self.gauges.say("origin", Some(origin.to_string()));
        self.send(old);
        self.send(stored.unwrap_or_default());
        self.run = Some(Run::new(origin, plan.alone, self.options.mark_interval, now));
        self.watch = Some(Watch::new(origin, self.outbox.index().named_ends()));
        self.before = newest.map(|(origin, _, _)| origin);
        self.health.set_ready(true, "");
        Ok(())
    }

    pub(super) fn message(&mut self, message: FromShip, now: Instant) -> Result<(), OwnerError> {
        match message {
            FromShip::Contact { known_end } => {
                self.contact = Some(known_end);
                // The first answer may come after the run was begun without one.
                if let Some(origin) = self.before {
                    self.known(origin, known_end)?;
                }
            }
            FromShip::Status { status, received } => {
                self.clock.answered(status.time_unix_ms, received);
                self.last_answer = received;
                self.take_declarations(&status);
            }
            FromShip::Durable { origin, seq, released } => {
                if released {
                    self.outbox.release(origin, &[seq].into_iter().collect());
                    self.released = true;
                } else {
                    self.outbox.set_durable(origin, seq, true);
                }
                if std::mem::take(&mut self.refused) {
                    self.health.set_part("dataset at aggregator", true, "");
                    self.gauges.say("refused", None);
                }
            }
            FromShip::SentAgain { batches, .. } => {
                batches.iter().for_each(|stored| self.outbox.set_durable(stored.origin, stored.seq, false));
            }
            FromShip::Committed { origin, seqs } => self.committed(origin, &seqs)?,
            FromShip::Known { origin, end } => self.known(origin, end)?,
            FromShip::Wrong { stored, detail } => self.wrong(stored, &detail)?,
            FromShip::Damaged { stored, detail } => self.damaged(stored, &detail)?,
            FromShip::Refused { detail } => {
                if !std::mem::replace(&mut self.refused, true) {
                    tracing::warn!(detail, "an aggregator does not take a dataset yet, batches wait");
                }
                self.health.set_part("dataset at aggregator", false, detail.clone());
                self.gauges.say("refused", Some(detail));
            }
            FromShip::Drained => self.drain.drained(),
            FromShip::Leave => self.leave(),
            FromShip::Stop => self.drain.stop(now, self.options.drain_deadline),
        }
        Ok(())
    }

    fn committed(&mut self, origin: Origin, seqs: &IntervalSet) -> Result<(), OwnerError> {
        self.known(origin, seqs.iter().last().map_or(0, |(_, end)| end))?;
        self.released |= self.outbox.committed(origin, seqs) > 0;
        if self.run.as_mut().is_some_and(|run| run.committed(origin, seqs.contains(0))) {
            self.tell(ToShip::OpenGate);
        }
        Ok(())
    }

    fn wrong(&mut self, stored: Stored, detail: &str) -> Result<(), OwnerError> {
        let Some(place) = self.outbox.place(stored.origin, stored.seq) else { return Ok(()) };
        let postponed = || FromShip::Wrong { stored, detail: detail.to_owned() };
        if !self.has_space()? {
            self.postpone(postponed());
            return Ok(());
        }
        let batch = match self.outbox.reader().read(place) {
            Ok(batch) => batch,
            Err(BatchReadError::Io(_)) => {
                self.postpone(postponed());
                return Ok(());
            }
            Err(error) => return self.damaged(stored, &error.to_string()),
        };
        let dir = self.outbox.rejected_dir().to_owned();
        match rejected::keep(&dir, stored.origin, stored.seq, &batch) {
            Ok(()) => {}
            Err(error) if rejected::is_full(&error) => {
                self.postpone(postponed());
                return Ok(());
            }
            Err(error) => return Err(OwnerError::Rejected { path: dir, detail: error.to_string() }),
        }
        self.rejected_bytes += (batch.header.len() + batch.payload.len()) as u64;
        let header = Header::decode(batch.header).ok();
        self.void(stored, wire::VoidReason::Rejected, detail, header.map(|header| header.kind))
    }

    fn damaged(&mut self, stored: Stored, detail: &str) -> Result<(), OwnerError> {
        let Some(place) = self.outbox.place(stored.origin, stored.seq) else { return Ok(()) };
        let kept = if self.has_space()? { self.outbox.keep_damaged(place).map(|()| true) } else { Ok(false) };
        match kept {
            Ok(true) => {}
            Err(error) if !error.is_full() => return Err(error.into()),
            _ => {
                self.postpone(FromShip::Damaged { stored, detail: detail.to_owned() });
                return Ok(());
            }
        }
        self.count_rejected();
        let lost = self.outbox.claimed_kind(stored.origin, stored.seq);
        self.void(stored, wire::VoidReason::Damaged, detail, lost)
    }

    fn void(
        &mut self,
        stored: Stored,
        reason: wire::VoidReason,
        detail: &str,
        lost: Option<HeaderKind>,
    ) -> Result<(), OwnerError> {
        let why = reason.as_str_name();
        tracing::error!(origin = %stored.origin, seq = stored.seq, why, detail, "a batch becomes a void");
        if self.outbox.void(stored.origin, stored.seq, reason, detail, lost.as_ref())? {
            self.gauges.voided_batches.add(1);
        }
        self.commit()
    }
}
