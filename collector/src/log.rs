//! What lies in `_catchment/` besides staged files: the commit log, checkpoints and the format file. Thin IO.
//!
//! - `layout`: names,
//! - `view`: what records say together, pure,
//! - `files`: reading records and checkpoints, writing small files under a name that is used once.
//!
//! A damaged or newer file is never skipped: the process stops and says so.

pub mod files;
pub mod layout;
pub mod view;

pub use files::{LogError, LogFiles, ReadRecord};
pub use layout::Layout;
pub use view::View;
