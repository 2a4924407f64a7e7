//! One Java process that ends with its owner. A shell stands between: it waits on a pipe that this process holds open,
//! so the Java process is killed when its [`Daemon`] is dropped and also when the owner itself is killed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::download::missing_tool;

const KEEPER: &str = r#"out=$1; shift; "$@" </dev/null >"$out" 2>&1 & echo $!; read -r line; kill -9 $!; wait"#;

/// A running Java process; dropped, it is killed.
#[derive(Debug)]
pub(super) struct Daemon {
    name: String,
    out: PathBuf,
    pid: Pid,
    keeper: Child,
    leash: Option<ChildStdin>,
}

impl Daemon {
    pub fn spawn(name: &str, args: &[String], out: &Path) -> anyhow::Result<Self> {
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .arg(out)
            .arg("java")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| missing_tool("sh", &e))?;
        let leash = keeper.stdin.take();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().context("the shell has no output")?).read_line(&mut line)?;
        let pid = line
            .trim()
            .parse()
            .ok()
            .and_then(Pid::from_raw)
            .context("the shell did not say which process it started")?;
        Ok(Self { name: name.to_owned(), out: out.to_owned(), pid, keeper, leash })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Alive, and not only waiting to be reaped.
    pub fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    pub fn freeze(&self) -> anyhow::Result<()> {
        kill_process(self.pid, Signal::STOP).with_context(|| format!("{} cannot be stopped", self.name))
    }

    pub fn thaw(&self) -> anyhow::Result<()> {
        kill_process(self.pid, Signal::CONT).with_context(|| format!("{} cannot be continued", self.name))
    }

    /// The end of what it printed and logged.
    pub fn last_words(&self) -> String {
        let mut words = std::fs::read_to_string(&self.out).unwrap_or_default();
        words.push_str(&std::fs::read_to_string(self.out.with_extension("log")).unwrap_or_default());
        let lines: Vec<&str> = words.lines().collect();
        lines[lines.len().saturating_sub(8)..].join(" | ")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Closing the pipe makes the shell kill and reap it.
        self.leash = None;
        let _ = self.keeper.wait();
    }
}
