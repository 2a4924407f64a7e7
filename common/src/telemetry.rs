//! Logs and metrics of a process.
//!
//! Logs: JSON lines on stderr through `tracing`; messages are constant, facts are fields, event contents are never
//! among them. Metrics: OpenTelemetry instruments, made by whoever owns the thing measured, read as Prometheus text.

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use tracing_subscriber::EnvFilter;

/// Names the log filter, before `RUST_LOG`: e.g. `info` or `warn,edge_agent::tail=debug`.
pub const LOG_VARIABLE: &str = "CATCHMENT_LOG";

/// Begins logging: JSON lines on stderr, level `info` unless `CATCHMENT_LOG` or `RUST_LOG` says otherwise. A second
/// call changes nothing.
pub fn init_logging() {
    let wanted =
        [LOG_VARIABLE, "RUST_LOG"].iter().find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()));
    let filter = wanted.map_or_else(|| EnvFilter::new("info"), EnvFilter::new);
    let lines =
        tracing_subscriber::fmt().json().flatten_event(true).with_writer(std::io::stderr).with_env_filter(filter);
    // Refused when a test or an embedding process has a subscriber already: that one is meant.
    let _ = lines.try_init();
}

/// The metrics of one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Telemetry {
    provider: SdkMeterProvider,
    registry: Registry,
}

/// The metrics pipeline cannot be built; only a programming error makes it so.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be set up: {0}")]
pub struct TelemetryError(String);

impl Telemetry {
    /// Every metric name begins with `catchment_`; `service` (e.g. `edge-agent`) is in `target_info`.
    pub fn new(service: &'static str) -> Result<Self, TelemetryError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .with_namespace("catchment")
            .scope_info_enabled(false)
            .build()
            .map_err(|error| TelemetryError(error.to_string()))?;
        let resource = Resource::builder_empty().with_service_name(service).build();
        let provider = SdkMeterProvider::builder().with_resource(resource).with_reader(exporter).build();
        Ok(Self { provider, registry })
    }

    /// Where instruments come from.
    pub fn meter(&self) -> Meter {
        self.provider.meter("catchment")
    }

    /// All metrics now, in the Prometheus text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::warn!(error = %error, "metrics cannot be rendered");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::KeyValue;

    use super::*;

    #[test]
    fn instruments_come_out_as_prometheus_text() {
        let telemetry = Telemetry::new("edge-agent").unwrap();
        let meter = telemetry.meter();
        let events = meter.u64_counter("edge_read_events").build();
        events.add(3, &[KeyValue::new("source", "nginx")]);
        events.add(4, &[KeyValue::new("source", "nginx")]);
        let held = meter.u64_gauge("edge_outbox_bytes").build();
        held.record(12, &[]);
        let text = telemetry.render();
        assert!(text.contains("catchment_edge_read_events_total{source=\"nginx\"} 7"), "{text}");
        assert!(text.contains("catchment_edge_outbox_bytes 12"), "{text}");
        assert!(text.contains("service_name=\"edge-agent\""), "{text}");
    }

    #[test]
    fn two_processes_in_one_share_nothing() {
        let (one, two) = (Telemetry::new("aggregator").unwrap(), Telemetry::new("aggregator").unwrap());
        one.meter().u64_counter("x").build().add(1, &[]);
        assert!(one.render().contains("catchment_x_total"));
        assert!(!two.render().contains("catchment_x_total"));
    }
}
