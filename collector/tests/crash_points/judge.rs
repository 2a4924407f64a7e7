//! What must hold at the end of a story.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::record::number_name;
use proto::wire::commit_record::Action;

use crate::check;
use crate::store::Kept;
use crate::world::{Run, World, staging};

/// Directories that are there whether anything is in them or not.
const DIRS: [&str; 6] = [
    "_catchment",
    "_catchment/commits",
    "_catchment/checkpoints",
    "_catchment/staging",
    "_catchment/dead-letter",
    "_catchment/quarantine",
];

pub fn judge(world: &Arc<World>, living: &Run) {
    assert!(!living.task.is_finished(), "the last run goes on");
    let answered = world.answered.lock().unwrap().clone();
    let open: Vec<_> = world.batches.iter().filter(|batch| !answered.contains(&batch.id)).map(|b| &b.id).collect();
    assert!(open.is_empty(), "L: not answered: {open:?}");
    let records = world.records();
    let covered = check::covered(&records);
    for batch in &world.batches {
        assert!(covered.contains_key(&batch.id.to_string()), "LOST: {}", batch.id);
    }
    let published = check::files_match_the_log(&world.kept, &records);
    let said = |wanted: fn(&Action) -> bool| records.iter().any(|record| record.action.as_ref().is_some_and(wanted));
    assert!(said(|action| matches!(action, Action::Seal(_))), "sealed");
    assert!(said(|action| matches!(action, Action::Compact(_))), "compacted");
    assert!(said(|action| matches!(action, Action::Expire(_))), "expired");
    assert!(said(|action| matches!(action, Action::Retire(retire) if retire.incarnation == "col-0-ghost")), "retired");
    for (n, record) in records.iter().enumerate() {
        let Some(Action::Retire(retire)) = &record.action else { continue };
        let later = records[n + 1..].iter().any(|record| record.incarnation == retire.incarnation);
        assert!(!later, "{} commits after record {n} retired it", retire.incarnation);
    }
    let runs = staging(&world.kept);
    assert_eq!(runs.len(), 1, "only the living one has a directory: {runs:?}");
    for (run, names) in runs {
        assert!(run.starts_with("col-2-"), "{run}");
        assert!(names.len() == 1 && names[0].starts_with("seen-"), "of {run} is left: {names:?}");
    }
    let kept = world.kept.files_below("_catchment/commits").len();
    assert!(kept < records.len() / 2, "the log was cleaned: {kept} of {}", records.len());
    let checkpoints = world.kept.files_below("_catchment/checkpoints").len();
    assert!((1..=2).contains(&checkpoints), "{checkpoints} checkpoints");
    nothing_else(world, published, records.len() as u64);
    let snapshot = living.snapshot.borrow();
    assert_eq!((snapshot.unfinished_records, snapshot.staged_batches, snapshot.covered_twice), (0, 0, 0));
}

/// The names at the destination are those of what is published, of the log behind what was cleaned, and of the one run
/// that lives; each of them is there, and no other.
fn nothing_else(world: &Arc<World>, published: BTreeSet<String>, records: u64) {
    let there = world.kept.names();
    let mut may: BTreeSet<String> = DIRS.iter().map(|dir| (*dir).to_owned()).collect();
    may.insert("_catchment/format".into());
    let commits = there.iter().filter(|name| name.starts_with("_catchment/commits/")).count() as u64;
    may.extend((records - commits..records).map(|n| format!("_catchment/commits/{}", number_name(n))));
    // How many there are was looked at; of two only the higher one is read.
    let is_checkpoint = |name: &&String| {
        let number = name.strip_prefix("_catchment/checkpoints/").and_then(proto::record::parse_number);
        number.is_some_and(|n| n <= records)
    };
    may.extend(there.iter().filter(is_checkpoint).cloned());
    let (run, names) = staging(&world.kept).pop_first().expect("one lives");
    may.insert(format!("_catchment/staging/{run}"));
    may.extend(names.into_iter().map(|name| format!("_catchment/staging/{run}/{name}")));
    for path in published {
        let mut at = path.as_str();
        while !at.is_empty() {
            may.insert(at.to_owned());
            at = at.rsplit_once('/').map_or("", |(above, _)| above);
        }
    }
    let more: Vec<_> = there.difference(&may).collect();
    let less: Vec<_> = may.difference(&there).collect();
    assert!(more.is_empty() && less.is_empty(), "LEFT BEHIND: {more:?}, MISSING: {less:?}");
}
