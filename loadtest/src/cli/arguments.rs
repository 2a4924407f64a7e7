//! Arguments of the commands, and how they become options.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use bytesize::ByteSize;
use clap::Args;
use jiff::civil::Date;

use crate::generate::{self, Rotate};
use crate::verify::{self, input, masker::Masker};

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

fn parse_rate(text: &str) -> Result<u64> {
    match text.trim_end_matches("/s").parse::<ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Ok(size.as_u64()),
        _ => bail!("write a rate as 5MB/s"),
    }
}
