//! The command line: `run` (the default), `status`, `leave`, `check`, `mask --show`, `outbox show | check | export | adopt`,
//! and `--dump-config`.

pub mod admin_client;
mod check;
mod export;
pub mod leave;
pub mod outbox;
pub mod status;

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use common::supervise::Shutdown;

use self::leave::Way;
use self::outbox::OutboxCommand;
use crate::agent::owner::End;
use crate::agent::{self, Tuning};
use crate::config::AgentConfig;
use crate::intercept::mask::{self, MaskConfig, Masker};

#[derive(Debug, Parser)]
#[command(
    name = "catchment-edge-agent",
    version,
    about = "Tails logs, masks personal data and ships batches to aggregators"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Configuration file.
    #[arg(long, short, global = true, env = "CATCHMENT_CONFIG", default_value = "/etc/catchment/edge-agent.toml")]
    config: PathBuf,
    /// Print the configuration with all defaults and exit.
    #[arg(long, global = true)]
    dump_config: bool,
    /// Read the matched files to their end, send everything, leave, and exit when all is acked.
    #[arg(long, global = true)]
    once: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent (the default).
    Run,
    /// This agent does not come back: read to the end, send everything, say *left*. Asks the running agent; without one
    /// this command does it.
    Leave,
    /// What the running agent says, and what lies in its state directory.
    Status {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// List every matched file with the event time of its first line, and every problem.
    Check,
    /// Show what masking would change.
    Mask {
        /// A file with log lines.
        #[arg(long)]
        show: PathBuf,
    },
    /// Look after the state directory.
    Outbox {
        #[command(subcommand)]
        command: OutboxCommand,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(&cli) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}

fn execute(cli: &Cli) -> Result<ExitCode> {
    if let Some(Command::Mask { show }) = &cli.command {
        return mask(cli, show);
    }
    let config: AgentConfig = common::config::load(&cli.common.config)?;
    if cli.common.dump_config {
        std::io::stdout().write_all(common::config::dump(&config).as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    match &cli.command {
        None | Some(Command::Run) => run(config, cli.common.once),
        Some(Command::Leave) => match leave::ask_running(&config)? {
            Way::Here => run(config, true),
            Way::Asked => leave::wait(&config, &mut std::io::stdout().lock()),
        },
        Some(Command::Status { json }) => status::run(&config, *json, &mut std::io::stdout().lock()),
        Some(Command::Check) => check::run(&config, &mut std::io::stdout().lock()),
        Some(Command::Outbox { command }) => outbox::run(&config, command, &mut std::io::stdout().lock()),
        Some(Command::Mask { .. }) => Ok(ExitCode::SUCCESS),
    }
}

fn run(config: AgentConfig, once: bool) -> Result<ExitCode> {
    common::telemetry::init_logging();
    let shutdown = Shutdown::on_signals(config.drain_deadline.get()).context("listening for signals")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
    let end = runtime.block_on(agent::run(config, once, Tuning::default(), shutdown));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match end? {
        End::Clean => Ok(ExitCode::SUCCESS),
        End::Unfinished(problems) => {
            problems.iter().for_each(|problem| complain(problem));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Without a configuration file the defaults are shown: replacing tokens.
fn mask(cli: &Cli, file: &Path) -> Result<ExitCode> {
    let config = if cli.common.config.exists() {
        common::config::load::<AgentConfig>(&cli.common.config)?.mask
    } else {
        MaskConfig::default()
    };
    let input = File::open(file).with_context(|| format!("{} cannot be opened", file.display()))?;
    mask::show(&mut Masker::new(&config)?, BufReader::new(input), BufWriter::new(std::io::stdout().lock()))
        .with_context(|| format!("showing {}", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn complain(text: &str) {
    // Nowhere is left to complain about a stderr that is closed.
    let _ = writeln!(std::io::stderr(), "catchment-edge-agent: {text}");
}
