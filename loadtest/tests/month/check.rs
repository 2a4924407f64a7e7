//! What lies in the destination, read from its files: sizes by day, and at the end whether all of it is as the judge
//! says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use collector::log::view::View;
use prost::Message;
use proto::record::{decode_checkpoint, decode_record, parse_number};
use proto::wire;

use crate::heap::{self, Week};
use crate::oracle::{Oracle, Place};
use crate::part::{HOUR, HOURLY, Part};
use crate::world::{SLOTS, World};

/// Retention, and what a checkpoint, a dead run and the next look may take.
const KEPT_HOURS: i64 = 24 + 6;

/// Of a sealed partition, or the name of an agent, in a checkpoint.
const ROW_BYTES: u64 = 250;

/// How much there is.
#[derive(Debug, Clone, Default)]
pub struct Size {
    day: i64,
    objects: u64,
    records: u64,
    staging: u64,
    staged: u64,
    checkpoint_bytes: u64,
    /// Without sealed partitions and names of agents.
    moving_bytes: u64,
    origins: usize,
    agents: usize,
    open: usize,
    sealed: usize,
    audit: usize,
    oldest_hours: i64,
    /// What a collector's view of the log takes, and the part of it for sealed partitions and names of agents.
    view_bytes: usize,
    row_bytes: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "day {:>2}: {} objects ({} records, the oldest of {} h, {} runs with {} files), checkpoint {} bytes ({} moving): {} origins, {} agents, \
             {} open and {} sealed partitions, {} audit rows; a view of {} KiB, {} of them for what was sealed and for names",
            self.day + 1,
            self.objects,
            self.records,
            self.oldest_hours,
            self.staging,
            self.staged,
            self.checkpoint_bytes,
            self.moving_bytes,
            self.origins,
            self.agents,
            self.open,
            self.sealed,
            self.audit,
            self.view_bytes / 1024,
            self.row_bytes / 1024
        )
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn count(dir: &Path) -> u64 {
    let inner = |name: &String| if dir.join(name).is_dir() { count(&dir.join(name)) } else { 0 };
    names(dir).iter().map(|name| 1 + inner(name)).sum()
}

impl Size {
    pub fn of(root: &Path, day: i64, now: i64) -> Self {
        let ours = root.join("_catchment");
        let staging = names(&ours.join("staging"));
        let records = names(&ours.join("commits"));
        let oldest = std::fs::read(ours.join("commits").join(&records[0])).unwrap();
        let mut size = Self {
            day,
            oldest_hours: (now - decode_record(&oldest).unwrap().time_unix_ms) / HOUR,
            objects: count(&ours),
            records: records.len() as u64,
            staging: staging.len() as u64,
            staged: count(&ours.join("staging")) - staging.len() as u64,
            ..Self::default()
        };
        if let Some(last) = names(&ours.join("checkpoints")).last() {
            let bytes = std::fs::read(ours.join("checkpoints").join(last)).unwrap();
            let mut checkpoint = decode_checkpoint(&bytes).unwrap();
            size.checkpoint_bytes = bytes.len() as u64;
            (size.origins, size.agents) = (checkpoint.origins.len(), checkpoint.agents.len());
            size.sealed = checkpoint.partitions.iter().filter(|row| row.seal.is_some()).count();
            size.open = checkpoint.partitions.len() - size.sealed;
            size.audit = checkpoint.audit.len();
            let view = |checkpoint: &wire::Checkpoint| heap::sized(|| View::from_checkpoint(0, checkpoint).unwrap()).1;
            size.view_bytes = view(&checkpoint);
            let mut moving = checkpoint.clone();
            moving.partitions.retain(|row| row.seal.is_none());
            moving.agents.clear();
            size.moving_bytes = moving.encoded_len() as u64;
            checkpoint.partitions.retain(|row| row.seal.is_some());
            (checkpoint.origins, checkpoint.audit) = (Vec::new(), Vec::new());
            size.row_bytes = view(&checkpoint);
        }
        size
    }

    /// No record is older than it may be: a checkpoint covers it, and each run that exists has read past it.
    pub fn is_clean(&self) {
        assert!(self.oldest_hours < KEPT_HOURS, "records are kept for too long: {self}");
    }
}

/// Files and bytes of all state directories.
pub struct Disk(u64, u64);

impl Disk {
    pub fn of(hosts: &Path) -> Self {
        let mut disk = Self(0, 0);
        for host in names(hosts) {
            disk.add(&hosts.join(host).join("state"));
        }
        disk
    }

    fn add(&mut self, dir: &Path) {
        for name in names(dir) {
            let path = dir.join(name);
            if path.is_dir() {
                self.add(&path);
            } else {
                self.0 += 1;
                self.1 += path.metadata().unwrap().len();
            }
        }
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files, {} KiB", self.0, self.1 / 1024)
    }
}

/// From the end of the second week on nothing grows by more than a tenth, and the heap by no more than a twentieth (seen
/// is less than a hundredth). What may grow is one row for each partition that was sealed and each name that was used.
pub fn flat(weeks: &[Size], heaps: &[Week]) {
    let [_, second, _, fourth] = weeks else { return };
    let (then, now) = (heaps[1].mean(), heaps[3].mean());
    assert!(now <= then + then / 20, "the heap grows: {then} bytes in week 2, {now} in week 4");
    println!("week 2: {second}\nweek 4: {fourth}");
    let grown = |then: u64, now: u64| now > then + then / 10;
    assert!(!grown(second.objects, fourth.objects), "objects below _catchment/ grow");
    assert!(!grown(second.origins as u64, fourth.origins as u64), "origins grow");
    assert!(!grown(second.audit as u64, fourth.audit as u64), "counts grow");
    assert!(
        !grown(second.moving_bytes, fourth.moving_bytes),
        "what is kept of agents, origins and open partitions grows"
    );
    // One row for each name that an agent ever had, and for each partition that was ever sealed.
    let rows = (fourth.agents + fourth.sealed) as u64;
    let bytes = (fourth.checkpoint_bytes - fourth.moving_bytes) / rows;
    println!("{bytes} bytes for each sealed partition and each name");
    assert!(bytes < ROW_BYTES, "{bytes} bytes for each sealed partition and each name");
}

/// Everything is in its place, once, and every marker says so.
pub fn the_end(world: &World) {
    let oracle = &world.oracle;
    assert_eq!(oracle.missing(), Vec::<&proto::ids::BatchId>::new(), "not in the log");
    assert_eq!(world.held(), 0, "not answered");
    let mut seen = vec![0; oracle.lines.all.len()];
    let mut files = BTreeMap::new();
    read_all(&world.root, "", &mut files);
    let data = files.iter().filter(|(path, _)| !is_marker(path));
    let there: Vec<_> = oracle.live.keys().filter(|path| !oracle.removed.contains(*path)).collect();
    assert_eq!(data.clone().map(|(path, _)| path).collect::<Vec<_>>(), there);
    for (path, text) in data {
        let dir = path.rsplit_once('/').unwrap().0.replacen("hourly_late/", "hourly/", 1);
        assert_eq!(text.lines().count() as u64, oracle.live[path], "{path}");
        for line in text.lines() {
            let number = oracle.lines.number(line);
            assert_eq!(oracle.lines.all[number].part().dir(), dir, "{path} holds {line}");
            seen[number] += 1;
        }
    }
    let events: u64 = oracle.places.values().map(|place| place.events + place.late_events).sum();
    let gone: u64 = oracle.live.iter().filter(|(path, _)| oracle.removed.contains(*path)).map(|(_, n)| n).sum();
    assert_eq!(seen.iter().map(|times| u64::from(*times)).sum::<u64>() + gone, events, "events");
    every_line(oracle, &seen);
    let mut delays = BTreeMap::new();
    let mut markers: BTreeSet<&String> = files.keys().filter(|path| is_marker(path)).collect();
    for (part, place) in &oracle.places {
        let dir = part.dir();
        let Some(sealed) = &place.sealed else { panic!("{dir} is not sealed") };
        let name = format!("{dir}/{}", if sealed.complete { "_SUCCESS" } else { "_INCOMPLETE" });
        match files.get(&name) {
            Some(text) => marker(&dir, place, text, &oracle.live),
            // Its directory was removed, before or after.
            None => {
                assert!(oracle.removed.iter().any(|path| path.starts_with(&format!("{dir}/"))), "{name} is missing")
            }
        }
        markers.retain(|marker| **marker != name);
        *delays.entry(sealed.after_minutes / 10 * 10).or_insert(0) += 1;
    }
    assert!(markers.is_empty(), "markers that nobody asked for: {markers:?}");
    println!("{events} events; seals by minutes after the rule allows them: {delays:?}");
    let incomplete = oracle.places.values().filter(|place| place.sealed.as_ref().is_some_and(|seal| !seal.complete));
    let late: u64 = oracle.places.values().map(|place| place.late_events).sum();
    println!(
        "{} partitions, {} incomplete, {late} late events; named: {:?}; {} deaths, {} sent again; records {:?}",
        oracle.places.len(),
        incomplete.count(),
        oracle.named,
        world.deaths,
        world.resent,
        oracle.records
    );
    let memory = world.aggregator.memory();
    println!(
        "gates opened by commits and by time: {:?}; {} requests failed, {} appends repeated",
        memory.gates, memory.failed, memory.repeated
    );
    clean(world);
}

/// Every line that was written is published, in the partition of its own time: once, unless an older copy of its agent's
/// state made it come again, or its machine was lost with it.
fn every_line(oracle: &Oracle, seen: &[u32]) {
    let mut parts: BTreeMap<Part, u64> = BTreeMap::new();
    let (mut lost, mut again) = (0, 0);
    for (line, seen) in oracle.lines.all.iter().zip(seen) {
        assert!(line.covered > 0 || line.lost, "in no record: {line:?}");
        assert!(line.covered < 2 || oracle.repeats.contains(&line.agent), "twice: {line:?}");
        assert!(*seen == line.covered || !oracle.removed.is_empty(), "{seen} times in files: {line:?}");
        lost += u64::from(line.covered == 0);
        again += u64::from(line.covered.saturating_sub(1));
        if line.covered > 0 {
            *parts.entry(line.part()).or_default() += u64::from(line.covered);
        }
    }
    if oracle.removed.is_empty() {
        let counted = oracle.places.iter().map(|(part, place)| (part.clone(), place.events + place.late_events));
        assert_eq!(parts, counted.collect(), "lines of each partition, events of its markers");
    }
    println!("{} lines written, {lost} lost with their machine, {again} sent again from older copies", seen.len());
}

/// What lies in the partitions: files, and markers.
pub fn published(root: &Path) -> Vec<String> {
    let mut files = BTreeMap::new();
    read_all(root, "", &mut files);
    files.into_keys().collect()
}

/// The highest checkpoint.
pub fn checkpoint(root: &Path) -> u64 {
    let last = names(&root.join("_catchment/checkpoints")).pop();
    last.and_then(|name| parse_number(&name)).unwrap_or(0)
}

fn is_marker(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with('_'))
}

fn marker(dir: &str, place: &Place, text: &str, live: &BTreeMap<String, u64>) {
    let json: serde_json::Value = serde_json::from_str(text).unwrap();
    let number = |key: &str| json[key].as_u64().unwrap_or_else(|| panic!("{dir}: {key} in {text}"));
    let inside: Vec<_> = live.iter().filter(|(path, _)| path.starts_with(&format!("{dir}/"))).collect();
    assert_eq!(number("events"), inside.iter().map(|(_, events)| **events).sum::<u64>(), "{dir}: {text}");
    let appended = if dir.starts_with(HOURLY) { 0 } else { place.late_events };
    assert_eq!(number("events"), place.events + appended, "{dir}: {text}");
    assert_eq!(number("files"), inside.len() as u64, "{dir}: {text}");
    assert_eq!((number("late_events"), number("late_files")), (place.late_events, place.late_files), "{dir}: {text}");
    assert_eq!(number("seal"), place.number, "{dir}: {text}");
    assert_eq!(json["complete"].as_bool(), place.sealed.as_ref().map(|seal| seal.complete), "{dir}");
}

fn read_all(root: &Path, dir: &str, files: &mut BTreeMap<String, String>) {
    for name in names(&root.join(dir)) {
        let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
        if path == "_catchment" {
            continue;
        }
        if root.join(&path).is_dir() {
            read_all(root, &path, files);
        } else {
            files.insert(path.clone(), std::fs::read_to_string(root.join(&path)).unwrap());
        }
    }
}

/// Nothing is left of dead runs.
fn clean(world: &World) {
    let ours = world.root.join("_catchment");
    let runs = names(&ours.join("staging"));
    assert_eq!(runs.len(), SLOTS, "only those that live: {runs:?}");
    for run in &runs {
        let left = names(&ours.join("staging").join(run));
        assert!(left.iter().all(|name| name.starts_with("seen-")) && left.len() <= 2, "{run}: {left:?}");
    }
}
