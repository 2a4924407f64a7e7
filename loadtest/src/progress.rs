//! How far a run is, for people: a bar on a terminal, a plain line now and then elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cluster::Cluster;
use crate::cluster::spec::Tier;
use crate::verify::report::group;

/// Plain lines are this far apart.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counters of all processes, as they tell them; nothing is verified with these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// Events read by agents that run now.
    pub read: u64,
    /// Batches that lie in channels.
    pub held: u64,
    /// Events committed by collectors since they were started.
    pub committed: u64,
    /// Batches that agents still wait for.
    pub unacked: u64,
}

impl Flow {
    /// Asks everybody.
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            read: cluster.sum(Tier::EdgeAgent, "read_events"),
            held: cluster.sum(Tier::Aggregator, "held_batches"),
            committed: cluster.sum(Tier::Collector, "committed_events"),
            unacked: cluster.sum(Tier::EdgeAgent, "unacked_batches"),
        }
    }
}

/// The bar.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
    last_line: Option<Instant>,
    most_read: u64,
    most_committed: u64,
}

impl Progress {
    /// A bar, if the standard error is a terminal.
    pub fn new(text: &'static str) -> Self {
        let bar = ProgressBar::new_spinner().with_prefix(text);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        let plain = bar.is_hidden();
        Self { bar, plain, last_line: None, most_read: 0, most_committed: 0 }
    }

    /// Shows where things are. Counters of restarted processes begin anew, so the greatest seen is shown.
    pub fn show(&mut self, flow: Flow) {
        self.most_read = self.most_read.max(flow.read);
        self.most_committed = self.most_committed.max(flow.committed);
        let text = format!(
            "{} events read, {} committed, {} batches in channels",
            group(self.most_read),
            group(self.most_committed),
            group(flow.held)
        );
        self.say_often(text);
    }

    /// Shows a line; on no terminal only every few seconds.
    fn say_often(&mut self, text: String) {
        if !self.plain {
            self.bar.set_message(text);
            self.bar.tick();
        } else if self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            self.say(&text);
        }
    }

    /// Shows a line that must be seen.
    pub fn say(&self, text: &str) {
        if self.plain {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{}: {text}", self.bar.prefix());
        } else {
            self.bar.println(text);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Notices that nothing moves any more.
#[derive(Debug)]
pub struct StallWatch {
    last: Flow,
    moved: Instant,
    limit: Duration,
}

impl StallWatch {
    /// Complains after `limit` without movement.
    pub fn new(limit: Duration, now: Instant) -> Self {
        Self { last: Flow::default(), moved: now, limit }
    }

    /// True when nothing has moved for too long.
    pub fn is_stalled(&mut self, flow: Flow, now: Instant) -> bool {
        if flow != self.last {
            self.last = flow;
            self.moved = now;
        }
        now.duration_since(self.moved) > self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_standing_still_is_a_stall() {
        let begin = Instant::now();
        let mut watch = StallWatch::new(Duration::from_secs(60), begin);
        let flow = Flow { read: 5, ..Flow::default() };
        assert!(!watch.is_stalled(flow, begin + Duration::from_secs(50)));
        assert!(!watch.is_stalled(flow, begin + Duration::from_secs(100)));
        assert!(watch.is_stalled(flow, begin + Duration::from_secs(111)));
        assert!(!watch.is_stalled(Flow { committed: 1, ..flow }, begin + Duration::from_secs(112)));
    }
}
