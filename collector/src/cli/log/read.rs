//! Reads records and checkpoints one by one: a damaged one is a finding, a store that does not answer ends the tool.

use anyhow::{Context, bail};
use proto::record::{decode_checkpoint, decode_record, parse_number};
use proto::wire;

use super::super::findings::Finding;
use crate::commit::solo;
use crate::log::{View, layout};
use crate::store::{Reach, Store, StoreError};

/// Largest record or checkpoint that is read, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// What the two directories hold, ascending.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub records: Vec<u64>,
    pub checkpoints: Vec<u64>,
    pub findings: Vec<Finding>,
}

/// One file of them.
#[derive(Debug)]
pub(super) enum Got<T> {
    Whole(T),
    /// Freed since it was listed.
    Gone,
    Wrong(Finding),
}

/// Lists them: checkpoints first, so that every record a listed one needs not be there may be gone.
pub(super) async fn list(store: &dyn Store, url: &str) -> anyhow::Result<Listed> {
    if !solo::is_in_use(store).await? {
        bail!("destination {url}: no collector ever wrote there");
    }
    let mut listed = Listed::default();
    listed.checkpoints = numbers(store, layout::CHECKPOINTS, &mut listed.findings).await?;
    listed.records = numbers(store, layout::COMMITS, &mut listed.findings).await?;
    Ok(listed)
}

async fn numbers(store: &dyn Store, dir: &str, findings: &mut Vec<Finding>) -> anyhow::Result<Vec<u64>> {
    let entries = match store.list(dir).await {
        Ok(entries) => entries,
        Err(StoreError::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(error).context("the commit log cannot be listed"),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        match parse_number(&entry.name) {
            Some(n) => numbers.push(n),
            None => findings.push(Finding::new(
                format!("{dir}/{}", entry.name),
                "it has no name that a collector gives",
                "collectors pass it over; somebody else put it there",
                "find out who did, and move it away",
            )),
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Record `n`.
pub(super) async fn record(store: &dyn Store, n: u64) -> anyhow::Result<Got<wire::CommitRecord>> {
    let path = layout::commit(n);
    let wrong = |what: String| {
        Got::Wrong(Finding::new(
            &path,
            what,
            "collectors that read it stop there; those that run have it in memory and go on until they start again",
            "restore this file from a snapshot or another copy, byte for byte; if there is none, keep the collectors that \
             run alive until a checkpoint above it is written (then nobody reads it any more), and never delete or \
             renumber records",
        ))
    };
    let bytes = match read(store, &path).await? {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(Got::Gone),
        Err(what) => return Ok(wrong(what)),
    };
    Ok(match decode_record(&bytes) {
        Ok(record) if record.action.is_none() => wrong("it has an action that this release does not know".into()),
        Ok(record) => Got::Whole(record),
        Err(error) => wrong(error.to_string()),
    })
}

/// Checkpoint `n`, also as a view.
pub(super) async fn checkpoint(store: &dyn Store, n: u64) -> anyhow::Result<Got<(wire::Checkpoint, View)>> {
    let path = layout::checkpoint(n);
    let wrong = |what: String| {
        Got::Wrong(Finding::new(
            &path,
            what,
            "a collector that starts reads the highest checkpoint; if this is it, the collector stops and says so",
            "if a lower checkpoint is whole and all records from it on are there (see above), move this file out of \
             _catchment/checkpoints: collectors then begin at the lower one and write it anew; otherwise restore it from a \
             snapshot",
        ))
    };
    let bytes = match read(store, &path).await? {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(Got::Gone),
        Err(what) => return Ok(wrong(what)),
    };
    let checkpoint = match decode_checkpoint(&bytes) {
        Ok(checkpoint) if checkpoint.next == n => checkpoint,
        Ok(checkpoint) => return Ok(wrong(format!("it ends at {}, its name says {n}", checkpoint.next))),
        Err(error) => return Ok(wrong(error.to_string())),
    };
    Ok(match View::from_checkpoint(n, &checkpoint) {
        Ok(view) => Got::Whole((checkpoint, view)),
        Err(error) => wrong(error.to_string()),
    })
}

/// Its bytes; none if it is not there; or what the store says of this file alone.
async fn read(store: &dyn Store, path: &str) -> anyhow::Result<Result<Option<bytes::Bytes>, String>> {
    match store.read(path, MAX_BYTES).await {
        Ok(bytes) => Ok(Ok(Some(bytes))),
        Err(StoreError::NotFound { .. }) => Ok(Ok(None)),
        Err(error) if error.reach() == Reach::Path => Ok(Err(error.to_string())),
        Err(error) => Err(error.into()),
    }
}
