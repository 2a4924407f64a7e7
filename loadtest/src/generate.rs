//! The log writer: realistic access logs of several hosts, by seed the same bytes each time, at full speed or at a rate
//! while they are read. Nothing in them is copied from anywhere.

pub mod catalogue;
pub mod clock;
pub mod line;
pub mod log_file;
pub mod rng;
pub mod visitor;
pub mod words;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::civil::Date;

use catalogue::Catalogue;
use line::LineWriter;
use log_file::LogFile;
pub use log_file::Rotate;

use crate::event_id;

/// Bytes gathered before they are written, at full speed.
const WRITE_BYTES: usize = 256 * 1024;
/// At a rate, what was gathered is written this often.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// Lines that are written between a copy and its truncation.
const BETWEEN_LINES: usize = 2;
/// Odd lines in a million, unless said otherwise.
pub const ODD_PER_MILLION: u32 = 100;

/// What to write.
#[derive(Debug, Clone)]
pub struct Options {
    /// All hosts together; each host's share ends with a whole line.
    pub bytes: u64,
    /// Number of hosts: `web-01` and so on.
    pub hosts: usize,
    /// Hosts in front of the first, so that two calls can write the logs of one set of hosts.
    pub first_host: usize,
    /// Each host's log goes to `<out>/<host>/access.log`.
    pub out: PathBuf,
    /// The same seed and `end` give the same bytes.
    pub seed: u64,
    /// Bytes per second of all hosts together; `None` is as fast as possible.
    pub rate: Option<u64>,
    /// Rotation.
    pub rotate: Rotate,
    /// A log of this length is rotated.
    pub rotate_bytes: u64,
    /// Odd lines in a million.
    pub odd_per_million: u32,
    /// Last of the three days that most lines are dated in.
    pub end: Date,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Lines, destroyed ones among them.
    pub lines: u64,
    /// Bytes, destroyed ones among them.
    pub bytes: u64,
    /// Lines that a truncation destroyed.
    pub destroyed: u64,
}

/// Name of host number `index`.
pub fn host_name(index: usize) -> String {
    format!("web-{:02}", index + 1)
}

/// Yesterday, UTC.
pub fn yesterday() -> Date {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    today.yesterday().unwrap_or(today)
}

/// Writes all logs, a thread per host; `progress` grows by the bytes written.
pub fn generate(options: &Options, progress: &AtomicU64) -> Result<Written> {
    let catalogue = Catalogue::new(options.seed);
    let catalogue = &catalogue;
    std::thread::scope(|scope| {
        let hosts: Vec<_> = (options.first_host..options.first_host + options.hosts)
            .map(|index| scope.spawn(move || HostLog::create(options, index, catalogue)?.write_all(progress)))
            .collect();
        let mut sum = Written::default();
        for host in hosts {
            let written = host.join().map_err(|_| anyhow::anyhow!("a writer thread failed"))??;
            sum.lines += written.lines;
            sum.bytes += written.bytes;
            sum.destroyed += written.destroyed;
        }
        Ok(sum)
    })
}

/// The writing of one host.
struct HostLog<'a> {
    options: &'a Options,
    name: String,
    lines: LineWriter<'a>,
    file: LogFile,
    buffer: Vec<u8>,
    written: Written,
}

impl<'a> HostLog<'a> {
    fn create(options: &'a Options, index: usize, catalogue: &'a Catalogue) -> Result<Self> {
        let name = host_name(index);
        let dir = options.out.join(&name);
        let file = LogFile::create(&dir).with_context(|| format!("cannot write logs to {}", dir.display()))?;
        let lines = LineWriter::new(&name, index, options.seed, options.end, options.odd_per_million, catalogue);
        Ok(Self {
            options,
            name,
            lines,
            file,
            buffer: Vec::with_capacity(2 * WRITE_BYTES),
            written: Written::default(),
        })
    }

    fn write_all(mut self, progress: &AtomicU64) -> Result<Written> {
        let goal = self.options.bytes / self.options.hosts.max(1) as u64;
        let mut pace = self.options.rate.map(|rate| Pace::new(rate as f64 / self.options.hosts as f64));
        while self.written.bytes < goal {
            let due = match &mut pace {
                None => goal,
                Some(pace) => pace.wait(self.written.bytes).min(goal),
            };
            while self.written.bytes < due && self.buffer.len() < WRITE_BYTES {
                self.push_line(goal);
                if self.is_long() {
                    break;
                }
            }
            progress.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
            self.flush()?;
            if self.is_long() {
                self.rotate(goal)?;
            }
        }
        self.written.lines = self.lines.written();
        Ok(self.written)
    }

    fn push_line(&mut self, goal: u64) {
        let before = self.buffer.len();
        self.lines.push_line(&mut self.buffer, self.written.bytes as f64 / goal as f64);
        self.written.bytes += (self.buffer.len() - before) as u64;
    }

    fn is_long(&self) -> bool {
        let bytes = self.file.bytes() + self.buffer.len() as u64;
        self.options.rotate != Rotate::None && bytes >= self.options.rotate_bytes
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write(&self.buffer).with_context(|| format!("cannot write the log of {}", self.name))?;
        self.buffer.clear();
        Ok(())
    }

    fn rotate(&mut self, goal: u64) -> Result<()> {
        if self.options.rotate == Rotate::Rename {
            return self.file.rotate_by_rename().with_context(|| format!("cannot rotate the log of {}", self.name));
        }
        let mut ids = Vec::new();
        for _ in 0..BETWEEN_LINES {
            event_id::push(&mut ids, self.name.as_bytes(), self.lines.written());
            ids.push(b'\n');
            self.push_line(goal);
        }
        self.written.destroyed += BETWEEN_LINES as u64;
        self.file
            .rotate_by_copy(&self.buffer, &ids)
            .with_context(|| format!("cannot rotate the log of {}", self.name))?;
        self.buffer.clear();
        Ok(())
    }
}

/// Holds a writer to its rate.
struct Pace {
    began: Instant,
    bytes_per_second: f64,
}

impl Pace {
    fn new(bytes_per_second: f64) -> Self {
        Self { began: Instant::now(), bytes_per_second }
    }

    /// Waits until bytes are due past `written`; returns how many bytes are due in all.
    fn wait(&mut self, written: u64) -> u64 {
        loop {
            std::thread::sleep(WRITE_EVERY);
            let due = (self.began.elapsed().as_secs_f64() * self.bytes_per_second) as u64;
            if due > written {
                return due;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn options(out: &std::path::Path, rotate: Rotate) -> Options {
        Options {
            bytes: 3_000_000,
            hosts: 2,
            first_host: 0,
            out: out.to_owned(),
            seed: 9,
            rate: None,
            rotate,
            rotate_bytes: 400_000,
            odd_per_million: ODD_PER_MILLION,
            end: jiff::civil::date(2026, 11, 20),
        }
    }

    fn ids_of(dir: &std::path::Path) -> Vec<u64> {
        let finder = event_id::Finder::default();
        let mut ids = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with(log_file::LOG_NAME) {
                let text = fs::read(path).unwrap();
                ids.extend(text.split(|b| *b == b'\n').filter_map(|line| finder.find(line)).map(|id| id.number));
            }
        }
        ids.sort_unstable();
        ids
    }

    #[test]
    fn renamed_logs_hold_every_line() {
        let dir = tempfile::tempdir().unwrap();
        let written = generate(&options(dir.path(), Rotate::Rename), &AtomicU64::new(0)).unwrap();
        assert_eq!(written.destroyed, 0);
        let lines: usize = ["web-01", "web-02"].iter().map(|host| ids_of(&dir.path().join(host)).len()).sum();
        assert_eq!(lines as u64, written.lines);
        assert!(dir.path().join("web-01/access.log.3").exists());
    }

    #[test]
    fn copytruncate_names_what_it_destroyed() {
        let dir = tempfile::tempdir().unwrap();
        let written = generate(&options(dir.path(), Rotate::Copytruncate), &AtomicU64::new(0)).unwrap();
        assert!(written.destroyed > 0);
        let finder = event_id::Finder::default();
        let mut all = Vec::new();
        for host in ["web-01", "web-02"] {
            let mut ids = ids_of(&dir.path().join(host));
            let destroyed = fs::read(dir.path().join(host).join(log_file::DESTROYED_NAME)).unwrap();
            let destroyed: Vec<u64> =
                destroyed.split(|b| *b == b'\n').filter_map(|line| finder.find(line)).map(|id| id.number).collect();
            assert!(destroyed.iter().all(|id| ids.binary_search(id).is_err()));
            ids.extend(destroyed);
            ids.sort_unstable();
            assert_eq!(ids, (0..ids.len() as u64).collect::<Vec<_>>());
            all.extend(ids);
        }
        assert_eq!(all.len() as u64, written.lines);
    }

    #[test]
    fn a_log_that_is_there_is_not_continued() {
        let dir = tempfile::tempdir().unwrap();
        generate(&options(dir.path(), Rotate::None), &AtomicU64::new(0)).unwrap();
        let error = generate(&options(dir.path(), Rotate::None), &AtomicU64::new(0)).unwrap_err();
        assert!(format!("{error:#}").contains("there already"), "{error:#}");
    }
}
