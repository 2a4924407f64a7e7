//! A directory with a log and a state directory, and agents that run on it in this process.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::supervise::Shutdown;
use edge_agent::agent::owner::End;
use edge_agent::agent::{self, Tuning};
use edge_agent::config::AgentConfig;
use proto::header::Kind;
use proto::ids::Origin;
use proto::wire;

use crate::support::{Fake, State};

/// Where one agent lives.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub admin: SocketAddr,
    next: u64,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        // Tools must know the address before the agent runs.
        let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { dir, admin, next: 0 }
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("logs/access.log")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// One line per minute from 10:00 on.
    pub fn write(&mut self, lines: u64) {
        self.write_to("access.log", lines);
    }

    pub fn write_to(&mut self, name: &str, lines: u64) {
        let path = self.dir.path().join("logs").join(name);
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        for _ in 0..lines {
            let (hour, minute) = (10 + self.next / 60 % 12, self.next % 60);
            writeln!(file, "2026-11-20T{hour:02}:{minute:02}:00Z line {}", self.next).unwrap();
            self.next += 1;
        }
    }

    /// Lines that do not compress.
    pub fn write_noise(&mut self, lines: u64) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..lines {
            let noise: String = (0..40)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    format!("{:08x}", seed >> 32)
                })
                .collect();
            writeln!(file, "2026-11-20T10:00:00Z {noise} {}", self.next).unwrap();
            self.next += 1;
        }
    }

    pub fn config(&self, fake: &Fake, more: &str) -> AgentConfig {
        self.config_at(&self.state(), fake, more)
    }

    pub fn config_at(&self, state: &Path, fake: &Fake, more: &str) -> AgentConfig {
        let text = format!(
            "name = \"web-1\"\nstate_dir = {state:?}\n{more}\n[aggregators]\npeers = [\"{}\"]\ntimeout = \"2s\"\n\
             [outbox]\nmin_free = \"1MiB\"\nmin_free_percent = 0\n[admin]\nlisten = \"{}\"\n\
             [batch]\nlinger = \"50ms\"\nmax_raw_bytes = \"16KiB\"\n\
             [[sources]]\nname = \"nginx\"\ntype = \"tail\"\npaths = [\"{}/logs/*.log\"]\npoll = \"10ms\"\n\
             dataset = \"clickstream\"\ntime = {{ format = \"iso8601\" }}\n",
            fake.at,
            self.admin,
            self.dir.path().display()
        );
        common::config::parse(&text).unwrap()
    }
}

pub fn tuning() -> Tuning {
    Tuning { contact_timeout: Duration::from_secs(10), hurry: Duration::from_millis(20), segment_bytes: 64 * 1024 }
}

pub type Running = tokio::task::JoinHandle<anyhow::Result<End>>;

pub fn start(config: AgentConfig, once: bool) -> (Shutdown, Running) {
    start_tuned(config, once, tuning())
}

pub fn start_tuned(config: AgentConfig, once: bool, tuning: Tuning) -> (Shutdown, Running) {
    // The run before lets go of the address shortly after its end.
    for _ in 0..500 {
        if std::net::TcpListener::bind(config.admin.listen).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let shutdown = Shutdown::new(Duration::from_secs(20));
    (shutdown.clone(), tokio::spawn(agent::run(config, once, tuning, shutdown)))
}

/// Runs to its end with `--once`.
pub async fn once(config: AgentConfig) -> End {
    let (_stop, task) = start(config, true);
    task.await.unwrap().unwrap()
}

/// Copies a directory like `cp -r`: same contents, other inodes.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// The open of an origin.
pub fn open_of(state: &State, origin: Origin) -> wire::Open {
    match &state.stored[&(origin, 0)].header.kind {
        Kind::Open(open) => open.clone(),
        other => panic!("seq 0 is {other:?}"),
    }
}

/// All marks of all origins, in order.
pub fn marks(state: &State) -> Vec<wire::Mark> {
    let mark = |kind: &Kind| if let Kind::Mark(mark) = kind { Some(mark.clone()) } else { None };
    state.stored.values().filter_map(|stored| mark(&stored.header.kind)).collect()
}

/// The close of an origin.
pub fn close_of(state: &State, origin: Origin) -> Option<wire::Close> {
    state.stored.range((origin, 0)..=(origin, u64::MAX)).find_map(|(_, stored)| match &stored.header.kind {
        Kind::Close(close) => Some(close.clone()),
        _ => None,
    })
}
