//! Which origins expire: complete or abandoned ones, a horizon after their last commit; and which agents are forgotten.
//! Pure.
//!
//! Only a record of the log lets an origin go, never a checkpoint: from that record on its leftovers are quarantined as
//! expired, and never make it known again.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::ids::{AgentName, Origin};
use proto::wire;

use crate::housekeeping::clock;
use crate::ledger::OriginKey;
use crate::log::View;
use crate::log::view::origins::standing;

/// Origins and expired sets in one record, each.
const AT_ONCE: usize = 4000;

/// An agent without any record for so long is forgotten.
const FORGET_AFTER_MS: i64 = 7 * 24 * 3_600_000;

/// Agents that partitions wait for and that wrote nothing for a week in which others did: while the destination is
/// down, or nothing comes in at all, nobody is silent. What a collector with a fast clock wrote says nothing of others.
pub fn silent(view: &View, now_unix_ms: i64) -> BTreeSet<AgentName> {
    let latest = now_unix_ms.saturating_add(i64::try_from(clock::WITHIN.as_millis()).unwrap_or(i64::MAX));
    let times = view.origins().agents().map(|(_, row)| row.last_record_unix_ms);
    let newest = times.filter(|time| *time <= latest).max().unwrap_or(0);
    let agents = view.origins().agents().filter(|(agent, row)| {
        row.is_in_the_log()
            && row.forgotten_unix_ms.is_none()
            && !row.origins.is_empty()
            && newest.saturating_sub(row.last_record_unix_ms) > FORGET_AFTER_MS
            && !row.standing(agent, view.committed()).has_left()
    });
    agents.map(|(agent, _)| agent.clone()).collect()
}

/// What expires now; none if nothing does. `view` must have read the whole log, which the commit proves.
pub fn due(view: &View, horizon: Duration, now_unix_ms: i64) -> Option<wire::Expire> {
    let span = i64::try_from(horizon.as_millis()).unwrap_or(i64::MAX);
    // Only what was minted before it as well: else a leftover of it would not be known for expired.
    let horizon_unix_ms = now_unix_ms.saturating_sub(span).max(view.horizon_unix_ms());
    let before = now_unix_ms.saturating_sub(span);
    let old = |key: &OriginKey| i64::try_from(key.origin.unix_ms()).is_ok_and(|minted| minted < horizon_unix_ms);
    let mut origins: Vec<OriginKey> = Vec::new();
    for (agent, row) in view.origins().agents() {
        let quiet = |origin: &Origin| {
            let last = view.committed().last_commit_unix_ms(agent, *origin);
            last.is_some_and(|last| last < before)
        };
        // Judging an agent costs more than looking at its times.
        if !row.origins.keys().any(quiet) {
            continue;
        }
        // One with holes is kept: forgotten, it would block a seal for ever.
        let complete = standing::complete(agent, row, view.committed()).into_iter().filter(quiet);
        origins.extend(complete.map(|origin| OriginKey { agent: agent.clone(), origin }).filter(old));
    }
    let sets = view.expired().iter().filter(|(_, _, _, last)| *last < before);
    let mut sets: Vec<OriginKey> = sets.map(|(agent, origin, ..)| OriginKey { agent: agent.clone(), origin }).collect();
    if origins.is_empty() && sets.is_empty() {
        return None;
    }
    for keys in [&mut origins, &mut sets] {
        keys.sort();
        keys.truncate(AT_ONCE);
    }
    let ids = |keys: Vec<OriginKey>| {
        let ids =
            keys.into_iter().map(|key| wire::OriginId { agent: key.agent.to_string(), origin: key.origin.to_bytes() });
        ids.collect()
    };
    Some(wire::Expire { origins: ids(origins), horizon_unix_ms, expired_sets: ids(sets) })
}

#[cfg(test)]
mod tests {
    use proto::ids::BatchId;
    use proto::intervals::IntervalSet;
    use proto::wire::commit_record::Action;

    use super::*;

    const HORIZON: Duration = Duration::from_secs(30 * 86_400);
    const DAY: i64 = 86_400_000;

    fn cover(origin: Origin, data: &[u64], close: Option<u64>) -> wire::OriginCover {
        let set: IntervalSet = data.iter().copied().collect();
        wire::OriginCover {
            agent: "web-1".into(),
            origin: origin.to_bytes(),
            data: (!data.is_empty()).then(|| (&set).into()),
            closes: close.map(|seq| wire::SeqClose { seq, close: Some(wire::Close::default()) }).into_iter().collect(),
            ..Default::default()
        }
    }

    fn apply(view: &mut View, at: i64, action: Action) {
        let record = wire::CommitRecord {
            time_unix_ms: at,
            incarnation: "x".into(),
            action: Some(action),
            ..Default::default()
        };
        view.apply(view.next(), &record).unwrap();
    }

    fn publish(cover: wire::OriginCover) -> Action {
        Action::Publish(wire::Publish { files: Vec::new(), covers: vec![cover] })
    }

    #[test]
    fn complete_and_abandoned_ones_expire_a_horizon_after_their_last_commit() {
        let mut view = View::default();
        let origins = [1, 2, 3, 4].map(|at| Origin::mint(at, 7));
        apply(&mut view, 10, publish(cover(origins[0], &[0, 1], Some(2))));
        apply(&mut view, 10, publish(cover(origins[1], &[0, 2], Some(3))));
        apply(&mut view, 10, publish(cover(origins[2], &[0, 1], None)));
        apply(&mut view, 10, publish(cover(origins[3], &[0, 2], Some(3))));
        let abandon = wire::Abandon { agent: "web-1".into(), origin: origins[3].to_bytes(), ..Default::default() };
        apply(&mut view, 10, Action::Abandon(abandon));
        assert_eq!(due(&view, HORIZON, 30 * DAY), None);
        let expire = due(&view, HORIZON, 30 * DAY + 11).unwrap();
        let named: Vec<_> = expire.origins.iter().map(|id| id.origin.clone()).collect();
        assert_eq!(named, [origins[0].to_bytes(), origins[3].to_bytes()], "not the one with a hole, nor the open one");
        assert_eq!(expire.horizon_unix_ms, 11);
        apply(&mut view, 30 * DAY + 11, Action::Expire(expire));
        assert_eq!(due(&view, HORIZON, 31 * DAY), None);
        let key = OriginKey { agent: AgentName::new("web-1").unwrap(), origin: origins[0] };
        assert!(view.is_expired(&key) && !view.is_expired(&OriginKey { origin: origins[1], ..key.clone() }));
        // A leftover of it: quarantined, listed apart, and that is forgotten in its turn.
        let left = wire::OriginCover {
            data: None,
            expired: Some(wire::IntervalSet { bounds: vec![1, 2] }),
            ..cover(origins[0], &[], None)
        };
        apply(&mut view, 31 * DAY, publish(left));
        assert!(view.is_expired(&key), "it is not known again");
        let id = BatchId { agent: key.agent.clone(), origin: key.origin, seq: 1 };
        assert!(view.expired().contains(&id) && !view.committed().contains(&id));
        let expire = due(&view, HORIZON, 61 * DAY + 1).unwrap();
        assert_eq!((expire.origins.len(), expire.expired_sets.len()), (0, 1));
    }

    #[test]
    fn one_that_was_minted_by_a_clock_ahead_stays_until_that_time_is_past() {
        let mut view = View::default();
        let ahead = Origin::mint(5 * DAY as u64, 7);
        apply(&mut view, 10, publish(cover(ahead, &[0], Some(1))));
        assert_eq!(due(&view, HORIZON, 31 * DAY), None);
        assert!(due(&view, HORIZON, 36 * DAY).is_some());
    }
}
