//! Tier 3: takes batches from aggregators, stages them in partition files, and commits them to a destination that is
//! HDFS or a local directory, each exactly once.
//!
//! The path through the files: [`receive`] -> [`coordinator`] ([`ledger`], [`roll`]) -> [`partition_writer`]
//! ([`format`]) -> [`commit`] -> [`publish`] -> answers back. Beside it: [`store`] (one trait, two destinations),
//! [`log`] and [`replay`] (what lies in `_catchment/`), [`chores`] (roll-forward, checkpoints), [`owner`] (the task
//! that owns it all), [`run`] (wiring).
//!
//! Invariants held here: I1 (answers after the commit), I4 (a batch in one record at most), I5 and I9 (a record names
//! closed files, whole groups, and nothing is rewritten), I6 (a group is given up at its first storage error),
//! I7 (every queue bounded in bytes).

pub mod chores;
pub mod cli;
pub mod commit;
pub mod compact;
pub mod config;
pub mod coordinator;
pub mod format;
pub mod housekeeping;
pub mod ledger;
pub mod log;
pub mod metrics;
pub mod owner;
pub mod partition_writer;
pub mod publish;
pub mod quarantine;
pub mod receive;
pub mod replay;
pub mod roll;
pub mod run;
pub mod seal;
pub mod status;
pub mod store;
