//! OpenTelemetry instruments and the `/status` document, both read from [`Gauges`]. Names and numbers only, never
//! contents of events.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::{get, post};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use tokio_util::sync::CancellationToken;

use crate::status::{Gauges, Number};

type Pick = fn(&Gauges) -> &Number;

/// Numbers that only grow.
const COUNTERS: &[(&str, &str, Pick)] = &[
    ("events_read", "Events read from sources", |g| &g.read_events),
    ("events_cut", "Events cut into data batches", |g| &g.published_events),
    ("events_dead_lettered", "Events set aside with a reason", |g| &g.dead_lettered_events),
    ("events_filtered", "Events dropped by a filter", |g| &g.filtered_events),
    ("read_bytes", "Raw bytes cut into batches", |g| &g.read_bytes),
    ("cut_bytes", "Payload bytes of the batches cut", |g| &g.cut_bytes),
    ("batches_cut", "Data batches cut", |g| &g.cut_batches),
    ("batches_let_go", "Stored batches let go before they were committed, at 80 % of the outbox", |g| {
        &g.let_go_batches
    }),
    ("batches_voided", "Batches that became voids", |g| &g.voided_batches),
    ("quarantined_batches", "Batches that a collector refused for good, as far as this agent was told", |g| {
        &g.quarantined_batches
    }),
    ("marks", "Marks appended", |g| &g.marks),
    ("destroyed_bytes", "Bytes truncated or deleted before they could be read", |g| &g.destroyed_bytes),
    ("ejections", "Times an aggregator was left out after errors", |g| &g.ejections),
];

/// Numbers of now.
const GAUGES: &[(&str, &str, Pick)] = &[
    ("batches_unacked", "Batches that are not acked", |g| &g.unacked_batches),
    ("batches_undelivered", "Batches that no aggregator has stored", |g| &g.undelivered_batches),
    ("in_flight_bytes", "Bytes in flight", |g| &g.in_flight_bytes),
    ("outbox_bytes", "Bytes of the outbox on disk", |g| &g.outbox_bytes),
    ("outbox_capacity_bytes", "Bytes the outbox may take", |g| &g.outbox_capacity_bytes),
    ("unread_bytes", "Bytes in files that are not cut yet", |g| &g.unread_bytes),
    ("held_bytes", "Unread bytes of rotated and deleted files that are held open", |g| &g.held_bytes),
    ("oldest_held_seconds", "Age of the oldest held file with unread bytes", |g| &g.oldest_held_seconds),
    ("time_to_loss_seconds", "Until the oldest held file is let go unread; very large while none is", |g| {
        &g.seconds_to_loss
    }),
    ("rejected_bytes", "Bytes kept under rejected/, which nobody has moved away yet", |g| &g.rejected_bytes),
    ("files", "Files being tailed", |g| &g.files),
    ("restored_or_copied", "1: the state directory was found to be restored or copied, and no mark counts", |g| {
        &g.restored_or_copied
    }),
    ("last_mark_unix_ms", "T of the last mark of this run; 0: none yet", |g| &g.last_mark_unix_ms),
];

/// Sends by answer.
const SENDS: &[(&str, Pick)] = &[
    ("durable", |g| &g.sends.durable),
    ("busy", |g| &g.sends.busy),
    ("retry", |g| &g.sends.retry),
    ("wrong", |g| &g.sends.wrong),
    ("unsupported", |g| &g.sends.unsupported),
    ("failed", |g| &g.sends.failed),
];

/// Makes the instruments; they live as long as the meter's provider.
pub fn register(meter: &Meter, gauges: &Arc<Gauges>) {
    for (name, what, pick) in COUNTERS {
        let gauges = gauges.clone();
        meter
            .u64_observable_counter(format!("agent_{name}"))
            .with_description(*what)
            .with_callback(move |observer| observer.observe(pick(&gauges).get(), &[]))
            .build();
    }
    for (name, what, pick) in GAUGES {
        let gauges = gauges.clone();
        meter
            .u64_observable_gauge(format!("agent_{name}"))
            .with_description(*what)
            .with_callback(move |observer| observer.observe(pick(&gauges).get(), &[]))
            .build();
    }
    let gauges = gauges.clone();
    meter
        .u64_observable_counter("agent_sends")
        .with_description("Requests to aggregators by answer")
        .with_callback(move |observer| {
            for (answer, pick) in SENDS {
                observer.observe(pick(&gauges).get(), &[KeyValue::new("answer", *answer)]);
            }
        })
        .build();
}

/// `GET /status`, and `POST /leave`, which cancels `leave`: read to the end, send everything, say *left*, end.
pub fn routes(agent: &str, gauges: &Arc<Gauges>, leave: CancellationToken) -> Router {
    let (name, gauges) = (agent.to_owned(), gauges.clone());
    let (asked, asked_gauges) = (name.clone(), gauges.clone());
    let json = |value: serde_json::Value| ([(header::CONTENT_TYPE, "application/json")], value.to_string());
    Router::new().route("/status", get(move || async move { json(status(&name, &gauges)) })).route(
        "/leave",
        post(move || async move {
            leave.cancel();
            json(status(&asked, &asked_gauges))
        }),
    )
}

/// What `/status` says.
pub fn status(agent: &str, gauges: &Gauges) -> serde_json::Value {
    let mut map = serde_json::Map::new();
    map.insert("agent".into(), agent.into());
    for (key, text) in gauges.words() {
        map.insert(key.into(), text.into());
    }
    map.insert("problems".into(), gauges.problems().into());
    map.insert("stored_at".into(), serde_json::json!(gauges.stored_at()));
    map.insert("quarantined".into(), serde_json::json!(gauges.quarantined()));
    let numbers: &[(&str, Pick)] = &[
        ("read_events", |g| &g.read_events),
        ("published_events", |g| &g.published_events),
        ("dead_lettered_events", |g| &g.dead_lettered_events),
        ("filtered_events", |g| &g.filtered_events),
        ("cut_batches", |g| &g.cut_batches),
        ("cut_bytes", |g| &g.cut_bytes),
        ("unacked_batches", |g| &g.unacked_batches),
        ("undelivered_batches", |g| &g.undelivered_batches),
        ("outbox_bytes", |g| &g.outbox_bytes),
        ("outbox_capacity_bytes", |g| &g.outbox_capacity_bytes),
        ("unread_bytes", |g| &g.unread_bytes),
        ("held_bytes", |g| &g.held_bytes),
        ("destroyed_bytes", |g| &g.destroyed_bytes),
        ("let_go_batches", |g| &g.let_go_batches),
        ("voided_batches", |g| &g.voided_batches),
        ("quarantined_batches", |g| &g.quarantined_batches),
        ("rejected_bytes", |g| &g.rejected_bytes),
        ("marks", |g| &g.marks),
        ("last_mark_unix_ms", |g| &g.last_mark_unix_ms),
        ("files", |g| &g.files),
        ("ejections", |g| &g.ejections),
    ];
    for (key, pick) in numbers {
        map.insert((*key).into(), pick(gauges).get().into());
    }
    let to_loss = Some(gauges.seconds_to_loss.get()).filter(|seconds| *seconds < u64::MAX);
    map.insert("seconds_to_loss".into(), to_loss.into());
    for (answer, pick) in SENDS {
        map.insert(format!("sends_{answer}"), pick(gauges).get().into());
    }
    map.into()
}
