//! What Catchment is shown with: the log writer, a local cluster of real processes, the verifier and the commands
//! `gen`, `run`, `demo`, `verify` and `chaos` of `catchment-loadtest`.

pub mod chaos;
pub mod cli;
pub mod cluster;
pub mod demo;
pub mod event_id;
pub mod generate;
pub mod hadoop;
pub mod live;
pub mod progress;
pub mod run;
pub mod tier;
pub mod verify;
