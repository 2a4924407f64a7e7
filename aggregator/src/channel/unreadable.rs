//! Places that the system cannot read, or whose file is gone: how long each is tried. Pure.
//!
//! A cable or a controller may be at fault, so one failure says nothing. A place that fails again and again for a minute
//! counts as damaged: as long as it is claimed to be held, nobody else gives its batch again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Location;

/// Failures after which a place counts as damaged, ...
const TRIES: u32 = 10;
/// ... if the first of them is as long ago as this.
const LEAST: Duration = Duration::from_secs(60);

/// Places with failures, of batches that are on their way.
#[derive(Debug, Default)]
pub struct Unreadable {
    places: HashMap<Location, (u32, Instant)>,
}

impl Unreadable {
    /// Reading failed. True: it is damaged, and forgotten here.
    pub fn failed(&mut self, at: Location, now: Instant) -> bool {
        let (tries, first) = self.places.entry(at).or_insert((0, now));
        *tries += 1;
        let over = *tries >= TRIES && now.saturating_duration_since(*first) >= LEAST;
        if over {
            self.places.remove(&at);
        }
        over
    }

    /// It was read, or nobody asks for it any more.
    pub fn forget(&mut self, at: Location) {
        self.places.remove(&at);
    }

    /// The segment is gone.
    pub fn forget_segment(&mut self, segment: u64) {
        self.places.retain(|at, _| at.segment != segment);
    }

    /// Places are new.
    pub fn clear(&mut self) {
        self.places.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_many_failures_and_a_minute() {
        let (at, other) = (Location { segment: 1, ordinal: 2 }, Location { segment: 2, ordinal: 2 });
        let begin = Instant::now();
        let mut places = Unreadable::default();
        assert!((0..1000).all(|_| !places.failed(at, begin)), "many at once");
        assert!(!places.failed(other, begin));
        assert!(!places.failed(other, begin + Duration::from_secs(3600)), "two in an hour");
        assert!(places.failed(at, begin + LEAST));
        assert!(!places.failed(at, begin + LEAST), "from the start");
        places.forget_segment(2);
        assert_eq!(places.places.len(), 1);
        places.forget(at);
        assert!(places.places.is_empty());
    }
}
