//! A local cluster of real processes on loopback: agents, aggregators and collectors, each with its own configuration,
//! state and log under one folder. Used by the commands and by the whole-system tests: start, kill, start again, stop in
//! order. Processes die with the cluster.

pub mod http;
pub mod ports;
pub mod process;
pub mod spec;
pub mod usage;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use process::Process;
use rustix::process::Signal;
use spec::{Addresses, Spec, Tier};
use usage::Usage;

/// Longest time until a started process answers as ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often a process is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// How processes of the tiers are started: the load tester's own binary under a tier's name, so that one built binary is
/// enough to run everything.
#[derive(Debug, Clone)]
pub struct Program(PathBuf);

impl Program {
    /// This very binary.
    pub fn current() -> Result<Self> {
        Ok(Self(std::env::current_exe().context("cannot find the running binary")?))
    }

    /// A given binary of the load tester, as tests have it.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// A command of a tier.
    pub fn command(&self, tier: Tier, args: &[&str]) -> Command {
        let mut command = Command::new(&self.0);
        command.arg0(tier.binary()).args(args).env(crate::tier::LEASH, "1");
        command
    }
}

/// One place of a process: it keeps its name, addresses and folder over restarts.
#[derive(Debug)]
struct Node {
    addresses: Addresses,
    dir: PathBuf,
    process: Option<Process>,
}

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    /// What it was made from.
    pub spec: Spec,
    program: Program,
    dir: PathBuf,
    nodes: BTreeMap<(Tier, usize), Node>,
    usage: BTreeMap<Tier, Usage>,
}

impl Cluster {
    /// Writes the configuration files under `dir`; nothing is started yet.
    pub fn create(spec: Spec, program: Program, dir: &Path) -> Result<Self> {
        let mut nodes = BTreeMap::new();
        let counts = [spec.agents.len(), spec.aggregators, spec.collectors];
        for (tier, count) in Tier::ALL.into_iter().zip(counts) {
            for index in 0..count {
                let dir = dir.join(spec::node_name(tier, index));
                fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
                let addresses = Addresses { listen: ports::free_address()?, admin: ports::free_address()? };
                nodes.insert((tier, index), Node { addresses, dir, process: None });
            }
        }
        let cluster = Self { spec, program, dir: dir.to_owned(), nodes, usage: BTreeMap::new() };
        cluster.write_configs()?;
        Ok(cluster)
    }

    /// Writes all configuration files anew from `spec`; running processes keep what they have read.
    pub fn write_configs(&self) -> Result<()> {
        for ((tier, index), node) in &self.nodes {
            let peers = match tier {
                Tier::EdgeAgent => self.listeners(Tier::Aggregator),
                Tier::Aggregator => self.listeners(Tier::Collector),
                Tier::Collector => Vec::new(),
            };
            let text = spec::config_text(&self.spec, *tier, *index, node.addresses, &node.dir, &peers);
            fs::write(node.dir.join(CONFIG), text)?;
        }
        Ok(())
    }

    /// The folder that everything lies in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of one process: configuration, log, state.
    pub fn node_dir(&self, tier: Tier, index: usize) -> &Path {
        &self.node(tier, index).dir
    }

    /// Addresses of one process.
    pub fn addresses(&self, tier: Tier, index: usize) -> Addresses {
        self.node(tier, index).addresses
    }

    /// Number of processes of a tier.
    pub fn count(&self, tier: Tier) -> usize {
        self.nodes.keys().filter(|(of, _)| *of == tier).count()
    }

    /// Starts collectors and aggregators and waits until they are ready.
    pub fn start_servers(&mut self) -> Result<()> {
        for tier in [Tier::Collector, Tier::Aggregator] {
            for index in 0..self.count(tier) {
                self.start(tier, index)?;
            }
            for index in 0..self.count(tier) {
                self.wait_ready(tier, index)?;
            }
        }
        Ok(())
    }

    /// Starts every agent; with `once` they read their files to the end and exit.
    pub fn start_agents(&mut self, once: bool) -> Result<()> {
        (0..self.count(Tier::EdgeAgent)).try_for_each(|index| self.start_agent(index, once))
    }

    /// Starts one agent.
    pub fn start_agent(&mut self, index: usize, once: bool) -> Result<()> {
        let args: &[&str] = if once { &["--once"] } else { &[] };
        self.start_with(Tier::EdgeAgent, index, args)
    }

    /// Starts one process; it is not waited for.
    pub fn start(&mut self, tier: Tier, index: usize) -> Result<()> {
        self.start_with(tier, index, &[])
    }

    fn start_with(&mut self, tier: Tier, index: usize, extra: &[&str]) -> Result<()> {
        let node = self.node(tier, index);
        if node.process.is_some() {
            bail!("{} is running already", spec::node_name(tier, index));
        }
        let config = node.dir.join(CONFIG);
        let mut args = vec!["run", "--config", config.to_str().context("paths of a cluster are text")?];
        args.extend_from_slice(extra);
        let mut command = self.program.command(tier, &args);
        if let Some(clock) = self.spec.clock {
            command.env(crate::tier::CLOCK, clock.to_text());
        }
        let process = Process::start(&spec::node_name(tier, index), command, &node.dir.join(LOG))?;
        self.node_mut(tier, index).process = Some(process);
        Ok(())
    }

    /// Calls another command of a process's tier with its configuration, to its end; what it printed, and whether it
    /// ended well.
    pub fn tool(&self, tier: Tier, index: usize, args: &[&str]) -> Result<Output> {
        let config = self.node(tier, index).dir.join(CONFIG);
        let mut command = self.program.command(tier, args);
        command.arg("--config").arg(config).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(clock) = self.spec.clock {
            command.env(crate::tier::CLOCK, clock.to_text());
        }
        let mut child = command.spawn().context("cannot start the tool")?;
        // It ends when its standard input does.
        let input = child.stdin.take();
        let output = child.wait_with_output()?;
        drop(input);
        Ok(output)
    }

    /// Waits until a process says it is ready; one that ended instead is an error with the end of its log.
    pub fn wait_ready(&self, tier: Tier, index: usize) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut last = String::from("no answer");
        while Instant::now() < deadline {
            self.check_alive(tier, index)?;
            match http::get(self.addresses(tier, index).admin, "/readyz") {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => last = answer.body,
                Err(error) => last = format!("{error:#}"),
            }
            std::thread::sleep(ASK_EVERY);
        }
        bail!("{} was not ready within {READY_WITHIN:?}: {}", spec::node_name(tier, index), last.trim())
    }

    /// An error with the end of its log when a process that should run has ended.
    pub fn check_alive(&self, tier: Tier, index: usize) -> Result<()> {
        let name = spec::node_name(tier, index);
        match &self.node(tier, index).process {
            None => bail!("{name} is not running"),
            Some(process) if process.has_ended() => bail!("{name} ended; the end of its log:\n{}", process.log_tail()),
            Some(_) => Ok(()),
        }
    }

    /// The same for every process of some tiers.
    pub fn check_all_alive(&self, tiers: &[Tier]) -> Result<()> {
        tiers.iter().try_for_each(|tier| (0..self.count(*tier)).try_for_each(|index| self.check_alive(*tier, index)))
    }

    /// True while any process of a tier runs.
    pub fn any_runs(&self, tier: Tier) -> bool {
        (0..self.count(tier)).any(|index| self.is_running(tier, index))
    }

    /// True while the process runs.
    pub fn is_running(&self, tier: Tier, index: usize) -> bool {
        self.node(tier, index).process.as_ref().is_some_and(|process| !process.has_ended())
    }

    /// Process id of a running process.
    pub fn pid(&self, tier: Tier, index: usize) -> Option<u32> {
        self.node(tier, index).process.as_ref().map(Process::pid)
    }

    /// SIGKILL.
    pub fn kill(&mut self, tier: Tier, index: usize) -> Result<()> {
        let process = self.take(tier, index)?;
        let usage = process.kill()?;
        self.usage.entry(tier).or_default().add(usage);
        Ok(())
    }

    /// Stops a process without ending it (SIGSTOP), or lets it go on (SIGCONT).
    pub fn freeze(&self, tier: Tier, index: usize, frozen: bool) -> Result<()> {
        let process = self.node(tier, index).process.as_ref();
        let process = process.with_context(|| format!("{} is not running", spec::node_name(tier, index)))?;
        process.signal(if frozen { Signal::STOP } else { Signal::CONT })
    }

    /// Waits for a process to end by itself, well or not; the end of its log.
    pub fn join(&mut self, tier: Tier, index: usize, within: Duration) -> Result<String> {
        let process = self.take(tier, index)?;
        let log = process.log().to_owned();
        let ended = process.wait(within)?;
        self.usage.entry(tier).or_default().add(ended.usage);
        Ok(process::log_tail(&log))
    }

    /// SIGTERM, then waits for a clean exit.
    pub fn stop(&mut self, tier: Tier, index: usize, within: Duration) -> Result<()> {
        let process = self.take(tier, index)?;
        process.terminate()?;
        let usage = process.wait_success(within)?;
        self.usage.entry(tier).or_default().add(usage);
        Ok(())
    }

    /// SIGTERM to a whole tier at once, then waits for all of it.
    pub fn stop_all(&mut self, tier: Tier, within: Duration) -> Result<()> {
        for index in 0..self.count(tier) {
            if let Some(process) = &self.node(tier, index).process {
                process.terminate()?;
            }
        }
        self.join_all(tier, within)
    }

    /// Waits until every process of a tier has ended by itself, well.
    pub fn join_all(&mut self, tier: Tier, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        for index in 0..self.count(tier) {
            if let Some(process) = self.node_mut(tier, index).process.take() {
                let left = deadline.saturating_duration_since(Instant::now());
                let usage = process.wait_success(left)?;
                self.usage.entry(tier).or_default().add(usage);
            }
        }
        Ok(())
    }

    /// `aggregator drain --empty` for every aggregator: returns when all of it is delivered.
    pub fn drain_aggregators(&mut self, within: Duration) -> Result<()> {
        let mut drains = Vec::new();
        for index in 0..self.count(Tier::Aggregator) {
            let dir = &self.node(Tier::Aggregator, index).dir;
            let config = dir.join(CONFIG);
            let args = ["drain", "--empty", "--config", config.to_str().context("paths of a cluster are text")?];
            let command = self.program.command(Tier::Aggregator, &args);
            let name = format!("drain of {}", spec::node_name(Tier::Aggregator, index));
            drains.push(Process::start(&name, command, &dir.join("drain.log"))?);
        }
        let deadline = Instant::now() + within;
        for drain in drains {
            drain.wait_success(deadline.saturating_duration_since(Instant::now()))?;
        }
        Ok(())
    }

    /// The status a process tells of itself; `None` while it cannot be reached.
    pub fn status(&self, tier: Tier, index: usize) -> Option<serde_json::Value> {
        let answer = http::get(self.addresses(tier, index).admin, "/status").ok()?;
        serde_json::from_str(&answer.body).ok()
    }

    /// What processes say of themselves that are not ready, one line each; empty when all are well.
    pub fn complaints(&self) -> String {
        let mut text = String::new();
        for ((tier, index), node) in &self.nodes {
            if let Ok(answer) = http::get(node.addresses.admin, "/readyz")
                && answer.status != 200
            {
                text.push_str(&format!("\n  {}: {}", spec::node_name(*tier, *index), answer.body.trim()));
            }
        }
        text
    }

    /// One number of the status, added up over a tier; processes that cannot be reached count nothing. For progress
    /// only: nothing is verified with it.
    pub fn sum(&self, tier: Tier, key: &str) -> u64 {
        (0..self.count(tier)).filter_map(|index| self.status(tier, index)?.get(key)?.as_u64()).sum()
    }

    /// What a tier has used, as far as its processes have ended.
    pub fn usage(&self, tier: Tier) -> Usage {
        self.usage.get(&tier).copied().unwrap_or_default()
    }

    fn listeners(&self, tier: Tier) -> Vec<SocketAddr> {
        (0..self.count(tier)).map(|index| self.node(tier, index).addresses.listen).collect()
    }

    fn take(&mut self, tier: Tier, index: usize) -> Result<Process> {
        let process = self.node_mut(tier, index).process.take();
        process.with_context(|| format!("{} is not running", spec::node_name(tier, index)))
    }

    fn node(&self, tier: Tier, index: usize) -> &Node {
        &self.nodes[&(tier, index)]
    }

    fn node_mut(&mut self, tier: Tier, index: usize) -> &mut Node {
        self.nodes.get_mut(&(tier, index)).expect("callers count the nodes of a tier first")
    }
}

/// Names of the files in a node's folder.
const CONFIG: &str = "config.toml";
/// Its output.
const LOG: &str = "log.jsonl";
