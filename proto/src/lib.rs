//! What crosses a wire or lies in HDFS, and nothing else.
//!
//! - [`wire`]: the generated messages and services (`catchment/v1/*.proto`),
//! - [`ids`]: agent, origin, seq, dataset and partition as types that cannot be mixed up,
//! - [`header`]: the batch header, checked once where it enters a process,
//! - [`intervals`]: sets of seqs,
//! - [`reason`]: reasons for people, made fit to be shown,
//! - [`record`]: the envelope of commit records and checkpoints,
//! - [`dead_letter`]: the JSON line of one event that could not be placed.

pub mod dead_letter;
pub mod header;
pub mod ids;
pub mod intervals;
pub mod reason;
pub mod record;

/// Generated from `catchment/v1/*.proto`.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod wire {
    tonic::include_proto!("catchment.v1");
}

/// The newest format version of headers, payloads and commit records that this release reads and writes.
pub const FORMAT: u32 = 1;
/// Largest encoded batch header, in bytes.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Largest payload of a batch as it travels, in bytes. One event of the largest size that does not
/// compress fits with its frame overhead.
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024 * 1024;
/// Largest decoded payload of a batch, in bytes.
pub const MAX_RAW_BYTES: u64 = 16 * 1024 * 1024;
/// Largest request or stream message: payload, header and the fields around them.
pub const MAX_MESSAGE_BYTES: usize = MAX_PAYLOAD_BYTES + MAX_HEADER_BYTES + 64 * 1024;
/// Request metadata: the length of the encoded Append request, decimal.
pub const PAYLOAD_BYTES_HEADER: &str = "catchment-payload-bytes";
/// Request metadata: the agent's name, while no certificate names it.
pub const AGENT_HEADER: &str = "catchment-agent";
