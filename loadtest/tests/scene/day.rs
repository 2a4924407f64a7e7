//! A day that passes in minutes: logs whose lines are dated by a fast clock, and waiting by it.

#![allow(dead_code, reason = "not every test binary lives by a fast clock")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::clock::{Fast, system_unix_ms};

/// A simulated hour takes 6 s.
pub const RATE: u32 = 600;
pub const HOUR_MS: i64 = 3_600_000;
/// 2026-03-09 22:00 UTC.
pub const START: i64 = 1_773_093_600_000;
/// 2026-03-10.
pub const DAY: &str = "event_date=2026-03-10";
pub const MIDNIGHT: i64 = START + 2 * HOUR_MS;
/// Longest wait for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn clock() -> Fast {
    Fast { start_unix_ms: START, real_start_unix_ms: system_unix_ms(), rate: RATE }
}

pub fn now(clock: Fast) -> i64 {
    clock.at(system_unix_ms())
}

/// Sleeps until the clock shows `hour` of the day.
pub fn sleep_until(clock: Fast, hour: f64) {
    let at = MIDNIGHT + (hour * HOUR_MS as f64) as i64;
    while now(clock) < at {
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// One line of an access log, dated by the fast clock.
pub fn line(agent: usize, number: u64, unix_ms: i64) -> String {
    let at = jiff::Timestamp::from_millisecond(unix_ms).unwrap();
    let time = at.strftime("%d/%b/%Y:%H:%M:%S +0000");
    format!("192.0.2.{agent} - - [{time}] \"GET /a{agent}/{number} HTTP/1.1\" 200 5 \"-\" \"-\"\n")
}

/// Lines per hour since midnight, by log.
pub type Counts = BTreeMap<(usize, &'static str, i64), u64>;

/// Logs that grow until they are told not to.
pub struct Writer {
    stop: Arc<AtomicBool>,
    counts: Arc<Mutex<Counts>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Writer {
    /// One thread per agent; the logs are `<dir>/<agent>/clicks` and `second`.
    pub fn start(dir: &Path, agents: usize, clock: Fast) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Counts::new())));
        let threads = (0..agents).map(|agent| {
            let (stop, counts, dir) = (stop.clone(), counts.clone(), dir.join(format!("{agent}")));
            fs::create_dir_all(&dir).unwrap();
            std::thread::spawn(move || {
                let mut files = ["clicks", "second"].map(|log| (log, File::create(dir.join(log)).unwrap()));
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    for (log, file) in &mut files {
                        let at = now(clock);
                        file.write_all(line(agent, number, at).as_bytes()).unwrap();
                        let hour = (at - MIDNIGHT).div_euclid(HOUR_MS);
                        *counts.lock().unwrap().entry((agent, log, hour)).or_default() += 1;
                    }
                    std::thread::sleep(Duration::from_millis(25));
                }
            })
        });
        let threads = threads.collect();
        Self { stop, counts, threads }
    }

    /// Ends them; what was written.
    pub fn stop(self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.counts.lock().unwrap().clone()
    }
}
