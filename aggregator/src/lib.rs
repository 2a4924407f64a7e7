//! Tier 2: takes batches from agents, answers when they are durable, and forwards them to collectors until those say
//! that they are committed.
//!
//! The main path in order: [`ingest`] (the RPCs), [`channel`] (segments and ledger), [`forward`] (streams to
//! collectors). [`declarations`] are what collectors say of datasets, on their way up to the agents; [`run`] puts the
//! process together, [`status`] says how it is, [`tools`] look into a channel and set it right.

pub mod channel;
pub mod cli;
pub mod config;
pub mod declarations;
pub mod forward;
pub mod ingest;
pub mod run;
pub mod status;
pub mod tools;
