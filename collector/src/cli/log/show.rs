//! `log show`: records as lines, or one of them in full.

use std::fmt::Write;

use anyhow::bail;
use proto::ids::Origin;
use proto::intervals::IntervalSet;
use proto::wire;
use proto::wire::commit_record::Action;
use serde_json::{Value, json};

use super::super::findings::Finding;
use super::super::seal::Site;
use super::Show;
use super::fold;
use super::read::{self, Got};
use super::runs::number;
use crate::ledger::committed::covers;
use crate::seal::marker::{GapText, gap, time};
use crate::seal::wait::ranges;

/// Records shown when none was asked for.
const LAST: usize = 20;

pub(super) async fn show(site: &Site, asked: &Show, print: impl Fn(&str)) -> anyhow::Result<usize> {
    let listed = read::list(&*site.store, &site.url).await?;
    let (numbers, full) = match &asked.range {
        None => (listed.records[listed.records.len().saturating_sub(LAST)..].to_vec(), false),
        Some(text) => {
            let (from, to) = range(text)?;
            let asked = listed.records.iter().copied().filter(|n| (from..to).contains(n)).collect();
            (asked, to - from == 1)
        }
    };
    if numbers.is_empty() {
        let there = listed.records.first().zip(listed.records.last());
        bail!(
            "no such record; the log has {}",
            there.map_or("none".to_owned(), |(first, last)| format!("{first} to {last}"))
        );
    }
    let mut all = Vec::new();
    let mut findings = gaps(&listed, &numbers);
    for n in numbers {
        match read::record(&*site.store, n).await? {
            Got::Gone => {}
            Got::Wrong(finding) => findings.push(finding),
            Got::Whole(record) => {
                if asked.agent.as_ref().is_some_and(|agent| !names(&record, agent.as_str())) {
                    continue;
                }
                match asked.json {
                    true => all.push(as_json(n, &record)),
                    false if full => print(&in_full(n, &record)),
                    false => print(&line(n, &record)),
                }
            }
        }
    }
    if asked.json {
        print(&serde_json::to_string_pretty(&json!({ "records": all, "findings": findings }))?);
    } else {
        findings.iter().for_each(|finding| print(&finding.to_string()));
    }
    Ok(findings.len())
}

/// Records that are missing among those that are shown.
fn gaps(listed: &read::Listed, shown: &[u64]) -> Vec<Finding> {
    let highest = listed.checkpoints.last().copied().unwrap_or(0);
    let first = shown.first().copied().unwrap_or(0);
    // One that begins the log is told by `log verify`, which knows what lies before it.
    fold::holes(shown, highest.max(first))
}

/// `7`, `3..9`, `3..`, `..9`.
fn range(text: &str) -> anyhow::Result<(u64, u64)> {
    let part = |part: &str, empty: u64| if part.is_empty() { Some(empty) } else { number(part) };
    let parsed = match text.split_once("..") {
        None => number(text).and_then(|n| Some((n, n.checked_add(1)?))),
        Some((from, to)) => part(from, 0).zip(part(to, u64::MAX)),
    };
    match parsed {
        Some((from, to)) if from < to => Ok((from, to)),
        _ => bail!("{text}: a record number or A..B (B is not shown) is wanted"),
    }
}

fn names(record: &wire::CommitRecord, agent: &str) -> bool {
    match &record.action {
        Some(Action::Publish(publish)) => publish.covers.iter().any(|cover| cover.agent == agent),
        Some(Action::Expire(expire)) => expire.origins.iter().chain(&expire.expired_sets).any(|o| o.agent == agent),
        Some(Action::Forget(forget)) => forget.agent == agent,
        Some(Action::Abandon(abandon)) => abandon.agent == agent,
        Some(Action::Seal(seal)) => seal.partitions.iter().flat_map(|p| &p.gaps).any(|gap| gap.agent == agent),
        Some(Action::Compact(_) | Action::Retire(_)) | None => false,
    }
}

fn line(n: u64, record: &wire::CommitRecord) -> String {
    format!("{n}  {}  {}  {}", time(record.time_unix_ms), record.collector, what(record))
}

fn place(dataset: &str, partition: Option<&wire::Partition>) -> String {
    let path = partition.and_then(|p| proto::ids::Partition::new(p.date, p.hour).ok()).map(|p| p.path());
    format!("{dataset}/{}", path.unwrap_or_else(|| "?".into()))
}

fn run(origin: &[u8]) -> String {
    Origin::from_bytes(origin).map_or_else(|_| "?".into(), |origin| origin.to_string())
}

fn what(record: &wire::CommitRecord) -> String {
    match &record.action {
        None => "an action that this release does not know".into(),
        Some(Action::Publish(publish)) => {
            let covers = covers(0, publish).unwrap_or_default();
            let batches: u64 = covers.iter().map(|cover| cover.seqs.count() + cover.expired.count()).sum();
            let events: u64 = publish.files.iter().filter(|f| f.kind() == wire::FileKind::Data).map(|f| f.events).sum();
            let (files, origins) = (publish.files.len(), covers.len());
            format!("publish {files} files, {events} events, {batches} batches of {origins} runs")
        }
        Some(Action::Retire(retire)) => format!("retire {}: {}", retire.incarnation, retire.reason),
        Some(Action::Expire(expire)) => {
            format!("expire {} runs, horizon {}", expire.origins.len(), time(expire.horizon_unix_ms))
        }
        Some(Action::Compact(compact)) => {
            let home = place(&compact.dataset, compact.partition.as_ref());
            format!("compact {home}: {} files become {}", compact.replaced.len(), compact.files.len())
        }
        Some(Action::Seal(seal)) => {
            let one = |p: &wire::PartitionSeal| {
                let how = if p.complete { "complete" } else { "incomplete" };
                format!("{} {how}, {} events", place(&p.dataset, p.partition.as_ref()), p.events)
            };
            format!("seal {}", seal.partitions.iter().map(one).collect::<Vec<_>>().join("; "))
        }
        Some(Action::Forget(forget)) => format!("forget {}: {}", forget.agent, forget.reason),
        Some(Action::Abandon(abandon)) => {
            let seqs = set(abandon.ranges.as_ref());
            let seqs = if seqs.is_empty() { "whatever is missing".to_owned() } else { seqs };
            format!("abandon {} run {} batches {seqs}: {}", abandon.agent, run(&abandon.origin), abandon.reason)
        }
    }
}

fn set(set: Option<&wire::IntervalSet>) -> String {
    set.and_then(|set| IntervalSet::try_from(set).ok()).map_or(String::new(), |set| ranges(&set, None))
}

fn files(record: &wire::CommitRecord) -> &[wire::PublishedFile] {
    match &record.action {
        Some(Action::Publish(publish)) => &publish.files,
        Some(Action::Compact(compact)) => &compact.files,
        _ => &[],
    }
}

fn origin_covers(record: &wire::CommitRecord) -> &[wire::OriginCover] {
    match &record.action {
        Some(Action::Publish(publish)) => &publish.covers,
        _ => &[],
    }
}

fn seals(record: &wire::CommitRecord) -> &[wire::PartitionSeal] {
    match &record.action {
        Some(Action::Seal(seal)) => &seal.partitions,
        _ => &[],
    }
}

/// Runs that are forgotten, and those of which what came later is.
fn expired(record: &wire::CommitRecord) -> Vec<(&[wire::OriginId], &'static str)> {
    match &record.action {
        Some(Action::Expire(expire)) => vec![(&expire.origins, "expires"), (&expire.expired_sets, "clears")],
        _ => Vec::new(),
    }
}

fn gap_line(gap: &GapText) -> String {
    let agent = if gap.agent.is_empty() { "any agent" } else { &gap.agent };
    let mut line = format!("{agent} ({})", gap.reason);
    let parts = [("run", &gap.origin), ("batches", &gap.missing), ("last mark", &gap.last_mark)];
    for (name, value) in parts.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
        let _ = write!(line, ", {name} {value}");
    }
    line
}

/// Seqs of one origin, by kind.
fn kinds(cover: &wire::OriginCover) -> Vec<(&'static str, String)> {
    let seqs = |seqs: Vec<u64>| ranges(&seqs.into_iter().collect(), None);
    let kinds = vec![
        ("open", seqs(cover.opens.iter().map(|s| s.seq).collect())),
        ("data", set(cover.data.as_ref())),
        ("void", seqs(cover.voids.iter().map(|s| s.seq).collect())),
        ("mark", seqs(cover.marks.iter().map(|s| s.seq).collect())),
        ("close", seqs(cover.closes.iter().map(|s| s.seq).collect())),
        ("quarantined", set(cover.quarantined.as_ref())),
        ("expired", set(cover.expired.as_ref())),
    ];
    kinds.into_iter().filter(|(_, seqs)| !seqs.is_empty()).collect()
}

fn in_full(n: u64, record: &wire::CommitRecord) -> String {
    let id: String = record.commit_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut out = format!("record {n} of {}\n", time(record.time_unix_ms));
    let _ = writeln!(out, "by {} (run {}), commit {id}", record.collector, record.incarnation);
    let _ = writeln!(out, "{}", what(record));
    for file in files(record) {
        let late = if file.late_of.is_empty() { String::new() } else { format!(", late of {}", file.late_of) };
        let (events, bytes, crc) = (file.events, file.bytes, file.crc32c);
        let unit = if file.kind() == wire::FileKind::Quarantine { "batches" } else { "events" };
        let _ = writeln!(out, "  file {}: {events} {unit}, {bytes} bytes, CRC32C {crc:08x}{late}", file.r#final);
    }
    if let Some(Action::Compact(compact)) = &record.action {
        compact.replaced.iter().for_each(|path| _ = writeln!(out, "  replaces {path}"));
        compact.missing.iter().for_each(|path| _ = writeln!(out, "  missing {path}"));
    }
    for seal in seals(record) {
        let home = place(&seal.dataset, seal.partition.as_ref());
        seal.gaps.iter().map(gap).for_each(|gap| _ = writeln!(out, "  {home} without {}", gap_line(&gap)));
        if seal.more_gaps > 0 {
            let _ = writeln!(out, "  {home} without {} more", seal.more_gaps);
        }
    }
    for (runs, what) in expired(record) {
        runs.iter().for_each(|id| _ = writeln!(out, "  {what} {} run {}", id.agent, run(&id.origin)));
    }
    for cover in origin_covers(record) {
        let kinds: Vec<String> = kinds(cover).into_iter().map(|(kind, seqs)| format!("{kind} {seqs}")).collect();
        let _ = writeln!(out, "  {} run {}: {}", cover.agent, run(&cover.origin), kinds.join(", "));
        for count in &cover.counts {
            let hour = count.event_hour.map_or("no hour".into(), |hour| time(hour * 3_600_000));
            let (published, dead, quarantined) = (count.published, count.dead_lettered, count.quarantined);
            let _ = writeln!(
                out,
                "    {} {hour}: {published} published, {dead} dead letters, {quarantined} quarantined",
                count.dataset
            );
        }
    }
    out.truncate(out.trim_end().len());
    out
}

fn as_json(n: u64, record: &wire::CommitRecord) -> Value {
    let file = |file: &wire::PublishedFile| {
        json!({
            "final": file.r#final, "staged": file.staged, "kind": file.kind().as_str_name(), "bytes": file.bytes,
            "events": file.events, "crc32c": format!("{:08x}", file.crc32c), "late_of": file.late_of,
        })
    };
    let cover = |cover: &wire::OriginCover| {
        let seqs: serde_json::Map<String, Value> =
            kinds(cover).into_iter().map(|(kind, seqs)| (kind.to_owned(), Value::String(seqs))).collect();
        let count = |c: &wire::EventCount| {
            json!({
                "dataset": c.dataset, "event_hour": c.event_hour.map(|hour| time(hour * 3_600_000)),
                "published": c.published, "dead_lettered": c.dead_lettered, "quarantined": c.quarantined,
            })
        };
        let counts: Vec<Value> = cover.counts.iter().map(count).collect();
        json!({ "agent": cover.agent, "origin": run(&cover.origin), "seqs": seqs, "counts": counts })
    };
    let mut json = json!({
        "n": n, "time": time(record.time_unix_ms), "collector": record.collector, "incarnation": record.incarnation,
        "says": what(record), "files": files(record).iter().map(file).collect::<Vec<_>>(),
        "covers": origin_covers(record).iter().map(cover).collect::<Vec<_>>(),
    });
    let runs = |runs: &[wire::OriginId]| -> Value {
        runs.iter().map(|id| json!({ "agent": id.agent, "origin": run(&id.origin) })).collect()
    };
    let seal = |seal: &wire::PartitionSeal| {
        json!({
            "partition": place(&seal.dataset, seal.partition.as_ref()), "complete": seal.complete,
            "events": seal.events, "files": seal.files, "bytes": seal.bytes, "by": seal.by,
            "gaps": seal.gaps.iter().map(gap).collect::<Vec<_>>(), "more_gaps": seal.more_gaps,
        })
    };
    match &record.action {
        Some(Action::Compact(compact)) => {
            (json["replaced"], json["missing"]) = (json!(compact.replaced), json!(compact.missing));
        }
        Some(Action::Expire(expire)) => {
            (json["expired"], json["cleared"]) = (runs(&expire.origins), runs(&expire.expired_sets));
        }
        Some(Action::Seal(_)) => json["sealed"] = seals(record).iter().map(seal).collect(),
        _ => {}
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(action: Action) -> (Value, String) {
        let record = wire::CommitRecord { action: Some(action), ..Default::default() };
        (as_json(7, &record), in_full(7, &record))
    }

    #[test]
    fn what_a_record_takes_away_or_finds_missing_is_shown() {
        let partition = Some(wire::Partition { date: 20_775, hour: None });
        let (json, text) = both(Action::Compact(wire::Compact {
            dataset: "d".into(),
            partition,
            replaced: vec!["d/a".into()],
            missing: vec!["d/b".into()],
            ..Default::default()
        }));
        assert_eq!((&json["replaced"], &json["missing"]), (&json!(["d/a"]), &json!(["d/b"])));
        assert!(text.contains("replaces d/a") && text.contains("missing d/b"), "{text}");

        let origin = Origin::mint(5, 5);
        let id = |agent: &str| wire::OriginId { agent: agent.into(), origin: origin.to_bytes() };
        let (origins, expired_sets) = (vec![id("web-1")], vec![id("web-2")]);
        let (json, text) = both(Action::Expire(wire::Expire { origins, expired_sets, horizon_unix_ms: 0 }));
        assert_eq!(json["expired"], json!([{ "agent": "web-1", "origin": origin.to_string() }]));
        assert_eq!(json["cleared"], json!([{ "agent": "web-2", "origin": origin.to_string() }]));
        assert!(text.contains(&format!("expires web-1 run {origin}")), "{text}");
        assert!(text.contains(&format!("clears web-2 run {origin}")), "{text}");

        let gap = wire::SealGap {
            agent: "web-3".into(),
            reason: wire::GapReason::MissingSeqs as i32,
            origin: origin.to_bytes(),
            missing: Some((&[3, 4].into_iter().collect::<IntervalSet>()).into()),
            ..Default::default()
        };
        let sealed = wire::PartitionSeal { dataset: "d".into(), partition, gaps: vec![gap], ..Default::default() };
        let (json, text) = both(Action::Seal(wire::Seal { partitions: vec![sealed] }));
        let gap = &json["sealed"][0]["gaps"][0];
        assert_eq!((&gap["agent"], &gap["missing"]), (&json!("web-3"), &json!("3-4")), "{json}");
        let line = format!("d/event_date=2026-11-18 without web-3 (missing_batches), run {origin}, batches 3-4");
        assert!(text.contains(&line), "{text}");
    }
}
