//! One process of a tier: started with its output in a file, asked to end or killed, and its use counted. Nothing it
//! started outlives its owner.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::usage::{self, Usage};

/// How often a living process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Bytes of a log that are shown when its process fails.
const TAIL_BYTES: usize = 2_000;

/// A running process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    peak: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    sampler: Option<JoinHandle<()>>,
    reaped: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it used.
    pub usage: Usage,
}

impl Process {
    /// Starts `command`; what it writes is appended to `log`. Its standard input stays open as long as this process
    /// lives, so that it can tell.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log)?;
        let err = out.try_clone()?;
        let child = command.stdin(Stdio::piped()).stdout(out).stderr(err).spawn();
        let child = child.with_context(|| format!("cannot start {name}"))?;
        let (peak, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let sampler = std::thread::spawn({
            let (pid, peak, ended) = (child.id(), peak.clone(), ended.clone());
            move || {
                while !ended.load(Ordering::Relaxed) {
                    peak.fetch_max(usage::peak_rss_bytes(pid).unwrap_or(0), Ordering::Relaxed);
                    std::thread::sleep(LOOK_EVERY);
                }
            }
        });
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            peak,
            ended,
            sampler: Some(sampler),
            reaped: false,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends SIGTERM: drain and end.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.rustix_pid()?, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// SIGKILL, and what it had used by then.
    pub fn kill(mut self) -> Result<Usage> {
        // The sampler may not have looked yet, and a killed process no longer tells.
        self.peak.fetch_max(usage::peak_rss_bytes(self.pid()).unwrap_or(0), Ordering::Relaxed);
        self.signal(Signal::KILL)?;
        Ok(self.reap_within(Duration::from_secs(30))?.usage)
    }

    /// Whether it has ended; it is not reaped by this.
    pub fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let Ok(pid) = self.rustix_pid() else { return true };
        !matches!(waitid(WaitId::Pid(pid), options), Ok(None))
    }

    /// Waits for its end. On a failure or at the deadline the end of its log is part of the error.
    pub fn wait_success(mut self, within: Duration) -> Result<Usage> {
        let ended = self.reap_within(within)?;
        if !ended.status.success() {
            bail!("{} ended with {}; the end of its log:\n{}", self.name, ended.status, self.log_tail());
        }
        Ok(ended.usage)
    }

    /// Waits for its end, whatever the status.
    pub fn wait(mut self, within: Duration) -> Result<Ended> {
        self.reap_within(within)
    }

    /// The last lines it wrote.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }

    fn reap_within(&mut self, within: Duration) -> Result<Ended> {
        let deadline = Instant::now() + within;
        while !self.has_ended() {
            if Instant::now() > deadline {
                bail!("{} did not end within {within:?}; the end of its log:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let cpu_seconds = usage::cpu_seconds(self.pid()).unwrap_or(0.0);
        self.stop_sampler();
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(Ended { status, usage: Usage { cpu_seconds, peak_rss_bytes: self.peak.load(Ordering::Relaxed) } })
    }

    fn stop_sampler(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            let _ = sampler.join();
        }
    }

    fn rustix_pid(&self) -> Result<Pid> {
        let raw = i32::try_from(self.child.id())?;
        Pid::from_raw(raw).context("a process id is never 0")
    }
}

/// The last lines of a log.
pub fn log_tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL_BYTES)..]).into_owned()
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.stop_sampler();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Process {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Process::start("sh", command, log).unwrap()
    }

    #[test]
    fn cpu_and_output_of_an_ended_process() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done";
        let usage = shell(script, &log).wait_success(Duration::from_secs(60)).unwrap();
        assert!(usage.cpu_seconds > 0.0 && usage.peak_rss_bytes > 100_000, "{usage:?}");
        assert_eq!(fs::read_to_string(log).unwrap(), "done\n");
    }

    #[test]
    fn a_failure_shows_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell("echo broken >&2; exit 3", &dir.path().join("log"));
        let error = process.wait_success(Duration::from_secs(60)).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
    }

    #[test]
    fn killed_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell("sleep 600", &dir.path().join("log"));
        assert!(!process.has_ended());
        assert!(process.kill().unwrap().peak_rss_bytes > 0);
        let process = shell("exec sleep 600", &dir.path().join("log"));
        let pid = process.pid();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
