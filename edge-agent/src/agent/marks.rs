//! Marks: what makes a day complete (design section 4). T is read, *then* all sources list and stat their files, then
//! everything noted is waited for until it is stored, and only then mark(T) is appended.
//!
//! Invariants: T is never younger than a listing it stands for; a source that cannot be listed whole spoils the note;
//! no mark without aggregator time; no mark, and no *left*, of a run that knows its directory to be a copy.

use std::time::Instant;

use super::owner::{Owner, OwnerError};
use super::source::Source;
use crate::tail::TailProblem;

/// What a note asks of a source.
pub(super) trait Noting {
    /// Lists and stats all files afresh, up to the last complete record.
    fn note(&mut self, now: Instant) -> Result<(), Vec<TailProblem>>;
    /// Is everything noted cut (or known to be destroyed) and stored?
    fn is_noted_stored(&mut self) -> bool;
    /// For messages.
    fn name(&self) -> &str;
}

impl Noting for Source {
    fn note(&mut self, now: Instant) -> Result<(), Vec<TailProblem>> {
        Self::note(self, now)
    }

    fn is_noted_stored(&mut self) -> bool {
        self.check_note()
    }

    fn name(&self) -> &str {
        Self::name(self)
    }
}

/// A note over all sources.
#[derive(Debug, PartialEq)]
pub(super) struct Noted {
    /// T; none while no aggregator has told the time.
    pub at: Option<i64>,
    /// Why something could not be listed, with the source's name; then nothing may be said to be complete.
    pub problems: Vec<String>,
}

/// Reads T, then lets every source list its files: what is written between the two is covered by no mark yet, but never
/// the other way round.
pub(super) fn note_all<S: Noting>(time: impl FnOnce() -> Option<i64>, sources: &mut [S], now: Instant) -> Noted {
    let at = time();
    let mut problems = Vec::new();
    for source in sources {
        if let Err(found) = source.note(now) {
            problems.extend(found.iter().map(|problem| format!("source {}: {problem}", source.name())));
        }
    }
    Noted { at, problems }
}

/// Is everything that was noted stored, in every source? Each is asked, whatever the others say: what one has once
/// stored stays so, however busy it is later.
pub(super) fn all_stored<S: Noting>(sources: &mut [S]) -> bool {
    let mut all = true;
    for source in sources {
        all &= source.is_noted_stored();
    }
    all
}

impl Owner {
    /// Notes when a mark is due; appends it once everything noted is stored.
    pub(super) fn marks(&mut self, now: Instant) -> Result<(), OwnerError> {
        let Some(run) = &mut self.run else { return Ok(()) };
        if !self.drain.is_reading() {
            return Ok(());
        }
        let clock = &self.clock;
        if run.mark_due(now) && clock.now_ms(now).is_some() {
            match note_all(|| clock.now_ms(now), &mut self.sources, now) {
                Noted { at: Some(at), problems } if problems.is_empty() => run.noted(at),
                Noted { problems, .. } => {
                    tracing::warn!(
                        problems = problems.len(),
                        first = problems.first(),
                        "no mark: files cannot be read"
                    );
                    run.note_failed(now);
                }
            }
        }
        let Some(at) = run.waiting_mark() else { return Ok(()) };
        // A mark can wait for space: what it says stays true.
        if all_stored(&mut self.sources) && self.has_space_to_spare(now)? {
            if let Some(run) = &mut self.run {
                run.marked(now);
            }
            self.append_mark(at)?;
        }
        Ok(())
    }

    pub(super) fn append_mark(&mut self, at_unix_ms: i64) -> Result<(), OwnerError> {
        self.outbox.append_mark(self.origin(), at_unix_ms)?;
        self.gauges.marks.add(1);
        self.gauges.last_mark_unix_ms.set(at_unix_ms.max(0) as u64);
        self.commit()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// A source that lists at a time of its own, and can be behind.
    struct Fake {
        clock: Rc<Cell<i64>>,
        noted_at: Option<i64>,
        fails: bool,
        behind: bool,
    }

    impl Noting for Fake {
        fn note(&mut self, _: Instant) -> Result<(), Vec<TailProblem>> {
            // Listing takes time.
            self.clock.set(self.clock.get() + 10);
            self.noted_at = Some(self.clock.get());
            if self.fails {
                return Err(vec![TailProblem::of("/logs/a".as_ref(), &std::io::Error::other("test"))]);
            }
            Ok(())
        }

        fn is_noted_stored(&mut self) -> bool {
            !self.behind
        }

        fn name(&self) -> &str {
            "fake"
        }
    }

    fn fakes(clock: &Rc<Cell<i64>>, count: usize) -> Vec<Fake> {
        (0..count).map(|_| Fake { clock: clock.clone(), noted_at: None, fails: false, behind: false }).collect()
    }

    #[test]
    fn the_time_is_read_before_anything_is_listed() {
        let clock = Rc::new(Cell::new(100));
        let mut sources = fakes(&clock, 3);
        let noted = note_all(|| Some(clock.get()), &mut sources, Instant::now());
        assert_eq!(noted, Noted { at: Some(100), problems: Vec::new() });
        assert!(sources.iter().all(|source| source.noted_at.is_some_and(|listed| listed > 100)), "T after a listing");
    }

    #[test]
    fn no_source_is_missed_and_one_that_fails_spoils_the_note() {
        let clock = Rc::new(Cell::new(0));
        let mut sources = fakes(&clock, 3);
        sources[0].fails = true;
        let noted = note_all(|| Some(clock.get()), &mut sources, Instant::now());
        assert_eq!(noted.problems.len(), 1);
        assert!(noted.problems[0].contains("source fake"), "{noted:?}");
        assert!(sources.iter().all(|source| source.noted_at.is_some()), "a source was not listed");
    }

    #[test]
    fn one_source_that_is_behind_holds_the_mark_back() {
        let clock = Rc::new(Cell::new(0));
        for behind in 0..3 {
            let mut sources = fakes(&clock, 3);
            sources[behind].behind = true;
            assert!(!all_stored(&mut sources), "source {behind} was not asked");
        }
        assert!(all_stored(&mut fakes(&clock, 3)));
    }
}
