//! `catchment-collector audit`: do the counts close, by agent, dataset and hour of event time, and whom to ask if not.
//!
//! A pure report over the view of the log; changes nothing. read = filtered + cut + cut as dead letters at the edge, and
//! cut of either kind = published + dead-lettered + quarantined + void + under way.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use common::units::Span;
use proto::ids::{AgentName, DatasetName};
use proto::wire;
use serde::Serialize;

use super::findings::ended;
use super::seal::{Place, Site, parse_agent, parse_dataset};
use crate::log::View;
use crate::log::view::audit::under_way;
use crate::log::view::origins::standing::Trouble;
use crate::log::view::origins::{AgentRow, MARK_AHEAD_MS, complement, past_end};
use crate::seal::marker::time;
use crate::seal::wait::ranges;

const HOUR_MS: i64 = 3_600_000;

/// What is asked for.
#[derive(Debug, Clone, Args)]
pub struct Audit {
    /// Only this agent.
    #[arg(long, value_parser = parse_agent)]
    agent: Option<AgentName>,
    /// Only this dataset.
    #[arg(long, value_parser = parse_dataset)]
    dataset: Option<DatasetName>,
    /// Only event hours, and rows without an hour that changed, since then.
    #[arg(long, default_value = "48h", value_parser = parse_span)]
    since: Duration,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

fn parse_span(text: &str) -> Result<Duration, String> {
    text.parse::<Span>().map(Span::get).map_err(|error| error.to_string())
}

/// Does it. `print` takes what is for standard output.
pub async fn execute(asked: &Audit, config: Option<&Path>, print: impl Fn(&str)) -> anyhow::Result<()> {
    ended(async {
        let site = Site::open(&asked.place, config)?;
        let view = site.read().await?;
        let report = report(&view, asked, &site.url, site.now_unix_ms());
        print(&if asked.json { serde_json::to_string_pretty(&report)? } else { report.to_string() });
        Ok(report.rows.iter().filter(|row| row.state == State::DoesNotClose).count())
    })
    .await
}

/// How a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All that was cut is accounted for.
    Closes,
    /// Batches, or the mark that counts them, are under way.
    Open,
    /// Everything up to the last mark is committed, and the sums differ.
    DoesNotClose,
}

/// Sums for one agent, dataset and hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    agent: String,
    dataset: String,
    hour: Option<String>,
    state: State,
    #[serde(flatten)]
    sums: Sums,
    #[serde(skip_serializing_if = "str::is_empty")]
    why: &'static str,
}

/// Numbers of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sums {
    read: u64,
    filtered: u64,
    cut: u64,
    cut_dead_letters: u64,
    published: u64,
    dead_lettered: u64,
    quarantined: u64,
    void: u64,
    under_way: i64,
}

/// An agent of which batches are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ask {
    agent: String,
    origin: String,
    missing: String,
    last_mark: Option<String>,
    what_to_do: String,
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    destination: String,
    at: String,
    rows: Vec<Row>,
    ask: Vec<Ask>,
    totals: Sums,
}

/// Looks at the rows that are asked for. Pure.
pub fn report(view: &View, asked: &Audit, url: &str, now_unix_ms: i64) -> Report {
    let since = now_unix_ms.saturating_sub(i64::try_from(asked.since.as_millis()).unwrap_or(i64::MAX));
    let mut agents: BTreeMap<&AgentName, Agent> = BTreeMap::new();
    let (mut rows, mut totals) = (Vec::new(), Sums::default());
    for ((agent, dataset, hour), row) in view.audit().iter() {
        let recent =
            hour.map_or(row.last_change_unix_ms, |hour| hour.saturating_add(1).saturating_mul(HOUR_MS)) >= since;
        let wanted = asked.agent.as_ref().is_none_or(|asked| asked == agent)
            && asked.dataset.as_ref().is_none_or(|asked| asked.as_str() == dataset);
        if !recent || !wanted {
            continue;
        }
        let known = agents.entry(agent).or_insert_with(|| Agent::of(view, agent));
        let (state, why) = judge(row, known);
        let sums = Sums::of(row);
        totals.add(&sums);
        let hour = hour.map(|hour| time(hour.saturating_mul(HOUR_MS)));
        rows.push(Row { agent: agent.to_string(), dataset: dataset.clone(), hour, state, sums, why });
    }
    let ask = agents.into_iter().flat_map(|(agent, known)| known.ask(agent)).collect();
    Report { destination: url.to_owned(), at: time(now_unix_ms), rows, ask, totals }
}

/// What the log knows of an agent's batches.
#[derive(Debug, Default)]
struct Agent {
    /// By run: known to exist, not committed.
    missing: Vec<(String, String)>,
    /// What was abandoned will never be accounted for.
    abandoned: bool,
    /// The T of the last mark that counts in all leaves.
    mark_unix_ms: Option<i64>,
}

impl Agent {
    fn of(view: &View, agent: &AgentName) -> Self {
        let Some(row) = view.origins().agent(agent) else { return Self::default() };
        let standing = row.standing(agent, view.committed());
        let leaves = || standing.leaves.iter().filter(|leaf| !leaf.abandoned);
        let mut missing = holes(view, agent, row);
        for (origin, trouble) in leaves().filter_map(|leaf| leaf.trouble.as_ref()) {
            let Trouble::Missing { seqs, from } = trouble else { continue };
            let seqs = ranges(seqs, *from);
            if !seqs.is_empty() && !missing.iter().any(|(known, _)| *known == origin.to_string()) {
                missing.push((origin.to_string(), seqs));
            }
        }
        let left_or_mark = |leaf: &crate::log::view::origins::standing::Leaf| {
            if leaf.left { Some(i64::MAX) } else { leaf.mark_unix_ms }
        };
        let mark_unix_ms = leaves().map(left_or_mark).min().flatten();
        Self { missing, abandoned: !standing.abandoned.is_empty(), mark_unix_ms }
    }

    fn ask(self, agent: &AgentName) -> Vec<Ask> {
        let last_mark = self.mark_unix_ms.filter(|at| *at != i64::MAX).map(time);
        let ask = |(origin, missing)| Ask {
            agent: agent.to_string(),
            origin,
            missing,
            last_mark: last_mark.clone(),
            what_to_do: format!(
                "on {agent}: `catchment-edge-agent outbox show`; if they are not there any more, `catchment-aggregator channel status` on the \
                 aggregators it sends to"
            ),
        };
        self.missing.into_iter().map(ask).collect()
    }
}

/// Seqs below the highest that is committed, by run.
fn holes(view: &View, agent: &AgentName, row: &AgentRow) -> Vec<(String, String)> {
    let hole = |(origin, state): (&proto::ids::Origin, &crate::log::view::origins::OriginRow)| {
        let committed = view.committed().origin(agent, *origin)?;
        let missing = complement(Some(&state.settled(Some(committed))), past_end(committed));
        (!missing.is_empty()).then(|| (origin.to_string(), ranges(&missing, None)))
    };
    row.origins.iter().filter_map(hole).collect()
}

fn judge(row: &wire::AuditRow, agent: &Agent) -> (State, &'static str) {
    let edge = row.filtered.saturating_add(row.cut).saturating_add(row.cut_dead_letters);
    if row.read != edge {
        return (State::DoesNotClose, "the agent's own counts contradict each other: report this");
    }
    let under_way = under_way(row);
    if under_way == 0 {
        return (State::Closes, "");
    }
    if !agent.missing.is_empty() {
        return (State::Open, "batches are missing, see below");
    }
    // A mark made after the last change of this row has counted everything in it.
    let settled = agent.mark_unix_ms.is_some_and(|at| at > row.last_change_unix_ms.saturating_add(MARK_AHEAD_MS));
    match under_way {
        1.. if agent.abandoned => (State::DoesNotClose, "batches of this agent were abandoned: their events are lost"),
        1.. => (
            State::DoesNotClose,
            "more was cut than came, and no batch is missing: look for one with an unreadable header in `quarantine show`, \
             else report this",
        ),
        _ if settled => {
            (State::DoesNotClose, "more came than any mark says was cut: a mark was lost, or a clone sends")
        }
        _ => (State::Open, "the mark that counts them is still to come"),
    }
}

impl Sums {
    fn of(row: &wire::AuditRow) -> Self {
        Self {
            read: row.read,
            filtered: row.filtered,
            cut: row.cut,
            cut_dead_letters: row.cut_dead_letters,
            published: row.published,
            dead_lettered: row.dead_lettered,
            quarantined: row.quarantined,
            void: row.voided,
            under_way: under_way(row),
        }
    }

    fn add(&mut self, other: &Self) {
        self.read += other.read;
        self.filtered += other.filtered;
        self.cut += other.cut;
        self.cut_dead_letters += other.cut_dead_letters;
        self.published += other.published;
        self.dead_lettered += other.dead_lettered;
        self.quarantined += other.quarantined;
        self.void += other.void;
        self.under_way += other.under_way;
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { read, filtered, cut, cut_dead_letters, published, dead_lettered, quarantined, void, under_way } =
            self;
        write!(f, "read {read}, filtered {filtered}, cut {cut} + {cut_dead_letters} dead letters | ")?;
        write!(f, "published {published}, dead letters {dead_lettered}, quarantined {quarantined}, void {void} | ")?;
        write!(f, "under way {under_way}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} at {}", self.destination, self.at)?;
        for row in &self.rows {
            let state = match row.state {
                State::Closes => "closes",
                State::Open => "open",
                State::DoesNotClose => "DOES NOT CLOSE",
            };
            let hour = row.hour.as_deref().unwrap_or("no hour");
            let dataset = if row.dataset.is_empty() { "(not routed)" } else { &row.dataset };
            writeln!(f, "{} {dataset} {hour}: {state}", row.agent)?;
            writeln!(f, "  {}", row.sums)?;
            if !row.why.is_empty() {
                writeln!(f, "  {}", row.why)?;
            }
        }
        for ask in &self.ask {
            let mark = ask.last_mark.as_deref().unwrap_or("none that counts");
            writeln!(
                f,
                "ASK {}: run {}, batches {} are not in the log; last mark {mark}",
                ask.agent, ask.origin, ask.missing
            )?;
            writeln!(f, "  {}", ask.what_to_do)?;
        }
        let t = &self.totals;
        writeln!(
            f,
            "edge:      read {}, filtered {}, cut {} + {} dead letters, void {}",
            t.read, t.filtered, t.cut, t.cut_dead_letters, t.void
        )?;
        writeln!(
            f,
            "collector: published {}, dead letters {}, quarantined {}",
            t.published, t.dead_lettered, t.quarantined
        )?;
        let rows = |state| self.rows.iter().filter(|row| row.state == state).count();
        let (closes, open, not) = (rows(State::Closes), rows(State::Open), rows(State::DoesNotClose));
        write!(f, "under way: {}; {closes} rows close, {open} are open, {not} do not close", t.under_way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_abandoned_explains_what_is_missing_and_nothing_else() {
        let row = |cut: u64, published: u64| wire::AuditRow { read: cut, cut, published, ..Default::default() };
        let gave_up = |mark_unix_ms| Agent { missing: Vec::new(), abandoned: true, mark_unix_ms };
        let judged = |row, mark| judge(&row, &gave_up(mark));
        let (state, why) = judged(row(5, 3), None);
        assert!(state == State::DoesNotClose && why.contains("were abandoned"), "{why}");
        // More came than was said to be cut: the mark that counts the rest is on its way.
        let (state, why) = judged(row(3, 5), None);
        assert!(state == State::Open && why.contains("still to come"), "{why}");
        let (state, why) = judged(row(3, 5), Some(i64::MAX));
        assert!(state == State::DoesNotClose && why.contains("a mark was lost"), "{why}");
        assert_eq!(judged(row(5, 5), None), (State::Closes, ""));
    }
}
