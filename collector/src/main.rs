//! The collector's process: command line in, exit code out.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use collector::cli::findings::Ended;
use collector::cli::{Cli, execute};

fn main() -> anyhow::Result<ExitCode> {
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
    let Err(error) = result else { return Ok(ExitCode::SUCCESS) };
    let ended = error.downcast::<Ended>()?;
    if !ended.message.is_empty() {
        let _ = writeln!(std::io::stderr(), "Error: {}", ended.message);
    }
    Ok(ExitCode::from(ended.code))
}
