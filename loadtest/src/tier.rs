//! The load tester's binary as any tier: called by the name of a tier's binary it is that tier, with that tier's own
//! command line. So one built binary is enough to run a whole cluster, each process of it a process of its own.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::cluster::spec::Tier;

/// The tier whose name this process was called by.
pub fn called_as(program: &OsStr) -> Option<Tier> {
    let name = Path::new(program).file_name()?;
    Tier::ALL.into_iter().find(|tier| name == tier.binary())
}

/// Set for processes that must not outlive who started them; their standard input is a pipe that closes with it.
pub const LEASH: &str = "CATCHMENT_LOADTEST_LEASH";

/// Set for processes that live by a fast clock: what [`common::clock::Fast::to_text`] gives.
pub const CLOCK: &str = "CATCHMENT_LOADTEST_CLOCK";

/// Is that tier until it ends.
pub fn main(tier: Tier) -> Result<ExitCode> {
    if let Ok(text) = std::env::var(CLOCK) {
        common::clock::run_fast(common::clock::Fast::parse(&text).context("the clock is none")?);
    }
    if std::env::var_os(LEASH).is_some() {
        std::thread::Builder::new().name("leash".into()).stack_size(64 * 1024).spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            std::process::abort();
        })?;
    }
    match tier {
        Tier::EdgeAgent => Ok(edge_agent::cli::main()),
        Tier::Aggregator => aggregator::cli::main(),
        Tier::Collector => collector_main(),
    }
}

/// The same as the collector's own `main`.
fn collector_main() -> Result<ExitCode> {
    let cli = collector::cli::Cli::parse();
    common::telemetry::init_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(collector::cli::execute(cli, |text| {
        let _ = crate::cli::say(text);
    }));
    runtime.shutdown_background();
    let Err(error) = result else { return Ok(ExitCode::SUCCESS) };
    let ended = error.downcast::<collector::cli::findings::Ended>()?;
    if !ended.message.is_empty() {
        let _ = writeln!(std::io::stderr(), "Error: {}", ended.message);
    }
    Ok(ExitCode::from(ended.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_tiers_are_tiers() {
        assert_eq!(called_as(OsStr::new("/usr/bin/catchment-aggregator")), Some(Tier::Aggregator));
        assert_eq!(called_as(OsStr::new("catchment-edge-agent")), Some(Tier::EdgeAgent));
        assert_eq!(called_as(OsStr::new("target/release/catchment-loadtest")), None);
    }
}
