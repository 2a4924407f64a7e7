//! Staging directories: whose, how far they have read, what lies in them.

use proto::record::parse_number;
use serde::Serialize;

use crate::housekeeping::seen;
use crate::log::{View, layout};
use crate::store::{Store, StoreError};

/// One directory.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Run {
    /// The incarnation.
    pub name: String,
    /// Records below this were read, as its sign says; none: it never showed one.
    pub read: Option<u64>,
    /// Drafts of commits that never became records.
    pub drafts: usize,
    /// Drafts that were taken back.
    pub voids: usize,
    /// Staged files and anything else.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The record that retires it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired_by: Option<u64>,
    /// It is fenced, and about to be deleted.
    pub fenced: bool,
}

/// Lists them all.
pub(super) async fn runs(store: &dyn Store, view: Option<&View>) -> anyhow::Result<Vec<Run>> {
    let dirs = match store.list(layout::STAGING).await {
        Ok(entries) => entries,
        Err(StoreError::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut runs = Vec::new();
    for dir in dirs.into_iter().filter(|entry| entry.is_dir) {
        let entries = match store.list(&format!("{}/{}", layout::STAGING, dir.name)).await {
            Ok(entries) => entries,
            Err(StoreError::NotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        let count = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
        let sign = seen::highest(names.iter().copied());
        let other = |name: &str| !["draft-", "void-", "seen-"].iter().any(|prefix| name.starts_with(prefix));
        let others = || entries.iter().filter(|entry| other(&entry.name));
        let incarnation = dir.name.strip_suffix(".gone").unwrap_or(&dir.name);
        runs.push(Run {
            read: sign.map(|sign| sign.read),
            drafts: count("draft-"),
            voids: count("void-"),
            files: others().count(),
            bytes: others().map(|entry| entry.bytes).sum(),
            retired_by: view.and_then(|view| view.incarnations().get(incarnation)?.retired_by),
            fenced: incarnation != dir.name,
            name: incarnation.to_owned(),
        });
    }
    runs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(runs)
}

/// What a file in `commits/` is called; none for a number that is none.
pub(super) fn number(text: &str) -> Option<u64> {
    text.parse().ok().or_else(|| parse_number(text))
}
