//! The commit: how staged groups become part of the log, exactly once, among any number of collectors.
//!
//! - [`draft`]: what a commit record says, built from what is staged,
//! - [`planner`]: pure: which step on the log comes next, whatever the last one answered,
//! - [`driver`]: thin: carries one step out on the store,
//! - [`solo`]: a tool that commits one action by itself.
//!
//! The rename of the draft to `commits/<n+1>` without overwrite is the commit point. No reply is not a no: an
//! unanswered rename is settled (draft renamed to `void-<commit id>`, or found in the log) before anything else is
//! decided. Whoever commits has read every record before its own; that is all the safety there is, and enough.

pub mod draft;
pub mod driver;
pub mod planner;
pub mod solo;

pub use draft::{CommitId, Draft};
pub use planner::{Effect, Outcome, Planner, Step, Stop};
