//! Names under the destination root.

use proto::record::number_name;

use crate::commit::CommitId;

/// Everything of ours that readers must not see lies below it.
pub const ROOT: &str = "_catchment";
/// One record per commit.
pub const COMMITS: &str = "_catchment/commits";
/// What all records below a number say.
pub const CHECKPOINTS: &str = "_catchment/checkpoints";
/// One directory per incarnation.
pub const STAGING: &str = "_catchment/staging";
/// Single events that cannot be placed.
pub const DEAD_LETTER: &str = "_catchment/dead-letter";
/// Batches that cannot be placed.
pub const QUARANTINE: &str = "_catchment/quarantine";
/// The format of everything below [`ROOT`].
pub const FORMAT: &str = "_catchment/format";

/// Record `n`.
pub fn commit(n: u64) -> String {
    format!("{COMMITS}/{}", number_name(n))
}

/// The checkpoint of all records below `n`.
pub fn checkpoint(n: u64) -> String {
    format!("{CHECKPOINTS}/{}", number_name(n))
}

/// Names of one incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    incarnation: String,
}

impl Layout {
    /// For `<collector>-<utc yyyymmddThhmmssZ>-<8 hex>`.
    pub fn new(incarnation: &str) -> Self {
        Self { incarnation: incarnation.to_owned() }
    }

    /// Its name.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// Its own directory.
    pub fn staging(&self) -> String {
        format!("{STAGING}/{}", self.incarnation)
    }

    /// The draft of a commit.
    pub fn draft(&self, id: CommitId) -> String {
        format!("{STAGING}/{}/draft-{id}", self.incarnation)
    }

    /// What a draft becomes that must never be a record.
    pub fn void(&self, id: CommitId) -> String {
        format!("{STAGING}/{}/void-{id}", self.incarnation)
    }

    /// A small file before it gets its name; `id` is used once.
    pub fn small(&self, what: &str, id: CommitId) -> String {
        format!("{STAGING}/{}/{what}-{id}", self.incarnation)
    }
}

/// The last part of a path.
pub fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// The directory part of a path.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The name of a new incarnation.
pub fn incarnation_name(collector: &str, unix_ms: i64, random: u32) -> String {
    let at = jiff::Timestamp::from_millisecond(unix_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{collector}-{}-{random:08x}", at.strftime("%Y%m%dT%H%M%SZ"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pinned() {
        let layout = Layout::new(&incarnation_name("col-1", 1_763_700_000_000, 0xab));
        assert_eq!(layout.staging(), "_catchment/staging/col-1-20251121T044000Z-000000ab");
        let id = CommitId([0x1f; 16]);
        assert!(layout.draft(id).ends_with("/draft-1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f"));
        assert!(layout.void(id).ends_with("/void-1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f"));
        assert_eq!(commit(7), "_catchment/commits/00000000000000000007");
        assert_eq!(parent(&checkpoint(1)), CHECKPOINTS);
    }
}
