//! Puts an agent together and runs it: one owner thread that blocks (tail, pipeline, outbox), one shipping task, the
//! admin endpoint.

mod begin;
mod copied;
pub mod declarations;
mod drain;
mod full;
mod marks;
pub mod metrics;
pub mod owner;
pub mod source;
mod space;

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use common::admin::{self, Health};
use common::peers::PeerList;
use common::reserve::Reserve;
use common::supervise::Shutdown;
use common::telemetry::Telemetry;
use proto::ids::AgentName;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::owner::{End, Owner, OwnerOptions, Parts};
use self::source::{Batching, Source};
use crate::config::{Ack, AgentConfig, SourceConfig, host_name};
use crate::outbox::room::{FileSystemProbe, Limits, RESERVE_BYTES, has_reserve};
use crate::outbox::state_dir::StateDir;
use crate::outbox::{Options, Outbox};
use crate::pipeline::{Pipeline, PipelineContext};
use crate::ship::client::{Dial, network};
use crate::ship::messages::{FromShip, Talk};
use crate::ship::{Ship, ShipOptions};
use crate::status::Gauges;
use crate::tail::TailSource;

/// What is fixed by the design; tests make it shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// How long an aggregator is waited for before an origin is minted.
    pub contact_timeout: Duration,
    /// Between questions about commits while a gate or `--once` waits.
    pub hurry: Duration,
    /// Bytes of an outbox segment.
    pub segment_bytes: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            contact_timeout: Duration::from_secs(60),
            hurry: Duration::from_secs(1),
            segment_bytes: 16 * 1024 * 1024,
        }
    }
}

/// Answers *wrong* for a sound batch are doubted for so many times [`Tuning::hurry`]: 5 minutes.
const WRONG_PATIENCE: u32 = 300;

/// Runs an agent until it has drained: with `once` when everything is read and acked, else after the shutdown begins.
/// `shutdown.now()` ends it at once, like a kill: what is stored goes on with the next run.
pub async fn run(config: AgentConfig, once: bool, tuning: Tuning, shutdown: Shutdown) -> Result<End> {
    let name = config.agent_name().context("making the agent's name from the host; set `name`")?;
    let gauges = Arc::new(Gauges::default());
    gauges.seconds_to_loss.set(u64::MAX);
    let health = Health::new();
    let telemetry = Telemetry::new("edge-agent")?;
    metrics::register(&telemetry.meter(), &gauges);
    let leave = CancellationToken::new();
    let routes = metrics::routes(name.as_str(), &gauges, leave.clone());
    let (bound, admin) = admin::serve(config.admin_listen(), telemetry, health.clone(), routes)?;
    tracing::info!(agent = %name, admin = %bound, once, "agent starts");

    let (peers, keep_peers) = config.aggregators.source().watch();
    let given = Given {
        peers,
        dial: network(config.aggregators.timeout.get()),
        gauges,
        health,
        now: Instant::now(),
        origin_bits: rand::random(),
        seed: rand::random(),
    };
    let opened = tokio::task::spawn_blocking(move || open(&config, once, &tuning, given)).await??;
    let Opened { owner, ship, to_owner } = opened;
    let (done, owner) = start_owner(owner)?;

    let ship = tokio::spawn(ship.run());
    let keep_peers = tokio::spawn(keep_peers);
    let admin = tokio::spawn(admin);
    let end = supervise(done, to_owner, Stops { shutdown: &shutdown, leave }, ship, admin).await;
    keep_peers.abort();
    if end.as_ref().is_err_and(|error| error.is::<Stuck>()) {
        return end;
    }
    let joined = tokio::task::spawn_blocking(move || owner.join()).await?;
    joined.map_err(|_| anyhow!("the owner thread panicked"))?;
    let end = end?;
    tracing::info!(clean = end == End::Clean, "agent ends");
    Ok(end)
}

/// The owner is blocked, for example by a disk that does not answer.
#[derive(Debug, thiserror::Error)]
#[error("the drain was not finished in time; nothing is lost, the next start goes on from what is stored")]
struct Stuck;

/// How long after the drain deadline the owner is waited for.
const GRACE: Duration = Duration::from_secs(5);

type Done = oneshot::Receiver<Result<End, owner::OwnerError>>;

fn start_owner(owner: Owner) -> Result<(Done, std::thread::JoinHandle<()>)> {
    let (sender, done) = oneshot::channel();
    let work = move || {
        // Nobody waits any more only when the process is ending already.
        let _ = sender.send(owner.run());
    };
    let thread = std::thread::Builder::new().name("owner".into()).spawn(work)?;
    Ok((done, thread))
}

/// What tells a run to end.
struct Stops<'a> {
    shutdown: &'a Shutdown,
    /// Somebody asked the admin endpoint.
    leave: CancellationToken,
}

enum Event {
    Done(Result<End>),
    Stop,
    Leave,
    Now,
    Stuck,
    Ship { panicked: bool },
    Admin(String),
}

/// Waits for the owner; passes the stop on to it; ends with the first part that fails.
async fn supervise(
    mut done: Done,
    to_owner: Sender<FromShip>,
    Stops { shutdown, leave }: Stops<'_>,
    mut ship: tokio::task::JoinHandle<()>,
    mut admin: tokio::task::JoinHandle<std::result::Result<(), admin::AdminError>>,
) -> Result<End> {
    let (mut told, mut leaving) = (false, false);
    let deadline = async {
        shutdown.draining().await;
        tokio::time::sleep(shutdown.deadline() + GRACE).await;
    };
    tokio::pin!(deadline);
    loop {
        let event = tokio::select! {
            end = &mut done => Event::Done(match end {
                Ok(end) => end.map_err(Into::into),
                Err(_) => Err(anyhow!("the owner thread ended without a result")),
            }),
            () = shutdown.now() => Event::Now,
            () = &mut deadline => Event::Stuck,
            () = shutdown.draining(), if !told => Event::Stop,
            () = leave.cancelled(), if !leaving => Event::Leave,
            ended = &mut ship => Event::Ship { panicked: ended.is_err() },
            ended = &mut admin => Event::Admin(match ended {
                Ok(Err(error)) => error.to_string(),
                _ => "the admin endpoint ended".to_owned(),
            }),
        };
        match event {
            Event::Done(end) => {
                ship.abort();
                admin.abort();
                return end;
            }
            Event::Stop => {
                told = true;
                // An owner that is gone has sent its result.
                let _ = to_owner.send(FromShip::Stop);
            }
            Event::Leave => {
                leaving = true;
                let _ = to_owner.send(FromShip::Leave);
            }
            Event::Stuck => return Err(Stuck.into()),
            Event::Now => {
                ship.abort();
                let _ = ship.await;
                admin.abort();
                return Ok(End::Unfinished(vec!["stopped at once".into()]));
            }
            Event::Ship { panicked } => {
                admin.abort();
                drop(to_owner);
                return shipping_ended(panicked, done.await);
            }
            Event::Admin(error) => {
                ship.abort();
                return Err(anyhow!(error));
            }
        }
    }
}

/// Shipping ends when the owner hangs up, which may be seen before the owner's result is.
fn shipping_ended(
    panicked: bool,
    end: Result<Result<End, owner::OwnerError>, oneshot::error::RecvError>,
) -> Result<End> {
    match end {
        _ if panicked => Err(anyhow!("the shipping task panicked")),
        Ok(end) => Ok(end?),
        Err(_) => Err(anyhow!("the shipping task ended before the owner")),
    }
}

/// What an agent is given from outside.
pub struct Given {
    /// The aggregators.
    pub peers: PeerList,
    /// How they are reached.
    pub dial: Dial,
    /// Numbers of the run.
    pub gauges: Arc<Gauges>,
    /// Its readiness.
    pub health: Health,
    /// The time.
    pub now: Instant,
    /// Random bits of the run's origin.
    pub origin_bits: u128,
    /// Of whatever else is left to chance.
    pub seed: u64,
}

/// The two halves of an agent: its state directory is locked, its outbox recovered, its sources are open.
pub struct Opened {
    /// To be stepped by a thread that may block.
    pub owner: Owner,
    /// To be run as a task.
    pub ship: Ship,
    /// How the owner is told to stop or to leave.
    pub to_owner: Sender<FromShip>,
}

/// Locks the state directory, recovers the outbox, opens all sources. Blocks.
pub fn open(config: &AgentConfig, once: bool, tuning: &Tuning, given: Given) -> Result<Opened> {
    let name = config.agent_name().context("making the agent's name from the host; set `name`")?;
    let Given { peers, dial, gauges, health, now, origin_bits, seed } = given;
    let state_dir = StateDir::open(&config.state_dir, &name)?;
    let outbox = open_outbox(config, tuning, &state_dir, &gauges)?;
    let sources: Result<Vec<Source>> =
        config.sources.iter().map(|source| open_source(source, config, &name, &outbox, now)).collect();
    let declarations = declarations::load(&state_dir.declarations());
    let options = ShipOptions {
        agent: name,
        until_committed: config.ack == Ack::Committed,
        policy: config.aggregators.policy,
        order: config.aggregators.peers.clone(),
        timeout: config.aggregators.timeout.get(),
        in_flight_bytes: config.aggregators.in_flight.bytes(),
        hurry: tuning.hurry,
        wrong_patience: tuning.hurry * WRONG_PATIENCE,
        origins: outbox.index().rows().iter().rev().map(|row| row.origin).collect(),
        seed,
    };
    let (to_ship, commands) = mpsc::unbounded_channel();
    let (to_owner, inbox) = channel();
    let talk = Talk { commands, owner: to_owner.clone(), declarations_version: declarations.version };
    let ship = Ship::new(options, outbox.reader(), (peers, dial), talk, gauges.clone(), now);
    let parts = Parts {
        options: owner_options(config, once, tuning),
        declarations,
        state_dir,
        outbox,
        sources: sources?,
        to_ship,
        inbox,
        gauges,
        health,
        origin_bits,
    };
    Ok(Opened { owner: Owner::new(parts, now), ship, to_owner })
}

fn open_outbox(config: &AgentConfig, tuning: &Tuning, state_dir: &StateDir, gauges: &Gauges) -> Result<Outbox> {
    let segment_bytes = tuning.segment_bytes.min(config.outbox.max_bytes.bytes() / 16).max(64 * 1024);
    let options = Options { dir: state_dir.outbox(), rejected: state_dir.rejected(), segment_bytes };
    let started = Instant::now();
    if FileSystemProbe::default().get(&options.dir, started).is_ok_and(|fs| !has_reserve(fs)) {
        tracing::warn!("the file system of the state directory is full, the start uses up the reserve");
        Reserve::at(state_dir.reserve(), RESERVE_BYTES).release();
    }
    let (outbox, recovered) = Outbox::open(options)?;
    let (batches, bytes) = outbox.index().kept();
    let took_ms = started.elapsed().as_millis() as u64;
    tracing::info!(batches, bytes, torn_bytes = recovered.torn_bytes, took_ms, "outbox opened");
    for damage in &recovered.damage {
        tracing::error!(damage, "the outbox is damaged");
    }
    if !recovered.voided.is_empty() {
        tracing::error!(batches = recovered.voided.len(), "damaged batches became voids");
        gauges.voided_batches.add(recovered.voided.len() as u64);
    }
    Ok(outbox)
}

fn open_source(
    source: &SourceConfig,
    config: &AgentConfig,
    name: &AgentName,
    outbox: &Outbox,
    now: Instant,
) -> Result<Source> {
    let pipeline = new_pipeline(source, config, name)?;
    let saved = outbox.index().positions(&source.name);
    let tail = TailSource::open(&source.name, &source.tail, saved, now)?;
    Ok(Source::new(&source.name, tail, pipeline, source.tail.hold_deleted.age.get()))
}

/// The pipeline of one source, as configured.
pub fn new_pipeline(source: &SourceConfig, config: &AgentConfig, name: &AgentName) -> Result<Pipeline> {
    let context = PipelineContext {
        agent: name,
        host: &host_name(),
        mask: &config.mask,
        compression_level: config.batch.compression_level,
    };
    Pipeline::new(&source.name, &source.pipeline, context).with_context(|| format!("source {}", source.name))
}

fn owner_options(config: &AgentConfig, once: bool, tuning: &Tuning) -> OwnerOptions {
    let poll = config.sources.iter().map(|source| source.tail.poll.get()).min();
    OwnerOptions {
        batching: Batching {
            max_raw_bytes: config.batch.max_raw_bytes.bytes() as usize,
            linger: config.batch.linger.get(),
        },
        limits: Limits {
            max_bytes: config.outbox.max_bytes.bytes(),
            min_free_bytes: config.outbox.min_free.bytes(),
            min_free_percent: config.outbox.min_free_percent,
        },
        once,
        leave_on_stop: config.leave_on_stop,
        drain_deadline: config.drain_deadline.get(),
        until_committed: config.ack == Ack::Committed,
        contact_timeout: tuning.contact_timeout,
        mark_interval: config.mark_every.get(),
        idle: poll.unwrap_or(Duration::from_millis(250)),
    }
}
