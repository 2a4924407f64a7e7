//! What every process of Catchment needs, and no word of one tier.
//!
//! - [`record_log`]: the durable append-only log under outbox and channel,
//! - [`reserve`]: room on a full disk for what cannot wait,
//! - [`frame`]: compressed payload frames, made and checked,
//! - [`config`], [`units`]: one TOML file per process, every problem listed at once,
//! - [`supervise`]: named tasks, signals, drain with a deadline,
//! - [`telemetry`], [`admin`]: logs, metrics, health,
//! - [`clock`]: the wall clock,
//! - [`ring`], [`peers`]: who talks to whom,
//! - [`log_format`], [`event_time`]: access-log lines and the time in them.

pub mod admin;
pub mod clock;
pub mod config;
pub mod event_time;
pub mod frame;
pub mod log_format;
pub mod peers;
pub mod record_log;
pub mod reserve;
pub mod ring;
pub mod supervise;
pub mod telemetry;
pub mod units;
