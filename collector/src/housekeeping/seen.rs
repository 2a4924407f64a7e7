//! The sign of life of a run: `seen-<20-digit n>-<counter>` in its staging directory, where n is how many records of
//! the log it has read.
//!
//! Invariants: n never passes a number to which a draft of this run may still be renamed, so whoever frees numbers
//! below n frees none of those. A name is used once; all signs of a run come from one file that is renamed on, so one
//! that is shown was true when it was sent, and the highest counts.

use bytes::Bytes;
use proto::record::{number_name, parse_number};

use crate::log::Layout;
use crate::log::files::write_once;
use crate::store::{Renamed, Store, StoreError};

const PREFIX: &str = "seen-";

/// One sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sign {
    /// Records below this were read.
    pub read: u64,
    /// Which attempt of the run to show something.
    pub counter: u64,
}

impl Sign {
    /// As a file name.
    pub fn name(self) -> String {
        format!("{PREFIX}{}-{}", number_name(self.read), self.counter)
    }

    /// The sign behind a file name; none for anything else.
    pub fn parse(name: &str) -> Option<Self> {
        let (read, counter) = name.strip_prefix(PREFIX)?.split_once('-')?;
        Some(Self { read: parse_number(read)?, counter: counter.parse().ok()? })
    }
}

/// The highest sign among the names of a directory.
pub fn highest<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Sign> {
    names.into_iter().filter_map(Sign::parse).max()
}

/// How an attempt to show something ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// It is shown.
    Done,
    /// Not now, or not known.
    Later(String),
    /// The own directory is gone: this run is retired.
    Gone,
}

/// The own sign, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    shown: Option<Sign>,
    used: u64,
}

impl Seen {
    /// What is shown now, as far as it is known.
    pub fn shown(&self) -> Option<Sign> {
        self.shown
    }

    /// Shows that the records below `read` were read, under a name that was never used. One attempt.
    pub async fn show(&mut self, store: &dyn Store, own: &Layout, read: u64) -> Shown {
        let next = Sign { read: read.max(self.shown.map_or(0, |sign| sign.read)), counter: self.used };
        self.used += 1;
        let dir = own.staging();
        let to = format!("{dir}/{}", next.name());
        let changed = match self.shown {
            // Its directory must not come back with it: the store makes no parents for a file.
            None => write_once(store, &to, Bytes::new()).await.map(|()| Renamed::Done),
            Some(sign) => store.rename_new(&format!("{dir}/{}", sign.name()), &to).await,
        };
        match changed {
            Ok(Renamed::Done) => {
                self.shown = Some(next);
                Shown::Done
            }
            // Whatever it was: what the directory shows decides. A rename that is carried out later moves the sign on.
            Ok(other) => self.look(store, &dir, format!("the sign of life was not renamed: {other:?}")).await,
            Err(error) => self.look(store, &dir, error.to_string()).await,
        }
    }

    async fn look(&mut self, store: &dyn Store, dir: &str, reason: String) -> Shown {
        match store.list(dir).await {
            Ok(entries) => {
                self.shown = highest(entries.iter().map(|entry| entry.name.as_str()));
                Shown::Later(reason)
            }
            Err(StoreError::NotFound { .. }) => Shown::Gone,
            Err(_) => Shown::Later(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DestinationConfig, open};

    #[test]
    fn names_are_pinned_and_ordered() {
        let sign = Sign { read: 12, counter: 34 };
        assert_eq!(sign.name(), "seen-00000000000000000012-34");
        assert_eq!(Sign::parse(&sign.name()), Some(sign));
        for other in ["seen-12-34", "seen-00000000000000000012", "draft-00000000000000000012-34", "seen-x"] {
            assert_eq!(Sign::parse(other), None, "{other}");
        }
        let names = ["seen-00000000000000000012-9", "void-1", "seen-00000000000000000012-34"];
        assert_eq!(highest(names), Some(sign));
    }

    #[tokio::test]
    async fn a_sign_moves_on_and_never_back_and_a_directory_that_is_gone_stays_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
        let own = Layout::new("col-1-run");
        let mut seen = Seen::default();
        assert_eq!(seen.show(&*store, &own, 5).await, Shown::Gone);
        store.make_dirs(&own.staging(), 0o750).await.unwrap();
        assert_eq!(seen.show(&*store, &own, 5).await, Shown::Done);
        assert_eq!(seen.show(&*store, &own, 4).await, Shown::Done);
        let names = store.list(&own.staging()).await.unwrap();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(highest([names[0].name.as_str()]).unwrap().read, 5);
        // A rename that was not answered and carried out later: the next attempt finds it, the one after goes on.
        let late = Sign { read: 7, counter: 99 };
        let from = format!("{}/{}", own.staging(), names[0].name);
        store.rename_new(&from, &format!("{}/{}", own.staging(), late.name())).await.unwrap();
        assert!(matches!(seen.show(&*store, &own, 8).await, Shown::Later(_)));
        assert_eq!(seen.shown(), Some(late));
        assert_eq!(seen.show(&*store, &own, 8).await, Shown::Done);
        store.delete(&own.staging(), true).await.unwrap();
        assert_eq!(seen.show(&*store, &own, 9).await, Shown::Gone);
        assert_eq!(store.stat(&own.staging()).await.unwrap(), None);
    }
}
