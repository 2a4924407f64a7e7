//! OpenTelemetry instruments of a collector. Names begin with `catchment_collector_`.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use proto::wire;

use crate::roll::Reason;
use crate::status::Snapshot;

/// All instruments. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    events: Counter<u64>,
    batches: Counter<u64>,
    bytes: Counter<u64>,
    dead_letters: Counter<u64>,
    quarantined: Counter<u64>,
    commits: Counter<u64>,
    commit_seconds: Histogram<f64>,
    rolls: Counter<u64>,
    gauges: Gauges,
}

#[derive(Debug, Clone)]
struct Gauges {
    staged: Gauge<u64>,
    open_groups: Gauge<u64>,
    buffered: Gauge<u64>,
    streams: Gauge<u64>,
    since_commit: Gauge<f64>,
    conflicts: Gauge<u64>,
    poisoned: Gauge<u64>,
    duplicates: Gauge<u64>,
    covered_twice: Gauge<u64>,
    next_record: Gauge<u64>,
    unfinished: Gauge<u64>,
    stuck: Gauge<u64>,
    living: Gauge<u64>,
    cleaned: Gauge<u64>,
    open_partitions: Gauge<u64>,
    waiting_partitions: Gauge<u64>,
    ready_partitions: Gauge<u64>,
    marks_ahead: Gauge<u64>,
    clock_ahead: Gauge<f64>,
}

impl Metrics {
    /// Made once per process.
    pub fn new(meter: &Meter) -> Self {
        let counter = |name: &'static str, text: &'static str| {
            meter.u64_counter(format!("collector_{name}")).with_description(text).build()
        };
        let gauge = |name: &'static str, text: &'static str| {
            meter.u64_gauge(format!("collector_{name}")).with_description(text).build()
        };
        let seconds = meter
            .f64_histogram("collector_commit_seconds")
            .with_description("From the draft to the record in the log")
            .with_boundaries(vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]);
        Self {
            events: counter("committed_events", "Events in published files, by dataset"),
            batches: counter("committed_batches", "Batches in published files, by dataset"),
            bytes: counter("committed_bytes", "Bytes of published files, by dataset"),
            dead_letters: counter("dead_letters", "Events set aside, by dataset"),
            quarantined: counter("quarantined_batches", "Batches set aside whole"),
            commits: counter("commits", "Records written to the commit log"),
            commit_seconds: seconds.build(),
            rolls: counter("rolls", "Groups closed, by reason"),
            gauges: Gauges {
                staged: gauge("staged_batches", "Batches staged and not committed"),
                open_groups: gauge("open_groups", "Groups that take batches"),
                buffered: gauge("buffered_bytes", "Memory held by groups"),
                streams: gauge("streams", "Aggregators connected"),
                since_commit: meter
                    .f64_gauge("collector_since_commit_seconds")
                    .with_description("Since the last own commit, or the start")
                    .build(),
                conflicts: gauge("conflicts", "Groups deleted since another collector committed a batch of theirs"),
                poisoned: gauge("poisoned_groups", "Groups given up after a storage error"),
                duplicates: gauge("duplicates", "Batches that were committed before they came"),
                covered_twice: gauge("covered_twice", "Seqs that the log covers more than once: a defect"),
                next_record: gauge("next_record", "First number of the commit log that was not read"),
                unfinished: gauge("unfinished_records", "Records whose files are not known to be in their places"),
                stuck: gauge("stuck_files", "Committed files that the store refuses to bring to their places"),
                living: gauge("living_runs", "Other collectors' runs that show signs of life"),
                cleaned: gauge("cleaned_records", "Records that this run deleted from the commit log"),
                open_partitions: gauge("open_partitions", "Partitions that are not sealed"),
                waiting_partitions: gauge(
                    "waiting_partitions",
                    "Partitions that are over and wait for an agent's word",
                ),
                ready_partitions: gauge("ready_partitions", "Partitions that can be sealed and are not yet"),
                marks_ahead: gauge("marks_ahead", "Marks that count for no seal: a clock is ahead"),
                clock_ahead: meter
                    .f64_gauge("collector_clock_ahead_seconds")
                    .with_description(
                        "How far the clock of this machine is ahead of the destination's; below 0: behind",
                    )
                    .build(),
            },
        }
    }

    /// A record of this run is in the log.
    pub fn committed(&self, n: u64, files: &[wire::PublishedFile], since: Duration) {
        tracing::debug!(n, files = files.len(), seconds = since.as_secs_f64(), "commit measured");
        self.commits.add(1, &[]);
        self.commit_seconds.record(since.as_secs_f64(), &[]);
        for file in files {
            let dataset = [KeyValue::new("dataset", file.dataset.clone())];
            match file.kind() {
                wire::FileKind::DeadLetter => self.dead_letters.add(file.events, &dataset),
                wire::FileKind::Quarantine => self.quarantined.add(file.batches, &[]),
                _ => {
                    self.events.add(file.events, &dataset);
                    self.batches.add(file.batches, &dataset);
                    self.bytes.add(file.bytes, &dataset);
                }
            }
        }
    }

    /// A group is being closed.
    pub fn rolled(&self, reason: Reason) {
        self.rolls.add(1, &[KeyValue::new("reason", reason.label())]);
    }

    /// Sets the gauges.
    pub fn observe(&self, snapshot: &Snapshot) {
        let gauges = &self.gauges;
        gauges.staged.record(snapshot.staged_batches, &[]);
        gauges.open_groups.record(snapshot.open_groups, &[]);
        gauges.buffered.record(snapshot.buffered_bytes, &[]);
        gauges.streams.record(snapshot.streams, &[]);
        gauges.since_commit.record(snapshot.since_commit_ms as f64 / 1000.0, &[]);
        gauges.conflicts.record(snapshot.conflicts, &[]);
        gauges.poisoned.record(snapshot.poisoned_groups, &[]);
        gauges.duplicates.record(snapshot.duplicates, &[]);
        gauges.covered_twice.record(snapshot.covered_twice, &[]);
        gauges.next_record.record(snapshot.next_record, &[]);
        gauges.unfinished.record(snapshot.unfinished_records, &[]);
        gauges.stuck.record(snapshot.stuck_files, &[]);
        gauges.living.record(snapshot.living_runs, &[]);
        gauges.cleaned.record(snapshot.cleaned_records, &[]);
        gauges.open_partitions.record(snapshot.open_partitions, &[]);
        gauges.waiting_partitions.record(snapshot.waiting_partitions, &[]);
        gauges.ready_partitions.record(snapshot.ready_partitions, &[]);
        gauges.marks_ahead.record(snapshot.marks_ahead, &[]);
        gauges.clock_ahead.record(snapshot.clock_ahead_ms as f64 / 1000.0, &[]);
    }
}
