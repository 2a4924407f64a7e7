//! When is a partition complete: marks, the seal and its marker.
//!
//! - [`rule`]: pure: what a partition waits for, or what its seal says,
//! - [`inventory`]: the optional list of agents that are expected,
//! - [`marker`]: `_SUCCESS` and `_INCOMPLETE`.
//!
//! There is no event-time watermark: an agent says what it has read, and a partition is complete when every agent's
//! word is in the log with everything below it.

pub mod inventory;
pub mod marker;
pub mod rule;
pub mod times;
pub mod wait;

pub use inventory::Inventory;
pub use marker::{Marker, finish_marker, marker};
pub use rule::{Rule, Verdict, assess, evaluate, holds};
pub use wait::Wait;

#[cfg(test)]
mod tests;
