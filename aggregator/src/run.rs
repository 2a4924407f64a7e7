//! Puts the process together: channel, ingest, forward, admin; and takes it apart again at a drain.
//!
//! The order of the end: nothing more is taken in, what was taken is answered, the channel writes its ledger. What it
//! holds stays for the next start.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use common::admin::{self, Health};
use common::peers::PeerList;
use common::supervise::{Shutdown, TaskResult, Tasks};
use common::telemetry::Telemetry;
use proto::wire::ingest_server::IngestServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::channel::{ChannelEvent, ChannelHandle, ChannelOptions};
use crate::config::Config;
use crate::declarations::Keeper;
use crate::forward::{Forwarder, Limits};
use crate::ingest::permits::PermitLayer;
use crate::ingest::{Ingest, Node};
use crate::status::{self, Sources};

/// Per stream and per connection: what lies in these windows is outside the pool, so they are small.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 128 * 1024;
const MAX_FRAME: u32 = 64 * 1024;
/// Appends of one connection that are open at once.
const MAX_STREAMS: u32 = 64;
/// A request that is not answered by then was given up by its agent.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a segment must have failed to be read before what can be read of it takes its place.
const UNREADABLE_FOR: Duration = Duration::from_secs(60);
/// How long agents that are in the middle of a call are told *busy* before their connections are closed.
const LAME_DUCK: Duration = Duration::from_millis(200);
/// Time for the last answers to leave after everything in flight is answered.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// A running aggregator.
#[derive(Debug)]
pub struct Aggregator {
    /// Where agents connect.
    pub listen: SocketAddr,
    /// Where health, metrics and status are.
    pub admin: SocketAddr,
    /// The same numbers as `/status`.
    pub sources: Sources,
    tasks: Tasks,
}

impl Aggregator {
    /// Opens the channel, binds, and begins to work. Has to be called inside a runtime.
    pub async fn start(config: &Config, shutdown: Shutdown) -> anyhow::Result<Self> {
        let telemetry = Telemetry::new("aggregator")?;
        let health = Health::new();
        let histogram = status::sync_histogram(&telemetry.meter());
        let options = channel_options(config);
        let on_sync = Arc::new(move |seconds| histogram.record(seconds, &[]));
        let (channel, events) = tokio::task::spawn_blocking(move || ChannelHandle::open(options, on_sync))
            .await?
            .context("the channel cannot be opened (`channel check` says what is wrong in it, `channel repair` sets aside what is damaged)")?;
        let keeper = Arc::new(Keeper::open(&config.data_dir));
        let node = Node::new(&config.name, keeper.watch());
        let limits = Limits {
            max_unreleased: config.forward.max_unreleased,
            failover_after: config.forward.failover_after.get(),
        };
        let forwarder = Forwarder::new(config.name.clone(), limits, channel.clone(), keeper.clone());
        let sources = Sources {
            channel: channel.clone(),
            node: node.clone(),
            forward: forwarder.stats(),
            collectors: forwarder.views(),
            declarations: keeper.watch(),
            shutdown: shutdown.clone(),
        };
        status::register(&telemetry.meter(), &sources);
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}; set another `listen`", config.listen))?;
        let listen = listener.local_addr()?;
        let (admin, admin_task) =
            admin::serve(config.admin.listen, telemetry, health.clone(), sources.clone().routes())?;
        let mut tasks = Tasks::new(shutdown.clone());
        let (peers, peers_task) = config.collectors.watch();
        tasks.spawn_service("admin", async move { Ok(admin_task.await?) });
        tasks.spawn_service("peers", peers_task);
        tasks.spawn_service("health", watch_health(health.clone(), sources.clone()));
        let layer = PermitLayer::new(config.ingest.memory.bytes(), node.clone());
        tasks.spawn(
            "ingest",
            serve(listener, layer, Ingest::new(node.clone(), channel.clone()), node, shutdown.clone()),
        );
        tasks.spawn("channel", keep_channel(channel, sources.clone(), forwarder, events, peers, shutdown));
        tracing::info!(%listen, %admin, name = config.name, held_batches = sources.status().held_batches, "aggregator started");
        Ok(Self { listen, admin, sources, tasks })
    }

    /// Runs until the shutdown it was given, or a failure.
    pub async fn join(self) -> anyhow::Result<()> {
        self.tasks.join().await?;
        Ok(())
    }
}

/// The channel's part of the configuration.
pub fn channel_options(config: &Config) -> ChannelOptions {
    ChannelOptions {
        data_dir: config.data_dir.clone(),
        max_bytes: config.channel.max_bytes.bytes(),
        segment_bytes: config.channel.segment_bytes.bytes(),
        keep_free_bytes: config.channel.keep_free.bytes(),
        tick: config.channel.tick.get(),
        pinned_after: config.channel.pinned_after.get(),
        unreadable_for: UNREADABLE_FOR,
    }
}

/// Serves agents until the drain; those in the middle of a call get their answer.
async fn serve(
    listener: TcpListener,
    layer: PermitLayer,
    ingest: Ingest,
    node: Node,
    shutdown: Shutdown,
) -> TaskResult {
    let service = IngestServer::new(ingest).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(Duration::from_secs(30)));
    let ending = shutdown.clone();
    let draining = node.clone();
    let drained = async move {
        ending.draining().await;
        draining.drain();
        tokio::time::sleep(LAME_DUCK).await;
    };
    // A peer that keeps its connection open and says nothing more must not hold the drain back.
    let late = async {
        shutdown.draining().await;
        tokio::time::sleep(LAME_DUCK).await;
        while node.stats().in_flight.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(MAX_STREAMS)
        .timeout(REQUEST_TIMEOUT)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .layer(layer)
        .serve_with_incoming_shutdown(service, incoming, drained);
    tokio::select! {
        result = server => Ok(result?),
        () = late => Ok(()),
    }
}

/// Forwards until the drain, waits until all that was taken is answered, then lets the channel write its ledger.
async fn keep_channel(
    channel: ChannelHandle,
    sources: Sources,
    forwarder: Forwarder,
    events: tokio::sync::mpsc::UnboundedReceiver<ChannelEvent>,
    peers: PeerList,
    shutdown: Shutdown,
) -> TaskResult {
    let stop = CancellationToken::new();
    let mut forward = tokio::spawn(forwarder.run(events, peers, stop.clone()));
    tokio::select! {
        () = shutdown.draining() => {}
        ended = &mut forward => {
            ended?;
            anyhow::bail!("the channel's owner has ended");
        }
    }
    tokio::time::sleep(LAME_DUCK).await;
    while sources.node.stats().in_flight.load(Ordering::SeqCst) > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    forward.await?;
    channel.stop().await;
    tracing::info!(held_batches = sources.status().held_batches, "channel closed");
    Ok(())
}

/// Ready while the storage works, a collector was reached at some time, and nothing drains.
async fn watch_health(health: Health, sources: Sources) -> TaskResult {
    loop {
        let status = sources.status();
        health.set_ready(!status.draining, "draining");
        health.set_part(
            "storage",
            !status.storage_failed,
            "the channel's storage has failed; it is opened again every 5 s: see the log for the cause",
        );
        let known = status.declarations_version > 0;
        health.set_part("declarations", known, "no collector was reached yet, so no dataset is known");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
