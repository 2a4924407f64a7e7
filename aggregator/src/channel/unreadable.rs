//! Places that the system cannot read, or whose file is gone: how long each is tried. Pure.
//!
//! A cable or a controller may be at fault, so one failure says nothing. A place that fails again and again for a minute
//! counts as damaged: as long as it is claimed to be held, nobody else gives its batch again. Only what the medium does
//! counts, and only if other records were read well meanwhile: else it is the disk as a whole, or the process.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common::record_log::{ReadError, is_of_medium};

use super::Location;

/// Failures after which a place counts as damaged, ...
const TRIES: u32 = 10;
/// ... if the first of them is as long ago as this.
const LEAST: Duration = Duration::from_secs(60);

/// What a failed read says of its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its bytes were read, and are not the batch.
    Damaged,
    /// The medium does not give them, or the file is gone: it may be so for good.
    Medium,
    /// Too many open files, no memory: nothing.
    Passing,
}

impl From<&ReadError> for Fault {
    fn from(error: &ReadError) -> Self {
        match error {
            ReadError::Corrupt { .. } => Self::Damaged,
            ReadError::NotFound { .. } => Self::Medium,
            ReadError::Io { reason, .. } if is_of_medium(reason) => Self::Medium,
            ReadError::Io { .. } => Self::Passing,
        }
    }
}

#[derive(Debug)]
struct Failures {
    count: u32,
    first: Instant,
    /// A record was read well since the first.
    others_read: bool,
}

/// Places with failures, of batches that are on their way.
#[derive(Debug, Default)]
pub struct Unreadable {
    places: HashMap<Location, Failures>,
    /// Records that were read well, as of the last look.
    read_well: u64,
}

impl Unreadable {
    /// How many records the reader has read well by now; a new reader begins again.
    pub fn read_well(&mut self, records: u64) {
        if records > 0 && records != self.read_well {
            self.places.values_mut().for_each(|failures| failures.others_read = true);
        }
        self.read_well = records;
    }

    /// The medium did not give it. True: it is damaged, and forgotten here.
    pub fn failed(&mut self, at: Location, now: Instant) -> bool {
        let new = Failures { count: 0, first: now, others_read: false };
        let failures = self.places.entry(at).or_insert(new);
        failures.count = failures.count.saturating_add(1);
        let long = now.saturating_duration_since(failures.first) >= LEAST;
        let over = failures.count >= TRIES && long && failures.others_read;
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
    fn only_the_medium_counts() {
        let fault = |errno| {
            let reason = std::sync::Arc::new(std::io::Error::from_raw_os_error(errno));
            Fault::from(&ReadError::Io { segment: 1, reason })
        };
        // EIO, ENODATA, EUCLEAN; ENOMEM, ENFILE, EMFILE, EACCES.
        assert!([5, 61, 117].into_iter().all(|errno| fault(errno) == Fault::Medium));
        assert!([12, 23, 24, 13].into_iter().all(|errno| fault(errno) == Fault::Passing));
        assert_eq!(Fault::from(&ReadError::NotFound { segment: 1 }), Fault::Medium);
    }

    #[test]
    fn it_takes_many_failures_and_a_minute() {
        let (at, other) = (Location { segment: 1, ordinal: 2 }, Location { segment: 2, ordinal: 2 });
        let begin = Instant::now();
        let mut places = Unreadable::default();
        assert!((0..1000).all(|_| !places.failed(at, begin)), "many at once");
        assert!(!places.failed(other, begin));
        assert!(!places.failed(other, begin + Duration::from_secs(3600)), "two in an hour");
        assert!(!places.failed(at, begin + LEAST), "nothing else can be read either");
        places.read_well(1);
        assert!(places.failed(at, begin + LEAST));
        assert!(!places.failed(at, begin + LEAST), "from the start");
        places.forget_segment(2);
        assert_eq!(places.places.len(), 1);
        places.forget(at);
        assert!(places.places.is_empty());
    }
}
