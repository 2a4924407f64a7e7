//! Every line that the test wrote into a log, and what became of it. Nothing here comes from the code under test.

use std::collections::{BTreeMap, BTreeSet};

use proto::ids::Origin;

use crate::part::Part;

#[derive(Debug, Clone)]
pub struct Line {
    pub agent: String,
    pub dataset: &'static str,
    /// Of its event.
    time: i64,
    /// When it was written.
    at: i64,
    /// The run whose batch it was first seen in.
    sent_by: Option<Origin>,
    /// Batches in the log that hold it.
    pub covered: u32,
    /// Its machine was lost before it was sent.
    pub lost: bool,
}

impl Line {
    fn text(&self, number: usize) -> String {
        let time = jiff::Timestamp::from_millisecond(self.time).unwrap();
        format!("{time:.3} {} of {} x{number:x}", self.dataset, self.agent)
    }

    pub fn part(&self) -> Part {
        Part::of(self.dataset, self.time)
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    pub all: Vec<Line>,
    /// By agent: what no record covers yet, by the time it was written.
    open: BTreeMap<String, BTreeSet<(i64, usize)>>,
}

impl Lines {
    /// The text of a new line.
    pub fn write(&mut self, agent: &str, dataset: &'static str, time: i64, at: i64) -> String {
        let number = self.all.len();
        let line = Line { agent: agent.to_owned(), dataset, time, at, sent_by: None, covered: 0, lost: false };
        let text = line.text(number);
        self.all.push(line);
        self.open.entry(agent.to_owned()).or_default().insert((at, number));
        text
    }

    /// The number of a line that was read somewhere. It must be as it was written.
    pub fn number(&self, text: &str) -> usize {
        let number = text.rsplit_once(" x").and_then(|(_, number)| usize::from_str_radix(number, 16).ok());
        let number = number.unwrap_or_else(|| panic!("nobody wrote {text:?}"));
        assert_eq!(self.all[number].text(number), text, "it was written otherwise");
        number
    }

    /// An agent has sent it.
    pub fn sent(&mut self, number: usize, by: Origin) {
        self.all[number].sent_by.get_or_insert(by);
    }

    /// A record covers it.
    pub fn cover(&mut self, number: usize) {
        let line = &mut self.all[number];
        line.covered += 1;
        if let Some(open) = self.open.get_mut(&line.agent) {
            open.remove(&(line.at, number));
        }
    }

    /// When the oldest line was written that no record covers.
    pub fn oldest_open(&self, agent: &str) -> Option<(i64, usize)> {
        self.open.get(agent)?.first().copied()
    }

    /// A machine is lost, with what was not sent.
    pub fn lose(&mut self, agent: &str) {
        self.let_go(agent, |line| line.sent_by.is_none());
    }

    /// A run was given up, with what is not in the log.
    pub fn abandon(&mut self, agent: &str, origin: Origin) {
        self.let_go(agent, |line| line.sent_by == Some(origin));
    }

    fn let_go(&mut self, agent: &str, is_gone: impl Fn(&Line) -> bool) {
        let Some(open) = self.open.get_mut(agent) else { return };
        open.retain(|(_, number)| {
            let line = &mut self.all[*number];
            let gone = is_gone(line);
            line.lost |= gone;
            !gone
        });
    }
}
