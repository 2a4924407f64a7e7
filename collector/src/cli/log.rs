//! `catchment-collector log show | verify | replay`: what the commit log says, whether it and everything it names are
//! whole, and what it gives when it is read again.
//!
//! Safe beside running collectors: nothing is written, except by `replay --finish`, which does what any collector that
//! starts does, and is idempotent. Damage is told by file, never repaired.

mod files;
mod finish;
mod fold;
mod read;
mod runs;
mod show;
mod verify;

use std::path::Path;

use clap::{Args, Subcommand};
use proto::ids::AgentName;

use super::findings::ended;
use super::seal::{Place, Site, parse_agent};

/// What `log` does.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Shows commit records. Changes nothing.
    Show(Show),
    /// Reads every record and checkpoint and looks for every file that they name. Changes nothing.
    Verify(Verify),
    /// Makes the view from records alone and says how it differs from checkpoints. Changes nothing, unless it is to finish.
    Replay(Replay),
}

/// See [`Command::Show`].
#[derive(Debug, Clone, Args)]
pub struct Show {
    /// A number, or `A..B` (B is not shown); the last 20 by default.
    range: Option<String>,
    /// Only what covers batches of this agent.
    #[arg(long, value_parser = parse_agent)]
    agent: Option<AgentName>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// See [`Command::Verify`].
#[derive(Debug, Clone, Args)]
pub struct Verify {
    /// Read every file that is named and compare its CRC32C.
    #[arg(long)]
    checksums: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// See [`Command::Replay`].
#[derive(Debug, Clone, Args)]
pub struct Replay {
    /// Stop before this record.
    #[arg(long, value_name = "N", conflicts_with = "finish")]
    to: Option<u64>,
    /// Bring staged files of committed records to their places, delete what was replaced, write markers: as a collector
    /// does when it starts.
    #[arg(long)]
    finish: bool,
    /// With `--finish`: say what would be done, and change nothing.
    #[arg(long, requires = "finish")]
    dry_run: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// Does it. `print` takes what is for standard output.
pub async fn execute(command: &Command, config: Option<&Path>, print: impl Fn(&str)) -> anyhow::Result<()> {
    ended(async {
        match command {
            Command::Show(asked) => show::show(&Site::open(&asked.place, config)?, asked, print).await,
            Command::Verify(asked) => verify::verify(&Site::open(&asked.place, config)?, asked, print).await,
            Command::Replay(asked) if asked.finish => {
                finish::finish(&Site::open(&asked.place, config)?, asked, print).await
            }
            Command::Replay(asked) => verify::replay(&Site::open(&asked.place, config)?, asked, print).await,
        }
    })
    .await
}
