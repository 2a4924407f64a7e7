//! collector

pub mod config;
pub mod format;
pub mod partition_writer;
pub mod quarantine;
pub mod store;
