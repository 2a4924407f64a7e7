//! The collector's process: command line in, exit code out.

use std::io::Write;

use clap::Parser;
use collector::cli::{Cli, execute};

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    common::telemetry::init_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let print = |text: &str| {
        // A reader that has gone away needs no more lines.
        let _ = writeln!(std::io::stdout(), "{text}");
    };
    let result = runtime.block_on(execute(cli, print));
    // Work that is left on the blocking pool must not hold the end back.
    runtime.shutdown_background();
    result
}
