//! Wires one collector together: admin endpoint, Deliver server, replay, owner. Tests start it in-process on port 0.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::http::header::CONTENT_TYPE;
use axum::{Router, routing};
use common::admin::{self, Health};
use common::supervise::{Shutdown, Tasks};
use common::telemetry::Telemetry;
use proto::ids::DatasetName;
use proto::wire::collect_server::CollectServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use crate::compact::Progress;
use crate::config::Config;
use crate::coordinator::sealing::SEAL_EVERY;
use crate::coordinator::{Coordinator, IdSource, Settings};
use crate::housekeeping::{clock, keeper};
use crate::metrics::Metrics;
use crate::owner::{Owner, Parts, TICK};
use crate::partition_writer::MemoryBudget;
use crate::publish::DirModes;
use crate::receive::Receive;
use crate::replay::{self, Source};
use crate::roll::{GroupLimits, TotalLimits};
use crate::status::Snapshot;
use crate::store::{self, Store};

/// Messages from all streams that the owner has not taken yet; their bytes are bounded by the pools.
const INBOX: usize = 1024;
/// Groups that exist at once.
const MAX_GROUPS: usize = 512;
/// How long an open that somebody waits for may lie before a record is written for it alone.
const OPENS_WITHIN: Duration = Duration::from_millis(500);
const TAIL_EVERY: Duration = Duration::from_secs(1);
/// Time for the last answers to leave after everything is committed.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_WITHIN: Duration = Duration::from_secs(20);
/// Trouble that lasts this long makes the process not ready.
const PATIENCE: Duration = Duration::from_secs(3);

/// A collector that runs.
#[derive(Debug)]
pub struct Collector {
    /// Where aggregators connect.
    pub address: SocketAddr,
    /// Where health, metrics and status are.
    pub admin: SocketAddr,
    /// What `/status` shows.
    pub status: watch::Receiver<Snapshot>,
    tasks: Tasks,
}

impl Collector {
    /// Starts it. The destination need not answer yet: streams are told to come back until the log is read.
    pub async fn start(config: Config, shutdown: Shutdown) -> anyhow::Result<Self> {
        let store = store::open(&config.destination)?;
        Self::start_on(config, store, shutdown).await
    }

    /// Starts it on a store that is open already.
    pub async fn start_on(config: Config, store: Arc<dyn Store>, shutdown: Shutdown) -> anyhow::Result<Self> {
        let telemetry = Telemetry::new("collector")?;
        let meter = telemetry.meter();
        let metrics = Metrics::new(&meter);
        let health = Health::new();
        health.set_part("log", false, "the commit log is not read yet");
        let (snapshot, status) = watch::channel(Snapshot::beginning(&config.name));
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}; set another `listen`", config.listen))?;
        let address = listener.local_addr()?;
        let (admin, admin_task) = admin::serve(config.admin.listen, telemetry, health.clone(), routes(status.clone()))?;
        let receive = Receive::new(config.receive.memory.bytes(), config.receive.stream_memory.bytes());
        receive.register(&meter);
        let finished = CancellationToken::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn_service("admin", async move { Ok(admin_task.await?) });
        tasks.spawn_service("readiness", watch_readiness(status.clone(), health.clone()));
        tasks.spawn("receive", serve(listener, receive.clone(), finished.clone()));
        let wired = Wired { config, store, metrics, health, snapshot, receive, finished };
        tasks.spawn("owner", wired.run(shutdown));
        tracing::info!(%address, %admin, "collector listens");
        Ok(Self { address, admin, status, tasks })
    }

    /// Waits for its end.
    pub async fn join(self) -> anyhow::Result<()> {
        Ok(self.tasks.join().await?)
    }
}

fn routes(status: watch::Receiver<Snapshot>) -> Router {
    let show = move || {
        let json = serde_json::to_string(&*status.borrow()).unwrap_or_default();
        async move { ([(CONTENT_TYPE, "application/json")], json) }
    };
    Router::new().route("/status", routing::get(show))
}

async fn watch_readiness(mut status: watch::Receiver<Snapshot>, health: Health) -> anyhow::Result<()> {
    let mut since = None;
    loop {
        let held_up = status.borrow_and_update().held_up.clone();
        match held_up {
            None => {
                since = None;
                health.set_part("destination", true, "");
            }
            Some(reason) => {
                let begun = *since.get_or_insert_with(tokio::time::Instant::now);
                if begun.elapsed() >= PATIENCE {
                    health.set_part("destination", false, reason);
                }
            }
        }
        if status.changed().await.is_err() {
            // The owner has ended; this service is stopped with the process.
            return std::future::pending().await;
        }
    }
}

async fn serve(listener: TcpListener, receive: Receive, finished: CancellationToken) -> anyhow::Result<()> {
    let service = CollectServer::new(receive)
        .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_WITHIN))
        .initial_stream_window_size(Some(4 << 20))
        .initial_connection_window_size(Some(16 << 20))
        .tcp_nodelay(true)
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), finished.clone().cancelled_owned());
    let late = async {
        finished.cancelled().await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    tokio::select! {
        result = server => Ok(result?),
        () = late => Ok(()),
    }
}

struct Wired {
    config: Config,
    store: Arc<dyn Store>,
    metrics: Metrics,
    health: Health,
    snapshot: watch::Sender<Snapshot>,
    receive: Receive,
    finished: CancellationToken,
}

impl Wired {
    async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let _finished = self.finished.clone().drop_guard();
        let health = self.health.clone();
        let mut source = System;
        let waiting = |reason: &str| health.set_part("log", false, reason);
        let begun = tokio::select! {
            begun = replay::begin(Arc::clone(&self.store), &self.config.name, &mut source, waiting) => begun?,
            () = shutdown.draining() => return Ok(()),
        };
        self.health.set_part("log", true, "");
        self.health.set_ready(true, "");
        let mut settings = settings(&self.config, begun.layout.incarnation())?;
        // A fast clock of a load test is not the store's.
        settings.clock_within = (!common::clock::is_fast()).then_some(clock::WITHIN);
        let now = tokio::time::Instant::now().into_std();
        let coordinator = Coordinator::new(settings, begun.replayed, begun.layout.staging(), ids(), now);
        let (to_owner, inbox) = mpsc::channel(INBOX);
        self.receive.begin(to_owner);
        let declarations = self.config.datasets.iter().map(|dataset| dataset.declaration()).collect();
        let owner = Owner::new(Parts {
            coordinator,
            store: self.store,
            log: begun.log,
            layout: begun.layout,
            modes: Arc::new(dir_modes(&self.config)),
            memory: MemoryBudget::new(self.config.roll.memory.bytes()),
            inbox,
            declarations: (self.config.declarations_version(), declarations),
            credit: (self.config.receive.memory.bytes(), self.config.receive.stream_memory.bytes()),
            metrics: self.metrics,
            snapshot: self.snapshot,
            unix_ms: Arc::new(common::clock::unix_ms),
            tick: TICK,
            inventory: self.config.housekeeping.inventory.clone(),
        });
        Ok(owner.run(shutdown).await?)
    }
}

struct System;

impl Source for System {
    fn random(&mut self) -> [u8; 16] {
        rand::random()
    }
    fn unix_ms(&mut self) -> i64 {
        common::clock::unix_ms()
    }
}

fn ids() -> IdSource {
    Box::new(rand::random)
}

fn dir_modes(config: &Config) -> DirModes {
    DirModes::new(config.datasets.iter().map(|dataset| (dataset.name.clone(), dataset.dir_mode, dataset.group.clone())))
}

/// What the coordinator needs of a configuration. Whether its clock can be compared with the store's is not known here:
/// it is taken as it is.
pub fn settings(config: &Config, incarnation: &str) -> anyhow::Result<Settings> {
    let mut datasets = std::collections::HashMap::new();
    for dataset in &config.datasets {
        datasets.insert(DatasetName::new(&dataset.name)?, Arc::new(dataset.clone()));
    }
    let roll = &config.roll;
    Ok(Settings {
        collector: config.name.clone(),
        incarnation: incarnation.to_owned(),
        datasets,
        roll: GroupLimits {
            bytes: roll.bytes.bytes(),
            events: roll.events,
            age: roll.age.get(),
            idle: roll.idle.get(),
        },
        // The other half is for groups that are being closed.
        total: TotalLimits { buffered_bytes: roll.memory.bytes() / 2, open: roll.open_files },
        max_groups: MAX_GROUPS,
        close_wait: config.commit.close_wait.get(),
        opens_within: OPENS_WITHIN,
        tail_every: TAIL_EVERY,
        checkpoint_every: config.commit.checkpoint_every,
        finish_after: config.commit.finish_after.get(),
        drain_deadline: config.drain_deadline.get(),
        housekeeping: keeper::Limits::new(&config.housekeeping),
        clock_within: None,
        seal_every: SEAL_EVERY,
        inventory: config.housekeeping.inventory.as_ref().map(|_| config.housekeeping.inventory_is_complete),
        compaction: config.compaction.clone(),
        progress: Progress::default(),
    })
}
