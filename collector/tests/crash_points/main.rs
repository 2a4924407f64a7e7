//! A run is ended, stopped, or left without an answer at every change that it makes to the destination, one after the
//! other, in a story that holds everything a collector does: commits, quarantine, compaction, seal, a late file and its
//! marker, expiry, retiring a dead run and deleting its directory, checkpoints, cleaning of the log, the end of a drain.
//! Another run comes after it. Once on a store in memory that fails as HDFS does, once on the real local store.
//!
//! Held each time: nothing is lost, nothing is there twice, no number of the log is given twice, every record is
//! finished, markers say what is there, of the runs that are over nothing is left, and at the end there is no name at the
//! destination that need not be there.
//!
//! `CATCHMENT_POINT=<k> cargo test -p collector --test crash_points <test>` plays one point again. `--nocapture` shows how
//! many points there were of each kind.

mod base;
#[path = "../races/check.rs"]
mod check;
mod faulty;
mod judge;
mod kinds;
#[path = "../races/store.rs"]
mod store;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base::Base;
use faulty::{Mode, Switch};
use judge::judge;
use kinds::{Change, Kinds};
use proto::wire::commit_record::Action;
use store::Kept;
use world::{Run, World, staging};

/// When the first run is told to end, seconds after the beginning.
const DRAIN: u64 = 300;
/// When a stopped run is let go on.
const RELEASE_AFTER: u64 = 150;
/// From the start of the second run to the end, at least.
const AFTER: u64 = 220;
const LOG_RETENTION: u64 = 60;
const RETIRE_AFTER: u64 = 40;
/// How long a run that must end by itself may take for it.
const PATIENCE: Duration = Duration::from_secs(60);
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

/// What happens in a story besides what always happens.
#[derive(Debug, Clone, Copy)]
struct Story {
    /// The change of the first run at which something goes wrong, and what.
    point: u64,
    mode: Mode,
    /// The change at which the second run ends.
    second: u64,
    retire_after: u64,
    /// On the real local store.
    directory: bool,
    /// A stopped run is retired in the log, and its directory stays until it has ended.
    spares: bool,
}

impl Story {
    fn of(point: u64, mode: Mode) -> Self {
        Self { point, mode, second: NEVER, retire_after: RETIRE_AFTER, directory: false, spares: false }
    }

    /// Of the two the one that goes wrong.
    fn number(&self) -> u64 {
        if self.point == NEVER { self.second } else { self.point }
    }
}

/// What came of one story: changes that a run made, and why the first one ended if it was not told to.
#[derive(Debug, Default)]
struct Told {
    changes: u64,
    /// Changes of the first run.
    trace: Vec<Change>,
    /// What they belong to, as far as the log tells.
    kinds: Kinds,
    /// The change at which it went wrong.
    hit: Option<Change>,
    stop: Option<String>,
}

async fn play(story: Story) -> Told {
    let patient = story.retire_after > RETIRE_AFTER;
    let base = if story.directory { Base::directory() } else { Base::memory() };
    let world = World::new(base, story.retire_after);
    leave_a_ghost(&world).await;
    // One that is stopped must not be saved by its clock alone.
    let retention = if story.mode == Mode::Freeze { 100_000 } else { LOG_RETENTION };
    let mut first = world.start("col-1", 1, retention, Switch::new(story.point, story.mode));
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
    let switch = Arc::clone(&first.switch);
    if first.task.is_finished() {
        end(first, &mut told.stop).await;
    } else if story.mode == Mode::Freeze {
        zombie = Some(first);
    } else {
        first.task.abort();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // With patience records grow old enough to be cleaned before the one that is stopped is retired.
    let retention = if patient { LOG_RETENTION / 3 } else { LOG_RETENTION };
    let mut second = world.start("col-2", 2, retention, Switch::new(story.second, Mode::CrashBefore));
    if let Some(run) = zombie {
        second.switch.spares.store(story.spares, Ordering::SeqCst);
        let after = if patient { story.retire_after - 30 } else { RELEASE_AFTER };
        tokio::time::sleep(Duration::from_secs(after)).await;
        wake(&world, run, story, &mut told).await;
        second.switch.spares.store(false, Ordering::SeqCst);
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
    told.changes = switch.count();
    (told.trace, told.hit, told.kinds) = (switch.trace(), switch.hit(), Kinds::new(&world.records()));
    told
}

/// Lets a stopped run go on, until it has ended.
async fn wake(world: &World, mut run: Run, story: Story, told: &mut Told) {
    // One that was stopped while it began takes another name and lives.
    let began = !run.snapshot.borrow().incarnation.is_empty();
    if story.spares && began {
        let dir = format!("_catchment/staging/{}", run.snapshot.borrow().incarnation);
        assert!(world.kept.names().contains(&dir), "only the record says that it is retired");
    }
    run.switch.release();
    if story.spares && began {
        let ended = tokio::time::timeout(PATIENCE, &mut run.task).await;
        let ended = ended.unwrap_or_else(|_| panic!("it goes on {PATIENCE:?} after the record that retired it"));
        told.stop = ended.expect("it does not panic").err().map(|stop| stop.to_string());
        return;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    run.shutdown.drain();
    end(run, &mut told.stop).await;
}

/// Waits for the end of a run that was told to end.
async fn end(run: Run, stop: &mut Option<String>) {
    let ended = run.task.await.expect("it does not panic");
    *stop = ended.err().map(|stop| stop.to_string());
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
    /// The changes at which something went wrong, and what is known of what each belongs to.
    hits: Vec<(Change, Kinds)>,
}

/// Plays the stories, and says which it was if one ends badly.
fn play_all(stories: impl IntoIterator<Item = Story>) -> Played {
    let only = only();
    let mut played = Played::default();
    for story in stories {
        let number = story.number();
        if only.is_some_and(|only| only != number) {
            continue;
        }
        let told = std::panic::AssertUnwindSafe(|| run(play(story)));
        match std::panic::catch_unwind(told) {
            Ok(told) => {
                played.stories += 1;
                played.stops.extend(told.stop);
                played.hits.extend(told.hit.map(|hit| (hit, told.kinds)));
            }
            Err(panic) => {
                say(&format!("{story:?} failed: play it again with CATCHMENT_POINT={number}"));
                std::panic::resume_unwind(panic);
            }
        }
    }
    played
}

fn only() -> Option<u64> {
    std::env::var("CATCHMENT_POINT").ok().and_then(|text| text.parse().ok())
}

fn say(text: &str) {
    std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes()).unwrap();
}

/// How often there is each kind.
type Counts = BTreeMap<&'static str, u64>;

/// Every kind is there. One that is to be stopped keeps records for long, so it need not clean.
fn holds_everything(mode: Mode, counts: &Counts) {
    for kind in kinds::ALL.into_iter().filter(|kind| mode != Mode::Freeze || *kind != "clean") {
        assert!(counts.contains_key(kind), "nothing of the kind {kind:?}: {counts:?}");
    }
}

/// The story in which nothing goes wrong, which tells how many points there are.
fn whole(mode: Mode, directory: bool) -> Told {
    let told = run(play(Story { directory, ..Story::of(NEVER, mode) }));
    let mut counts = Counts::new();
    for change in &told.trace {
        let kind = told.kinds.of(change).unwrap_or_else(|| panic!("of no known kind: {change:?}"));
        *counts.entry(kind).or_default() += 1;
    }
    holds_everything(mode, &counts);
    told
}

/// Every change of the story is a point; something went wrong at each.
fn at_every_change(mode: Mode, change: impl Fn(Story) -> Story) -> Played {
    let directory = change(Story::of(NEVER, mode)).directory;
    let whole = whole(mode, directory);
    let played = play_all((0..whole.changes).map(|point| change(Story::of(point, mode))));
    let mut counts = Counts::new();
    for (hit, kinds) in &played.hits {
        // What a draft would have become is known from the story in which it did: names are the same in all of them.
        let kind = kinds.of(hit).or(whole.kinds.of(hit)).unwrap_or("unknown");
        *counts.entry(kind).or_default() += 1;
    }
    let place = if directory { "directory" } else { "memory" };
    say(&format!("{mode:?}, {place}: {} stories, {} points: {counts:?}", played.stories, played.hits.len()));
    if only().is_none() {
        holds_everything(mode, &counts);
        assert!(played.stories - played.hits.len() <= 5, "a story has a few changes more or less");
    }
    played
}

#[test]
fn a_run_that_ends_before_a_change_leaves_nothing_that_the_next_one_cannot_finish() {
    at_every_change(Mode::CrashBefore, |story| story);
}

#[test]
fn a_run_that_ends_after_a_change_leaves_nothing_that_the_next_one_cannot_finish() {
    at_every_change(Mode::CrashAfter, |story| story);
}

#[test]
fn with_real_files_a_run_that_ends_before_a_change_leaves_nothing() {
    at_every_change(Mode::CrashBefore, |story| Story { directory: true, ..story });
}

#[test]
fn with_real_files_a_run_that_ends_after_a_change_leaves_nothing() {
    at_every_change(Mode::CrashAfter, |story| Story { directory: true, ..story });
}

#[test]
fn a_change_that_is_carried_out_and_not_answered_is_settled() {
    at_every_change(Mode::ReplyLost, |story| story);
}

#[test]
fn a_change_that_is_never_carried_out_is_settled() {
    at_every_change(Mode::Lost, |story| story);
}

#[test]
fn a_change_that_is_carried_out_late_does_no_harm() {
    at_every_change(Mode::Late, |story| story);
}

/// Stopped before a change, retired and cleaned up after by another run, let go on.
#[test]
fn a_zombie_changes_nothing_and_says_why_it_stops() {
    let played = at_every_change(Mode::Freeze, |story| story);
    // Not those that were stopped while they began, and took another name, or at their very end.
    assert!(played.stories == 1 || played.stops.len() > played.stories * 3 / 4, "{:?}", played.stops);
    for stop in &played.stops {
        assert!(stop.contains("retired") || stop.contains("older than what is kept"), "{stop}");
        assert!(stop.contains("start"), "and what to do: {stop}");
    }
}

/// Whoever retired it did not come to its directory: everything that it knows is still there, but for the record.
#[test]
fn a_zombie_is_stopped_by_the_record_alone() {
    for directory in [false, true] {
        let played = at_every_change(Mode::Freeze, |story| Story { spares: true, directory, ..story });
        assert!(played.stories == 1 || played.stops.len() > played.stories * 3 / 4, "{:?}", played.stops);
        for stop in &played.stops {
            assert!(stop.contains("this run is retired by record"), "{stop}");
            assert!(stop.contains("written by col-2-") && stop.contains("start the collector again"), "{stop}");
        }
    }
}

/// Nobody retires it, but the log is cleaned: never past what it has read.
#[test]
fn a_run_that_is_stopped_holds_back_the_cleaning() {
    let played = play_all(
        (0..whole(Mode::Freeze, false).changes)
            .map(|point| Story { retire_after: 130, ..Story::of(point, Mode::Freeze) }),
    );
    assert!(played.stops.is_empty(), "{:?}", played.stops);
}

/// The run that finishes the work of the one before it ends itself at every change.
#[test]
fn whoever_cleans_up_may_end_as_well() {
    let story = |point, second| Story { second, ..Story::of(point, Mode::CrashBefore) };
    let after_an_end = (0..60).map(|second| story(NEVER, second));
    let after_a_crash =
        (20..100).step_by(9).flat_map(|first| (3..40).step_by(4).map(move |second| story(first, second)));
    play_all(after_an_end.chain(after_a_crash));
    let real = (20..100).step_by(13).flat_map(|first| (4..40).step_by(5).map(move |second| story(first, second)));
    play_all(real.map(|story| Story { directory: true, ..story }));
}

/// Published files belong to their users: one is deleted before the compaction, the whole dataset after the seal.
#[test]
fn what_users_delete_blocks_nothing() {
    run(async {
        let world = World::new(Base::memory(), RETIRE_AFTER);
        let living = world.start("col-1", 1, LOG_RETENTION, Switch::new(NEVER, Mode::Lost));
        world.sleep_until(21).await;
        let (first, _) = world.kept.files_below("d").into_iter().next().expect("it is published");
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
        let covered = world.kept.files_below("_catchment/checkpoints").pop().expect("checkpoints go on").0;
        let last = proto::record::number_name(records.len() as u64 - 3);
        assert!(covered.rsplit('/').next().unwrap() >= last.as_str(), "{covered} of {}", records.len());
        assert!(world.kept.files_below("_catchment/commits").len() < records.len() / 2, "the log is cleaned");
        assert_eq!(living.snapshot.borrow().unfinished_records, 0);
    });
}

/// What a dead run committed and did not publish stays in its directory for as long as it cannot be brought out of it.
#[test]
fn a_directory_is_kept_until_what_was_committed_is_out_of_it() {
    for point in (15..90).step_by(2) {
        run(async {
            let world = World::new(Base::memory(), RETIRE_AFTER);
            leave_a_ghost(&world).await;
            let first = world.start("col-1", 1, LOG_RETENTION, Switch::new(point, Mode::CrashAfter));
            first.switch.struck.notified().await;
            first.task.abort();
            let switch = Switch::new(NEVER, Mode::Lost);
            switch.refuses.store(true, Ordering::SeqCst);
            let second = world.start("col-2", 2, 1000, Arc::clone(&switch));
            tokio::time::sleep(Duration::from_secs(RETIRE_AFTER * 4)).await;
            // Nor does any checkpoint hide it from the next one.
            second.task.abort();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let second = world.start("col-2", 3, LOG_RETENTION, Switch::new(NEVER, Mode::Lost));
            world.sleep_until((world.now() + AFTER).max(DRAIN + AFTER)).await;
            check::files_match_the_log(&world.kept, &world.records());
            assert_eq!(staging(&world.kept).len(), 1, "at {point}");
            assert!(!second.task.is_finished());
        });
    }
}
