//! What collectors declared of the datasets, as it came down from an aggregator.

use std::collections::BTreeMap;

use proto::wire;

/// The declarations received last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Declarations {
    /// By dataset.
    pub map: BTreeMap<String, wire::DatasetDeclaration>,
    /// Grows with each change; 0: none are known yet.
    pub version: u64,
}

/// A dataset that nobody has declared: nothing can be cut for it, the log is the buffer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dataset {0} is not declared; declare it in the collectors' configuration")]
pub struct Undeclared(pub String);

/// A declaration that this release cannot use.
pub(super) fn usable(declaration: &wire::DatasetDeclaration) -> Option<wire::Codec> {
    wire::Codec::try_from(declaration.codec).ok().filter(|codec| *codec != wire::Codec::Unspecified)
}
