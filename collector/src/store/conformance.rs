//! What every store must do, as one suite: run by the unit tests on a local directory and by the system tests on a
//! real HDFS. It writes under `base` only and leaves what it wrote.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;

use super::{Renamed, Store, StoreError};

const RACERS: usize = 8;

/// Runs every check; the first one that does not hold ends it with a sentence.
pub async fn run(store: Arc<dyn Store>, base: &str) -> Result<(), String> {
    let at = |name: &str| format!("{base}/{name}");
    fine("make base", store.make_dirs(base, 0o750).await)?;
    directories(&*store, &at("dirs")).await?;
    files(&*store, &at("files")).await?;
    renames(&*store, &at("renames")).await?;
    directory_renames(&*store, &at("moved")).await?;
    attributes(&*store, &at("attributes")).await?;
    directory_times(&*store, &at("times")).await?;
    race_of_renames(&store, &at("race")).await?;
    race_of_claims(&store, &at("claims")).await
}

fn fine<T>(what: &str, result: Result<T, StoreError>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e}"))
}

fn holds(what: &str, condition: bool) -> Result<(), String> {
    if condition { Ok(()) } else { Err(format!("{what}: does not hold")) }
}

async fn put(store: &dyn Store, path: &str, bytes: &[u8]) -> Result<(), String> {
    let mut file = fine("create", store.create(path).await)?;
    if !bytes.is_empty() {
        fine("append", file.append(Bytes::copy_from_slice(bytes)).await)?;
    }
    let length = fine("close", file.close().await)?;
    holds("close answers the length", length == bytes.len() as u64)
}

async fn directories(store: &dyn Store, base: &str) -> Result<(), String> {
    let deep = format!("{base}/a/b");
    fine("make with parents", store.make_dirs(&deep, 0o750).await)?;
    fine("make again", store.make_dirs(&deep, 0o750).await)?;
    let own = format!("{base}/own");
    fine("make new", store.make_dir_new(&own, 0o700).await)?;
    let again = store.make_dir_new(&own, 0o700).await;
    holds("a directory is new only once", matches!(again, Err(StoreError::AlreadyExists { .. })))?;
    let orphan = store.make_dir_new(&format!("{base}/none/own"), 0o700).await;
    holds("a new directory needs its parent", matches!(orphan, Err(StoreError::NotFound { .. })))?;
    let names: Vec<_> = fine("list", store.list(base).await)?.into_iter().map(|e| (e.name, e.is_dir)).collect();
    holds("the listing is exact", names == [("a".to_owned(), true), ("own".to_owned(), true)])?;
    let missing = store.list(&format!("{base}/none")).await;
    holds("a missing directory is not empty", matches!(missing, Err(StoreError::NotFound { .. })))?;
    holds("delete says what it did", fine("delete", store.delete(&format!("{base}/a"), true).await)?)?;
    holds("delete of nothing", !fine("delete", store.delete(&format!("{base}/a"), true).await)?)
}

async fn files(store: &dyn Store, base: &str) -> Result<(), String> {
    fine("make", store.make_dirs(base, 0o750).await)?;
    let (path, empty) = (format!("{base}/one"), format!("{base}/empty"));
    put(store, &path, b"0123456789").await?;
    put(store, &empty, b"").await?;
    holds("read gives the bytes back", fine("read", store.read(&path, 10).await)?.as_ref() == b"0123456789")?;
    holds("read of nothing", fine("read", store.read(&empty, 10).await)?.is_empty())?;
    holds("read is bounded", matches!(store.read(&path, 9).await, Err(StoreError::Other { .. })))?;
    let missing = store.read(&format!("{base}/none"), 9).await;
    holds("a missing file is told", matches!(missing, Err(StoreError::NotFound { .. })))?;
    let second = store.create(&path).await.err();
    holds("create is exclusive", matches!(second, Some(StoreError::AlreadyExists { .. })))?;
    let orphan = store.create(&format!("{base}/none/x")).await.err();
    holds("create makes no parent", matches!(orphan, Some(StoreError::NotFound { .. })))?;
    holds("no parent was made", fine("stat", store.stat(&format!("{base}/none")).await)?.is_none())?;
    let stat = fine("stat", store.stat(&path).await)?;
    holds("stat", stat.is_some_and(|s| s.bytes == 10 && !s.is_dir && s.modified_unix_ms > 0))?;
    for bad in ["../x", "/x", "a//b", ""] {
        holds("a path leads nowhere else", store.create(bad).await.is_err())?;
    }
    let big: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let path = format!("{base}/big");
    let mut file = fine("create", store.create(&path).await)?;
    for part in big.chunks(700_001) {
        fine("append", file.append(Bytes::copy_from_slice(part)).await)?;
    }
    holds("the length of all parts", fine("close", file.close().await)? == big.len() as u64)?;
    holds("all parts in order", fine("read", store.read(&path, 4_000_000).await)?.as_ref() == big)?;
    ranges(store, base, &path, &big).await
}

/// A directory shows when a name in it changed last: so a run reads the clock of the store.
async fn directory_times(store: &dyn Store, base: &str) -> Result<(), String> {
    fine("make", store.make_dirs(base, 0o750).await)?;
    let (from, to) = (format!("{base}/seen-1"), format!("{base}/seen-2"));
    put(store, &from, b"").await?;
    let time = async |path: &str| match store.stat(path).await {
        Ok(Some(stat)) => Ok(stat.modified_unix_ms),
        other => Err(format!("stat {path}: {other:?}")),
    };
    let written = time(base).await?;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    holds("rename", fine("rename", store.rename_new(&from, &to).await)? == Renamed::Done)?;
    holds("a rename moves the time of the directory on", time(base).await? > written)
}

/// Pieces of a file of 3,000,000 bytes.
async fn ranges(store: &dyn Store, base: &str, path: &str, whole: &[u8]) -> Result<(), String> {
    let end = whole.len();
    for (offset, len) in [(0, 10), (0, end), (1, end - 1), (999_999, 1_048_577), (end - 1, 1), (7, 0)] {
        let read = fine("read range", store.read_range(path, offset as u64, len).await)?;
        holds("a range gives its bytes", read.as_ref() == &whole[offset..offset + len])?;
    }
    let over = fine("read range", store.read_range(path, end as u64 - 5, 100).await)?;
    holds("a range ends where the file ends", over.as_ref() == &whole[end - 5..])?;
    for offset in [end as u64, end as u64 + 1, 1 << 40] {
        let behind = fine("read range", store.read_range(path, offset, 10).await)?;
        holds("nothing lies behind the end", behind.is_empty())?;
    }
    let missing = store.read_range(&format!("{base}/none"), 0, 9).await;
    holds("a missing file is told", matches!(missing, Err(StoreError::NotFound { .. })))
}

async fn renames(store: &dyn Store, base: &str) -> Result<(), String> {
    fine("make", store.make_dirs(&format!("{base}/dir"), 0o750).await)?;
    let at = |name: &str| format!("{base}/{name}");
    put(store, &at("a"), b"a").await?;
    put(store, &at("b"), b"b").await?;
    let onto_file = fine("rename", store.rename_new(&at("a"), &at("b")).await)?;
    holds("a file is not replaced", onto_file == Renamed::TargetExists)?;
    let onto_dir = fine("rename", store.rename_new(&at("a"), &at("dir")).await)?;
    holds("a directory is not moved into", onto_dir == Renamed::TargetExists)?;
    let no_parent = fine("rename", store.rename_new(&at("a"), &at("none/a")).await)?;
    holds("a missing parent is told", no_parent == Renamed::ParentMissing)?;
    let no_source = fine("rename", store.rename_new(&at("none"), &at("c")).await)?;
    holds("a missing source is told", no_source == Renamed::SourceMissing)?;
    let neither = fine("rename", store.rename_new(&at("none"), &at("b")).await)?;
    holds("a missing source goes before a taken target", neither == Renamed::SourceMissing)?;
    holds("b is as it was", fine("read", store.read(&at("b"), 9).await)?.as_ref() == b"b")?;
    let done = fine("rename", store.rename_new(&at("a"), &at("dir/a")).await)?;
    holds("a free name is taken", done == Renamed::Done)?;
    holds("with its bytes", fine("read", store.read(&at("dir/a"), 9).await)?.as_ref() == b"a")?;
    holds("and the old name is gone", fine("stat", store.stat(&at("a")).await)?.is_none())
}

async fn directory_renames(store: &dyn Store, base: &str) -> Result<(), String> {
    fine("make", store.make_dirs(&format!("{base}/from"), 0o750).await)?;
    fine("make", store.make_dirs(&format!("{base}/empty"), 0o750).await)?;
    put(store, &format!("{base}/from/x"), b"x").await?;
    let onto = fine("rename", store.rename_new(&format!("{base}/from"), &format!("{base}/empty")).await)?;
    holds("an empty directory is not replaced", onto == Renamed::TargetExists)?;
    let done = fine("rename", store.rename_new(&format!("{base}/from"), &format!("{base}/to")).await)?;
    holds("a directory is moved", done == Renamed::Done)?;
    let late = store.create(&format!("{base}/from/y")).await.err();
    holds("nothing is created under its old name", matches!(late, Some(StoreError::NotFound { .. })))?;
    holds("with its files", fine("read", store.read(&format!("{base}/to/x"), 9).await)?.as_ref() == b"x")
}

async fn attributes(store: &dyn Store, base: &str) -> Result<(), String> {
    fine("make", store.make_dirs(base, 0o750).await)?;
    let path = format!("{base}/f");
    put(store, &path, b"x").await?;
    fine("set mode", store.set_attributes(&path, 0o604, None).await)?;
    let stat = fine("stat", store.stat(&path).await)?;
    holds("the mode is set", stat.is_some_and(|s| s.mode == 0o604))?;
    let missing = store.set_attributes(&format!("{base}/none"), 0o600, None).await;
    holds("nothing to set", matches!(missing, Err(StoreError::NotFound { .. })))
}

async fn race_of_renames(store: &Arc<dyn Store>, base: &str) -> Result<(), String> {
    fine("make", store.make_dirs(base, 0o750).await)?;
    for round in 0..3 {
        for racer in 0..RACERS {
            put(&**store, &format!("{base}/{round}-{racer}"), format!("{racer}").as_bytes()).await?;
        }
        let target = format!("{base}/{round}-target");
        let racers = (0..RACERS).map(|racer| {
            let (store, from, to) = (store.clone(), format!("{base}/{round}-{racer}"), target.clone());
            tokio::spawn(async move { store.rename_new(&from, &to).await })
        });
        let mut winners = Vec::new();
        for (racer, answer) in join_all(racers).await.into_iter().enumerate() {
            match fine("race", answer.map_err(|e| e.to_string())?)? {
                Renamed::Done => winners.push(racer),
                Renamed::TargetExists => {}
                other => return Err(format!("a racer of renames was answered {other:?}")),
            }
        }
        holds("a race of renames has one winner", winners.len() == 1)?;
        let content = fine("read", store.read(&target, 9).await)?;
        holds("with its content", content.as_ref() == format!("{}", winners[0]).as_bytes())?;
    }
    Ok(())
}

async fn race_of_claims(store: &Arc<dyn Store>, base: &str) -> Result<(), String> {
    fine("make", store.make_dirs(base, 0o750).await)?;
    let racers = (0..RACERS).map(|racer| {
        let (store, file, dir) = (store.clone(), format!("{base}/file"), format!("{base}/dir"));
        tokio::spawn(async move {
            let file = match store.create(&file).await {
                Ok(mut file) => {
                    let text = Bytes::from(format!("{racer}"));
                    file.append(text).await?;
                    file.close().await.map(|_| true)
                }
                Err(StoreError::AlreadyExists { .. }) => Ok(false),
                Err(e) => Err(e),
            }?;
            match store.make_dir_new(&dir, 0o700).await {
                Ok(()) => Ok((file, true)),
                Err(StoreError::AlreadyExists { .. }) => Ok((file, false)),
                Err(e) => Err(e),
            }
        })
    });
    let (mut files, mut dirs) = (0, 0);
    for answer in join_all(racers).await {
        let (file, dir) = fine("race", answer.map_err(|e| e.to_string())?)?;
        files += usize::from(file);
        dirs += usize::from(dir);
    }
    holds("a race of creates has one winner", files == 1)?;
    holds("a race for a new directory has one winner", dirs == 1)?;
    let left = fine("list", store.list(base).await)?;
    holds("the losers leave nothing", left.len() == 2)
}
