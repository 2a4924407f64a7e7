//! Everything that goes through the log besides publications: retire, expire, compact, seal, forget, abandon; and what
//! is deleted when. Here: which records conflict with which drafts. Pure.
//!
//! - [`seen`], [`life`], [`look`]: signs of life, and who is dead,
//! - [`keeper`]: pure: what is to be done next,
//! - [`clean`]: freeing old numbers of the log,
//! - [`clock`]: whether the wall clock may be trusted,
//! - [`expiry`]: origins whose time is over,
//! - [`retention`]: old quarantine and dead letters.

pub mod clean;
pub mod clock;
pub mod expiry;
pub mod keeper;
pub mod life;
pub mod look;
pub mod retention;
pub mod seen;

use proto::wire;
use proto::wire::commit_record::Action;

use crate::commit::Draft;
use crate::ledger::committed::covers;
use crate::log::View;
use crate::log::view::{Applied, partitions};

/// What a record does, as a word for logs and tools.
pub fn name(record: &wire::CommitRecord) -> &'static str {
    match record.action {
        Some(Action::Publish(_)) => "publish",
        Some(Action::Retire(_)) => "retire",
        Some(Action::Expire(_)) => "expire",
        Some(Action::Compact(_)) => "compact",
        Some(Action::Seal(_)) => "seal",
        Some(Action::Forget(_)) => "forget",
        Some(Action::Abandon(_)) => "abandon",
        None => "unknown",
    }
}

/// Does a record that was read while `draft` is under way conflict with it, beyond the seqs that both cover? `view`
/// has the record; `seal_holds` judges a seal by it.
pub fn conflicts(
    draft: &Draft,
    record: &wire::CommitRecord,
    applied: &Applied,
    view: &View,
    seal_holds: impl FnOnce(&wire::Seal) -> bool,
) -> bool {
    let covered = |agent: &str, origin: Option<&[u8]>| {
        applied.covers.iter().any(|cover| {
            cover.key.agent.as_str() == agent && origin.is_none_or(|origin| origin == cover.key.origin.to_bytes())
        })
    };
    match &draft.record.action {
        Some(Action::Publish(publish)) => {
            publish_conflicts(publish, applied) || expired_conflicts(publish, record, view)
        }
        Some(Action::Retire(retire)) => {
            record.incarnation == retire.incarnation || applied.retired.as_ref() == Some(&retire.incarnation)
        }
        Some(Action::Expire(expire)) => {
            expire.origins.iter().any(|id| covered(&id.agent, Some(&id.origin)))
                || applied.expired.iter().any(|key| {
                    expire.origins.iter().any(|id| id.agent == key.agent.as_str() && id.origin == key.origin.to_bytes())
                })
        }
        Some(Action::Forget(forget)) => covered(&forget.agent, None),
        Some(Action::Abandon(abandon)) => covered(&abandon.agent, Some(&abandon.origin)),
        Some(Action::Compact(compact)) => !compact_holds(compact, view),
        // Evaluated again on every record that came between.
        Some(Action::Seal(seal)) => !seal_holds(seal),
        None => true,
    }
}

fn publish_conflicts(publish: &wire::Publish, applied: &Applied) -> bool {
    let sealed = publish.files.iter().any(|file| {
        let key = partitions::key(0, &file.dataset, file.partition.as_ref());
        file.kind() == wire::FileKind::Data && key.is_ok_and(|key| applied.sealed.contains(&key))
    });
    let named = |agent: &str, origin: &[u8]| {
        applied
            .expired
            .iter()
            .chain(&applied.abandoned)
            .any(|key| key.agent.as_str() == agent && key.origin.to_bytes() == origin)
            || applied.forgotten.as_ref().is_some_and(|forgotten| forgotten.as_str() == agent)
    };
    sealed || publish.covers.iter().any(|cover| named(&cover.agent, &cover.origin))
}

/// Would it make an origin known that a record just expired, or made too old to be known? Such a batch may only be
/// listed as expired from now on.
fn expired_conflicts(publish: &wire::Publish, record: &wire::CommitRecord, view: &View) -> bool {
    if !matches!(record.action, Some(Action::Expire(_))) {
        return false;
    }
    let known = |cover: &wire::OriginCover| wire::OriginCover { expired: None, ..cover.clone() };
    covers(0, &wire::Publish { files: Vec::new(), covers: publish.covers.iter().map(known).collect() })
        .is_ok_and(|covers| covers.iter().any(|cover| !cover.seqs.is_empty() && view.is_expired(&cover.key)))
}

/// Are the inputs of a compaction still all there, in a partition that is not sealed?
pub fn compact_holds(compact: &wire::Compact, view: &View) -> bool {
    let Ok(key) = partitions::key(0, &compact.dataset, compact.partition.as_ref()) else { return false };
    let open = view.partitions().open().find(|(open, _, _)| **open == key);
    open.is_some_and(|(_, _, open)| {
        let mut inputs = compact.replaced.iter().chain(&compact.missing);
        inputs.all(|path| open.files.contains_key(crate::log::layout::name(path)))
    })
}
