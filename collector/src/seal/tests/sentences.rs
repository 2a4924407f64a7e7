//! Each sentence of the rule with a log that would be sealed, or wait for ever, without it. Day 0 ends at 24 h and is
//! due at 28 h.

use super::*;
use crate::seal::{assess, holds};

const DUE: i64 = 28 * HOUR;
const UNTIL: i64 = 32 * HOUR;
/// T of a mark that is early, one that is late enough.
const EARLY: i64 = 12 * HOUR;
const T: i64 = DUE + MINUTE;

fn a(at: i64) -> Cover {
    Cover::of("a", run(at))
}

/// Agent a with one batch in day 0 and no mark.
fn one_batch() -> Log {
    let mut log = Log::new();
    log.publish(vec![a(1).root().data([1])], &[(0, 0)]);
    log.at(T + MINUTE);
    log
}

#[test]
fn a_day_waits_for_its_lateness_and_then_for_a_mark() {
    let mut log = one_batch();
    log.at(DUE - 1);
    assert_eq!(log.verdict(0), Verdict::NotYet { due_unix_ms: DUE });
    assert_eq!(log.says(1), "not judged", "nothing is in it");
    log.at(DUE);
    assert_eq!(log.says(0), "waits: a silent");
    log.publish(vec![a(1).mark(2, DUE - 1)], &[]);
    assert_eq!(log.says(0), "waits: a silent", "its T is too early");
    log.publish(vec![a(1).mark(3, DUE)], &[]);
    assert_eq!(log.says(0), "complete");
    log.datasets.clear();
    assert_eq!(log.says(0), "not judged", "not declared here");
}

#[test]
fn a_mark_counts_when_all_below_it_is_committed() {
    let mut log = one_batch();
    log.publish(vec![a(1).mark(3, T)], &[]);
    assert_eq!(log.says(0), "waits: a missing_batches");
    let Verdict::Waits { for_, until_unix_ms } = log.verdict(0) else { panic!() };
    assert_eq!((until_unix_ms, for_[0].origin), (UNTIL, Some(run(1))));
    assert_eq!(for_[0].missing.iter().collect::<Vec<_>>(), [(2, 3)]);
    assert!(for_[0].advice.contains("--seqs 2 "), "{}", for_[0].advice);
    log.publish(vec![a(1).data([2])], &[(0, 0)]);
    assert_eq!(log.says(0), "complete");
}

#[test]
fn a_mark_ahead_of_the_clock_does_not_count() {
    let mut log = one_batch();
    log.at(T);
    let applied = log.publish(vec![a(1).mark(2, T + MINUTE + 1)], &[]);
    assert_eq!(
        applied.marks_ahead.iter().map(|(key, by)| (key.origin, *by)).collect::<Vec<_>>(),
        [(run(1), MINUTE + 1)]
    );
    assert_eq!(log.says(0), "waits: a silent");
    let applied = log.publish(vec![a(1).mark(3, T + MINUTE)], &[]);
    assert!(applied.marks_ahead.is_empty());
    assert_eq!(log.says(0), "complete");
}

#[test]
fn every_origin_up_the_chain_must_be_complete() {
    let mut log = one_batch();
    log.publish(vec![a(2).after(run(1), 3).mark(1, T)], &[]);
    assert_eq!(log.says(0), "waits: a missing_batches", "seq 2 of the first run");
    log.publish(vec![a(1).data([2])], &[(0, 0)]);
    assert_eq!(log.says(0), "complete");
    // Two more runs, the first of which has nothing in the log.
    log.publish(vec![a(4).after(run(3), 1).mark(1, T)], &[]);
    assert_eq!(log.says(0), "waits: a missing_batches", "a run that is named and not in the log is not complete");
    log.publish(vec![a(3).after(run(2), 2)], &[]);
    assert_eq!(log.says(0), "complete");
}

#[test]
fn a_run_whose_open_is_missing_blocks() {
    let mut log = one_batch();
    log.publish(vec![a(1).mark(2, T)], &[]);
    assert_eq!(log.says(0), "complete");
    log.publish(vec![a(2).data([1]).mark(2, T)], &[]);
    assert_eq!(log.says(0), "waits: a missing_batches");
    log.publish(vec![a(2).after(run(1), 3)], &[]);
    assert_eq!(log.says(0), "complete");
    // An open that was quarantined says nothing.
    log.publish(vec![a(3).data([0]).mark(1, T)], &[]);
    assert_eq!(log.says(0), "waits: a missing_batches");
}

#[test]
fn a_mark_up_the_chain_counts() {
    let mut log = one_batch();
    log.publish(vec![a(1).mark(2, T).data([3])], &[]);
    log.publish(vec![a(2).after(run(1), 4).data([2])], &[(0, 0)]);
    assert_eq!(log.says(0), "complete", "everything that was there at T is below the mark");
}

#[test]
fn a_close_is_no_mark_and_only_names_the_end() {
    let mut log = one_batch();
    log.publish(vec![a(1).close(2, false)], &[]);
    assert_eq!(log.says(0), "waits: a silent");
    log.publish(vec![a(2).after(run(1), 3).mark(1, T)], &[]);
    assert_eq!(log.says(0), "complete");
}

#[test]
fn two_ends_or_a_seq_at_an_end_contradict() {
    let mut two = one_batch();
    two.publish(vec![a(1).mark(2, T)], &[]);
    two.publish(vec![a(2).after(run(1), 3).mark(1, T)], &[]);
    assert_eq!(two.says(0), "complete");
    two.publish(vec![a(3).after(run(1), 4).mark(1, T)], &[]);
    assert_eq!(two.says(0), "waits: a contradicted");
    let mut above = one_batch();
    above.publish(vec![a(1).mark(2, T), a(2).after(run(1), 3).mark(1, T)], &[]);
    assert_eq!(above.says(0), "complete");
    above.publish(vec![a(1).mark(3, T)], &[]);
    assert_eq!(above.says(0), "waits: a contradicted");
    let mut close = one_batch();
    close.publish(vec![a(1).mark(2, T).close(3, true).data([4])], &[]);
    assert_eq!(close.says(0), "waits: a contradicted");
}

#[test]
fn both_lines_of_a_fork_need_marks() {
    let mut log = one_batch();
    log.publish(vec![a(2).after(run(1), 2).mark(1, T)], &[]);
    assert_eq!(log.says(0), "complete");
    log.publish(vec![a(3).after(run(1), 2).mark(1, EARLY)], &[]);
    assert_eq!(log.says(0), "waits: a silent");
    log.publish(vec![a(3).mark(2, T)], &[]);
    assert_eq!(log.says(0), "complete");
}

#[test]
fn left_counts_for_its_own_origin_while_that_is_a_leaf() {
    let mut log = one_batch();
    log.publish(vec![a(1).close(3, true)], &[]);
    assert_eq!(log.says(0), "waits: a missing_batches", "seq 2 is missing below it");
    log.publish(vec![a(1).data([2])], &[(0, 0)]);
    assert_eq!(log.says(0), "complete", "nobody is a member any more");
    log.publish(vec![Cover::of("b", run(1)).root()], &[]);
    assert_eq!(log.says(0), "waits: b silent", "others still are");
    log.publish(vec![Cover::of("b", run(1)).mark(1, T)], &[]);
    assert_eq!(log.says(0), "complete");
    log.publish(vec![a(2).after(run(1), 4)], &[]);
    assert_eq!(log.says(0), "waits: a silent", "its successor does not inherit it");
    log.publish(vec![a(2).mark(1, T)], &[]);
    assert_eq!(log.says(0), "complete");
}

#[test]
fn after_left_an_emptied_directory_starts_anew() {
    let mut log = one_batch();
    log.publish(vec![a(1).close(2, true)], &[]);
    log.publish(vec![a(2).root()], &[]);
    assert_eq!(log.says(0), "waits: a silent");
    log.publish(vec![a(2).mark(1, T)], &[]);
    assert_eq!(log.says(0), "complete");
    let mut emptied = one_batch();
    emptied.publish(vec![a(2).root().mark(1, T)], &[]);
    assert_eq!(emptied.says(0), "waits: a silent", "without left the old run is a leaf and silent");
}

#[test]
fn a_historical_load_needs_a_mark_half_an_hour_after_its_last_batch() {
    let load = || {
        let mut log = Log::new();
        log.at(100 * HOUR);
        log.publish(vec![a(1).root().mark(1, 100 * HOUR)], &[]);
        log.publish(vec![a(1).data([2]), Cover::of("b", run(1)).root().mark(1, 100 * HOUR)], &[(0, 0)]);
        log
    };
    let mut log = load();
    assert_eq!(log.says(0), "waits: a silent", "b has no batch in it and its mark is late enough");
    log.at(101 * HOUR);
    log.publish(vec![a(1).mark(3, 100 * HOUR + 30 * MINUTE - 1)], &[]);
    assert_eq!(log.says(0), "waits: a silent");
    log.publish(vec![a(1).mark(4, 100 * HOUR + 30 * MINUTE)], &[]);
    assert_eq!(log.says(0), "complete");
    let mut left = load();
    left.publish(vec![a(1).close(3, true)], &[]);
    assert_eq!(left.says(0), "complete");
    let mut forgotten = load();
    forgotten.forget("a");
    assert_eq!(forgotten.says(0), "waits: a forgotten");
    forgotten.at(100 * HOUR + 30 * MINUTE + 4 * HOUR);
    assert_eq!(forgotten.says(0), "incomplete: a forgotten", "it is given the time that any partition has");
}

#[test]
fn waiting_ends_and_names_who_was_waited_for() {
    let mut log = one_batch();
    log.publish(vec![a(1).mark(2, EARLY), Cover::of("b", run(2)).root().data([1]).mark(3, T)], &[]);
    log.at(UNTIL - 1);
    assert_eq!(log.says(0), "waits: a silent, b missing_batches");
    log.at(UNTIL);
    let Verdict::Ready(seal) = log.verdict(0) else { panic!() };
    assert!(!seal.complete);
    assert_eq!((seal.events, seal.files, seal.bytes, seal.due_unix_ms), (1, 1, 10, DUE));
    assert_eq!((seal.gaps[0].agent.as_str(), seal.gaps[0].last_mark_unix_ms), ("a", Some(EARLY)));
    assert_eq!(seal.gaps[1].missing.as_ref().unwrap().bounds, [2, 3]);
    assert_eq!(seal.gaps[1].missing_from, Some(4));
    log.publish(vec![a(1).mark(3, T), Cover::of("b", run(2)).data([2])], &[]);
    assert_eq!(log.says(0), "complete", "however late it is");
}

#[test]
fn the_inventory_names_those_that_were_never_seen() {
    let mut log = one_batch();
    log.publish(vec![a(1).mark(2, T)], &[]);
    log.inventory.update([name("a"), name("z")].into(), 0);
    assert_eq!(log.says(0), "waits: z never_seen");
    log.at(UNTIL);
    assert_eq!(log.says(0), "incomplete: z never_seen");
    log.publish(vec![Cover::of("z", run(1)).root().mark(1, T)], &[]);
    assert_eq!(log.says(0), "complete");
    log.forget("z");
    log.publish(vec![a(2).after(run(1), 3)], &[]);
    assert_eq!(log.says(0), "complete", "its word is in");
}

#[test]
fn an_agent_that_left_a_complete_inventory_is_not_waited_for() {
    let mut log = one_batch();
    log.publish(vec![a(1).mark(2, T), Cover::of("b", run(1)).root().mark(1, EARLY)], &[]);
    log.inventory = Inventory::new(true);
    log.inventory.update([name("a")].into(), log.now + 1);
    log.now += HOUR;
    assert_eq!(log.says(0), "waits: b silent", "missing for less than an hour");
    log.now += 1;
    let Verdict::Ready(seal) = log.verdict(0) else { panic!() };
    assert_eq!(log.says(0), "incomplete: b departed");
    assert_eq!(seal.gaps[0].last_mark_unix_ms, Some(EARLY));
    log.publish(vec![Cover::of("b", run(1)).mark(2, T)], &[]);
    assert_eq!(log.says(0), "complete", "its last T is late enough");
}

#[test]
fn what_was_abandoned_is_not_waited_for_and_never_complete_for_a_day() {
    let mut log = one_batch();
    log.publish(vec![a(1).data([4]).mark(5, T)], &[(2, 0)]);
    log.abandon("a", run(1), &[(2, 4)]);
    assert_eq!(log.says(0), "incomplete: a abandoned");
    let (seal, _) = assess(&log.rule(), &log.view, &key(0), log.now).unwrap();
    assert_eq!((seal.gaps[0].missing.as_ref().unwrap().bounds.clone(), seal.gaps[0].missing_from), (vec![2, 4], None));
    // Day 2 begins at 48 h, less than 24 h after; day 3 does not.
    let late = 4 * DAY + 4 * HOUR;
    log.at(late);
    log.publish(vec![a(1).data([6]).mark(7, late)], &[(3, 0)]);
    assert_eq!(log.says(2), "incomplete: a abandoned");
    assert_eq!(log.says(3), "complete");
    log.publish(vec![a(1).data([2, 3])], &[(0, 0)]);
    assert_eq!(log.says(0), "complete", "it came after all");
}

#[test]
fn an_abandoned_leaf_is_not_waited_for_but_somebody_must_vouch() {
    let mut log = one_batch();
    log.abandon("a", run(1), &[]);
    assert_eq!(log.says(0), "waits: a silent", "no leaf is left");
    log.publish(vec![a(2).root().mark(1, T)], &[]);
    assert_eq!(log.says(0), "incomplete: a abandoned");
    let (seal, waits) = assess(&log.rule(), &log.view, &key(0), log.now).unwrap();
    assert_eq!((seal.gaps[0].missing_from, waits.len()), (Some(2), 0));
    log.at(2 * DAY + 4 * HOUR);
    log.publish(vec![a(2).data([2]).mark(3, 5 * DAY)], &[(3, 0)]);
    log.at(5 * DAY);
    log.publish(vec![a(2).mark(4, 5 * DAY)], &[]);
    assert_eq!(log.says(3), "complete");
}

#[test]
fn when_the_run_of_a_live_clone_is_abandoned_the_original_goes_on() {
    let mut log = one_batch();
    // The clone goes on from the copy, the original does not know of it.
    log.publish(vec![a(7).after(run(1), 2).data([1]).mark(2, T), a(1).data([2]).mark(3, T)], &[(0, 0)]);
    assert_eq!(log.says(0), "waits: a contradicted");
    log.abandon("a", run(7), &[]);
    assert_eq!(log.says(0), "incomplete: a abandoned", "nothing is waited for");
    log.publish(vec![a(8).after(run(1), 5).mark(1, T), a(1).data([4])], &[]);
    assert_eq!(log.says(0), "incomplete: a abandoned", "the original started again");
    log.at(4 * DAY + 4 * HOUR);
    log.publish(vec![a(8).data([2]).mark(3, 4 * DAY + 4 * HOUR)], &[(3, 0)]);
    assert_eq!(log.says(3), "complete");
}

#[test]
fn a_restored_directory_blocks_until_what_it_came_from_is_abandoned() {
    let mut log = one_batch();
    log.publish(vec![a(1).mark(2, T), a(2).restored(run(1)).mark(1, T)], &[]);
    assert_eq!(log.says(0), "waits: a restored");
    log.publish(vec![a(3).after(run(2), 2).mark(1, T)], &[]);
    assert_eq!(log.says(0), "waits: a restored", "also the runs after it");
    log.abandon("a", run(1), &[]);
    assert_eq!(log.says(0), "incomplete: a abandoned");
    // A copy of a directory in which no run had begun is as good as an empty one.
    let mut image = Log::new();
    let open = wire::Open { restored: true, ..Default::default() };
    image.publish(vec![a(1).open(open).data([1])], &[(0, 0)]);
    image.at(T);
    image.publish(vec![a(1).mark(2, T)], &[]);
    assert_eq!(image.says(0), "complete");
}

#[test]
fn a_forgotten_agent_is_no_member_until_its_next_record() {
    let mut log = one_batch();
    log.publish(vec![Cover::of("b", run(1)).root().data([1]).mark(2, T)], &[]);
    assert_eq!(log.says(0), "waits: a silent");
    log.forget("a");
    assert_eq!(log.says(0), "complete");
    // It comes back with its directory: what it had counts as before.
    log.publish(vec![a(log.now + MINUTE).after(run(1), 3).mark(1, T)], &[]);
    assert_eq!(log.says(0), "waits: a missing_batches");
    log.publish(vec![a(1).data([2])], &[(0, 0)]);
    assert_eq!(log.says(0), "complete");
    let mut nobody = one_batch();
    nobody.forget("a");
    assert_eq!(nobody.says(0), "waits: - silent", "there must be somebody whose word counts");
}

#[test]
fn after_forget_a_new_root_takes_the_old_runs_out_and_a_day_of_doubt_stays() {
    let mut log = one_batch();
    log.publish(vec![Cover::of("b", run(1)).root().mark(1, T)], &[]);
    log.forget("a");
    let root = log.now + MINUTE;
    // The old run goes on arriving: it is no new root, and a member again.
    log.publish(vec![a(1).mark(2, EARLY)], &[]);
    assert_eq!(log.says(0), "waits: a silent");
    log.at(root + MINUTE);
    log.publish(vec![a(root).root().mark(1, T)], &[]);
    assert_eq!(log.says(0), "waits: a forgotten", "the old run may have more");
    log.at(UNTIL);
    assert_eq!(log.says(0), "incomplete: a forgotten");
    // Days that begin more than 24 h after the root are not in doubt.
    let late = 4 * DAY + 4 * HOUR;
    log.at(3 * DAY);
    log.publish(vec![a(root).data([2])], &[(2, 0), (3, 0)]);
    log.at(late);
    log.publish(vec![a(root).mark(3, late), Cover::of("b", run(1)).mark(2, late)], &[]);
    assert_eq!(log.says(2), "incomplete: a forgotten");
    assert_eq!(log.says(3), "complete");
    // A run that was closed may have had a successor that nobody saw before the directory was emptied.
    let mut closed = one_batch();
    closed.publish(vec![a(1).mark(2, T).close(3, false)], &[]);
    closed.forget("a");
    closed.now += MINUTE;
    closed.publish(vec![a(closed.now).root().mark(1, T)], &[]);
    assert_eq!(closed.says(0), "waits: a forgotten");
    let mut left = one_batch();
    left.publish(vec![a(1).mark(2, T).close(3, true)], &[]);
    left.forget("a");
    left.now += MINUTE;
    left.publish(vec![a(left.now).root().mark(1, T)], &[]);
    assert_eq!(left.says(0), "complete");
    // The old root may arrive late: it is not the new one.
    let mut old = Log::new();
    old.publish(vec![a(1).data([1])], &[(0, 0)]);
    old.forget("a");
    old.at(T);
    old.publish(vec![a(1).root().mark(2, T)], &[]);
    assert_eq!(old.says(0), "complete");
}

#[test]
fn what_expired_complete_is_as_good_as_known() {
    let mut log = one_batch();
    log.publish(vec![a(2).after(run(1), 2), a(3).after(run(2), 1)], &[]);
    log.expire("a", &[run(1), run(2)]);
    log.publish(vec![a(3).mark(1, T)], &[]);
    assert_eq!(log.says(0), "complete");
    // Off for longer than the horizon: the open names what has expired.
    let mut off = one_batch();
    off.publish(vec![a(1).close(2, false)], &[]);
    off.expire("a", &[run(1)]);
    off.publish(vec![a(2).after(run(1), 3).mark(1, T)], &[]);
    assert_eq!(off.says(0), "complete");
    let mut longer = one_batch();
    longer.publish(vec![a(1).close(2, false)], &[]);
    longer.expire("a", &[run(1)]);
    longer.publish(vec![a(2).after(run(1), 4).mark(1, T)], &[]);
    assert_eq!(longer.says(0), "waits: a missing_batches", "it had one more that never came");
    // One that expired before its predecessor leaves that one its end.
    let mut before = one_batch();
    before.publish(vec![a(2).after(run(1), 2), a(3).after(run(2), 1).mark(1, T)], &[]);
    before.expire("a", &[run(2)]);
    assert_eq!(before.says(0), "complete");
    before.expire("a", &[run(1)]);
    assert_eq!(before.says(0), "complete");
}

#[test]
fn only_what_is_complete_up_its_chain_may_expire() {
    use crate::log::view::origins::standing::complete;
    let mut log = one_batch();
    log.publish(vec![a(2).after(run(1), 3), a(3).after(run(2), 1), a(4).after(run(3), 1)], &[]);
    let all = |log: &Log| complete(&name("a"), log.view.origins().agent(&name("a")).unwrap(), log.view.committed());
    assert_eq!(all(&log), [], "the first has a hole");
    log.publish(vec![a(1).data([2])], &[(0, 0)]);
    assert_eq!(all(&log), [run(1), run(2), run(3)]);
    let mut unknown = Log::new();
    unknown.publish(vec![a(2).after(run(1), 1), a(3).after(run(2), 1)], &[]);
    assert_eq!(all(&unknown), []);
}

#[test]
fn an_agent_whose_runs_all_expired_is_no_member() {
    let mut log = one_batch();
    log.publish(vec![Cover::of("b", run(1)).root().mark(1, T)], &[]);
    log.publish(vec![a(1).close(2, true)], &[]);
    log.expire("a", &[run(1)]);
    assert_eq!(log.says(0), "complete");
}

#[test]
fn a_seal_draft_holds_only_while_it_says_what_the_log_says() {
    let ready = || {
        let mut log = one_batch();
        log.publish(vec![a(1).mark(2, T)], &[]);
        let Verdict::Ready(seal) = log.verdict(0) else { panic!() };
        (log, wire::Seal { partitions: vec![seal] })
    };
    let still = |log: &Log, seal: &wire::Seal| holds(&log.rule(), &log.view, seal, log.now + 5);
    let (mut log, seal) = ready();
    log.publish(vec![a(1).mark(3, T), Cover::of("a", run(1)).data([4])], &[(5, 0)]);
    assert!(still(&log, &seal), "nothing that matters came between");
    let (mut log, seal) = ready();
    log.publish(vec![a(1).data([3])], &[(0, 0)]);
    assert!(!still(&log, &seal), "an event of it");
    let (mut log, seal) = ready();
    log.publish(vec![Cover::of("b", run(1)).root()], &[]);
    assert!(!still(&log, &seal), "a new member");
    let (mut log, seal) = ready();
    log.publish(vec![a(7).after(run(1), 3)], &[]);
    assert!(still(&log, &seal), "a restart after the mark");
    log.publish(vec![a(1).data([3])], &[(5, 0)]);
    assert!(!still(&log, &seal), "the record that shows the fork");
    let (mut log, seal) = ready();
    log.seal(seal.partitions[0].clone());
    assert!(!still(&log, &seal), "sealed already");
    // By an operator: it need not wait, but its gaps must be right.
    let mut log = one_batch();
    let (by_hand, waits) = assess(&log.rule(), &log.view, &key(0), log.now).unwrap();
    assert!(!by_hand.complete && waits.len() == 1);
    let seal = wire::Seal { partitions: vec![wire::PartitionSeal { by: "ops".into(), ..by_hand.clone() }] };
    assert!(still(&log, &seal));
    assert!(!still(&log, &wire::Seal { partitions: vec![by_hand] }), "the rule would wait");
    log.publish(vec![a(1).mark(2, EARLY)], &[]);
    assert!(!still(&log, &seal), "the last T is another");
}
