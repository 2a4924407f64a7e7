//! What a real agent process tells its operator about what others did with its events: a batch that a collector put into
//! quarantine, with the reason; an outbox that takes nothing more, with the limit that holds.

mod scene;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use loadtest::cluster::spec::Tier;
use loadtest::cluster::{Cluster, http};
use serde_json::Value;

use scene::{program, small_spec};

const LINE: &str = "10.0.0.1 - - [20/Nov/2025:13:55:36 +0000] \"GET / HTTP/1.1\" 200 1 \"-\" \"-\"\n";
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// Waits until a process says so in `/status`.
fn until(cluster: &Cluster, tier: Tier, what: &str, done: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = cluster.status(tier, 0);
        match status {
            Some(status) if done(&status) => return status,
            last => {
                assert!(Instant::now() < deadline, "{what}: not within a minute\n{last:?}\n{}", cluster.complaints())
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn cluster(dir: &Path) -> Cluster {
    fs::create_dir(dir.join("logs")).unwrap();
    let spec = small_spec(dir, vec![dir.join("logs/*.log").to_str().unwrap().to_owned()]);
    let mut cluster = Cluster::create(spec, program(), &dir.join("nodes")).unwrap();
    cluster.start_servers().unwrap();
    cluster
}

/// Changes one line of a process's configuration.
fn reconfigure(cluster: &Cluster, tier: Tier, old: &str, new: &str) {
    let dir = cluster.node_dir(tier, 0);
    let configs = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let path = configs.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "toml")).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(old), "{text}");
    fs::write(&path, text.replace(old, new)).unwrap();
}

#[test]
fn an_agent_names_the_reason_of_its_quarantined_batch() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = cluster(dir.path());
    cluster.start_agent(0, false).unwrap();
    until(&cluster, Tier::EdgeAgent, "the open is acked", |status| status["unacked_batches"] == 0);
    // While no collector is there, an aggregator that knows the old declarations takes a batch.
    cluster.stop(Tier::Collector, 0, STOP_WITHIN).unwrap();
    fs::write(dir.path().join("logs/access.log"), LINE).unwrap();
    until(&cluster, Tier::EdgeAgent, "the line is at the aggregator", |status| {
        status["published_events"] == 1 && status["undelivered_batches"] == 0
    });
    // The collector comes back with a declaration that does not know this agent.
    reconfigure(&cluster, Tier::Collector, "zone = \"UTC\"\n", "zone = \"UTC\"\nwriters = [\"nobody\"]\n");
    cluster.start(Tier::Collector, 0).unwrap();
    let status =
        until(&cluster, Tier::EdgeAgent, "the quarantine is known", |status| status["quarantined_batches"] == 1);
    let told = &status["quarantined"][0];
    assert_eq!((&told["dataset"], status["quarantined"].as_array().unwrap().len()), (&"clickstream".into(), 1));
    assert_eq!(told["reason"], "agent edge-agent-1 is not among the writers of dataset clickstream");
    assert!(told["seq"].as_u64().is_some_and(|seq| seq > 0) && told["origin"].is_string(), "{told}");
    let metrics = http::get(cluster.addresses(Tier::EdgeAgent, 0).admin, "/metrics").unwrap().body;
    let counted =
        metrics.lines().find(|line| line.contains("agent_quarantined_batches_total") && !line.starts_with('#'));
    assert!(counted.is_some_and(|line| line.ends_with(" 1")), "{counted:?}");
    let logged = fs::read_dir(cluster.node_dir(Tier::EdgeAgent, 0)).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        (path.is_file()).then(|| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned())
    });
    let said: usize = logged.map(|text| text.matches("a collector refused a batch for good").count()).sum();
    assert_eq!(said, 1, "it is logged once");
}

#[test]
fn an_agent_names_the_limit_that_fills_its_outbox() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = cluster(dir.path());
    reconfigure(&cluster, Tier::EdgeAgent, "min_free = \"256MiB\"", "min_free = \"999TiB\"");
    fs::write(dir.path().join("logs/access.log"), LINE).unwrap();
    cluster.start_agent(0, false).unwrap();
    let status = until(&cluster, Tier::EdgeAgent, "the outbox is full", |status| status["outbox_full"].is_string());
    let text = status["outbox_full"].as_str().unwrap();
    let floor = (999u64 << 40).to_string();
    assert!(text.contains("outbox.min_free") && text.contains(&floor) && text.contains("make room"), "{text}");
    let ready = http::get(cluster.addresses(Tier::EdgeAgent, 0).admin, "/readyz").unwrap();
    assert!(ready.status == 503 && ready.body.contains(&floor), "{ready:?}");
}
