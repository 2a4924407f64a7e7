//! What a change to the destination belongs to: so that it can be counted that every step of everything a collector does
//! was a crash point.

use std::collections::BTreeMap;

use collector::housekeeping;
use proto::wire;
use proto::wire::commit_record::Action;

/// One change that a run asked the store for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub op: &'static str,
    /// Where a rename comes from.
    pub from: Option<String>,
    pub path: String,
}

/// Everything that the story must hold.
pub const ALL: [&str; 9] =
    ["start", "sign of life", "publish", "compact", "seal", "retire", "expire", "checkpoint", "clean"];

/// Knows which record a draft became and a staged file is named by.
#[derive(Debug, Default)]
pub struct Kinds {
    /// By the name of a draft, and by staged paths of files.
    records: BTreeMap<String, &'static str>,
}

impl Kinds {
    pub fn new(records: &[wire::CommitRecord]) -> Self {
        let mut known = BTreeMap::new();
        for record in records {
            let kind = housekeeping::name(record);
            let id: String = record.commit_id.iter().map(|byte| format!("{byte:02x}")).collect();
            known.insert(format!("draft-{id}"), kind);
            let files = match &record.action {
                Some(Action::Publish(publish)) => &publish.files,
                Some(Action::Compact(compact)) => &compact.files,
                _ => continue,
            };
            known.extend(files.iter().map(|file| (file.staged.clone(), kind)));
        }
        Self { records: known }
    }

    /// What a change belongs to; none for one that no rule here knows.
    pub fn of(&self, change: &Change) -> Option<&'static str> {
        let subject = change.from.as_deref().unwrap_or(&change.path);
        let name = subject.rsplit('/').next().unwrap_or_default();
        let kind = match (change.op, name) {
            ("make_dirs", _) if subject.matches('/').count() <= 1 && subject.starts_with("_catchment") => "start",
            ("make_dir_new", _) => "start",
            ("make_dirs", _) => "publish",
            (_, name) if name.starts_with("format-") => "start",
            (_, name) if name.starts_with("seen-") => "sign of life",
            (_, name)
                if name.starts_with("marker-")
                    || name.starts_with("taken-")
                    || name == "_SUCCESS"
                    || name == "_INCOMPLETE" =>
            {
                "seal"
            }
            (_, name) if name.starts_with("checkpoint-") => "checkpoint",
            ("rename", _) if change.path.ends_with(".gone") => "retire",
            ("delete", _) if subject.ends_with(".gone") => "retire",
            ("delete", _) if subject.starts_with("_catchment/commits/") => "clean",
            ("delete", _) if subject.starts_with("_catchment/checkpoints/") => "clean",
            // What a compaction replaced.
            ("delete", _) if !subject.starts_with("_catchment/") => "compact",
            (_, name) if name.starts_with("draft-") => return self.records.get(name).copied(),
            _ => return self.records.get(subject).copied(),
        };
        Some(kind)
    }
}
