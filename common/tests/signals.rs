//! Real signals to a real process: this test starts itself again as the process that is stopped.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use common::supervise::{Shutdown, Tasks};
use rustix::process::{Pid, Signal, kill_process};

const ROLE: &str = "CATCHMENT_TEST_SIGNALS_ROLE";

/// The process under test: does nothing unless it was started by one of the tests below.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(async {
        let shutdown = Shutdown::on_signals(Duration::from_secs(600)).unwrap();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("worker", async move {
            say("running");
            shutdown.draining().await;
            say("draining");
            match role.as_str() {
                "drains" => {}
                "waits" => std::future::pending().await,
                // A task that never yields: not even its runtime's timers go on.
                _ => loop {
                    std::thread::park();
                },
            }
            Ok(())
        });
        tasks.join().await
    });
    std::process::exit(if result.is_ok() { 0 } else { 3 });
}

fn say(line: &str) {
    std::io::stdout().write_all(format!("says {line}\n").as_bytes()).unwrap();
}

struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Process {
    fn start(role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(ROLE, role)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Self { child, lines };
        process.wait_for("says running");
        process
    }

    fn wait_for(&mut self, expected: &str) {
        let found = self.lines.by_ref().map_while(Result::ok).any(|line| line.ends_with(expected));
        assert!(found, "the process ended before it {expected}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

#[test]
fn the_first_signal_drains() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut process = Process::start("drains");
        process.signal(signal);
        process.wait_for("says draining");
        assert_eq!(process.wait().code(), Some(0));
    }
}

#[test]
fn the_second_signal_ends_at_once() {
    for role in ["waits", "blocks"] {
        let mut process = Process::start(role);
        process.signal(Signal::TERM);
        process.wait_for("says draining");
        process.signal(Signal::INT);
        assert_eq!(process.wait().code(), Some(130), "{role}");
    }
}
