//! Arguments of the commands, and how they become options.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use bytesize::ByteSize;
use clap::Args;
use jiff::civil::Date;

use crate::cluster::spec::{Ack, Dataset};
use crate::generate::{self, Rotate};
use crate::verify::{self, input, masker::Masker};
use crate::{chaos, demo, run};

/// `gen`
#[derive(Debug, Args)]
pub struct Gen {
    /// Bytes of all hosts together, e.g. 2GB.
    #[arg(long)]
    bytes: ByteSize,
    /// Number of hosts.
    #[arg(long, default_value_t = 4)]
    hosts: usize,
    /// Folder for <host>/access.log; hosts that are there already are refused.
    #[arg(long)]
    out: PathBuf,
    /// The same seed gives the same lines.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Bytes per second of all hosts together, e.g. 5MB/s; as fast as possible without it.
    #[arg(long, value_parser = parse_rate)]
    rate: Option<u64>,
    /// What happens to a log of --rotate-bytes.
    #[arg(long, value_enum, default_value_t = Rotate::None)]
    rotate: Rotate,
    /// Length at which a log is rotated.
    #[arg(long, default_value = "64MiB")]
    rotate_bytes: ByteSize,
    /// Odd lines (not UTF-8, very long, undated) in a million.
    #[arg(long, default_value_t = generate::ODD_PER_MILLION)]
    odd: u32,
    /// Last of the three days that lines are dated in; yesterday without it.
    #[arg(long)]
    end: Option<Date>,
}

impl Gen {
    /// Checked.
    pub fn options(&self) -> Result<generate::Options> {
        ensure!((1..=99).contains(&self.hosts), "--hosts must be 1 to 99");
        ensure!(self.odd <= 1_000_000, "--odd must be at most 1000000, it is per million");
        Ok(generate::Options {
            bytes: self.bytes.as_u64(),
            hosts: self.hosts,
            first_host: 0,
            out: self.out.clone(),
            seed: self.seed,
            rate: self.rate,
            rotate: self.rotate,
            rotate_bytes: self.rotate_bytes.as_u64(),
            odd_per_million: self.odd,
            end: self.end.unwrap_or_else(generate::yesterday),
        })
    }
}

/// `verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// The files that went in; ** is known.
    #[arg(long, required = true, num_args = 1..)]
    logs: Vec<String>,
    /// file:///DIR or hdfs://HOST:PORT/DIR
    #[arg(long)]
    dest: String,
    /// Only this dataset.
    #[arg(long)]
    dataset: Option<String>,
    /// Log format of the lines; needed for Parquet.
    #[arg(long, default_value = "combined")]
    log_format: String,
    /// The agents did not mask.
    #[arg(long)]
    no_mask: bool,
}

impl Verify {
    /// Checked.
    pub fn options(&self) -> Result<verify::Options> {
        Ok(verify::Options {
            logs: input::matched_files(&self.logs)?,
            dest: self.dest.clone(),
            dataset: self.dataset.clone(),
            masker: if self.no_mask { Masker::Off } else { Masker::Replace },
            log_format: Some(self.log_format.clone()),
            known: BTreeSet::new(),
        })
    }
}

/// What is written, and by how many processes.
#[derive(Debug, Args)]
struct Shape {
    /// Name of the dataset.
    #[arg(long, default_value = "clickstream")]
    dataset: String,
    /// Format of published files.
    #[arg(long, default_value = "text", value_parser = ["text", "parquet"])]
    format: String,
    /// Compression of published files; Parquet is always zstd.
    #[arg(long, default_value = "zstd", value_parser = ["zstd", "gzip", "none"])]
    compression: String,
    /// combined, common, or a log_format string of nginx or Apache.
    #[arg(long, default_value = "combined")]
    log_format: String,
    /// Number of edge agents; the files are shared out among them.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    agents: u16,
    /// Number of aggregators.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    aggregators: u16,
    /// Number of collectors.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    collectors: u16,
    /// Folder for configuration, state and logs of the processes; kept. Without it a temporary one, kept on failure.
    #[arg(long)]
    work: Option<PathBuf>,
}

impl Shape {
    fn dataset(&self) -> Dataset {
        Dataset {
            extra: String::new(),
            name: self.dataset.clone(),
            format: self.format.clone(),
            compression: if self.format == "parquet" { "zstd".into() } else { self.compression.clone() },
            log_format: self.log_format.clone(),
        }
    }
}

/// `run`
#[derive(Debug, Args)]
pub struct Run {
    /// The files that go in; ** is known.
    #[arg(long, required = true, num_args = 1..)]
    logs: Vec<String>,
    /// file:///DIR or hdfs://HOST:PORT/DIR
    #[arg(long)]
    dest: String,
    #[command(flatten)]
    shape: Shape,
    /// Lines stay as they are.
    #[arg(long)]
    no_mask: bool,
    /// A JSON report goes to this file.
    #[arg(long)]
    report: Option<PathBuf>,
}

impl Run {
    /// Checked.
    pub fn options(&self) -> Result<run::Options> {
        Ok(run::Options {
            logs: input::matched_files(&self.logs)?,
            dest: self.dest.clone(),
            dataset: self.shape.dataset(),
            agents: self.shape.agents.into(),
            aggregators: self.shape.aggregators.into(),
            collectors: self.shape.collectors.into(),
            masker: if self.no_mask { Masker::Off } else { Masker::Replace },
            work: self.shape.work.clone(),
        })
    }

    /// Where the report goes.
    pub fn report(&self) -> Option<&Path> {
        self.report.as_deref()
    }
}

/// `demo`
#[derive(Debug, Args)]
pub struct Demo {
    /// Folder for logs, data and state; it must be empty or not there. Without it a new one below ./catchment-demo.
    #[arg(long)]
    dest: Option<PathBuf>,
    /// Bytes of logs.
    #[arg(long, default_value = "120MB")]
    bytes: ByteSize,
    /// Bytes per second of all hosts together.
    #[arg(long, value_parser = parse_rate, default_value = "4MB/s")]
    rate: u64,
}

impl Demo {
    /// With a folder chosen.
    pub fn options(&self) -> demo::Options {
        let fresh = || {
            let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
            PathBuf::from("catchment-demo").join(now)
        };
        let dir = self.dest.clone().unwrap_or_else(fresh);
        demo::Options { bytes: self.bytes.as_u64(), rate: self.rate, ..demo::Options::new(dir) }
    }
}

/// `chaos`
#[derive(Debug, Args)]
pub struct Chaos {
    /// Number of rounds.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Bytes of logs per round.
    #[arg(long, default_value = "1GB")]
    bytes: ByteSize,
    /// Bytes per second of all hosts together.
    #[arg(long, value_parser = parse_rate, default_value = "20MB/s")]
    rate: u64,
    /// file:///DIR or hdfs://HOST:PORT/DIR; each round gets a folder below it.
    #[arg(long)]
    dest: String,
    /// The killed agent comes back with another masking and another zstd level.
    #[arg(long)]
    change_config: bool,
    /// Instants and victims follow from it; random without it, and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// When agents let go of batches.
    #[arg(long, default_value = "committed", value_parser = ["durable", "committed"])]
    ack: String,
    #[command(flatten)]
    shape: Shape,
    /// A JSON report, one entry per round, goes to this file.
    #[arg(long)]
    report: Option<PathBuf>,
}

impl Chaos {
    /// With a seed chosen.
    pub fn options(&self) -> chaos::Options {
        chaos::Options {
            rounds: self.rounds,
            bytes: self.bytes.as_u64(),
            rate: self.rate,
            dest: self.dest.clone(),
            change_config: self.change_config,
            seed: self.seed.unwrap_or_else(|| rand::random_range(0..1_000_000)),
            dataset: self.shape.dataset(),
            ack: if self.ack == "durable" { Ack::Durable } else { Ack::Committed },
            // Half of the hosts rename, half copy and truncate.
            agents: usize::from(self.shape.agents).next_multiple_of(2),
            aggregators: self.shape.aggregators.into(),
            collectors: self.shape.collectors.into(),
            work: self.shape.work.clone(),
        }
    }

    /// Where the report goes.
    pub fn report(&self) -> Option<&Path> {
        self.report.as_deref()
    }
}

fn parse_rate(text: &str) -> Result<u64> {
    match text.trim_end_matches("/s").parse::<ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Ok(size.as_u64()),
        _ => bail!("write a rate as 5MB/s"),
    }
}
