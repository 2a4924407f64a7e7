//! Tier 1, the edge agent: tails logs, masks personal data, cuts batches, stores them in the outbox and ships them to
//! aggregators. The main path, in order: `tail -> decode -> intercept -> cut -> outbox -> ship`.

pub mod agent;
pub mod cli;
pub mod config;
pub mod cut;
pub mod decode;
pub mod intercept;
pub mod outbox;
pub mod pipeline;
pub mod run;
pub mod ship;
pub mod status;
pub mod tail;
