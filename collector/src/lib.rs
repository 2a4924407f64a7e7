//! collector

pub mod store;
