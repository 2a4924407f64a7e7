//! `catchment-collector run | check | seal | log | audit | deadletter | quarantine | --dump-config`.

pub mod audit;
pub mod findings;
pub mod letters;
pub mod log;
mod output;
pub mod quarantine;
pub mod seal;

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{Parser, Subcommand};
use common::supervise::Shutdown;

use crate::config::Config;
use crate::log::layout;
use crate::run::Collector;
use crate::store::{self, Store, StoreError};

/// Tier 3 of Catchment: writes batches into partition files and commits them, each exactly once.
#[derive(Debug, Parser)]
#[command(name = "catchment-collector", version)]
pub struct Cli {
    /// The configuration file [default: /etc/catchment/collector.toml].
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Prints the whole configuration, with every default, and ends.
    #[arg(long)]
    dump_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Read when no other is named.
const DEFAULT_CONFIG: &str = "/etc/catchment/collector.toml";

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Runs until SIGTERM (the default).
    Run,
    /// Checks the configuration and looks at the destination; changes nothing.
    Check,
    /// Shows which days are complete and what others wait for; seals by hand; gives up what is lost.
    #[command(subcommand)]
    Seal(seal::Command),
    /// Shows the commit log; checks that it and everything it names are whole.
    #[command(subcommand)]
    Log(log::Command),
    /// Says where the counts of events close, where they do not, and whom to ask.
    Audit(audit::Audit),
    /// Shows events that could not be placed, and writes them out for a replay.
    #[command(name = "deadletter", subcommand)]
    Letters(letters::Command),
    /// Shows batches that could not be decoded or placed, and writes their events out for a replay.
    #[command(subcommand)]
    Quarantine(quarantine::Command),
}

/// Does what the command line says. `print` takes what is for standard output.
pub async fn execute(cli: Cli, print: impl Fn(&str)) -> anyhow::Result<()> {
    if !cli.dump_config {
        // These may do without a configuration.
        let config = cli.config.as_deref();
        match &cli.command {
            Some(Command::Seal(command)) => return seal::execute(command, config, print).await,
            Some(Command::Log(command)) => return log::execute(command, config, print).await,
            Some(Command::Audit(asked)) => return audit::execute(asked, config, print).await,
            Some(Command::Letters(command)) => return letters::execute(command, config, print).await,
            Some(Command::Quarantine(command)) => return quarantine::execute(command, config, print).await,
            Some(Command::Run | Command::Check) | None => {}
        }
    }
    let path = cli.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
    let config: Config = common::config::load(path)?;
    if cli.dump_config {
        print(&common::config::dump(&config));
        return Ok(());
    }
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => {
            let shutdown = Shutdown::on_signals(config.drain_deadline.get())?;
            Collector::start(config, shutdown).await?.join().await
        }
        Command::Check => check(&config, print).await,
        _ => unreachable!("done above"),
    }
}

async fn check(config: &Config, print: impl Fn(&str)) -> anyhow::Result<()> {
    print(&format!("configuration: good, {} dataset(s) declared", config.datasets.len()));
    if let Some(path) = config.destination.url.strip_prefix("file://")
        && !std::path::Path::new(path).is_dir()
    {
        print(&format!("destination {}: no such directory yet, it is made at the first start", config.destination.url));
        return Ok(());
    }
    let store = store::open(&config.destination)?;
    look(&*store, &config.destination.url, print).await
}

async fn look(store: &dyn Store, url: &str, print: impl Fn(&str)) -> anyhow::Result<()> {
    let root = match store.stat("").await {
        Ok(Some(stat)) if stat.is_dir => stat,
        Ok(Some(_)) => bail!("destination {url}: it is a file, not a directory"),
        Ok(None) => {
            print(&format!("destination {url}: reachable, no such directory yet, it is made at the first start"));
            return Ok(());
        }
        Err(error) => bail!("destination {url}: not reachable: {error}"),
    };
    match store.read(layout::FORMAT, 64).await {
        Ok(format) => print(&format!("destination {url}: in use, format {}", String::from_utf8_lossy(&format).trim())),
        Err(StoreError::NotFound { .. }) => print(&format!("destination {url}: reachable, not used yet")),
        Err(error) => bail!("destination {url}: {} cannot be read: {error}", layout::FORMAT),
    }
    if root.mode & 0o222 == 0 {
        bail!("destination {url}: nobody may write there (mode {:o})", root.mode);
    }
    if let Some(path) = url.strip_prefix("file://")
        && rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_err()
    {
        bail!("destination {url}: this user may not write there (mode {:o})", root.mode);
    }
    print(&format!("destination {url}: writable as far as its mode ({:o}) says", root.mode));
    Ok(())
}
