//! What is due besides commits: showing a sign of life, looking at the others, cleaning, expiry, retention. Pure: what
//! listings showed and the time go in, what to do next comes out; the coordinator owns it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proto::ids::AgentName;

use super::life::{Life, Looked};
use super::retention;
use super::seen::{Seen, Shown};
use crate::config::housekeeping::HousekeepingConfig;

/// How often old records, origins and days are looked for.
const EVERY: Duration = Duration::from_secs(3600);
/// Files of a run that are of no use once nothing is under way: its own, by the beginnings of their names.
const LEFTOVERS: [&str; 5] = ["draft-", "void-", "checkpoint-", "format-", "marker-"];

/// How long what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Between two signs of life, and between two looks at the others.
    pub heartbeat: Duration,
    /// Silence after which a run is dead.
    pub retire_after: Duration,
    /// Least age of a record that is deleted. A view older than half of it ends the run.
    pub log_retention: Duration,
    /// From an origin's last commit to its expiry.
    pub horizon: Duration,
    /// Days in quarantine; none: for ever.
    pub quarantine: Option<Duration>,
    /// Days of dead letters; none: for ever.
    pub dead_letters: Option<Duration>,
    /// How often old records, origins and days are looked for.
    pub every: Duration,
}

impl Limits {
    /// As configured.
    pub fn new(config: &HousekeepingConfig) -> Self {
        Self {
            heartbeat: config.heartbeat.get(),
            retire_after: config.retire_after.get(),
            log_retention: config.log_retention.get(),
            horizon: config.horizon.get(),
            quarantine: config.quarantine_retention.map(|span| span.get()),
            dead_letters: config.dead_letter_retention.map(|span| span.get()),
            every: EVERY,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Keeper {
    limits: Limits,
    life: Life,
    /// None while it is being shown.
    seen: Option<Seen>,
    next_show: Instant,
    next_look: Instant,
    next_delete: Instant,
    next_clean: Instant,
    next_expiry: Instant,
    next_retention: Instant,
    leftovers: Vec<String>,
    /// Agents that wrote nothing for long, and since when this run sees that.
    silent: BTreeMap<AgentName, Instant>,
}

impl Keeper {
    /// For the run `own`; `seen` is what it showed so far.
    pub fn new(own: &str, limits: Limits, seen: Seen, now: Instant) -> Self {
        Self {
            limits,
            life: Life::new(own, limits.heartbeat, limits.retire_after),
            seen: Some(seen),
            next_show: now,
            next_look: now,
            next_delete: now,
            next_clean: now + limits.heartbeat,
            next_expiry: now + limits.heartbeat,
            next_retention: now + limits.heartbeat,
            leftovers: Vec::new(),
            silent: BTreeMap::new(),
        }
    }

    /// As configured.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Who else lives.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// A record of a run was read.
    pub fn alive(&mut self, name: &str) {
        self.life.alive(name);
    }

    /// The directory of a run is gone.
    pub fn gone(&mut self, name: &str) {
        self.life.gone(name);
    }

    /// The sign to be renewed now, if it is time.
    pub fn show(&mut self, now: Instant) -> Option<Seen> {
        if now < self.next_show {
            return None;
        }
        let seen = self.seen.take()?;
        self.next_show = now + self.limits.heartbeat;
        Some(seen)
    }

    /// The sign was renewed, or not. False: the own directory is gone.
    pub fn shown(&mut self, seen: Seen, shown: &Shown, now: Instant) -> bool {
        self.seen = Some(seen);
        match shown {
            Shown::Done => {}
            Shown::Later(reason) => {
                tracing::info!(reason, "sign of life cannot be renewed now");
                self.next_show = self.next_show.min(now + self.limits.heartbeat / 4);
            }
            Shown::Gone => return false,
        }
        true
    }

    /// Is it time to look at the others?
    pub fn look_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next_look;
        if due {
            self.next_look = now + self.limits.heartbeat;
        }
        due
    }

    /// Takes a look at all staging directories; `draft` is the commit id of the draft under way, in hex. Only while
    /// nothing else writes small files into the own directory.
    pub fn looked(&mut self, looked: &Looked, draft: Option<&str>) {
        self.life.listed(looked);
        let shown = super::seen::highest(looked.own.iter().map(String::as_str)).map(super::seen::Sign::name);
        let dead = |name: &&String| match super::seen::Sign::parse(name) {
            // A sign whose creation was answered too late for its run to count on it.
            Some(_) => shown.as_ref() != Some(*name) && self.seen.is_some(),
            None => LEFTOVERS.iter().any(|kind| name.starts_with(kind)) && draft.is_none_or(|id| !name.ends_with(id)),
        };
        self.leftovers = looked.own.iter().filter(dead).cloned().collect();
    }

    /// Own files that are of no use any more.
    pub fn take_leftovers(&mut self) -> Vec<String> {
        std::mem::take(&mut self.leftovers)
    }

    /// May a retired directory be deleted now?
    pub fn delete_due(&self, now: Instant) -> bool {
        now >= self.next_delete
    }

    /// A deletion was not answered, or the directory is still there.
    pub fn delete_later(&mut self, now: Instant) {
        self.next_delete = now + self.limits.heartbeat;
    }

    /// Is it time to free numbers of the log? Those with a smaller name do it more often.
    pub fn clean_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next_clean;
        if due {
            self.next_clean = now + self.limits.every * (1 + self.life.rank());
        }
        due
    }

    /// There is more to clean than was done at once.
    pub fn clean_more(&mut self, now: Instant) {
        self.next_clean = now;
    }

    /// Is it time to look for origins that expire?
    pub fn expiry_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next_expiry;
        if due {
            self.next_expiry = now + self.limits.every * (1 + self.life.rank());
        }
        due
    }

    /// An expire record was written: there may be more.
    pub fn expire_more(&mut self, now: Instant) {
        self.next_expiry = now;
    }

    /// Takes all agents that wrote nothing for long; the one that is to be forgotten now. Only after a while: when a
    /// destination comes back after days, its agents do not all write in the same moment.
    pub fn forget_due(&mut self, mut silent: BTreeSet<AgentName>, now: Instant) -> Option<AgentName> {
        self.silent.retain(|agent, _| silent.remove(agent));
        self.silent.extend(silent.into_iter().map(|agent| (agent, now)));
        let long = |since: &Instant| now.saturating_duration_since(*since) >= self.limits.every;
        self.silent.iter().find(|(_, since)| long(since)).map(|(agent, _)| agent.clone())
    }

    /// What is too old now, if it is time to delete it.
    pub fn retention_due(&mut self, now: Instant, unix_ms: i64) -> Option<retention::Limits> {
        if now < self.next_retention {
            return None;
        }
        self.next_retention = now + self.limits.every;
        let before = |span: Duration| unix_ms.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX));
        let limits = retention::Limits {
            quarantine: self.limits.quarantine.map(before),
            dead_letters: self.limits.dead_letters.map(before),
        };
        (!limits.is_empty()).then_some(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_forgotten_when_it_stays_silent() {
        let now = Instant::now();
        let limits = Limits::new(&HousekeepingConfig::default());
        let mut keeper = Keeper::new("a", limits, Seen::default(), now);
        let all = |names: &[&str]| names.iter().map(|name| AgentName::new(name).unwrap()).collect::<BTreeSet<_>>();
        assert_eq!(keeper.forget_due(all(&["a", "b"]), now), None, "they may come in a moment");
        let later = now + limits.every;
        assert_eq!(keeper.forget_due(all(&["b", "c"]), later), Some(AgentName::new("b").unwrap()));
        assert_eq!(keeper.forget_due(all(&["a", "c"]), later), None, "what came back begins anew");
    }

    #[test]
    fn a_sign_is_renewed_every_heartbeat_one_at_a_time() {
        let now = Instant::now();
        let limits = Limits::new(&HousekeepingConfig::default());
        let mut keeper = Keeper::new("a", limits, Seen::default(), now);
        let seen = keeper.show(now).expect("at once, the log is read");
        assert!(keeper.show(now + limits.heartbeat * 3).is_none(), "one at a time");
        assert!(keeper.shown(seen, &Shown::Done, now));
        assert!(keeper.show(now + limits.heartbeat / 2).is_none());
        let seen = keeper.show(now + limits.heartbeat).unwrap();
        keeper.shown(seen, &Shown::Later("standby".into()), now + limits.heartbeat);
        let seen = keeper.show(now + limits.heartbeat + limits.heartbeat / 2).expect("sooner after a failure");
        assert!(!keeper.shown(seen, &Shown::Gone, now));
    }

    #[test]
    fn only_dead_small_files_are_leftovers() {
        let now = Instant::now();
        let mut keeper = Keeper::new("a", Limits::new(&HousekeepingConfig::default()), Seen::default(), now);
        let own = ["draft-01", "draft-02", "void-03", "checkpoint-04", "7.log.zst", "seen-00000000000000000001-2"];
        let old = "seen-00000000000000000001-1";
        let own = own.into_iter().chain([old]).map(str::to_owned).collect();
        keeper.looked(&Looked { begun: now, ended: now, dirs: BTreeMap::new(), own }, Some("02"));
        assert_eq!(keeper.take_leftovers(), ["draft-01", "void-03", "checkpoint-04", old]);
        assert!(keeper.take_leftovers().is_empty());
    }
}
