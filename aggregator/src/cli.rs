//! The command line: `run` (default), `check`, `drain`, `channel`, `--dump-config`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use common::config;
use common::supervise::Shutdown;

use crate::config::Config;
use crate::run::Aggregator;
use crate::status::Status;

const POLL: Duration = Duration::from_millis(200);
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes batches from agents into a durable channel and forwards them to collectors.
#[derive(Debug, Parser)]
#[command(name = "catchment-aggregator", version)]
pub struct Cli {
    /// The configuration file.
    #[arg(long, global = true, default_value = "/etc/catchment/aggregator.toml", env = "CATCHMENT_AGGREGATOR_CONFIG")]
    config: PathBuf,
    /// Print the configuration with every default filled in, and end.
    #[arg(long)]
    dump_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Run until SIGTERM.
    Run,
    /// Read the configuration, list every problem, and end.
    Check,
    /// Tell the running aggregator to stop.
    Drain {
        /// Take nothing more in, and wait until everything is delivered; the process goes on running.
        #[arg(long)]
        empty: bool,
    },
    /// Look into the durable channel, and set it right. Exit code: 0 all is well, 1 something was found, 2 it could not
    /// be looked at.
    Channel {
        #[command(subcommand)]
        tool: crate::tools::Tool,
    },
}

/// Parses the arguments and does what they say.
pub fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(Command::Channel { tool }) = cli.command {
        // It works without a configuration, too.
        return Ok(crate::tools::run(tool, &cli.config, &mut io::stdout()));
    }
    let config: Config = config::load(&cli.config)?;
    if cli.dump_config {
        io::stdout().write_all(config::dump(&config).as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => run(&config)?,
        Command::Check => writeln!(io::stdout(), "{}: no problem found", cli.config.display())?,
        Command::Drain { empty } => drain(config.admin.listen, empty)?,
        Command::Channel { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn run(config: &Config) -> anyhow::Result<()> {
    common::telemetry::init_logging();
    let shutdown = Shutdown::on_signals(config.drain_deadline.get())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build()?;
    runtime.block_on(async { Aggregator::start(config, shutdown).await?.join().await })
}

/// Few threads: the work is IO, and each one costs memory.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(1, 4))
}

fn drain(admin: SocketAddr, empty: bool) -> anyhow::Result<()> {
    request(admin, "POST", &format!("/drain?empty={empty}"))?;
    let mut out = io::stdout();
    if !empty {
        writeln!(out, "draining")?;
        return Ok(());
    }
    let mut last = None;
    loop {
        let status: Status = serde_json::from_str(&request(admin, "GET", "/status")?)?;
        if status.drained {
            writeln!(out, "drained: nothing is held")?;
            return Ok(());
        }
        if last != Some(status.held_batches) {
            writeln!(out, "{} batches, {} bytes held", status.held_batches, status.held_bytes)?;
            last = Some(status.held_batches);
        }
        std::thread::sleep(POLL);
    }
}

/// One request to the admin endpoint; the body of its answer.
pub(crate) fn request(admin: SocketAddr, method: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, ADMIN_TIMEOUT)
        .with_context(|| format!("no aggregator answers on {admin} (`admin.listen`); is it running?"))?;
    stream.set_read_timeout(Some(ADMIN_TIMEOUT))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the admin endpoint's answer is cut short")?;
    let code = head.split_whitespace().nth(1).unwrap_or("");
    if !code.starts_with('2') {
        bail!("the admin endpoint answered {code} to {method} {path}");
    }
    Ok(body.to_owned())
}
