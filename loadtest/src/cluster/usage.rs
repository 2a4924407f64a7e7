//! What a process used, as the kernel counted it. CPU is read from `/proc` after the process has ended and before it is
//! reaped, so nothing is missing; peak memory is the kernel's own high-water mark, read every few milliseconds while the
//! process lives, so only growth within its last milliseconds can be missed.

use std::fs;

/// What was used by one process, or by all runs of a tier.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// Largest resident set of any one process, in bytes.
    pub peak_rss_bytes: u64,
}

impl Usage {
    /// Adds another process or run: CPU adds up, of the peaks the larger counts.
    pub fn add(&mut self, other: Usage) {
        self.cpu_seconds += other.cpu_seconds;
        self.peak_rss_bytes = self.peak_rss_bytes.max(other.peak_rss_bytes);
    }
}

/// User and system time so far, also of a process that has ended and was not reaped yet.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    parse_ticks(&stat).map(|used| used as f64 / ticks)
}

/// The largest resident set so far; `None` once the process has ended.
pub fn peak_rss_bytes(pid: u32) -> Option<u64> {
    parse_peak(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_ticks(stat: &str) -> Option<u64> {
    // The name in parentheses may hold anything, so fields are counted behind it: state is field 3, utime 14, stime 15.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn parse_peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        let stat = "42 (a (odd) name) S 1 42 42 0 -1 4194560 900 0 0 0 250 50 7 8 20 0 3 0 100 1000 10";
        assert_eq!(parse_ticks(stat), Some(300));
        assert_eq!(parse_peak("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2_097_152));
        assert_eq!(parse_peak("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_uses_something() {
        assert!(peak_rss_bytes(std::process::id()).unwrap() > 100_000);
        assert!(cpu_seconds(std::process::id()).is_some());
    }
}
