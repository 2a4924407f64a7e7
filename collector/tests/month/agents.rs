//! Agents as the design says they behave: opens that chain, chunks, marks, closes; and what their batches hold.

use bytes::Bytes;
use proto::header::Header;
use proto::ids::{AgentName, BatchId, Origin, Partition};
use proto::wire;
use proto::wire::batch_header::Kind;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt};

pub const MINUTE: i64 = 60_000;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;
/// Between two marks of a run.
pub const MARK_EVERY: i64 = 30 * MINUTE;
/// Between two chunks of a run.
const CHUNK_EVERY: i64 = HOUR;
/// Between two events of a log, per dataset.
const EVENT_EVERY: i64 = HOUR;

/// The two datasets: `(name, zone, hourly)`.
pub const DAILY: &str = "daily";
pub const HOURLY: &str = "hourly";

/// One partition of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    pub dataset: String,
    pub partition: Partition,
}

impl Part {
    /// Of an event at `at`, milliseconds since the epoch.
    pub fn of(dataset: &str, at: i64) -> Self {
        let zone = if dataset == DAILY { "Europe/Berlin" } else { "UTC" };
        let time = jiff::Timestamp::from_millisecond(at).unwrap().in_tz(zone).unwrap();
        let day = time.date().since((jiff::Unit::Day, jiff::civil::date(1970, 1, 1))).unwrap().get_days();
        let hour = (dataset == HOURLY).then(|| time.hour() as u32);
        Self { dataset: dataset.to_owned(), partition: Partition::new(day, hour).unwrap() }
    }

    pub fn dir(&self) -> String {
        format!("{}/{}", self.dataset, self.partition.path())
    }

    /// Begin and end.
    pub fn span(&self) -> (i64, i64) {
        let days = i64::from(self.partition.date());
        if let Some(hour) = self.partition.hour() {
            let start = days * DAY + i64::from(hour) * HOUR;
            return (start, start + HOUR);
        }
        let midnight = |days: i64| {
            let day = jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().days(days)).unwrap();
            day.in_tz("Europe/Berlin").unwrap().timestamp().as_millisecond()
        };
        (midnight(days), midnight(days + 1))
    }
}

#[derive(Debug)]
pub struct Batch {
    pub id: BatchId,
    pub header: Header,
    pub payload: Bytes,
    pub kind: Kind,
    /// Of data: where it belongs, and its events.
    pub part: Option<(Part, u64)>,
}

/// Names its agent's newest origin: what a state directory holds.
#[derive(Debug, Clone, Copy)]
pub struct Newest {
    pub origin: Origin,
    pub next: u64,
    pub left: bool,
}

#[derive(Debug)]
struct Run {
    gated: bool,
    next_chunk: i64,
    next_mark: i64,
    held: Vec<Batch>,
}

#[derive(Debug)]
pub struct Agent {
    pub name: AgentName,
    /// The state directory.
    pub newest: Option<Newest>,
    run: Option<Run>,
    /// Its log was read up to here.
    read_to: i64,
    /// What became of its events since its last mark.
    audit: Vec<wire::AuditCount>,
}

/// How a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// From its state directory, if there is one.
    Plain,
    /// The state directory is known to be an older copy.
    Restored,
}

impl Agent {
    pub fn new(name: &str, log_begins: i64) -> Self {
        Self { name: AgentName::new(name).unwrap(), newest: None, run: None, read_to: log_begins, audit: Vec::new() }
    }

    pub fn runs(&self) -> bool {
        self.run.is_some()
    }

    fn append(&mut self, kind: Kind, payload: String, part: Option<(Part, u64)>) {
        let newest = self.newest.as_mut().unwrap();
        let (origin, seq) = (newest.origin, newest.next);
        newest.next += 1;
        let header = Header::encode(origin, seq, kind.clone()).unwrap();
        let id = BatchId { agent: self.name.clone(), origin, seq };
        self.run.as_mut().unwrap().held.push(Batch { id, header, payload: payload.into(), kind, part });
    }

    pub fn start(&mut self, how: Start, now: i64, rng: &mut SmallRng) {
        assert!(self.run.is_none());
        let mut open = wire::Open { agent_version: "1".into(), ..Default::default() };
        match (self.newest, how) {
            (Some(newest), Start::Restored) => {
                open.restored = true;
                open.restored_from = newest.origin.to_bytes();
            }
            (Some(newest), Start::Plain) => {
                open.previous = Some(wire::PreviousOrigin { origin: newest.origin.to_bytes(), end: newest.next });
                open.after_left = newest.left;
            }
            (None, _) => {}
        }
        let gated = open.previous.is_none() || open.after_left || open.restored;
        let mut random = [0; 16];
        rng.fill_bytes(&mut random);
        let origin = Origin::mint(now as u64, u128::from_le_bytes(random));
        self.newest = Some(Newest { origin, next: 0, left: false });
        self.run = Some(Run {
            gated,
            next_chunk: now + rng.random_range(1..30) * MINUTE,
            next_mark: now + MARK_EVERY,
            held: Vec::new(),
        });
        self.append(Kind::Open(open), String::new(), None);
    }

    /// What is due by now.
    pub fn step(&mut self, now: i64, rng: &mut SmallRng) {
        let Some(run) = &mut self.run else { return };
        let (chunk, mark) = (now >= run.next_chunk, now >= run.next_mark);
        if chunk {
            run.next_chunk = now + CHUNK_EVERY;
            self.chunk(now, rng);
        }
        if mark {
            self.run.as_mut().unwrap().next_mark = now + MARK_EVERY;
            let audit = self.audit();
            let mark = wire::Mark { at_unix_ms: now, audit, ..Default::default() };
            self.append(Kind::Mark(mark), String::new(), None);
        }
    }

    /// Reads its log: what was written since, some of it dated earlier.
    fn chunk(&mut self, now: i64, rng: &mut SmallRng) {
        while self.read_to + EVENT_EVERY / 2 < now {
            let at = self.read_to + rng.random_range(0..EVENT_EVERY).min(now - self.read_to - 1);
            for dataset in [DAILY, HOURLY] {
                let back = match rng.random_range(0..400) {
                    0 => rng.random_range(4 * HOUR..30 * HOUR),
                    1..=12 => rng.random_range(0..(7 * HOUR / 2)),
                    _ => 0,
                };
                self.data(dataset, at - back, rng.random_range(1..4));
            }
            self.read_to = (self.read_to + EVENT_EVERY).min(now);
        }
    }

    /// One batch of `events` at `at`.
    pub fn data(&mut self, dataset: &str, at: i64, events: u64) {
        let part = Part::of(dataset, at);
        let Newest { origin, next, .. } = self.newest.unwrap();
        let line = |n| format!("{} {} {origin} {next} {n}\n", part.dir(), self.name);
        let payload: String = (0..events).map(line).collect();
        let data = wire::Data {
            dataset: dataset.to_owned(),
            partition: Some(part.partition.into()),
            codec: wire::Codec::None as i32,
            framing: wire::Framing::Lines as i32,
            events,
            raw_bytes: payload.len() as u64,
            payload_bytes: payload.len() as u64,
            payload_crc32c: crc32c::crc32c(payload.as_bytes()),
            min_event_time_us: at * 1000,
            max_event_time_us: at * 1000,
            zone: if dataset == DAILY { "Europe/Berlin" } else { "UTC" }.into(),
            source: "s".into(),
            ..Default::default()
        };
        let event_hour = Some(at.div_euclid(HOUR));
        let dataset = dataset.to_owned();
        self.audit.push(wire::AuditCount {
            dataset,
            event_hour,
            read: events,
            published: events,
            ..Default::default()
        });
        self.append(Kind::Data(data), payload, Some((part, events)));
    }

    fn audit(&mut self) -> Option<wire::Audit> {
        Some(wire::Audit { counts: std::mem::take(&mut self.audit) })
    }

    /// An orderly end; its log is read to the end first.
    pub fn close(&mut self, left: bool, now: i64, rng: &mut SmallRng) {
        self.chunk(now, rng);
        self.read_to = now;
        let close = wire::Close { left, at_unix_ms: now, audit: self.audit(), ..Default::default() };
        self.append(Kind::Close(close), String::new(), None);
        self.newest.as_mut().unwrap().left = left;
    }

    /// The process is gone. What was appended is sent all the same: by its next run, or it was sent already.
    pub fn end(&mut self) -> Vec<Batch> {
        self.run.take().map(|run| run.held).unwrap_or_default()
    }

    /// What may be sent now; the open of a gated run goes alone until `open_is_in`.
    pub fn send(&mut self, open_is_in: impl Fn(&BatchId) -> bool) -> Vec<Batch> {
        let Some(newest) = self.newest else { return Vec::new() };
        let Some(run) = &mut self.run else { return Vec::new() };
        let open = BatchId { agent: self.name.clone(), origin: newest.origin, seq: 0 };
        if run.gated && open_is_in(&open) {
            run.gated = false;
        }
        if !run.gated {
            return std::mem::take(&mut run.held);
        }
        let at = run.held.iter().position(|batch| batch.id.seq == 0);
        at.map(|at| run.held.remove(at)).into_iter().collect()
    }
}
