//! The collector's process: command line in, exit code out.

use clap::Parser;
use collector::cli::{Cli, execute};

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    common::telemetry::init_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    #[allow(clippy::print_stdout, reason = "what a command prints is its result")]
    let result = runtime.block_on(execute(cli, |text| println!("{text}")));
    // Work that is left on the blocking pool must not hold the end back.
    runtime.shutdown_background();
    result
}
