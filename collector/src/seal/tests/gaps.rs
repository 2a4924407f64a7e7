//! What a seal keeps for ever when many words are missing, and what everything that stays costs in a checkpoint.

use prost::Message;

use super::*;
use crate::seal::marker::text;
use crate::seal::rule::NAMED_GAPS;

/// A day in which 150 agents have a batch and say no more, sealed when waiting was over.
fn silent() -> Log {
    let mut log = Log::new();
    let covers: Vec<Cover> =
        (0..150).map(|at| Cover::of(&format!("web-{at:03}"), run(at + 1)).root().data([1])).collect();
    log.publish(covers, &[(0, 0)]);
    log.at(32 * HOUR);
    let Verdict::Ready(seal) = log.verdict(0) else { panic!() };
    log.seal(seal);
    log
}

fn sealed(log: &Log) -> crate::log::view::partitions::SealedPartition {
    log.view.partitions().sealed(&key(0)).unwrap().clone()
}

/// Records until something old is looked for again.
fn fold(log: &mut Log) {
    for _ in 0..64 {
        log.forget("nobody");
    }
}

#[test]
fn a_seal_names_the_first_gaps_and_counts_the_others() {
    let log = silent();
    let sealed = sealed(&log);
    assert!(!sealed.seal.complete);
    assert_eq!((sealed.seal.gaps.len(), sealed.seal.more_gaps), (NAMED_GAPS, 50));
    let text = text(&key(0), &sealed);
    assert_eq!((text.gaps.len(), text.more_gaps, text.gaps[0].agent.as_str()), (NAMED_GAPS, 50, "web-000"));
    let sentence = "incomplete: events of web-000, web-001, web-002, web-003, web-004 and others may be missing, gaps \
                    names 100 of 150 reasons";
    assert_eq!(text.message, sentence);
}

#[test]
fn of_an_old_seal_fewer_gaps_are_kept_and_none_is_forgotten() {
    let mut log = silent();
    log.at(32 * HOUR + 30 * DAY);
    fold(&mut log);
    assert_eq!(sealed(&log).seal.gaps.len(), NAMED_GAPS, "a month is not over");
    log.at(32 * HOUR + 30 * DAY + 1);
    fold(&mut log);
    let sealed = sealed(&log);
    assert_eq!((sealed.seal.gaps.len(), sealed.seal.more_gaps, sealed.seal.complete), (10, 140, false));
    assert!(text(&key(0), &sealed).message.ends_with("gaps names 10 of 150 reasons"));
}

#[test]
fn a_gap_names_so_many_ranges() {
    let mut log = Log::new();
    let holes = (1..1000).filter(|seq| seq % 2 == 1);
    log.publish(vec![Cover::of("a", run(1)).root().data(holes)], &[(0, 0)]);
    log.at(32 * HOUR);
    let Verdict::Ready(seal) = log.verdict(0) else { panic!() };
    let gap = &seal.gaps[0];
    assert_eq!(gap.missing.as_ref().unwrap().bounds.len(), 200);
    assert_eq!(gap.missing_from, Some(202), "the first that is not named");
}

/// The figures of docs/housekeeping.md.
#[test]
fn what_stays_in_every_checkpoint_is_small() {
    let bytes = |log: &Log| log.view.to_checkpoint().encoded_len();
    let mut log = Log::new();
    let agent = |at: i64| Cover::of(&format!("web-{at:04}.example.org"), run(1_700_000_000_000 + at)).root().data([1]);
    log.publish(vec![agent(0)], &[(20_000, 0)]);
    let before = bytes(&log);
    log.publish((1..=100).map(agent).collect(), &[]);
    let of_a_run = (bytes(&log) - before) / 100;
    let before = bytes(&log);
    for day in 20_001..20_101 {
        log.publish(vec![agent(0)], &[(day, 0)]);
        log.now = 1_700_000_000_000;
        let seal = wire::PartitionSeal {
            dataset: "d".into(),
            partition: Some(key(day).partition.into()),
            complete: true,
            events: 1 << 30,
            files: 100,
            bytes: 1 << 40,
            due_unix_ms: 1_700_000_000_000,
            sealed_unix_ms: 1_700_000_000_000,
            ..Default::default()
        };
        log.seal(seal);
    }
    let of_a_seal = (bytes(&log) - before) / 100;
    let row = wire::AuditRow {
        agent: "web-0001.example.org".into(),
        dataset: "clickstream".into(),
        read: 1 << 40,
        cut: 1 << 40,
        published: 1 << 40,
        last_change_unix_ms: 1_700_000_000_000,
        ..Default::default()
    };
    let of_a_count = row.encoded_len();
    let of_a_gap = sealed(&silent()).seal.gaps[0].encoded_len() + 2;
    assert!(
        of_a_run < 120 && of_a_seal < 80 && of_a_count < 80 && of_a_gap < 80,
        "run and agent {of_a_run}, seal {of_a_seal}, count {of_a_count}, gap {of_a_gap}"
    );
}
