//! The command line of `catchment-loadtest`.

mod arguments;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::cluster::Program;
use crate::{chaos, demo, generate, run, verify};

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
    /// Pushes files through a cluster of its own and compares what comes out.
    Run(arguments::Run),
    /// Shows everything at once: live logs, kills, and the verdict.
    Demo(arguments::Demo),
    /// Compares logs with what lies at a destination.
    Verify(arguments::Verify),
    /// Runs with kills at random instants, round by round.
    Chaos(arguments::Chaos),
}

/// Runs one command.
pub fn run_from_args(args: Vec<OsString>) -> Result<ExitCode> {
    match Arguments::parse_from(args).command {
        Command::Gen(arguments) => gen_command(&arguments),
        Command::Run(arguments) => run_command(&arguments),
        Command::Demo(arguments) => demo_command(&arguments),
        Command::Verify(arguments) => verify_command(&arguments),
        Command::Chaos(arguments) => chaos_command(&arguments),
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
    Ok(code(outcome.is_exact()))
}

fn run_command(arguments: &arguments::Run) -> Result<ExitCode> {
    let finished = run::run(&arguments.options()?, Program::current()?)?;
    if let Some(path) = arguments.report() {
        run::report::write(&run::report::json(&finished), path)?;
    }
    say(&verify::report::table(&finished.outcome))?;
    say(run::report::cost(&finished).trim_end())?;
    say(verify::report::verdict(&finished.outcome).trim_end())?;
    Ok(code(finished.outcome.is_exact()))
}

fn demo_command(arguments: &arguments::Demo) -> Result<ExitCode> {
    let options = arguments.options();
    let outcome = demo::demo(&options, Program::current()?)?;
    say(&verify::report::table(&outcome))?;
    say(&demo::how_to_read(&options.dir)?)?;
    say(verify::report::verdict(&outcome).trim_end())?;
    Ok(code(outcome.is_exact()))
}

fn chaos_command(arguments: &arguments::Chaos) -> Result<ExitCode> {
    let mut reports = Vec::new();
    let options = arguments.options();
    say(&format!("seed {}", options.seed))?;
    let exact = chaos::chaos(&options, &Program::current()?, &mut |report| {
        say(&report.to_string())?;
        reports.push(report);
        match arguments.report() {
            Some(path) => run::report::write(&serde_json::Value::from(reports.clone()), path),
            None => Ok(()),
        }
    })?;
    say(if exact {
        "verdict: every event once, in every round, with a process of each tier killed"
    } else {
        "verdict: NOT good: see the rounds"
    })?;
    Ok(code(exact))
}

fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One line on standard output.
pub(crate) fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("standard output is closed")
}
