//! The command line of `catchment-loadtest`.

mod arguments;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::generate;
use crate::verify;

/// Load generator, local cluster and verifier of Catchment.
#[derive(Debug, Parser)]
#[command(name = "catchment-loadtest", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes access logs of several hosts.
    Gen(arguments::Gen),
    /// Compares logs with what lies at a destination.
    Verify(arguments::Verify),
}

/// Runs one command.
pub fn run_from_args(args: Vec<OsString>) -> Result<ExitCode> {
    match Arguments::parse_from(args).command {
        Command::Gen(arguments) => gen_command(&arguments),
        Command::Verify(arguments) => verify_command(&arguments),
    }
}

fn gen_command(arguments: &arguments::Gen) -> Result<ExitCode> {
    let options = arguments.options()?;
    let began = Instant::now();
    let written = generate::generate(&options, &AtomicU64::new(0))?;
    let seconds = began.elapsed().as_secs_f64().max(1e-3);
    say(&format!(
        "{} lines, {} bytes in {}, {:.0} MB/s",
        verify::report::group(written.lines),
        verify::report::group(written.bytes),
        options.out.display(),
        written.bytes as f64 / 1e6 / seconds
    ))?;
    if written.destroyed > 0 {
        let destroyed = verify::report::group(written.destroyed);
        say(&format!(
            "{destroyed} lines were destroyed by truncation; {} beside each log says which",
            generate::log_file::DESTROYED_NAME
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn verify_command(arguments: &arguments::Verify) -> Result<ExitCode> {
    let outcome = verify::verify(&arguments.options()?)?;
    say(&verify::report::table(&outcome))?;
    say(verify::report::verdict(&outcome).trim_end())?;
    Ok(if outcome.is_exact() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line on standard output.
pub(crate) fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("standard output is closed")
}
