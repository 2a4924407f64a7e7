//! A batch whose stored copy cannot be read: nothing was sent. What is damaged, or what the disk does not give back over
//! a minute without one good read, is replaced by a void; it never holds up the others.

use std::time::{Duration, Instant};

use super::Ship;
use super::messages::FromShip;
use super::queue::Take;
use crate::outbox::read::BatchReadError;

/// A stored batch that the disk does not give is tried again after this.
const READ_AGAIN: Duration = Duration::from_secs(5);
/// Tries, over a time, after which it counts as damaged.
const READ_TRIES: u32 = 10;
const READ_PATIENCE: Duration = Duration::from_secs(60);

/// Has the disk lost it, after so many failed reads over that time?
fn is_lost(times: u32, since: Duration) -> bool {
    times >= READ_TRIES && since >= READ_PATIENCE
}

impl Ship {
    pub(super) fn unreadable(&mut self, take: &Take, error: BatchReadError, now: Instant) {
        match error {
            BatchReadError::Gone => self.queue.release(take.stored.origin, &[take.stored.seq].into_iter().collect()),
            BatchReadError::Io(error) => {
                tracing::warn!(error, "stored batch could not be read");
                self.queue.again(take, now + READ_AGAIN, None);
            }
            BatchReadError::Medium(detail) => {
                let (times, since) = self.queue.read_failed(take, now);
                tracing::error!(error = detail, times, "the disk does not give a stored batch back");
                match is_lost(times, since) {
                    true => self.give_up(take, detail),
                    false => self.queue.again(take, now + READ_AGAIN, None),
                }
            }
            BatchReadError::Damaged(detail) => self.give_up(take, detail),
        }
    }

    fn give_up(&mut self, take: &Take, detail: String) {
        if self.queue.replacing(take) {
            self.tell(FromShip::Damaged { stored: take.stored, detail });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_for_a_moment_has_lost_nothing() {
        assert!(!is_lost(1, READ_PATIENCE * 10), "one read after a long pause");
        assert!(!is_lost(1000, READ_PATIENCE - Duration::from_secs(1)), "too soon");
        assert!(is_lost(READ_TRIES, READ_PATIENCE));
        // It comes to that.
        assert!(READ_AGAIN * READ_TRIES <= READ_PATIENCE);
    }
}
