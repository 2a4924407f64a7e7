//! What was found: every file of a dataset below the destination, its dead letters, and quarantined batches. Nothing a
//! tier says of itself is read here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use base64::Engine;

use super::columns;
use super::lines;
use super::placement::Placement;
use super::quarantine;
use super::tally::{Place, Tally};
use super::tree::{FileAt, Tree};
use crate::event_id::Finder;

/// Counts by partition and by reason.
#[derive(Debug, Default, Clone)]
pub struct Found {
    /// Events per `event_date=...`.
    pub partitions: BTreeMap<String, PartitionCount>,
    /// Dead letters per reason, with the position of the first one.
    pub reasons: BTreeMap<String, Reason>,
    /// Bytes of published files and dead letters.
    pub bytes: u64,
    /// Generated lines whose own date is not the partition they lie in.
    pub misplaced: u64,
    /// Batches in quarantine, with their reasons.
    pub quarantined_batches: BTreeMap<String, u64>,
}

/// One partition.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PartitionCount {
    /// Events in it.
    pub events: u64,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why events were set aside.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reason {
    /// How many.
    pub events: u64,
    /// Where one of them stands: file and offset.
    pub sample: String,
}

/// What a file holds.
enum Kind<'a> {
    Data { partition: &'a str },
    DeadLetters,
    Quarantine,
}

/// Counts everything of `dataset` (all datasets, if `None`) that is not among `known` paths.
pub fn count(
    tree: &Tree,
    dataset: Option<&str>,
    known: &BTreeSet<String>,
    log_format: Option<&str>,
    tally: &mut Tally,
) -> Result<Found> {
    let mut counter = Counter {
        finder: Finder::default(),
        placement: Placement,
        log_format: log_format.map(columns::Renderer::new).transpose()?.map(Rc::new),
        found: Found::default(),
        tally,
    };
    for file in tree.files()? {
        if known.contains(&file.path) {
            continue;
        }
        let Some((name, kind)) = classify(&file.path) else { continue };
        if dataset.is_some_and(|dataset| name.is_some_and(|name| name != dataset)) {
            continue;
        }
        counter.count_file(tree, &file, kind).with_context(|| format!("cannot verify {}", file.path))?;
    }
    Ok(counter.found)
}

/// Dataset and kind of a path; names that begin with `_` or `.` are not for readers.
fn classify(path: &str) -> Option<(Option<&str>, Kind<'_>)> {
    if let Some(rest) = path.strip_prefix("_catchment/dead-letter/") {
        return Some((rest.split('/').next(), Kind::DeadLetters));
    }
    if path.starts_with("_catchment/quarantine/") {
        return Some((None, Kind::Quarantine));
    }
    let (dir, file) = path.rsplit_once('/')?;
    if path.split('/').any(|part| part.starts_with('_') || part.starts_with('.')) || file.is_empty() {
        return None;
    }
    let (dataset, partition) = dir.split_once('/')?;
    partition.starts_with("event_date=").then_some((Some(dataset), Kind::Data { partition }))
}

struct Counter<'a> {
    finder: Finder,
    placement: Placement,
    log_format: Option<Rc<columns::Renderer>>,
    found: Found,
    tally: &'a mut Tally,
}

impl Counter<'_> {
    fn count_file(&mut self, tree: &Tree, file: &FileAt, kind: Kind<'_>) -> Result<()> {
        match kind {
            Kind::Data { partition } => {
                let events = if file.path.ends_with(".parquet") {
                    self.count_parquet(tree, file, partition)?
                } else {
                    self.count_text(open(tree, file)?, partition)?
                };
                let count = self.found.partitions.entry(partition.to_owned()).or_default();
                count.events += events;
                count.files += 1;
                count.bytes += file.bytes;
                self.found.bytes += file.bytes;
            }
            Kind::DeadLetters => {
                self.count_dead_letters(open(tree, file)?)?;
                self.found.bytes += file.bytes;
            }
            Kind::Quarantine => self.count_quarantine(&tree.read_all(file)?)?,
        }
        Ok(())
    }

    fn count_text(&mut self, reader: impl BufRead, partition: &str) -> Result<u64> {
        let mut events = 0;
        lines::for_each(reader, |line| {
            events += 1;
            self.count_published(line.bytes, partition);
        })?;
        Ok(events)
    }

    fn count_parquet(&mut self, tree: &Tree, file: &FileAt, partition: &str) -> Result<u64> {
        let bytes = tree.read_all(file)?;
        let mut rows = columns::Rows::open(bytes.into(), self.log_format.clone())?;
        let mut events = 0;
        while let Some(lines) = rows.next_lines()? {
            for line in lines {
                events += 1;
                self.count_published(&line, partition);
            }
        }
        Ok(events)
    }

    fn count_published(&mut self, line: &[u8], partition: &str) {
        match self.finder.find(line) {
            Some(id) => {
                self.tally.found_id(id, Place::Published);
                self.found.misplaced += u64::from(self.placement.is_wrong(line, partition));
            }
            None => self.tally.found_line(line, Place::Published),
        }
    }

    fn count_dead_letters(&mut self, reader: impl BufRead) -> Result<()> {
        let mut failed = None;
        lines::for_each(reader, |line| {
            if let Err(error) = self.count_dead_letter(line.bytes) {
                failed.get_or_insert(error);
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn count_dead_letter(&mut self, line: &[u8]) -> Result<()> {
        let letter: DeadLetter = serde_json::from_slice(line).context("a dead letter is not the JSON it must be")?;
        let body = match (letter.body, letter.body_base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(text)) => base64::engine::general_purpose::STANDARD.decode(text)?,
            _ => bail!("a dead letter needs either a body or a body_base64"),
        };
        match self.finder.find(&body) {
            Some(id) => self.tally.found_id(id, Place::DeadLetter),
            None => self.tally.found_line(&body, Place::DeadLetter),
        }
        let reason = self.found.reasons.entry(format!("{}: {}", letter.stage, letter.reason)).or_default();
        if reason.events == 0 {
            let file = letter.file.unwrap_or(letter.source);
            reason.sample = letter.offset.map_or(file.clone(), |offset| format!("{file} at byte {offset}"));
        }
        reason.events += 1;
        Ok(())
    }

    fn count_quarantine(&mut self, file: &[u8]) -> Result<()> {
        for batch in quarantine::batches(file)? {
            *self.found.quarantined_batches.entry(batch.reason).or_default() += 1;
            for line in batch.lines {
                match self.finder.find(&line) {
                    Some(id) => self.tally.found_id(id, Place::Quarantine),
                    None => self.tally.found_line(&line, Place::Quarantine),
                }
            }
        }
        Ok(())
    }
}

/// The fields of a dead letter that are counted.
#[derive(serde::Deserialize)]
struct DeadLetter {
    #[serde(default)]
    source: String,
    file: Option<String>,
    offset: Option<u64>,
    stage: String,
    reason: String,
    body: Option<String>,
    body_base64: Option<String>,
}

/// A stream over a file's text, decoded by the file's ending. Both decoders read all frames or members, not the first.
fn open(tree: &Tree, file: &FileAt) -> Result<Box<dyn BufRead>> {
    let raw: Box<dyn Read> = tree.read(file)?;
    let size = 1 << 18;
    Ok(if file.path.ends_with(".zst") {
        Box::new(BufReader::with_capacity(size, zstd::stream::read::Decoder::new(raw)?))
    } else if file.path.ends_with(".gz") {
        Box::new(BufReader::with_capacity(
            size,
            flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(size, raw)),
        ))
    } else {
        Box::new(BufReader::with_capacity(size, raw))
    })
}
