//! What Catchment is shown with: the log writer, a local cluster of real processes, the verifier and the commands
//! `gen`, `run`, `demo`, `verify` and `chaos` of `catchment-loadtest`.

pub mod cli;
pub mod event_id;
pub mod generate;
pub mod hadoop;
pub mod verify;
