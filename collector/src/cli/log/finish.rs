//! `log replay --finish`: what a collector does with the records behind the checkpoint when it starts, where none runs.

use anyhow::Context;
use proto::wire;
use serde::Serialize;

use super::super::seal::Site;
use super::Replay;
use crate::chores::file_of;
use crate::commit::solo::{self, Solo};
use crate::log::files::{LogFiles, ReadRecord};
use crate::log::view::{Finish, PartitionKey};
use crate::log::{View, layout};
use crate::publish;
use crate::seal::{self, marker};
use crate::store::Store;

/// What was, or would be, done.
#[derive(Debug, Default, Serialize)]
struct Done {
    dry_run: bool,
    brought: Vec<String>,
    deleted: Vec<String>,
    markers: Vec<String>,
    left: Vec<String>,
}

pub(super) async fn finish(site: &Site, asked: &Replay, print: impl Fn(&str)) -> anyhow::Result<usize> {
    let (view, records) = read(site).await?;
    let mut done = Done { dry_run: asked.dry_run, ..Done::default() };
    let replaced: Vec<&String> = records.iter().flat_map(|(_, finish)| &finish.remove).collect();
    let mut marked: Vec<PartitionKey> = Vec::new();
    let mut left: Vec<wire::PublishedFile> = Vec::new();
    for (n, finish) in &records {
        let mut bring = Vec::new();
        for file in finish.bring.iter().filter(|file| !replaced.contains(&&file.r#final)) {
            if site.store.stat(&file.staged).await?.is_some() {
                bring.push(file.clone());
            }
        }
        let not_brought = bring_all(site, bring, &mut done).await;
        let whole = not_brought.is_empty();
        left.extend(not_brought);
        for path in finish.remove.iter().filter(|_| whole) {
            let there = match asked.dry_run {
                true => site.store.stat(path).await?.is_some(),
                false => site.store.delete(path, false).await?,
            };
            done.deleted.extend(there.then(|| path.clone()));
        }
        if !whole {
            done.left.push(format!("record {n}: files that could not be brought; what it replaces was kept"));
        }
        marked.extend(finish.markers.iter().cloned());
    }
    marked.sort();
    marked.dedup();
    // A marker counts files: whoever saw it would not look again when the last of them comes.
    marked.retain(|key| {
        let held = left.iter().any(|file| file_of(file, key));
        if held {
            done.left.push(format!("marker of {key}: written when all of its files are in their places"));
        }
        !held
    });
    markers(site, &view, marked, &mut done).await?;
    print(&if asked.json { serde_json::to_string_pretty(&done)? } else { text(&done) });
    Ok(done.left.len())
}

/// As a collector reads it: from the highest checkpoint.
async fn read(site: &Site) -> anyhow::Result<(View, Vec<(u64, Finish)>)> {
    if !solo::is_in_use(&*site.store).await? {
        anyhow::bail!("destination {}: no collector ever wrote there", site.url);
    }
    let log = LogFiles::new(site.store.clone(), 0);
    let damaged = "the log cannot be read to its end; `log verify` says what is wrong";
    let mut view = match log.highest_checkpoint().await.context(damaged)? {
        None => View::default(),
        Some((n, checkpoint)) => View::from_checkpoint(n, &checkpoint).context(damaged)?,
    };
    let log = log.from(view.next());
    let mut records = Vec::new();
    while let ReadRecord::Record(record) = log.record(view.next()).await.context(damaged)? {
        let n = view.next();
        records.push((n, view.apply(n, &record).context(damaged)?.finish));
    }
    log.check_end(view.next()).await.context(damaged)?;
    Ok((view, records))
}

/// What is not in its place then; nothing of what would be brought.
async fn bring_all(site: &Site, files: Vec<wire::PublishedFile>, done: &mut Done) -> Vec<wire::PublishedFile> {
    let names: Vec<(String, String)> = files.iter().map(|f| (f.staged.clone(), f.r#final.clone())).collect();
    let mut kept = Vec::new();
    if !done.dry_run {
        let brought = publish::bring_all(&*site.store, &site.modes(), files).await;
        kept.extend(brought.again.into_iter().chain(brought.stuck));
        let reason = brought.reason.as_deref().unwrap_or("the store refuses it, see the log above");
        done.left.extend(kept.iter().map(|file| format!("{}: {reason}", file.r#final)));
    }
    let is_kept = |to: &str| kept.iter().any(|file| file.r#final == to);
    let brought = names.into_iter().filter(|(_, to)| !is_kept(to));
    done.brought.extend(brought.map(|(from, to)| format!("{from} -> {to}")));
    kept
}

/// Writes the markers that are missing or have a lower number.
async fn markers(site: &Site, view: &View, keys: Vec<PartitionKey>, done: &mut Done) -> anyhow::Result<()> {
    let mut due = Vec::new();
    for key in keys {
        let Some(marker) = seal::marker(view, &key) else { continue };
        if number(&*site.store, &key).await?.is_none_or(|number| number < marker.number) {
            due.push((key, marker));
        }
    }
    done.markers = due.iter().map(|(_, marker)| marker.path()).collect();
    if done.dry_run || due.is_empty() {
        return Ok(());
    }
    let waiting = |reason: &str| tracing::warn!(reason, "waiting for the destination");
    let store = site.store.clone();
    let mut run = Solo::begin(store, "finish", site.modes(), Box::new(solo::System), waiting).await?;
    for (key, marker) in due {
        // Its files may not be in their places yet.
        if seal::marker(run.view(), &key).is_none_or(|newest| newest.number != marker.number) {
            done.markers.retain(|path| *path != marker.path());
            done.left.push(format!("marker of {key}: a record came meanwhile; run the same command again"));
            continue;
        }
        run.finish_marker(marker.number, &key, |marker| site.readable(&key, marker)).await?;
    }
    Ok(run.end().await?)
}

/// The number of the marker that is there.
async fn number(store: &dyn Store, key: &PartitionKey) -> anyhow::Result<Option<u64>> {
    let mut highest = None;
    for name in [marker::SUCCESS, marker::INCOMPLETE] {
        let path = format!("{}/{name}", key.dir());
        if store.stat(&path).await?.is_none() {
            continue;
        }
        let json = serde_json::from_slice::<serde_json::Value>(&store.read(&path, marker::MAX_BYTES).await?);
        highest = highest.max(json.ok().and_then(|json| json["seal"].as_u64()));
    }
    Ok(highest)
}

fn text(done: &Done) -> String {
    let would = if done.dry_run { "would be " } else { "" };
    let mut lines = Vec::new();
    lines.extend(done.brought.iter().map(|path| format!("{would}brought: {path}")));
    lines.extend(done.deleted.iter().map(|path| format!("{would}deleted: {path}")));
    lines.extend(done.markers.iter().map(|path| format!("{would}written: {path}")));
    lines.extend(done.left.iter().map(|left| format!("LEFT: {left}")));
    if lines.is_empty() {
        lines.push(format!(
            "everything that records name behind the highest checkpoint is in its place ({})",
            layout::COMMITS
        ));
    }
    lines.join("\n")
}
