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
use super::space::NO_ROOM;
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
            self.postpone(postponed(), &NO_ROOM);
            return Ok(());
        }
        let batch = match self.outbox.reader().read(place) {
            Ok(batch) => batch,
            Err(error @ BatchReadError::Io(_)) => {
                self.postpone(postponed(), &error);
                return Ok(());
            }
            Err(error) => return self.damaged(stored, &error.to_string()),
        };
        let dir = self.outbox.rejected_dir().to_owned();
        match rejected::keep(&dir, stored.origin, stored.seq, &batch) {
            Ok(()) => {}
            Err(error) if rejected::is_full(&error) => {
                self.postpone(postponed(), &error);
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
        let postponed = || FromShip::Damaged { stored, detail: detail.to_owned() };
        // Once more: memory and cables fail too, and a void cannot be taken back.
        match self.outbox.reader().read(place) {
            Ok(_) => {
                tracing::warn!(origin = %stored.origin, seq = stored.seq, detail, "a stored batch can be read again");
                self.send(vec![Stored { place, ..stored }]);
                return Ok(());
            }
            Err(error @ BatchReadError::Io(_)) => {
                self.postpone(postponed(), &error);
                return Ok(());
            }
            Err(_) => {}
        }
        if !self.has_space()? {
            self.postpone(postponed(), &NO_ROOM);
            return Ok(());
        }
        match self.outbox.keep_damaged(place) {
            Ok(()) => {}
            Err(error) if error.is_full() => {
                self.postpone(postponed(), &error);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use common::admin::Health;
    use proto::ids::AgentName;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::super::owner::{OwnerOptions, Parts};
    use super::super::source::Batching;
    use super::*;
    use crate::outbox::index::Kind;
    use crate::outbox::room::Limits;
    use crate::outbox::state_dir::StateDir;
    use crate::outbox::{ChunkAppend, Options};
    use crate::pipeline::Declarations;

    /// An owner without sources.
    fn owner(state: &Path) -> (Owner, UnboundedReceiver<ToShip>) {
        let state_dir = StateDir::open(state, &AgentName::new("web-1").unwrap()).unwrap();
        let options = Options { dir: state_dir.outbox(), rejected: state_dir.rejected(), segment_bytes: 1 << 20 };
        let (outbox, _) = Outbox::open(options).unwrap();
        let second = Duration::from_secs(1);
        let options = OwnerOptions {
            batching: Batching { max_raw_bytes: 1 << 20, linger: second },
            limits: Limits { max_bytes: 1 << 30, min_free_bytes: 0, min_free_percent: 0 },
            once: false,
            leave_on_stop: false,
            drain_deadline: second,
            until_committed: true,
            contact_timeout: second,
            mark_interval: second,
            idle: second,
        };
        let (to_ship, commands) = unbounded_channel();
        let parts = Parts {
            options,
            state_dir,
            outbox,
            sources: Vec::new(),
            declarations: Declarations::default(),
            to_ship,
            inbox: std::sync::mpsc::channel().1,
            gauges: Arc::default(),
            health: Health::new(),
            origin_bits: 1,
        };
        (Owner::new(parts, Instant::now()), commands)
    }

    fn one_batch() -> ChunkAppend {
        let payload = Bytes::from_static(b"line\n");
        let data = wire::Data {
            dataset: "clickstream".into(),
            partition: Some(wire::Partition { date: 20_000, hour: None }),
            codec: wire::Codec::None as i32,
            framing: wire::Framing::Lines as i32,
            events: 1,
            raw_bytes: payload.len() as u64,
            payload_bytes: payload.len() as u64,
            payload_crc32c: crc32c::crc32c(&payload),
            ..Default::default()
        };
        ChunkAppend { batches: vec![(data, payload)], ..Default::default() }
    }

    #[test]
    fn what_can_be_read_again_is_sent_again_and_becomes_no_void() {
        let dir = tempfile::tempdir().unwrap();
        let (mut owner, mut commands) = owner(&dir.path().join("state"));
        let origin = Origin::mint(1_793_500_000_000, 1);
        owner.outbox.append_open(origin, wire::Open::default()).unwrap();
        owner.outbox.append_chunk(origin, one_batch()).unwrap();
        let stored = owner.outbox.commit().unwrap()[1];
        owner.damaged(stored, "the disk failed for a minute").unwrap();
        let Ok(ToShip::Send(again)) = commands.try_recv() else { panic!("it waits for ever") };
        assert_eq!((again, owner.outbox.place(origin, 1)), (vec![stored], Some(stored.place)));

        let name = common::record_log::survey::segment_file_name(stored.place.at.segment);
        let file = std::fs::File::options().write(true).open(owner.state_dir.outbox().join(name)).unwrap();
        file.write_all_at(&[0xff; 4], stored.place.at.offset).unwrap();
        owner.damaged(stored, "damaged").unwrap();
        let Ok(ToShip::Send(void)) = commands.try_recv() else { panic!("no void") };
        assert_eq!((void[0].seq, void[0].place.kind), (1, Kind::Void));
    }
}
