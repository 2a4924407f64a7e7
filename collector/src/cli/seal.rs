//! `catchment-collector seal status | now | forget | abandon`: which days are complete, and what to do about the others.
//!
//! Each works beside running collectors, and where none runs: what it changes goes through the commit log.

mod acts;
mod now;
mod status;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use common::units::Span;
use proto::ids::{AgentName, DatasetName, Origin, Partition};

use super::DEFAULT_CONFIG;
use super::findings::acted;
use crate::commit::solo;
use crate::config::Config;
use crate::config::compaction::CompactionConfig;
use crate::config::dataset::DatasetConfig;
use crate::log::View;
use crate::log::view::PartitionKey;
use crate::publish::DirModes;
use crate::seal::inventory::{self, DEPARTED_AFTER_MS};
use crate::seal::times::parse_partition;
use crate::seal::{Inventory, Marker, Rule};
use crate::store::{self, DestinationConfig, Store};

/// What `seal` does.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Shows what every open day waits for, since when, and what to do; and what was sealed lately. Changes nothing.
    Status(Status),
    /// Seals by hand what is due, or one partition. Refuses where the counts do not close, unless it may be sealed as
    /// incomplete.
    Now(Now),
    /// Takes an agent that is gone for good out of the members, until its next record.
    Forget(Forget),
    /// Says that batches of a run will never come, so that nobody waits for them any more.
    Abandon(Abandon),
}

/// See [`Command::Status`].
#[derive(Debug, Clone, Args)]
pub struct Status {
    #[command(flatten)]
    place: Place,
    /// Only this dataset.
    #[arg(long, value_parser = parse_dataset)]
    dataset: Option<DatasetName>,
    /// Only this partition, e.g. `event_date=2026-11-20` or `event_date=2026-11-20/event_hour=05`.
    #[arg(long, value_parser = parse_partition_arg)]
    partition: Option<Partition>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// See [`Command::Forget`].
#[derive(Debug, Clone, Args)]
pub struct Forget {
    /// The agent's name.
    #[arg(value_parser = parse_agent)]
    agent: AgentName,
    /// Why; stands in the record.
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    how: How,
}

/// See [`Command::Now`].
#[derive(Debug, Clone, Args)]
pub struct Now {
    #[command(flatten)]
    place: Place,
    /// Only this dataset.
    #[arg(long, value_parser = parse_dataset)]
    dataset: Option<DatasetName>,
    /// Only this partition, e.g. `event_date=2026-11-20` or `event_date=2026-11-20/event_hour=05`. Default: all that
    /// are open and due.
    #[arg(long, value_parser = parse_partition_arg)]
    partition: Option<Partition>,
    /// Seal as incomplete where something is missing, or where a named partition is not due.
    #[arg(long)]
    incomplete: bool,
    /// Zone of the partitions, e.g. `UTC` or `Europe/Berlin`, where no configuration is given.
    #[arg(long, value_parser = parse_zone)]
    zone: Option<String>,
    /// How long after its end a partition is due, where no configuration is given.
    #[arg(long, default_value = "4h", requires = "zone")]
    lateness: Span,
    /// Who asked for it; stands in the seal. Default: the user's name.
    #[arg(long)]
    by: Option<String>,
    #[command(flatten)]
    how: How,
}

impl Now {
    /// Is it about all that fits, and not about one partition?
    fn names_many(&self) -> bool {
        self.dataset.is_none() || self.partition.is_none()
    }
}

/// See [`Command::Abandon`].
#[derive(Debug, Clone, Args)]
pub struct Abandon {
    #[command(flatten)]
    place: Place,
    /// The agent's name.
    #[arg(long, value_parser = parse_agent)]
    agent: AgentName,
    /// The run, 32 hex digits as `seal status` shows it.
    #[arg(long, value_parser = parse_origin)]
    origin: Origin,
    /// Its batches that will never come, e.g. `3-9,12`. Default: the run as a whole, with whatever it would still send.
    #[arg(long)]
    seqs: Option<String>,
    /// Why; stands in the record.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    how: How,
}

/// Where the log is.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// The destination, `file:///DIR` or `hdfs://HOST:PORT/DIR`, instead of the configuration's.
    #[arg(long, value_name = "URL")]
    dest: Option<String>,
}

/// How something is done.
#[derive(Debug, Clone, Copy, Args)]
pub struct How {
    /// Say what would happen, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Does it. `print` takes what is for standard output.
pub async fn execute(command: &Command, config: Option<&Path>, print: impl Fn(&str)) -> anyhow::Result<()> {
    acted(act(command, config, print)).await
}

async fn act(command: &Command, config: Option<&Path>, print: impl Fn(&str)) -> anyhow::Result<()> {
    match command {
        Command::Status(asked) => {
            let site = Site::open(&asked.place, config)?.with_inventory()?;
            let view = site.read().await?;
            let report = status::report(&site, &view, asked.dataset.as_ref(), asked.partition, site.now_unix_ms());
            print(&if asked.json { serde_json::to_string_pretty(&report)? } else { report.to_string() });
            Ok(())
        }
        Command::Now(now) => now::now(Site::open(&now.place, config)?.with_inventory()?, now, print).await,
        Command::Forget(forget) => acts::forget(Site::open(&forget.place, config)?, forget, print).await,
        Command::Abandon(abandon) => acts::abandon(Site::open(&abandon.place, config)?, abandon, print).await,
    }
}

/// A destination and what is declared for it.
pub(super) struct Site {
    pub(super) url: String,
    pub(super) store: Arc<dyn Store>,
    datasets: HashMap<DatasetName, Arc<DatasetConfig>>,
    inventory: Inventory,
    /// Where it is, and whether it names all agents.
    inventory_at: Option<(PathBuf, bool)>,
    /// A configuration was given.
    declared: bool,
    compaction: CompactionConfig,
    /// Dead letters or quarantine are deleted when they are old.
    pub(super) retention: bool,
}

impl Site {
    pub(super) fn open(place: &Place, config: Option<&Path>) -> anyhow::Result<Self> {
        let config: Option<Config> = match (config, &place.dest) {
            (None, Some(_)) => None,
            (path, _) => Some(common::config::load(path.unwrap_or(Path::new(DEFAULT_CONFIG)))?),
        };
        let mut destination = match &config {
            Some(config) => config.destination.clone(),
            None => DestinationConfig::new(""),
        };
        if let Some(url) = &place.dest {
            destination.url.clone_from(url);
        }
        if let Some(path) = destination.url.strip_prefix("file://")
            && !Path::new(path).is_dir()
        {
            bail!("destination {}: there is no such directory", destination.url);
        }
        let store = store::open(&destination)?;
        let mut site = Self {
            url: destination.url,
            store,
            datasets: HashMap::new(),
            inventory: Inventory::default(),
            inventory_at: config.as_ref().and_then(|config| {
                let keeping = &config.housekeeping;
                Some((keeping.inventory.clone()?, keeping.inventory_is_complete))
            }),
            declared: config.is_some(),
            compaction: config.as_ref().map(|config| config.compaction.clone()).unwrap_or_default(),
            retention: config.as_ref().is_some_and(|config| {
                let keeping = &config.housekeeping;
                keeping.quarantine_retention.is_some() || keeping.dead_letter_retention.is_some()
            }),
        };
        for dataset in config.iter().flat_map(|config| &config.datasets) {
            site.datasets.insert(DatasetName::new(&dataset.name)?, Arc::new(dataset.clone()));
        }
        Ok(site)
    }

    /// With the agents that are expected, for what judges partitions: nothing else needs the file, which may be missing here.
    fn with_inventory(mut self) -> anyhow::Result<Self> {
        let Some((path, is_complete)) = &self.inventory_at else { return Ok(self) };
        let named = || format!("inventory {}", path.display());
        let names = inventory::parse(&std::fs::read_to_string(path).with_context(named)?).with_context(named)?;
        self.inventory = Inventory::new(*is_complete);
        // Since when somebody is missing only the collectors know: here, for long enough.
        self.inventory.update(names, self.now_unix_ms() - DEPARTED_AFTER_MS);
        Ok(self)
    }

    /// A dataset that is declared, or is taken to be: `assumed` has its zone and lateness where no configuration is given.
    fn declare(&mut self, dataset: &DatasetName, assumed: Option<(&str, Span)>) -> anyhow::Result<()> {
        if self.datasets.contains_key(dataset) {
            return Ok(());
        }
        let Some((zone, allowed_lateness)) = assumed else {
            let names: Vec<&str> = self.datasets.keys().map(DatasetName::as_str).collect();
            bail!("dataset {dataset} is not declared in the configuration, which has {}", names.join(", "));
        };
        let assumed =
            DatasetConfig { zone: zone.to_owned(), allowed_lateness, ..DatasetConfig::named(dataset.as_str()) };
        self.datasets.insert(dataset.clone(), Arc::new(assumed));
        Ok(())
    }

    pub(super) async fn read(&self) -> anyhow::Result<View> {
        if !solo::is_in_use(&*self.store).await? {
            bail!("destination {}: no collector ever wrote there", self.url);
        }
        solo::read_only(&self.store).await.with_context(|| format!("the commit log of {}", self.url))
    }

    fn rule(&self) -> Rule<'_> {
        Rule { datasets: &self.datasets, inventory: &self.inventory }
    }

    pub(super) fn modes(&self) -> DirModes {
        let mode = |dataset: &Arc<DatasetConfig>| (dataset.name.clone(), dataset.dir_mode, dataset.group.clone());
        DirModes::new(self.datasets.values().map(mode))
    }

    /// A marker, readable as the files of its dataset are.
    pub(super) fn readable(&self, key: &PartitionKey, marker: Marker) -> Marker {
        match self.datasets.get(&key.dataset) {
            Some(dataset) => marker.readable_as(dataset),
            None => marker,
        }
    }

    pub(super) fn now_unix_ms(&self) -> i64 {
        common::clock::unix_ms()
    }
}

pub(super) fn parse_dataset(text: &str) -> Result<DatasetName, String> {
    DatasetName::new(text).map_err(|error| error.to_string())
}

pub(super) fn parse_agent(text: &str) -> Result<AgentName, String> {
    AgentName::new(text).map_err(|error| error.to_string())
}

fn parse_zone(text: &str) -> Result<String, String> {
    let known = jiff::tz::TimeZone::get(text).is_ok();
    known.then(|| text.to_owned()).ok_or_else(|| "no IANA time zone, e.g. UTC or Europe/Berlin".to_owned())
}

fn parse_origin(text: &str) -> Result<Origin, String> {
    text.parse().map_err(|_| "a run is 32 hex digits, as `seal status` shows them".to_owned())
}

fn parse_partition_arg(text: &str) -> Result<Partition, String> {
    parse_partition(text)
        .ok_or_else(|| "a partition is event_date=2026-11-20 or event_date=2026-11-20/event_hour=05".to_owned())
}

/// A name for records: the user's, on this host.
fn user() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "operator".into());
    let host = rustix::system::uname();
    format!("{user}@{}", host.nodename().to_string_lossy())
}
