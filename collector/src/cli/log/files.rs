//! Every file that records name: is it in its final place, whole, or still staged, or rightly gone?

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use proto::wire;
use proto::wire::commit_record::Action;
use serde::Serialize;

use super::super::findings::Finding;
use crate::log::{View, layout};
use crate::store::{Reach, Store, StoreError};

/// Directories listed, or files read, at once.
const PARALLEL: usize = 8;
/// Read in one go, in bytes.
const PIECE: usize = 4 << 20;

#[derive(Debug, Clone)]
struct File {
    /// The record, or the checkpoint, that names it.
    n: u64,
    staged: String,
    bytes: u64,
    crc32c: u32,
    data: bool,
}

/// Files by final name.
#[derive(Debug, Default)]
pub(super) struct Named {
    files: BTreeMap<String, File>,
    /// Replaced, or said to be missing, by a record.
    replaced: BTreeMap<String, u64>,
}

/// What was looked at.
#[derive(Debug, Default, Serialize)]
pub(super) struct Looked {
    /// Files that are named and not replaced.
    pub named: usize,
    /// In their final places.
    pub in_place: usize,
    /// Still staged: a collector brings them.
    pub staged: usize,
    /// Read, with their CRC32C compared.
    pub read: usize,
    /// Dead letters and quarantine that are gone where a retention deletes them.
    pub expired: usize,
    #[serde(skip)]
    pub findings: Vec<Finding>,
}

impl Named {
    /// Takes what a checkpoint names: the files of open partitions.
    pub fn checkpoint(&mut self, n: u64, view: &View) {
        for (key, _, open) in view.partitions().open() {
            for file in open.files.values() {
                let path = format!("{}/{}", key.dir(), file.name);
                let (bytes, crc32c) = (file.bytes, file.crc32c);
                self.files.entry(path).or_insert(File { n, staged: String::new(), bytes, crc32c, data: true });
            }
        }
    }

    /// Takes record `n`; what it names that an earlier one named too.
    pub fn record(&mut self, n: u64, record: &wire::CommitRecord) -> Vec<Finding> {
        let files = match &record.action {
            Some(Action::Publish(publish)) => &publish.files,
            Some(Action::Compact(compact)) => {
                for path in compact.replaced.iter().chain(&compact.missing) {
                    self.files.remove(path);
                    self.replaced.insert(path.clone(), n);
                }
                &compact.files
            }
            _ => return Vec::new(),
        };
        let mut findings = Vec::new();
        for file in files {
            let data = file.kind() == wire::FileKind::Data;
            let row = File { n, staged: file.staged.clone(), bytes: file.bytes, crc32c: file.crc32c, data };
            if let Some(before) = self.files.insert(file.r#final.clone(), row)
                && !before.staged.is_empty()
            {
                findings.push(Finding::new(
                    &file.r#final,
                    format!("records {} and {n} both name it", before.n),
                    "a published file is named by exactly one record (I5)",
                    format!("report this with `log show {}..{}`", before.n, n + 1),
                ));
            }
        }
        findings
    }

    /// Looks for all of them. `retention`: dead letters and quarantine are deleted when they are old.
    pub async fn look(&self, store: &dyn Store, checksums: bool, retention: bool) -> anyhow::Result<Looked> {
        // In this order: what is brought to its place between the two is seen twice, and not missed.
        let staged =
            list_parents(store, self.files.values().map(|file| &file.staged).filter(|s| !s.is_empty())).await?;
        let finals = list_parents(store, self.files.keys().chain(self.replaced.keys())).await?;
        let mut looked = Looked { named: self.files.len(), ..Looked::default() };
        let mut to_read = Vec::new();
        for (path, file) in &self.files {
            match (finals.get(path), staged.get(&file.staged)) {
                (Some(bytes), _) if *bytes == file.bytes => {
                    looked.in_place += 1;
                    to_read.push((path, file));
                }
                (Some(bytes), _) => looked.findings.push(length(path, *bytes, file)),
                (None, Some(bytes)) if *bytes == file.bytes => {
                    looked.staged += 1;
                    to_read.push((&file.staged, file));
                }
                (None, Some(bytes)) => looked.findings.push(length(&file.staged, *bytes, file)),
                (None, None) if retention && !file.data => looked.expired += 1,
                (None, None) => looked.findings.push(missing(path, file)),
            }
        }
        let still = self.replaced.iter().filter(|(path, _)| finals.contains_key(*path));
        looked.findings.extend(still.map(|(path, n)| still_there(path, *n)));
        if checksums {
            let mut reading = futures::stream::iter(to_read.into_iter().map(|(path, file)| check(store, path, file)))
                .buffered(PARALLEL);
            while let Some(found) = reading.next().await {
                looked.findings.extend(found?);
                looked.read += 1;
            }
        }
        Ok(looked)
    }
}

/// Every file beside any of these paths, with its length.
async fn list_parents<'a>(
    store: &dyn Store,
    paths: impl Iterator<Item = &'a String>,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let dirs: BTreeSet<&str> = paths.map(|path| layout::parent(path)).collect();
    let listing = |dir: &'a str| async move { (dir, store.list(dir).await) };
    let mut listings = futures::stream::iter(dirs.into_iter().map(listing)).buffered(PARALLEL);
    let mut found = BTreeMap::new();
    while let Some((dir, listed)) = listings.next().await {
        match listed {
            Ok(entries) => {
                found.extend(entries.into_iter().filter(|e| !e.is_dir).map(|e| (format!("{dir}/{}", e.name), e.bytes)));
            }
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Reads a file piece by piece and compares its CRC32C.
async fn check(store: &dyn Store, path: &str, file: &File) -> anyhow::Result<Option<Finding>> {
    let (mut crc, mut offset) = (0, 0);
    while offset < file.bytes {
        match store.read_range(path, offset, PIECE).await {
            Ok(piece) if piece.is_empty() => return Ok(Some(length(path, offset, file))),
            Ok(piece) => {
                crc = crc32c::crc32c_append(crc, &piece);
                offset += piece.len() as u64;
            }
            // Brought to its place, or replaced, since it was listed.
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) if error.reach() == Reach::Path => return Ok(Some(damaged(path, error.to_string()))),
            Err(error) => return Err(error.into()),
        }
    }
    let what = format!("its CRC32C is {crc:08x}, record {} says {:08x}", file.n, file.crc32c);
    Ok((crc != file.crc32c).then(|| damaged(path, what)))
}

fn damaged(path: &str, what: String) -> Finding {
    Finding::new(
        path,
        what,
        "its bytes changed after it was published: readers may fail at it or get other events",
        "restore it from a snapshot or another copy, byte for byte; if there is none, tell its readers which file it is; its \
         events are committed, so no agent sends them again",
    )
}

fn length(path: &str, found: u64, file: &File) -> Finding {
    damaged(path, format!("it has {found} bytes, record {} says {}", file.n, file.bytes))
}

fn missing(path: &str, file: &File) -> Finding {
    let staged = if file.staged.is_empty() { String::new() } else { format!(", nor staged as {}", file.staged) };
    Finding::new(
        path,
        format!("record {} names it, and it is not there{staged}", file.n),
        "it was deleted by its users (retention, erasure), or lost; collectors go on either way, and its events are not sent \
         again",
        "if it was not deleted on purpose, restore it from the trash or a snapshot under this name",
    )
}

fn still_there(path: &str, n: u64) -> Finding {
    Finding::new(
        path,
        format!("record {n} replaced it, and it is still there"),
        "until it is deleted, readers of a partition without _SUCCESS see its events twice; right after a compaction that is \
         normal for a moment",
        "look again in a minute; if it stays, and no collector runs: `log replay --finish`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::observed::{Call, Observed};
    use crate::store::{DestinationConfig, open};

    /// A collector brings the file between the first listing and the second.
    #[tokio::test]
    async fn a_file_that_is_brought_to_its_place_meanwhile_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let (staged, there) = ("_catchment/staging/run/0.log", "d/event_date=2026-11-20/run-0.log");
        for path in [staged, there] {
            std::fs::create_dir_all(root.join(layout::parent(path))).unwrap();
        }
        std::fs::write(root.join(staged), "x\n").unwrap();
        let file = wire::PublishedFile {
            kind: wire::FileKind::Data as i32,
            staged: staged.into(),
            r#final: there.into(),
            bytes: 2,
            ..Default::default()
        };
        let mut named = Named::default();
        let publish = wire::Publish { files: vec![file], covers: Vec::new() };
        let record = wire::CommitRecord { action: Some(Action::Publish(publish)), ..Default::default() };
        assert!(named.record(0, &record).is_empty());
        let store = open(&DestinationConfig::new(format!("file://{}", root.display()))).unwrap();
        let listed = std::sync::Mutex::new(Vec::new());
        let store = Observed::new(store, |call: &Call<'_>| {
            let Call::List(dir) = call else { return };
            let mut listed = listed.lock().unwrap();
            listed.push((*dir).to_owned());
            if listed.len() == 2 {
                std::fs::rename(root.join(staged), root.join(there)).unwrap();
            }
        });
        let looked = named.look(&store, false, false).await.unwrap();
        assert_eq!((looked.in_place, looked.staged), (1, 0));
        assert!(looked.findings.is_empty(), "{:?}", looked.findings);
    }
}
