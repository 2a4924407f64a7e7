//! The owner's answer to a full outbox: reading stops, and people are told which limit holds and what to do.

use std::time::Instant;

use super::owner::Owner;
use crate::outbox::room::{Full, Room};

impl Owner {
    /// Is there room for `wanted` more bytes?
    pub(super) fn room(&mut self, wanted: u64, now: Instant) -> Room {
        let limits = self.options.limits;
        match self.probe.get(&self.state_dir.outbox(), now) {
            // Else an aggregator that takes nothing would turn the whole log into files that nobody looks at.
            Ok(fs) if self.rejected_bytes >= limits.capacity(fs) => {
                Room::Full(Full::Rejected { rejected_bytes: self.rejected_bytes, capacity_bytes: limits.capacity(fs) })
            }
            Ok(fs) => limits.room(fs, self.outbox.total_bytes(), self.outbox.index().kept().0, wanted),
            Err(error) => {
                tracing::warn!(error = %error, "free space of the outbox cannot be asked for");
                Room::Full(Full::Unknown)
            }
        }
    }

    /// Says it when the outbox becomes full, has room again, or another limit holds than before.
    pub(super) fn set_full(&mut self, full: Option<Full>) {
        let limit = full.as_ref().map(Full::limit);
        if limit == self.full_limit {
            return;
        }
        self.full_limit = limit;
        self.full = full.is_some();
        let text = full.map(|full| format!("{full}; until then reading waits, the log files are the buffer"));
        match &text {
            Some(why) => {
                tracing::warn!(bytes = self.outbox.total_bytes(), limit, why, "outbox is full, reading stops");
            }
            None => tracing::info!("outbox has room, reading goes on"),
        }
        self.health.set_part("outbox", text.is_none(), text.clone().unwrap_or_default());
        self.gauges.say("outbox_full", text);
    }
}
