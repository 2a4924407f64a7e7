//! A run is ended, stopped, or left without an answer at every change that it makes to the destination, one after the
//! other, in a story that holds everything a collector does: commits, quarantine, compaction, seal, a late file and its
//! marker, expiry, retiring a dead run and deleting its directory, checkpoints, cleaning of the log, the end of a drain.
//! Another run comes after it.
//!
//! Held each time: nothing is lost, nothing is there twice, no number of the log is given twice, every record is
//! finished, markers say what is there, and of the runs that are over nothing is left.
//!
//! `CATCHMENT_POINT=<k> cargo test -p collector --test crash_points <test>` plays one point again.

#[path = "../races/check.rs"]
mod check;
mod faulty;
#[path = "../races/store.rs"]
mod store;
mod world;

use std::sync::Arc;
use std::time::Duration;

use collector::store::Store;
use faulty::{Mode, Switch};
use proto::wire::commit_record::Action;
use world::{Run, World, staging};

/// When the first run is told to end, seconds after the beginning.
const DRAIN: u64 = 300;
/// When a stopped run is let go on.
const RELEASE_AFTER: u64 = 150;
/// From the start of the second run to the end, at least.
const AFTER: u64 = 220;
const LOG_RETENTION: u64 = 60;
const RETIRE_AFTER: u64 = 40;
/// No point: nothing goes wrong.
const NEVER: u64 = u64::MAX;

/// A run of long ago, which left a draft and a file behind.
async fn leave_a_ghost(world: &World) {
    let dir = "_catchment/staging/col-0-ghost";
    world.store.make_dirs(dir, 0o750).await.unwrap();
    for name in ["draft-00", "3.log"] {
        let mut file = world.store.create(&format!("{dir}/{name}")).await.unwrap();
        file.append(bytes::Bytes::from_static(b"nothing that counts\n")).await.unwrap();
        file.close().await.unwrap();
    }
}

/// What came of one story: changes that a run made, and why the first one ended if it was not told to.
#[derive(Debug, Default)]
struct Told {
    changes: u64,
    stop: Option<String>,
}

async fn play(point: u64, mode: Mode, second_point: u64) -> Told {
    play_with(point, mode, second_point, RETIRE_AFTER).await
}

async fn play_with(point: u64, mode: Mode, second_point: u64, retire_after: u64) -> Told {
    let patient = retire_after > RETIRE_AFTER;
    let world = World::new(retire_after);
    leave_a_ghost(&world).await;
    // One that is stopped must not be saved by its clock alone.
    let retention = if mode == Mode::Freeze { 100_000 } else { LOG_RETENTION };
    let mut first = world.start("col-1", 1, retention, Switch::new(point, mode));
    tokio::select! {
        () = first.switch.struck.notified() => {}
        () = world.sleep_until(DRAIN) => first.shutdown.drain(),
    }
    let mut told = Told::default();
    let mut zombie = None;
    if first.shutdown.is_draining() {
        tokio::select! {
            () = first.switch.struck.notified() => {}
            _ = first.snapshot.wait_for(|_| first.task.is_finished()) => {}
        }
    }
    // The task ends a moment after what it held.
    tokio::time::sleep(Duration::from_millis(1)).await;
    if first.task.is_finished() {
        told.changes = end(first, &mut told.stop).await;
    } else if mode == Mode::Freeze {
        zombie = Some(first);
    } else {
        first.task.abort();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // With patience records grow old enough to be cleaned before the one that is stopped is retired.
    let retention = if patient { LOG_RETENTION / 3 } else { LOG_RETENTION };
    let mut second = world.start("col-2", 2, retention, Switch::new(second_point, Mode::CrashBefore));
    if let Some(run) = zombie {
        let after = if patient { retire_after - 30 } else { RELEASE_AFTER };
        tokio::time::sleep(Duration::from_secs(after)).await;
        run.switch.release();
        tokio::time::sleep(Duration::from_secs(5)).await;
        run.shutdown.drain();
        end(run, &mut told.stop).await;
    }
    let until = (world.now() + AFTER).max(DRAIN + AFTER);
    tokio::select! {
        () = second.switch.struck.notified() => {
            second.task.abort();
            tokio::time::sleep(Duration::from_secs(1)).await;
            second = world.start("col-2", 3, LOG_RETENTION, Switch::new(NEVER, Mode::Lost));
            world.sleep_until(until.max(world.now() + AFTER)).await;
        }
        () = world.sleep_until(until) => {}
    }
    judge(&world, &second);
    told.changes = told.changes.max(second.switch.count());
    told
}

/// Waits for the end of a run that was told to end; its changes.
async fn end(run: Run, stop: &mut Option<String>) -> u64 {
    let ended = run.task.await.expect("it does not panic");
    *stop = ended.err().map(|stop| stop.to_string());
    run.switch.count()
}

fn judge(world: &Arc<World>, living: &Run) {
    assert!(!living.task.is_finished(), "the last run goes on");
    let answered = world.answered.lock().unwrap().clone();
    let open: Vec<_> = world.batches.iter().filter(|batch| !answered.contains(&batch.id)).map(|b| &b.id).collect();
    assert!(open.is_empty(), "L: not answered: {open:?}");
    let records = world.records();
    let covered = check::covered(&records);
    for batch in &world.batches {
        assert!(covered.contains_key(&batch.id.to_string()), "LOST: {}", batch.id);
    }
    check::files_match_the_log(&world.store, &records);
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
    let runs = staging(&world.store);
    assert_eq!(runs.len(), 1, "only the living one has a directory: {runs:?}");
    for (run, names) in runs {
        assert!(run.starts_with("col-2-"), "{run}");
        assert!(names.len() == 1 && names[0].starts_with("seen-"), "of {run} is left: {names:?}");
    }
    let kept = world.store.files_below("_catchment/commits").len();
    assert!(kept < records.len() / 2, "the log was cleaned: {kept} of {}", records.len());
    let checkpoints = world.store.files_below("_catchment/checkpoints").len();
    assert!((1..=2).contains(&checkpoints), "{checkpoints} checkpoints");
    let snapshot = living.snapshot.borrow();
    assert_eq!((snapshot.unfinished_records, snapshot.staged_batches, snapshot.covered_twice), (0, 0, 0));
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// What came of many stories.
#[derive(Debug, Default)]
struct Played {
    stories: usize,
    /// Why first runs ended that were not told to.
    stops: Vec<String>,
}

/// Plays the story once for each point, and says which it was if it ends badly.
fn at_every_point(mode: Mode, points: impl IntoIterator<Item = (u64, u64)>) -> Played {
    let only = std::env::var("CATCHMENT_POINT").ok().and_then(|text| text.parse::<u64>().ok());
    let mut played = Played::default();
    for (point, second) in points {
        let number = if point == NEVER { second } else { point };
        if only.is_some_and(|only| only != number) {
            continue;
        }
        let story = std::panic::AssertUnwindSafe(|| run(play(point, mode, second)));
        match std::panic::catch_unwind(story) {
            Ok(told) => {
                played.stories += 1;
                played.stops.extend(told.stop);
            }
            Err(panic) => {
                let text = format!("{mode:?} at {number} failed: play it again with CATCHMENT_POINT={number}\n");
                std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).unwrap();
                std::panic::resume_unwind(panic);
            }
        }
    }
    played
}

fn changes() -> u64 {
    run(play(NEVER, Mode::Lost, NEVER)).changes
}

fn at_every_change(mode: Mode) -> Played {
    let changes = changes();
    assert!(changes > 60, "the story holds everything: {changes}");
    at_every_point(mode, (0..changes).map(|point| (point, NEVER)))
}

#[test]
fn a_run_that_ends_before_a_change_leaves_nothing_that_the_next_one_cannot_finish() {
    at_every_change(Mode::CrashBefore);
}

#[test]
fn a_run_that_ends_after_a_change_leaves_nothing_that_the_next_one_cannot_finish() {
    at_every_change(Mode::CrashAfter);
}

#[test]
fn a_change_that_is_carried_out_and_not_answered_is_settled() {
    at_every_change(Mode::ReplyLost);
}

#[test]
fn a_change_that_is_never_carried_out_is_settled() {
    at_every_change(Mode::Lost);
}

#[test]
fn a_change_that_is_carried_out_late_does_no_harm() {
    at_every_change(Mode::Late);
}

/// Stopped before a change, retired and cleaned up after by another run, let go on.
#[test]
fn a_zombie_changes_nothing_and_says_why_it_stops() {
    let played = at_every_change(Mode::Freeze);
    // Not those that were stopped while they began, and took another name, or at their very end.
    assert!(played.stories == 1 || played.stops.len() > played.stories * 3 / 4, "{played:?}");
    for stop in &played.stops {
        assert!(stop.contains("retired") || stop.contains("older than what is kept"), "{stop}");
        assert!(stop.contains("start"), "and what to do: {stop}");
    }
}

/// Nobody retires it, but the log is cleaned: never past what it has read.
#[test]
fn a_run_that_is_stopped_holds_back_the_cleaning() {
    let only = std::env::var("CATCHMENT_POINT").ok().and_then(|text| text.parse::<u64>().ok());
    for point in (0..changes()).filter(|point| only.is_none_or(|only| only == *point)) {
        let story = std::panic::AssertUnwindSafe(|| run(play_with(point, Mode::Freeze, NEVER, 130)));
        let told = std::panic::catch_unwind(story).unwrap_or_else(|_| panic!("CATCHMENT_POINT={point}"));
        assert_eq!(told.stop, None, "at {point}");
    }
}

/// The run that finishes the work of the one before it ends itself at every change.
#[test]
fn whoever_cleans_up_may_end_as_well() {
    let after_an_end = (0..60).map(|second| (NEVER, second));
    let after_a_crash = (20..100).step_by(9).flat_map(|first| (3..40).step_by(4).map(move |second| (first, second)));
    at_every_point(Mode::CrashBefore, after_an_end.chain(after_a_crash));
}

/// Published files belong to their users: one is deleted before the compaction, the whole dataset after the seal.
#[test]
fn what_users_delete_blocks_nothing() {
    run(async {
        let world = World::new(RETIRE_AFTER);
        let living = world.start("col-1", 1, LOG_RETENTION, Switch::new(NEVER, Mode::Lost));
        world.sleep_until(21).await;
        let (first, _) = world.store.files_below("d").into_iter().next().expect("it is published");
        world.store.delete(&first, false).await.unwrap();
        world.sleep_until(60).await;
        world.store.delete("d", true).await.unwrap();
        world.sleep_until(DRAIN).await;
        let records = world.records();
        let missing = records.iter().find_map(|record| match &record.action {
            Some(Action::Compact(compact)) => Some(compact.missing.clone()),
            _ => None,
        });
        assert_eq!(missing, Some(vec![first]), "named once");
        assert!(records.iter().any(|record| matches!(record.action, Some(Action::Seal(_)))), "sealed all the same");
        let answered = world.answered.lock().unwrap().len();
        assert_eq!(answered, world.batches.len(), "commits go on");
        let covered = world.store.files_below("_catchment/checkpoints").pop().expect("checkpoints go on").0;
        let last = proto::record::number_name(records.len() as u64 - 3);
        assert!(covered.rsplit('/').next().unwrap() >= last.as_str(), "{covered} of {}", records.len());
        assert!(world.store.files_below("_catchment/commits").len() < records.len() / 2, "the log is cleaned");
        assert_eq!(living.snapshot.borrow().unfinished_records, 0);
    });
}

/// What a dead run committed and did not publish stays in its directory for as long as it cannot be brought out of it.
#[test]
fn a_directory_is_kept_until_what_was_committed_is_out_of_it() {
    for point in (15..90).step_by(2) {
        run(async {
            let world = World::new(RETIRE_AFTER);
            leave_a_ghost(&world).await;
            let first = world.start("col-1", 1, LOG_RETENTION, Switch::new(point, Mode::CrashAfter));
            first.switch.struck.notified().await;
            first.task.abort();
            let switch = Switch::new(NEVER, Mode::Lost);
            switch.refuses.store(true, std::sync::atomic::Ordering::SeqCst);
            let second = world.start("col-2", 2, 1000, Arc::clone(&switch));
            tokio::time::sleep(Duration::from_secs(RETIRE_AFTER * 4)).await;
            // Nor does any checkpoint hide it from the next one.
            second.task.abort();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let second = world.start("col-2", 3, LOG_RETENTION, Switch::new(NEVER, Mode::Lost));
            world.sleep_until((world.now() + AFTER).max(DRAIN + AFTER)).await;
            check::files_match_the_log(&world.store, &world.records());
            assert_eq!(staging(&world.store).len(), 1, "at {point}");
            assert!(!second.task.is_finished());
        });
    }
}
