//! The dataset declarations received last, kept in the state directory so that an agent which starts while no aggregator
//! answers can cut all the same.

use std::io;
use std::path::Path;

use prost::Message;
use proto::wire;

use crate::outbox::state_dir::write_whole;
use crate::pipeline::Declarations;

/// From an aggregator's status.
pub fn from_status(status: &wire::NodeStatus) -> Declarations {
    Declarations {
        map: status.declarations.iter().map(|d| (d.name.clone(), d.clone())).collect(),
        version: status.declarations_version,
    }
}

/// Keeps them.
pub fn save(path: &Path, status: &wire::NodeStatus) -> io::Result<()> {
    let kept = wire::NodeStatus {
        declarations_version: status.declarations_version,
        declarations: status.declarations.clone(),
        ..Default::default()
    };
    write_whole(path, &kept.encode_to_vec())
}

/// Those kept; none at the first start, or when the file is damaged (they come again with the first answer).
pub fn load(path: &Path) -> Declarations {
    let kept = std::fs::read(path).ok().and_then(|bytes| wire::NodeStatus::decode(bytes.as_slice()).ok());
    from_status(&kept.unwrap_or_default())
}
