//! What the process tells people and tools: `/status` as JSON, `POST /drain`, and metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::http::{StatusCode, Uri, header};
use axum::routing::{get, post};
use common::supervise::Shutdown;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};
use proto::wire::BusyReason;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::channel::ChannelHandle;
use crate::declarations::Declarations;
use crate::forward::{CollectorView, ForwardStats};
use crate::ingest::{Node, RetryReason};

/// Boundaries of the fsync histogram, in seconds.
const SYNC_BOUNDARIES: [f64; 12] = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0];

/// Everything that status and metrics look at. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The channel's numbers.
    pub channel: ChannelHandle,
    /// Ingest's numbers, and the drain.
    pub node: Node,
    /// The forward side's numbers.
    pub forward: Arc<ForwardStats>,
    /// How the collectors look.
    pub collectors: watch::Receiver<Vec<CollectorView>>,
    /// Dataset declarations.
    pub declarations: watch::Receiver<Arc<Declarations>>,
    /// The process.
    pub shutdown: Shutdown,
}

/// `/status`. Sizes in bytes, counts of batches since the start where nothing else is said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Taken in and not answered for good.
    pub held_batches: u64,
    /// Header and payload bytes of those.
    pub held_bytes: u64,
    /// Segment files.
    pub segment_bytes: u64,
    /// Age of the oldest segment with a held batch.
    pub oldest_held_ms: u64,
    /// Stored.
    pub accepted_batches: u64,
    /// Answered from what is held or committed.
    pub duplicate_batches: u64,
    /// Committed by a collector.
    pub committed_batches: u64,
    /// Refused for good by a collector.
    pub refused_batches: u64,
    /// Reasons of those that had to go to make room, before their agents may have asked.
    #[serde(default)]
    pub dropped_reasons: u64,
    /// Sent again.
    pub redelivered_batches: u64,
    /// Damaged records or footers.
    pub corruptions: u64,
    /// Batches whose payload could not be read back.
    pub given_up_batches: u64,
    /// Nothing is taken in any more.
    pub draining: bool,
    /// That, and everything was delivered.
    pub drained: bool,
    /// A storage error is latched.
    pub storage_failed: bool,
    /// 0: not known yet.
    pub declarations_version: u64,
    /// Collectors.
    #[serde(default, skip_deserializing)]
    pub collectors: Vec<CollectorView>,
}

impl Sources {
    /// The status now.
    pub fn status(&self) -> Status {
        let stats = self.channel.stats();
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::SeqCst);
        // In this order: an append in flight is either still counted there or held already.
        let draining = self.node.is_draining();
        let in_flight = load(&self.node.stats().in_flight);
        let held_batches = load(&stats.held_batches);
        Status {
            held_batches,
            held_bytes: load(&stats.held_bytes),
            segment_bytes: load(&stats.segment_bytes),
            oldest_held_ms: age_ms(load(&stats.oldest_unix_ms)),
            accepted_batches: load(&stats.stored_batches),
            duplicate_batches: load(&stats.duplicate_batches),
            committed_batches: load(&self.forward.committed_batches),
            refused_batches: load(&self.forward.refused_batches),
            dropped_reasons: load(&stats.dropped_reasons),
            redelivered_batches: load(&self.forward.resent_batches),
            corruptions: load(&stats.corruptions),
            given_up_batches: load(&stats.given_up_batches),
            draining,
            drained: draining && in_flight == 0 && stats.is_empty(),
            storage_failed: stats.failed.load(Ordering::SeqCst),
            declarations_version: self.declarations.borrow().version,
            collectors: self.collectors.borrow().clone(),
        }
    }

    /// Routes beside health and metrics.
    pub fn routes(self) -> Router {
        let (drained, channel) = (self.clone(), self.channel.clone());
        Router::new()
            .route(
                "/status",
                get(move || async move {
                    let text = serde_json::to_string_pretty(&self.status()).unwrap_or_else(|error| error.to_string());
                    ([(header::CONTENT_TYPE, "application/json")], text)
                }),
            )
            .route(
                "/channel",
                get(move || async move {
                    let described = channel.describe().await;
                    let text = serde_json::to_string_pretty(&described).unwrap_or_else(|error| error.to_string());
                    ([(header::CONTENT_TYPE, "application/json")], text)
                }),
            )
            .route("/drain", post(move |uri: Uri| async move { drained.drain(uri.query() == Some("empty=true")) }))
    }

    /// With `empty` nothing more is taken in and delivery goes on; without, the process drains and ends.
    fn drain(&self, empty: bool) -> (StatusCode, &'static str) {
        tracing::info!(until_empty = empty, "drain asked for");
        self.node.drain();
        if !empty {
            self.shutdown.drain();
        }
        (StatusCode::ACCEPTED, "draining\n")
    }
}

fn age_ms(unix_ms: u64) -> u64 {
    if unix_ms == 0 {
        return 0;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    now.saturating_sub(unix_ms)
}

/// The histogram of fsyncs; given to the channel.
pub fn sync_histogram(meter: &Meter) -> Histogram<f64> {
    meter
        .f64_histogram("aggregator_fsync_seconds")
        .with_description("Time of one write and fdatasync of the channel")
        .with_boundaries(SYNC_BOUNDARIES.to_vec())
        .build()
}

/// Registers every instrument that is read from counters.
pub fn register(meter: &Meter, sources: &Sources) {
    type Read = fn(&Status) -> u64;
    let gauges: [(&'static str, &'static str, Read); 6] = [
        ("aggregator_held_batches", "Batches not answered for good", |s| s.held_batches),
        ("aggregator_held_bytes", "Their header and payload bytes", |s| s.held_bytes),
        ("aggregator_segment_bytes", "Bytes of segment files", |s| s.segment_bytes),
        ("aggregator_oldest_held_milliseconds", "Age of the oldest segment with a held batch", |s| s.oldest_held_ms),
        ("aggregator_storage_failed", "1 while a storage error is latched", |s| u64::from(s.storage_failed)),
        ("aggregator_draining", "1 while nothing is taken in", |s| u64::from(s.draining)),
    ];
    for (name, text, read) in gauges {
        let sources = sources.clone();
        let observe =
            move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| to.observe(read(&sources.status()), &[]);
        let _registered = meter.u64_observable_gauge(name).with_description(text).with_callback(observe).build();
    }
    let counters: [(&'static str, &'static str, Read); 8] = [
        ("aggregator_accepted_batches", "Batches stored", |s| s.accepted_batches),
        ("aggregator_duplicate_batches", "Appends answered from what is held or committed", |s| s.duplicate_batches),
        ("aggregator_committed_batches", "Batches committed by collectors", |s| s.committed_batches),
        ("aggregator_refused_batches", "Batches refused for good by collectors", |s| s.refused_batches),
        ("aggregator_redelivered_batches", "Batches sent again", |s| s.redelivered_batches),
        ("aggregator_dropped_reasons", "Reasons of refused batches that had to go to make room", |s| s.dropped_reasons),
        ("aggregator_corruptions", "Damaged records or footers", |s| s.corruptions),
        ("aggregator_given_up_batches", "Batches whose payload cannot be read back", |s| s.given_up_batches),
    ];
    for (name, text, read) in counters {
        let sources = sources.clone();
        let observe =
            move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| to.observe(read(&sources.status()), &[]);
        let _registered = meter.u64_observable_counter(name).with_description(text).with_callback(observe).build();
    }
    register_forward(meter, sources);
    register_appends(meter, sources);
    register_collectors(meter, sources);
}

fn register_forward(meter: &Meter, sources: &Sources) {
    let (forward, channel) = (sources.forward.clone(), sources.channel.clone());
    let _registered = meter
        .u64_observable_counter("aggregator_forward_events")
        .with_description("What happened between this aggregator and its collectors, by kind")
        .with_callback(move |to| {
            let pairs = [
                ("sent", &forward.sent_batches),
                ("again", &forward.again_answers),
                ("busy", &forward.busy_answers),
                ("unclean_break", &forward.unclean_breaks),
                ("copied_forward", &channel.stats().copied_batches),
                ("ledger_reset", &channel.stats().ledger_resets),
            ];
            for (kind, counter) in pairs {
                to.observe(counter.load(Ordering::Relaxed), &[KeyValue::new("kind", kind)]);
            }
        })
        .build();
}

fn register_appends(meter: &Meter, sources: &Sources) {
    let node = sources.node.clone();
    let _registered = meter
        .u64_observable_counter("aggregator_appends")
        .with_description("Append calls by answer")
        .with_callback(move |to| {
            let stats = node.stats();
            let observe = |answer: &'static str, reason: String, count: u64| {
                to.observe(count, &[KeyValue::new("answer", answer), KeyValue::new("reason", reason)]);
            };
            observe("durable", String::new(), stats.durable.load(Ordering::Relaxed));
            for (reason, counter) in RetryReason::ALL.iter().zip(&stats.retry) {
                observe("retry", reason.name().to_owned(), counter.load(Ordering::Relaxed));
            }
            observe("wrong", String::new(), stats.wrong.load(Ordering::Relaxed));
            observe("unsupported", String::new(), stats.unsupported.load(Ordering::Relaxed));
            for (number, counter) in stats.busy.iter().enumerate().skip(1) {
                let reason = BusyReason::try_from(number as i32).map_or("", |reason| reason.as_str_name());
                let reason = reason.trim_start_matches("BUSY_REASON_").to_lowercase();
                observe("busy", reason, counter.load(Ordering::Relaxed));
            }
        })
        .build();
}

fn register_collectors(meter: &Meter, sources: &Sources) {
    type Read = fn(&CollectorView) -> u64;
    let gauges: [(&'static str, Read); 4] = [
        ("aggregator_collector_connected", |view| u64::from(view.connected)),
        ("aggregator_collector_stalled", |view| u64::from(view.stalled)),
        ("aggregator_collector_sent_batches", |view| view.sent_batches as u64),
        ("aggregator_collector_staged_batches", |view| view.staged_batches as u64),
    ];
    for (name, read) in gauges {
        let views = sources.collectors.clone();
        let observe = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            for view in views.borrow().iter() {
                to.observe(read(view), &[KeyValue::new("collector", view.address.clone())]);
            }
        };
        let _registered = meter.u64_observable_gauge(name).with_callback(observe).build();
    }
}
