//! The independent judge: from the lines that were written, what the agents sent and what the log covers, record by
//! record, it says when each partition may be sealed, and compares. It shares no code with the rule of the seal, with the
//! view of the log, nor with what an agent decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use proto::header::Kind;
use proto::ids::{AgentName, BatchId, Origin, Partition};
use proto::intervals::IntervalSet;
use proto::record::{decode_record, number_name};
use proto::wire::commit_record::Action;
use proto::wire::{self, GapReason};

use crate::aggregator::{Batch, Open};
use crate::lines::Lines;
use crate::part::{DAY, HOUR, HOURLY, MINUTE, Part};

pub const LATENESS: i64 = 4 * HOUR;
pub const INCOMPLETE_AFTER: i64 = 4 * HOUR;
const LOAD_SETTLES: i64 = 30 * MINUTE;
/// A *left* counts for ever.
const FOREVER: i64 = i64::MAX;
const NEVER: i64 = i64::MIN;

/// What a batch says. Nothing of the batch itself is kept: whatever the judge holds is its own.
#[derive(Debug, Clone)]
enum Said {
    Open(Open),
    /// Numbers of its lines.
    Data(Part, Vec<usize>),
    /// T.
    Mark(i64),
    Close {
        left: bool,
        at: i64,
    },
}

#[derive(Debug, Clone, Default)]
struct Run {
    seqs: IntervalSet,
    open: Option<Open>,
    close: Option<Close>,
    /// Seq and T.
    marks: Vec<(u64, i64)>,
    abandoned: bool,
}

#[derive(Debug, Clone, Copy)]
struct Close {
    seq: u64,
    left: bool,
    at: i64,
}

#[derive(Debug, Clone, Default)]
struct Who {
    runs: BTreeMap<Origin, Run>,
    forgotten: bool,
    /// When its operators gave something up.
    abandons: Vec<i64>,
    /// None: no member. Else the T that counts for its worst leaf.
    word: Option<i64>,
}

/// What a partition's seal said.
#[derive(Debug, Clone)]
pub struct Sealed {
    pub complete: bool,
    pub after_minutes: i64,
}

#[derive(Debug, Clone)]
pub struct Place {
    pub due: i64,
    start: i64,
    first: i64,
    last: i64,
    writers: BTreeMap<String, i64>,
    /// Since when the rule holds.
    ready: Option<i64>,
    pub sealed: Option<Sealed>,
    pub events: u64,
    pub late_events: u64,
    pub late_files: u64,
    /// Number of the last record that changes its marker.
    pub number: u64,
}

impl Place {
    fn new(part: &Part, now: i64) -> Self {
        let (start, end) = part.span();
        Self {
            due: end + LATENESS,
            start,
            first: now,
            last: now,
            writers: BTreeMap::new(),
            ready: None,
            sealed: None,
            events: 0,
            late_events: 0,
            late_files: 0,
            number: 0,
        }
    }

    fn is_load(&self) -> bool {
        self.first > self.due
    }

    fn until(&self) -> i64 {
        let settled = if self.is_load() { self.due.max(self.last + LOAD_SETTLES) } else { self.due };
        settled + INCOMPLETE_AFTER
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Oracle {
    root: PathBuf,
    pub next: u64,
    /// Clones of a name share its bytes: one of each is kept here, so that no batch's own is kept alive.
    names: BTreeMap<String, AgentName>,
    pub lines: Lines,
    /// Agents that may send a line again: an older copy of their state was put in the place of the newer.
    pub repeats: BTreeSet<String>,
    truth: HashMap<BatchId, Said>,
    pub covered: HashMap<BatchId, u64>,
    who: BTreeMap<String, Who>,
    pub places: BTreeMap<Part, Place>,
    /// Published files that were not replaced: events in them.
    pub live: BTreeMap<String, u64>,
    /// Files and markers that users removed.
    pub removed: BTreeSet<String>,
    /// Of those, files that a record names as missing.
    pub reported: u64,
    /// How long a seal may take after it may be written.
    pub patience: i64,
    /// Names of those that are named in an incomplete seal.
    pub named: BTreeSet<String>,
    pub records: BTreeMap<&'static str, u64>,
}

impl Oracle {
    pub fn new(root: PathBuf, patience: i64) -> Self {
        Self {
            root,
            next: 0,
            names: BTreeMap::new(),
            lines: Lines::default(),
            repeats: BTreeSet::new(),
            truth: HashMap::new(),
            covered: HashMap::new(),
            who: BTreeMap::new(),
            places: BTreeMap::new(),
            live: BTreeMap::new(),
            removed: BTreeSet::new(),
            reported: 0,
            patience,
            named: BTreeSet::new(),
            records: BTreeMap::new(),
        }
    }

    fn id(&mut self, agent: &str, origin: Origin, seq: u64) -> BatchId {
        if !self.names.contains_key(agent) {
            self.names.insert(agent.to_owned(), AgentName::new(agent).unwrap());
        }
        BatchId { agent: self.names[agent].clone(), origin, seq }
    }

    /// An agent sent it.
    pub fn sent(&mut self, batch: &Batch) {
        let id = self.id(batch.id.agent.as_str(), batch.id.origin, batch.id.seq);
        let said = match &batch.header.kind {
            Kind::Open(open) => Said::Open(Open::of(id.origin, open)),
            Kind::Data(data) => {
                let lines: Vec<usize> = std::str::from_utf8(&batch.payload)
                    .unwrap()
                    .lines()
                    .map(|line| self.lines.number(line.strip_suffix('\r').unwrap_or(line)))
                    .collect();
                let part = Part { dataset: data.dataset.to_string(), partition: data.partition };
                for number in &lines {
                    let line = &self.lines.all[*number];
                    assert_eq!(
                        (&*line.agent, line.part()),
                        (id.agent.as_str(), part.clone()),
                        "{id}: a line of another"
                    );
                    self.lines.sent(*number, id.origin);
                }
                assert_eq!(data.wire.events, lines.len() as u64, "{id}: events");
                assert!(!data.wire.dead_letters, "{id}: nothing here is a dead letter");
                Said::Data(part, lines)
            }
            Kind::Mark(mark) => Said::Mark(mark.at_unix_ms),
            Kind::Close(close) => Said::Close { left: close.left, at: close.at_unix_ms },
            Kind::Void(void) => panic!("{id}: nothing here is lost: {void:?}"),
        };
        assert!(self.truth.insert(id, said).is_none());
    }

    /// What was written and is not in the log.
    pub fn missing(&self) -> Vec<&BatchId> {
        self.truth.keys().filter(|id| !self.covered.contains_key(*id)).collect()
    }

    /// Reads what the log has since.
    pub fn read(&mut self) {
        while let Ok(bytes) = std::fs::read(self.root.join("_catchment/commits").join(number_name(self.next))) {
            let record = decode_record(&bytes).expect("a record is whole");
            let n = self.next;
            self.next += 1;
            self.record(n, &record);
        }
    }

    fn record(&mut self, n: u64, record: &wire::CommitRecord) {
        let now = record.time_unix_ms;
        let mut touched = BTreeSet::new();
        let kind = match record.action.as_ref().expect("it says something") {
            Action::Publish(publish) => {
                self.publish(n, now, publish, &mut touched);
                "publish"
            }
            Action::Compact(compact) => {
                self.compact(n, compact);
                "compact"
            }
            Action::Seal(seal) => {
                seal.partitions.iter().for_each(|seal| self.seal(n, now, seal));
                "seal"
            }
            Action::Forget(forget) => {
                self.who.get_mut(&forget.agent).unwrap().forgotten = true;
                touched.insert(forget.agent.clone());
                "forget"
            }
            Action::Abandon(abandon) => {
                let who = self.who.get_mut(&abandon.agent).unwrap();
                let origin = Origin::from_bytes(&abandon.origin).unwrap();
                who.runs.get_mut(&origin).unwrap().abandoned = true;
                self.lines.abandon(&abandon.agent, origin);
                who.abandons.push(abandon.time_unix_ms);
                touched.insert(abandon.agent.clone());
                "abandon"
            }
            Action::Retire(_) => "retire",
            Action::Expire(expire) => {
                for id in &expire.origins {
                    let run = &self.who[&id.agent].runs[&Origin::from_bytes(&id.origin).unwrap()];
                    assert!(run.abandoned || is_complete(&self.who[&id.agent], id), "record {n} expires {id:?}");
                }
                "expire"
            }
        };
        *self.records.entry(kind).or_default() += 1;
        for agent in touched {
            let who = self.who.get_mut(&agent).unwrap();
            let (word, claim) = word(who);
            who.word = word;
            self.claims(n, &agent, claim);
        }
        self.judge(now);
    }

    /// What counts for an agent says that everything was cut which was written by then: so it is in the log.
    fn claims(&self, n: u64, agent: &str, claim: i64) {
        if let Some((at, number)) = self.lines.oldest_open(agent) {
            let text = &self.lines.all[number];
            assert!(at > claim, "record {n}: {agent} says that all before {claim} is cut, but not {text:?}");
        }
    }

    fn publish(&mut self, n: u64, now: i64, publish: &wire::Publish, touched: &mut BTreeSet<String>) {
        let set = |set: &Option<wire::IntervalSet>| -> Vec<u64> {
            set.as_ref().map(|set| IntervalSet::try_from(set).unwrap().seqs().collect()).unwrap_or_default()
        };
        let mut events: BTreeMap<Part, u64> = BTreeMap::new();
        for cover in &publish.covers {
            let origin = Origin::from_bytes(&cover.origin).unwrap();
            assert!(set(&cover.quarantined).is_empty() && set(&cover.expired).is_empty(), "record {n} quarantines");
            let opens = cover.opens.iter().map(|open| open.seq);
            let seqs = opens.chain(cover.marks.iter().map(|mark| mark.seq));
            let seqs = seqs.chain(cover.closes.iter().map(|close| close.seq)).chain(set(&cover.data));
            for seq in seqs {
                let id = self.id(&cover.agent, origin, seq);
                let said = self.truth.get(&id).unwrap_or_else(|| panic!("nobody sent {id}")).clone();
                assert_eq!(self.covered.insert(id.clone(), n), None, "I4: {id} again in record {n}");
                if let Said::Data(part, lines) = &said {
                    *events.entry(part.clone()).or_default() += lines.len() as u64;
                }
                self.cover(&id, said, now);
            }
            touched.insert(cover.agent.clone());
        }
        let mut filed: BTreeMap<Part, u64> = BTreeMap::new();
        for file in &publish.files {
            assert_eq!(file.kind(), wire::FileKind::Data, "{}", file.r#final);
            let part = part(&file.dataset, &file.late_of, file.partition.as_ref());
            let place = self.places.get_mut(&part).expect("a batch of it is in this record");
            *filed.entry(part.clone()).or_default() += file.events;
            let late = if part.dataset == HOURLY { "hourly_late" } else { "daily" };
            let dataset = if place.sealed.is_some() { late } else { &part.dataset };
            let dir = format!("{dataset}/{}/", part.partition.path());
            assert!(file.r#final.starts_with(&dir), "record {n}: {} belongs into {dir}", file.r#final);
            assert_eq!(place.sealed.is_some(), !file.late_of.is_empty(), "record {n}: {} late or not", file.r#final);
            if place.sealed.is_some() {
                place.late_events += file.events;
                place.late_files += 1;
                place.number = n;
            } else {
                place.events += file.events;
            }
            assert!(self.live.insert(file.r#final.clone(), file.events).is_none(), "I5: {}", file.r#final);
        }
        assert_eq!(events, filed, "record {n}: events of its batches, events of its files");
    }

    fn cover(&mut self, id: &BatchId, said: Said, now: i64) {
        let who = self.who.entry(id.agent.to_string()).or_default();
        who.forgotten = false;
        let run = who.runs.entry(id.origin).or_default();
        run.seqs.insert(id.seq);
        let (part, lines) = match said {
            Said::Open(open) => return run.open = Some(open),
            Said::Mark(at) => return run.marks.push((id.seq, at)),
            Said::Close { left, at } => return run.close = Some(Close { seq: id.seq, left, at }),
            Said::Data(part, lines) => (part, lines),
        };
        for number in lines {
            self.lines.cover(number);
            let again = self.lines.all[number].covered > 1 && !self.repeats.contains(id.agent.as_str());
            assert!(!again, "{id} holds {:?} again", self.lines.all[number]);
        }
        let place = self.places.entry(part.clone()).or_insert_with(|| Place::new(&part, now));
        if place.sealed.is_none() {
            place.last = now;
            place.writers.insert(id.agent.to_string(), now);
        }
    }

    fn compact(&mut self, n: u64, compact: &wire::Compact) {
        let part = part(&compact.dataset, "", compact.partition.as_ref());
        assert!(self.places[&part].sealed.is_none(), "record {n} compacts {} after its seal", part.dir());
        let taken: u64 = compact.replaced.iter().map(|path| self.live.remove(path).expect("it is there")).sum();
        let given: u64 = compact.files.iter().map(|file| file.events).sum();
        assert_eq!(taken, given, "record {n} compacts {}", part.dir());
        assert!(compact.files.len() < compact.replaced.len() || compact.replaced.is_empty());
        for path in &compact.missing {
            assert!(self.removed.contains(path), "nobody removed {path}");
            let events = self.live.remove(path).expect("it is reported once");
            self.places.get_mut(&part).unwrap().events -= events;
            self.reported += 1;
        }
        self.live.extend(compact.files.iter().map(|file| (file.r#final.clone(), file.events)));
    }

    /// Agents that a partition waits for, with the T that counts.
    fn blockers(&self, place: &Place) -> BTreeMap<String, i64> {
        let load = |agent: &str| place.writers.get(agent).filter(|_| place.is_load()).map(|last| last + LOAD_SETTLES);
        let blocks = |(agent, who): (&String, &Who)| {
            let word = who.word.filter(|_| !who.forgotten)?;
            let needed = load(agent).unwrap_or(NEVER).max(place.due);
            (word < needed).then(|| (agent.clone(), word))
        };
        self.who.iter().filter_map(blocks).collect()
    }

    fn in_doubt(&self, place: &Place) -> BTreeSet<String> {
        let doubt = |who: &Who| who.abandons.iter().any(|at| place.start < at + DAY);
        self.who.iter().filter(|(_, who)| doubt(who)).map(|(agent, _)| agent.clone()).collect()
    }

    fn judge(&mut self, now: i64) {
        let open: Vec<Part> =
            self.places.iter().filter(|(_, place)| place.sealed.is_none()).map(|(part, _)| part.clone()).collect();
        for part in open {
            let place = &self.places[&part];
            let ready = self.blockers(place).is_empty();
            let over = now.max(place.due);
            let place = self.places.get_mut(&part).unwrap();
            place.ready = if ready { place.ready.or(Some(over)) } else { None };
            let latest = place.ready.unwrap_or(i64::MAX).min(place.until()) + self.patience;
            assert!(now <= latest, "{} is not sealed at {now}, {} min too late", part.dir(), (now - latest) / MINUTE);
        }
    }

    fn seal(&mut self, n: u64, now: i64, seal: &wire::PartitionSeal) {
        let part = part(&seal.dataset, "", seal.partition.as_ref());
        let name = part.dir();
        let place = &self.places[&part];
        assert!(place.sealed.is_none(), "{name} is sealed again by record {n}");
        assert!(now >= place.due, "{name} is sealed before its lateness is over");
        let dir = format!("{name}/");
        let files: Vec<u64> = self.live.iter().filter(|(path, _)| path.starts_with(&dir)).map(|(_, n)| *n).collect();
        assert_eq!((seal.events, seal.files), (place.events, files.len() as u64), "{name}: counts of the seal");
        assert_eq!(files.iter().sum::<u64>(), place.events, "{name}: events in its files");
        let (blockers, doubt) = (self.blockers(place), self.in_doubt(place));
        let (waited, others): (Vec<_>, Vec<_>) = seal.gaps.iter().partition(|gap| gap.reason() != GapReason::Abandoned);
        let named: BTreeSet<String> = others.iter().map(|gap| gap.agent.clone()).collect();
        assert_eq!(named, doubt, "{name}: what was abandoned, {:?}", seal.gaps);
        let named: BTreeSet<&String> = waited.iter().map(|gap| &gap.agent).collect();
        assert_eq!(named, blockers.keys().collect(), "{name}: who is named");
        for gap in &waited {
            let last = waited.iter().filter(|other| other.agent == gap.agent);
            let last = last.map(|gap| gap.last_mark_unix_ms.unwrap_or(NEVER)).min();
            assert_eq!(last, Some(blockers[&gap.agent]), "{name}: last T of {}", gap.agent);
        }
        self.named.extend(waited.iter().map(|gap| gap.agent.clone()));
        assert_eq!(seal.complete, blockers.is_empty() && doubt.is_empty(), "{name}");
        let since = place.ready.unwrap_or(i64::MAX).min(place.until());
        assert!(now >= since, "{name} is sealed {} min before the rule says", (since - now) / MINUTE);
        let after = now - since;
        assert!(after <= self.patience, "{name} is sealed {} min after the rule says", after / MINUTE);
        let sealed = Sealed { complete: seal.complete, after_minutes: after / MINUTE };
        let place = self.places.get_mut(&part).unwrap();
        (place.sealed, place.number) = (Some(sealed), n);
    }
}

fn part(dataset: &str, late_of: &str, partition: Option<&wire::Partition>) -> Part {
    let wire::Partition { date, hour } = *partition.expect("a partition");
    let dataset = if late_of.is_empty() { dataset } else { late_of };
    Part { dataset: dataset.to_owned(), partition: Partition::new(date, hour).unwrap() }
}

/// The end of a run, if it is known: the seq after its close, or what a later open names.
fn end(who: &Who, origin: Origin) -> Option<u64> {
    let run = who.runs.get(&origin)?;
    let mut named = who.runs.values().filter_map(|run| run.open.as_ref()?.previous);
    let named = named.find(|(previous, _)| *previous == origin).map(|(_, end)| end);
    named.or(run.close.map(|close| close.seq + 1))
}

fn complete(who: &Who, origin: Origin) -> bool {
    let Some(end) = end(who, origin) else { return false };
    let seqs = &who.runs[&origin].seqs;
    seqs.contains_range(0, end) && seqs.count() == end
}

fn is_complete(who: &Who, id: &wire::OriginId) -> bool {
    complete(who, Origin::from_bytes(&id.origin).unwrap())
}

/// The T that counts for the worst leaf (none: every leaf has left), and the time by which everything is said to be cut.
fn word(who: &Who) -> (Option<i64>, i64) {
    let named: BTreeSet<Origin> =
        who.runs.values().filter_map(|run| run.open.as_ref()?.previous).map(|(origin, _)| origin).collect();
    let leaves = who.runs.iter().filter(|(origin, run)| !named.contains(*origin) && !run.abandoned);
    let words: Vec<(i64, i64)> = leaves.map(|(origin, _)| leaf(who, *origin)).collect();
    let claim = words.iter().map(|(_, claim)| *claim).min().unwrap_or(NEVER);
    if !words.is_empty() && words.iter().all(|(word, _)| *word == FOREVER) {
        return (None, claim);
    }
    (Some(words.into_iter().map(|(word, _)| word).min().unwrap_or(NEVER)), claim)
}

fn leaf(who: &Who, leaf: Origin) -> (i64, i64) {
    let mut chain = vec![leaf];
    let mut sound = true;
    loop {
        let Some(run) = who.runs.get(chain.last().unwrap()) else {
            chain.pop();
            sound = false;
            break;
        };
        let Some((previous, _)) = run.open.as_ref().and_then(|open| open.previous) else { break };
        chain.push(previous);
    }
    let mut best = NEVER;
    for origin in chain.into_iter().rev() {
        let run = &who.runs[&origin];
        if let Some(open) = run.open.as_ref().filter(|open| open.restored) {
            let from = open.restored_from.expect("of an outbox that had an origin");
            sound &= who.runs.get(&from).is_some_and(|run| run.abandoned);
        }
        let counts = |seq: u64| sound && run.seqs.contains_range(0, seq + 1);
        best = run.marks.iter().filter(|(seq, _)| counts(*seq)).map(|(_, at)| *at).max().unwrap_or(NEVER).max(best);
        if let Some(close) = run.close.filter(|close| origin == leaf && close.left && counts(close.seq)) {
            return (FOREVER, close.at);
        }
        sound &= complete(who, origin);
    }
    (best, best)
}
