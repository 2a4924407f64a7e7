//! Which file is which: matches a fresh listing with the files that are known.
//!
//! Invariant: a content is continued in at most one file, and only in one that holds its known bytes: first the file with the same
//! inode, then, once the content is nowhere else, a copy of it. A new file is read only when it is clear, or has been
//! quiet for long enough, that it is not a copy whose original is about to be truncated.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cursor::{Cursor, Decision, Moment, Relation, Standing, Verdict, decide};
use super::files::{Destroyed, DestroyedBy, Entry, Files, open_file};
use super::fingerprint::{HEAD_MAX, Head, HeadMatch, TAIL_MAX};
use super::listing::{Found, Inode, Listing, Look};
use super::problem::TailProblem;
use super::reading::{last_line_end, read_range};

/// Remembered ids of copies, for notes that were taken before they were recognised.
const MOVED_KEPT: usize = 4096;
/// Records kept of files that went away and may come back, latest first.
const ABSENT_KEPT: usize = 4096;
/// How far back from the end the last line is looked for where reading starts at the end.
const START_SEARCH: u64 = 8 << 20;

/// The times that decide how long something is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long a file must be quiet before it counts as no copy in the making, and how long a lost content is looked for.
    pub copy_wait: Duration,
    /// How long the record of a file is kept that went away and may come back: moved elsewhere, or its directory unmounted.
    pub absent: Duration,
}

impl Files {
    /// Takes over a listing; with `from_end` new files begin behind their last complete line. Returns what could not be opened.
    pub fn take_listing(
        &mut self,
        listing: Listing,
        from_end: bool,
        at: Moment,
        patience: Patience,
    ) -> Vec<TailProblem> {
        let mut problems = listing.problems;
        let mut places: HashMap<u64, Found> = HashMap::new();
        let mut unknown: BTreeMap<Inode, Found> = BTreeMap::new();
        for found in listing.files {
            match self.by_inode.get(&found.look.inode) {
                Some(id) => {
                    let is_own = self.entries.get(id).is_some_and(|entry| *entry.cursor.path == *found.path);
                    if is_own || !places.contains_key(id) {
                        places.insert(*id, found);
                    }
                }
                None => {
                    unknown.entry(found.look.inode).or_insert(found);
                }
            }
        }
        let listed: HashSet<u64> = places.keys().copied().collect();
        for (id, found) in places {
            self.seen_again(id, &found, at);
        }
        self.unlisted(&listed, &problems, at);
        // First those that an inode leads back to: otherwise an equal file could be taken for their copy.
        let lost = self.lost_by_ino();
        let (mut unknown, back): (Vec<_>, Vec<_>) =
            unknown.into_values().partition(|found| !lost.contains_key(&found.look.inode.ino));
        unknown.sort_by(|one, other| (one.look.ctime, &one.path).cmp(&(other.look.ctime, &other.path)));
        for found in back.into_iter().chain(unknown) {
            if let Err(error) = self.first_sight(&found, &lost, from_end, at, patience)
                && error.kind() != io::ErrorKind::NotFound
            {
                problems.push(TailProblem::of(&found.path, &error));
            }
        }
        self.decide_waiting(at, patience);
        self.expire(at, patience);
        problems
    }

    fn seen_again(&mut self, id: u64, found: &Found, at: Moment) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let cursor = &mut entry.cursor;
        cursor.observe(found.look, at.wall, at.now);
        if cursor.rename(&found.path) {
            cursor.target = link_target(&found.path);
        }
        if let Standing::Gone { .. } = cursor.standing {
            cursor.standing = Standing::Listed;
        }
    }

    /// What was listed before and is not now: held while it can be reached, otherwise lost. Nothing is concluded for what lies
    /// under a directory that could not be listed.
    fn unlisted(&mut self, listed: &HashSet<u64>, problems: &[TailProblem], at: Moment) {
        let hidden = |path: &Path| path.ancestors().any(|above| problems.iter().any(|p| Path::new(&p.path) == above));
        let missing: Vec<u64> = self
            .entries
            .values()
            .filter(|entry| match entry.cursor.standing {
                Standing::Listed => true,
                // A waiting file that is open may still turn out to continue another.
                Standing::Waiting => entry.file.is_none(),
                Standing::Gone { .. } | Standing::Lost { .. } => false,
            })
            .filter(|entry| !listed.contains(&entry.cursor.id))
            .filter(|entry| !hidden(&entry.cursor.path))
            .map(|entry| entry.cursor.id)
            .collect();
        for id in missing {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if entry.file.is_none() {
                let target = entry.cursor.target.clone();
                let inode = entry.cursor.look.inode;
                if let Some(file) = target.and_then(|path| open_same(&path, inode)) {
                    self.set_file(id, Some(file));
                }
            }
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if entry.cursor.standing == Standing::Waiting {
                self.drop_entry(id);
            } else if entry.file.is_some() {
                entry.cursor.standing = Standing::Gone { since: at.now };
                self.woken.push(id);
            } else {
                self.lose(id, false, at);
            }
        }
    }

    /// No descriptor and no path leads to the content any more.
    pub(super) fn lose(&mut self, id: u64, elsewhere: bool, at: Moment) {
        self.set_file(id, None);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.cursor.lose(elsewhere, at);
            let inode = entry.cursor.look.inode;
            if self.by_inode.get(&inode) == Some(&id) {
                self.by_inode.remove(&inode);
            }
        }
    }

    fn lost_by_ino(&self) -> HashMap<u64, Vec<u64>> {
        let mut by_ino: HashMap<u64, Vec<u64>> = HashMap::new();
        for entry in self.entries.values() {
            if let Standing::Lost { .. } = entry.cursor.standing {
                by_ino.entry(entry.cursor.look.inode.ino).or_default().push(entry.cursor.id);
            }
        }
        by_ino
    }

    fn first_sight(
        &mut self,
        found: &Found,
        lost: &HashMap<u64, Vec<u64>>,
        from_end: bool,
        at: Moment,
        patience: Patience,
    ) -> io::Result<()> {
        self.make_room(1);
        let file = open_file(&found.path)?;
        let metadata = file.metadata()?;
        let look = Look::of(&metadata);
        if self.by_inode.contains_key(&look.inode) || !metadata.is_file() {
            return Ok(());
        }
        let quiet = Duration::from_nanos(u64::try_from((at.wall - look.ctime).max(0)).unwrap_or(u64::MAX));
        let grown = at.now.checked_sub(quiet).unwrap_or(at.now);
        let id = self.add(&found.path, look, grown, Some(file));
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.cursor.target = link_target(&found.path);
        }
        let candidates = lost.get(&look.inode.ino).map(Vec::as_slice).unwrap_or_default();
        let same = candidates.iter().copied().filter(|lost| self.holds(id, *lost).unwrap_or(false));
        if let Some(earlier) = same.max_by_key(|lost| self.entries[lost].cursor.offset) {
            self.continue_in(earlier, id);
            return Ok(());
        }
        if from_end {
            self.start_at_end(id)?;
        } else if look.len == 0 {
            self.settle(id, Standing::Listed);
        } else if candidates.is_empty() {
            self.decide_one(id, at, patience);
        }
        Ok(())
    }

    fn start_at_end(&mut self, id: u64) -> io::Result<()> {
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(()) };
        let (Some(file), cursor) = (&entry.file, &mut entry.cursor) else { return Ok(()) };
        let end = last_line_end(file, cursor.look.len, START_SEARCH)?;
        let from = end.saturating_sub(TAIL_MAX as u64);
        cursor.confirm(&read_range(file, 0, HEAD_MAX)?);
        cursor.advance(end, &read_range(file, from, (end - from) as usize)?);
        self.settle(id, Standing::Listed);
        Ok(())
    }

    fn settle(&mut self, id: u64, standing: Standing) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.cursor.standing = standing;
            // Looked at again also while nothing can be read: what is destroyed from here on is known by that.
            entry.cursor.suspect = true;
            self.woken.push(id);
        }
    }

    /// True if the file of `id` holds all that is known of the content `lost`.
    fn holds(&self, id: u64, lost: u64) -> io::Result<bool> {
        let (Some(entry), Some(lost)) = (self.entries.get(&id), self.entries.get(&lost)) else { return Ok(false) };
        let Some(file) = &entry.file else { return Ok(false) };
        if !matches!(lost.cursor.standing, Standing::Lost { .. }) {
            return Ok(false);
        }
        if lost.cursor.head.is_empty() {
            return Ok(false);
        }
        Ok(super::reading::check(&lost.cursor, file)?.verdict != Verdict::Replaced)
    }

    /// Decides every waiting file that can be decided.
    pub fn decide_waiting(&mut self, at: Moment, patience: Patience) {
        let waiting: Vec<u64> = self
            .entries
            .values()
            .filter(|entry| entry.cursor.standing == Standing::Waiting)
            .map(|entry| entry.cursor.id)
            .collect();
        for id in waiting {
            self.decide_one(id, at, patience);
        }
    }

    fn decide_one(&mut self, id: u64, at: Moment, patience: Patience) {
        let Ok(relations) = self.relations(id, at) else { return };
        let Some(entry) = self.entries.get(&id) else { return };
        let grown = entry.cursor.grown;
        match decide(&relations, at.now.saturating_duration_since(grown), patience.copy_wait) {
            Decision::Continue(earlier) => self.continue_in(earlier, id),
            Decision::Fresh => self.settle(id, Standing::Listed),
            Decision::Wait => {
                for (lost, _) in relations.iter().filter(|(_, relation)| *relation == Relation::Coming) {
                    self.touch_lost(*lost, grown);
                }
            }
        }
    }

    fn touch_lost(&mut self, id: u64, grown: Instant) {
        if let Some(entry) = self.entries.get_mut(&id)
            && let Standing::Lost { since } = &mut entry.cursor.standing
        {
            *since = (*since).max(grown);
        }
    }

    /// How every known content relates to the waiting file `id`.
    fn relations(&mut self, id: u64, at: Moment) -> io::Result<Vec<(u64, Relation)>> {
        if !self.ensure_open(id)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(Vec::new()) };
        let Some(file) = &entry.file else { return Ok(Vec::new()) };
        let look = Look::of(&file.metadata()?);
        let file = file.try_clone()?;
        let head = read_range(&file, 0, HEAD_MAX.min(look.len as usize))?;
        entry.cursor.observe(look, at.wall, at.now);
        entry.cursor.look.len = look.len;
        entry.cursor.head = Head::of(&head);
        entry.cursor.suspect = false;
        let (known, path) = (entry.cursor.head, entry.cursor.path.clone());
        let others: Vec<u64> = self
            .entries
            .values()
            .map(|entry| &entry.cursor)
            .filter(|other| other.id != id && other.standing != Standing::Waiting && other.head.may_agree(&known))
            .filter(|other| other.head.compare(&head) != HeadMatch::Differs)
            .map(|other| other.id)
            .collect();
        let waiting = WaitingFile { file: &file, len: look.len, head: &head, path: &path };
        let mut relations = Vec::new();
        for other in others {
            if let Some(relation) = self.relation(other, &waiting, at)? {
                relations.push((other, relation));
            }
        }
        Ok(relations)
    }

    fn relation(&mut self, other: u64, waiting: &WaitingFile<'_>, at: Moment) -> io::Result<Option<Relation>> {
        if self.ensure_open(other).unwrap_or(false) && self.verify(other, at.wall, at.now)? == Verdict::Replaced {
            self.replace(other, at);
        }
        let Some(entry) = self.entries.get(&other) else { return Ok(None) };
        let cursor = &entry.cursor;
        let still_there = match (&entry.file, cursor.standing) {
            (_, Standing::Lost { .. }) if cursor.elsewhere => return Ok(None),
            (_, Standing::Lost { .. } | Standing::Waiting) => None,
            (Some(file), Standing::Gone { .. }) if cursor.look.links == 0 => {
                return waiting.continues(cursor, Some(file));
            }
            (file, _) => file.as_ref(),
        };
        match still_there {
            Some(file) => waiting.twin(file, cursor.look.len),
            None => waiting.continues(cursor, None),
        }
    }

    /// The content of `earlier` goes on in the file of `id`.
    fn continue_in(&mut self, earlier: u64, id: u64) {
        let file = self.set_file(id, None);
        let Some(found) = self.entries.remove(&id) else { return };
        let old_inode = self.entries.get(&earlier).map(|entry| entry.cursor.look.inode);
        if let Some(inode) = old_inode
            && self.by_inode.get(&inode) == Some(&earlier)
        {
            self.by_inode.remove(&inode);
        }
        self.set_file(earlier, None);
        self.by_inode.insert(found.cursor.look.inode, earlier);
        if let Some(entry) = self.entries.get_mut(&earlier) {
            entry.cursor.continue_as(&found.cursor);
        }
        self.set_file(earlier, file);
        self.woken.push(earlier);
        self.moved.insert(id, earlier);
        if self.moved.len() > MOVED_KEPT {
            self.moved.pop_first();
        }
    }

    /// Gives up contents that have been lost for long enough. One that was seen to end (deleted, overwritten) is forgotten; one that just
    /// is not there may have been moved away or unmounted, and its record is kept longer.
    fn expire(&mut self, at: Moment, patience: Patience) {
        let mut lost: Vec<(Duration, u64)> = self
            .entries
            .values()
            .filter_map(|entry| match entry.cursor.standing {
                Standing::Lost { since } => Some((at.now.saturating_duration_since(since), entry.cursor.id)),
                _ => None,
            })
            .filter(|(age, _)| *age >= patience.copy_wait)
            .collect();
        lost.sort_unstable();
        for (place, (age, id)) in lost.into_iter().enumerate() {
            let Some(Entry { cursor, .. }) = self.entries.get(&id) else { continue };
            let ended = cursor.overwritten || cursor.look.links == 0 || cursor.head.is_empty();
            let by = if cursor.overwritten { DestroyedBy::Truncation } else { DestroyedBy::Removal };
            if ended || age >= patience.absent || place >= ABSENT_KEPT {
                self.give_up(id, by);
            } else {
                self.write_off(id, at);
            }
        }
    }

    /// Counts the unread bytes as destroyed, but keeps the record in case the file comes back.
    fn write_off(&mut self, id: u64, at: Moment) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.cursor.stamp(at);
        let unread = entry.cursor.unread();
        if unread > 0 {
            self.shrinks += 1;
            let len = entry.cursor.offset;
            let bytes = entry.cursor.shrink(self.shrinks, len);
            entry.cursor.scanned = len;
            entry.cursor.dirty = entry.cursor.saved;
            let path = entry.cursor.name.clone();
            self.destroyed.push(Destroyed { path, bytes, by: DestroyedBy::Removal });
        }
    }
}

struct WaitingFile<'a> {
    file: &'a File,
    len: u64,
    head: &'a [u8],
    path: &'a Path,
}

impl WaitingFile<'_> {
    /// Does this file go on where `lost` stopped, whose other bytes are gone or only in `held`?
    fn continues(&self, lost: &Cursor, held: Option<&File>) -> io::Result<Option<Relation>> {
        let needed = lost.offset.max(lost.head.len()).max(if held.is_some() { lost.look.len } else { 0 });
        if self.len < needed {
            let agrees = match held {
                Some(held) => self.agrees_with(held, self.len)?,
                None => true,
            };
            return Ok(agrees.then_some(Relation::Coming));
        }
        let before = read_range(self.file, lost.offset - lost.tail.len(), lost.tail.len() as usize)?;
        let is_same = lost.judge(self.len, self.head, &before) != Verdict::Replaced;
        Ok(is_same.then(|| Relation::Continues { offset: lost.offset, same_path: *lost.path == *self.path }))
    }

    /// Does this file agree with `other`, which still holds `len` bytes?
    fn twin(&self, other: &File, len: u64) -> io::Result<Option<Relation>> {
        Ok(self.agrees_with(other, self.len.min(len))?.then_some(Relation::Twin))
    }

    fn agrees_with(&self, other: &File, end: u64) -> io::Result<bool> {
        let from = end.saturating_sub(TAIL_MAX as u64);
        let len = (end - from) as usize;
        Ok(read_range(self.file, from, len)? == read_range(other, from, len)?)
    }
}

fn open_same(path: &Path, inode: Inode) -> Option<File> {
    let file = open_file(path).ok()?;
    (Look::of(&file.metadata().ok()?).inode == inode).then_some(file)
}

/// Where symbolic links in `path` lead; `None` if there are none.
fn link_target(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok().filter(|real| real != path)
}
