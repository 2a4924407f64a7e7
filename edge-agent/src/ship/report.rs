//! What the shipping task says of itself, and what it asks for nobody's sake but the truth: who holds what, and whether
//! somebody else goes on with an origin of ours.

use std::time::Duration;

use rand::RngExt;

use super::Ship;
use super::balance::Node;
use super::client::now;
use super::messages::{DrainUntil, FromShip};

/// Between two reports of which aggregator holds what.
const STORED_EVERY: Duration = Duration::from_secs(2);

impl Ship {
    pub(super) fn report(&mut self) {
        self.gauges.unacked_batches.set(self.queue.unacked());
        self.gauges.undelivered_batches.set(self.queue.undelivered());
        self.gauges.in_flight_bytes.set(self.queue.in_flight_bytes());
        self.gauges.ejections.set(self.balance.ejections());
        self.report_stored();
        let done = match self.drain {
            Some(DrainUntil::Delivered) => self.queue.undelivered() == 0,
            Some(DrainUntil::Acked) => self.queue.unacked() == 0,
            None => false,
        };
        // What the owner has said but is not read yet may be more to send.
        if done && self.commands.is_empty() {
            self.drain = None;
            self.tell(FromShip::Drained);
        }
    }

    /// For `outbox show`; now and then only, as it looks at every batch.
    fn report_stored(&mut self) {
        let now = now();
        if self.news && now >= self.next_stored {
            self.news = false;
            self.next_stored = now + STORED_EVERY;
            self.gauges.set_stored_at(self.queue.stored_at());
        }
    }

    /// Has anybody gone on with the origin before this run's? Then this state directory is a copy. Nothing of it may be
    /// left to ask about otherwise.
    pub(super) fn ask_about_previous(&mut self) {
        let nodes: Vec<Node> = self.balance.nodes().cloned().collect();
        let Some(previous) = self.options.origins.first().copied().filter(|_| !self.contact.is_asking()) else {
            return;
        };
        if let Some(node) = nodes.get(self.rng.random::<u64>() as usize % nodes.len().max(1)) {
            self.ask(node, Some(previous));
        }
    }
}
