//! Reads the ledger without touching it: its store takes a lock and writes when it is opened, so what is opened here is
//! a copy in a temporary directory. Beside a running process the copy may be torn; then it is made again.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use proto::ids::AgentName;

use super::bitmap::Bitmap;
use super::ledger::Ledger;
use super::rows::{self, OriginRow};
use super::state::OriginKey;

/// How often a copy is made until one can be opened.
const ATTEMPTS: usize = 3;
const BETWEEN: Duration = Duration::from_millis(300);

/// What the ledger says, as of the copy.
#[derive(Debug, Default)]
pub struct Rows {
    /// Bits of answered batches; none: a row that cannot be read.
    pub segments: BTreeMap<u64, Option<Bitmap>>,
    /// Origins.
    pub origins: HashMap<OriginKey, OriginRow>,
    /// Held bytes by agent.
    pub agents: BTreeMap<AgentName, u64>,
    /// Rows that cannot be read, other than those of segments.
    pub unreadable: u64,
}

/// The ledger as it was found.
#[derive(Debug)]
pub enum LedgerView {
    /// Readable.
    Read(Box<Rows>),
    /// There is none.
    Missing,
    /// It cannot be opened.
    Unreadable(String),
}

impl LedgerView {
    /// Its rows, if they could be read.
    pub fn rows(&self) -> Option<&Rows> {
        match self {
            Self::Read(rows) => Some(rows),
            Self::Missing | Self::Unreadable(_) => None,
        }
    }
}

/// Reads the ledger in `dir`. `moving`: a process writes to it.
pub fn read(dir: &Path, moving: bool) -> io::Result<LedgerView> {
    if !dir.join("db").exists() {
        return Ok(LedgerView::Missing);
    }
    let mut attempts = if moving { ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        let temporary = tempfile::tempdir()?;
        let copy = temporary.path().join("ledger");
        let read = match copy_dir(dir, &copy) {
            Ok(()) => Ledger::try_open(&copy).map_err(|error| error.to_string()).and_then(|ledger| rows_of(&ledger)),
            Err(error) if moving => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        match read {
            Ok(rows) => return Ok(LedgerView::Read(Box::new(rows))),
            Err(reason) if attempts == 0 => return Ok(LedgerView::Unreadable(reason)),
            Err(_) => std::thread::sleep(BETWEEN),
        }
    }
}

fn rows_of(ledger: &Ledger) -> Result<Rows, String> {
    let mut found = Rows::default();
    for row in ledger.rows() {
        let (key, value) = row.map_err(|error| error.to_string())?;
        let readable = match key.first() {
            Some(&rows::SEGMENT) => rows::segment_of(&key).map(|id| {
                found.segments.insert(id, whole_bitmap(&value));
            }),
            Some(&rows::ORIGIN) => rows::origin_of(&key).zip(rows::read_origin(&value)).map(|(key, row)| {
                found.origins.insert(key, row);
            }),
            Some(&rows::AGENT) => agent_of(&key).zip(rows::read_number(&value)).map(|(agent, bytes)| {
                found.agents.insert(agent, bytes);
            }),
            // Other rows say nothing of where batches lie.
            _ => Some(()),
        };
        found.unreadable += u64::from(readable.is_none());
    }
    Ok(found)
}

/// A bitmap with as many bits as it was written with.
fn whole_bitmap(value: &[u8]) -> Option<Bitmap> {
    let len = u32::from_le_bytes(value.get(1..5)?.try_into().ok()?);
    rows::read_bitmap(value, len)
}

fn agent_of(key: &[u8]) -> Option<AgentName> {
    name(key.strip_prefix(&[rows::AGENT])?)
}

fn name(bytes: &[u8]) -> Option<AgentName> {
    AgentName::new(std::str::from_utf8(bytes).ok()?).ok()
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
