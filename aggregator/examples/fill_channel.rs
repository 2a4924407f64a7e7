//! Fills a data directory through the channel's own API, for measurements of opening and draining.
//!
//! `fill_channel --data-dir DIR --bytes 10GiB --batch 140KiB`, then SIGKILL or let it end; `--open` opens the directory
//! instead and prints how long that took and the process's peak memory.

use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aggregator::channel::{AppendJob, Appended, ChannelHandle, ChannelOptions};
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Parser;
use common::units::Size;
use proto::header::Header;
use proto::ids::{AgentName, Origin};
use proto::wire;
use tokio::sync::oneshot;

/// Fills (or opens) the channel of an aggregator that is not running.
#[derive(Debug, Parser)]
struct Args {
    /// The aggregator's `data_dir`.
    #[arg(long)]
    data_dir: PathBuf,
    /// Payload bytes to append in all.
    #[arg(long, default_value = "1GiB")]
    bytes: Size,
    /// Payload bytes of one batch.
    #[arg(long, default_value = "140KiB")]
    batch: Size,
    /// Agents the batches come from.
    #[arg(long, default_value_t = 16)]
    agents: usize,
    /// The dataset they go to.
    #[arg(long, default_value = "clickstream")]
    dataset: String,
    /// Size of a segment file.
    #[arg(long, default_value = "128MiB")]
    segment: Size,
    /// Stay after filling until killed.
    #[arg(long)]
    stay: bool,
    /// Only open, and say how long it took.
    #[arg(long)]
    open: bool,
}

/// Appends that wait for their answer at once.
const IN_FLIGHT: usize = 64;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let begun = Instant::now();
    let options = ChannelOptions {
        data_dir: args.data_dir.clone(),
        max_bytes: args.bytes.bytes().saturating_mul(4).max(1 << 30),
        segment_bytes: args.segment.bytes(),
        keep_free_bytes: 0,
        tick: Duration::from_millis(200),
        pinned_after: Duration::from_secs(60),
        unreadable_for: Duration::from_secs(60),
    };
    let (channel, events) = ChannelHandle::open(options, Arc::new(|_| {}))?;
    // Nobody forwards here.
    drop(events);
    let held = channel.stats().held_batches.load(Ordering::Relaxed);
    let bytes = channel.stats().held_bytes.load(Ordering::Relaxed);
    let mut out = std::io::stdout();
    writeln!(
        out,
        "opened in {:.3} s: {held} batches, {bytes} bytes held, peak memory {} KiB",
        begun.elapsed().as_secs_f64(),
        peak_kib()?
    )?;
    if !args.open {
        fill(&args, &channel)?;
        writeln!(out, "filled in {:.1} s, peak memory {} KiB", begun.elapsed().as_secs_f64(), peak_kib()?)?;
    }
    if args.stay {
        loop {
            std::thread::park();
        }
    }
    tokio::runtime::Builder::new_current_thread().build()?.block_on(channel.stop());
    Ok(())
}

fn fill(args: &Args, channel: &ChannelHandle) -> anyhow::Result<()> {
    let size = usize::try_from(args.batch.bytes())?;
    let mut waiting = VecDeque::new();
    let mut noise = 0x9e37_79b9_7f4a_7c15u64;
    for n in 0..args.bytes.bytes() / args.batch.bytes().max(1) {
        let agent = n as usize % args.agents.max(1);
        let seq = 1 + n / args.agents.max(1) as u64;
        let payload = line(size, &mut noise);
        let job = job(args, agent, seq, payload)?;
        channel.append(job.0);
        waiting.push_back(job.1);
        if waiting.len() >= IN_FLIGHT {
            settle(waiting.pop_front())?;
        }
    }
    while let Some(next) = waiting.pop_front() {
        settle(Some(next))?;
    }
    Ok(())
}

fn settle(waiting: Option<oneshot::Receiver<aggregator::channel::AppendAnswer>>) -> anyhow::Result<()> {
    let Some(waiting) = waiting else { return Ok(()) };
    match waiting.blocking_recv().context("the channel has stopped")?.appended {
        Appended::Durable => Ok(()),
        other => bail!("a batch was not stored: {other:?}"),
    }
}

/// One line of letters and digits, with its LF.
fn line(size: usize, noise: &mut u64) -> Bytes {
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() + 1 < size {
        *noise ^= *noise << 13;
        *noise ^= *noise >> 7;
        *noise ^= *noise << 17;
        let left = size - 1 - bytes.len();
        let word = noise.to_le_bytes().map(|byte| b'a' + byte % 26);
        bytes.extend_from_slice(&word[..left.min(8)]);
    }
    bytes.push(b'\n');
    bytes.into()
}

type Job = (AppendJob, oneshot::Receiver<aggregator::channel::AppendAnswer>);

fn job(args: &Args, agent: usize, seq: u64, payload: Bytes) -> anyhow::Result<Job> {
    let data = wire::Data {
        dataset: args.dataset.clone(),
        partition: Some(wire::Partition { date: 20_777, hour: None }),
        codec: wire::Codec::None as i32,
        framing: wire::Framing::Lines as i32,
        events: 1,
        raw_bytes: payload.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc32c: crc32c::crc32c(&payload),
        zone: "UTC".into(),
        source: "fill".into(),
        ..Default::default()
    };
    let origin = Origin::mint(1_763_700_000_000, agent as u128);
    let header = Header::encode(origin, seq, wire::batch_header::Kind::Data(data))?;
    let (reply, answered) = oneshot::channel();
    let agent = AgentName::new(&format!("fill-{agent}"))?;
    Ok((AppendJob { agent, header, payload, permit: None, reply }, answered))
}

/// Highest resident memory of this process so far.
fn peak_kib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("no VmHWM")?.parse()?)
}
