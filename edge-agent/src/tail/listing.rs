//! Finds the files that the globs match, walking from the longest literal prefix of each.
//!
//! Invariant: what is not there, or goes away while it is listed, is no problem; what is there and cannot be listed or
//! looked at is always one. Symbolic links are followed (a link is its target), loops are cut at the ancestor they lead to.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};

use super::problem::TailProblem;

const COMPRESSED: [&str; 4] = [".gz", ".zst", ".bz2", ".xz"];
/// Directories deeper than this below a glob's prefix are not walked.
const MAX_DEPTH: usize = 64;

/// Inode and device: the device is a hint only, it changes at reboots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode {
    /// Inode number.
    pub ino: u64,
    /// Device number.
    pub dev: u64,
}

/// One look at a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Which file it is.
    pub inode: Inode,
    /// Length in bytes.
    pub len: u64,
    /// Status change time in nanoseconds since 1970: moves with every write, truncation and rename.
    pub ctime: i128,
    /// Names of the file; 0 once it is deleted.
    pub links: u64,
}

impl Look {
    /// What `metadata` says.
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            inode: Inode { ino: metadata.ino(), dev: metadata.dev() },
            len: metadata.len(),
            ctime: i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()),
            links: metadata.nlink(),
        }
    }
}

/// A matched file.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where it was found.
    pub path: PathBuf,
    /// What it looked like.
    pub look: Look,
}

/// The outcome of one walk: files by path, each path once.
#[derive(Debug, Default)]
pub struct Listing {
    /// Matched regular files in path order.
    pub files: Vec<Found>,
    /// Directories and files that could not be looked at.
    pub problems: Vec<TailProblem>,
}

/// Compiled globs.
#[derive(Debug)]
pub struct Lister {
    globs: Vec<Walk>,
    exclude: GlobSet,
    include_compressed: bool,
}

#[derive(Debug)]
struct Walk {
    base: PathBuf,
    whole: GlobMatcher,
    /// Matchers of the path components below `base`, up to the first that may span several.
    components: Vec<GlobMatcher>,
    max_depth: usize,
}

/// Compiles one glob; errors: its text with the reason.
pub fn compile(glob: &str) -> Result<GlobMatcher, String> {
    match GlobBuilder::new(glob).literal_separator(true).build() {
        Ok(glob) => Ok(glob.compile_matcher()),
        Err(error) => Err(format!("is not a valid glob: {}", error.kind())),
    }
}

impl Lister {
    /// Compiles the globs of a source; errors: the first glob that is not one.
    pub fn new(paths: &[String], exclude: &[String], include_compressed: bool) -> Result<Self, String> {
        let globs = paths.iter().map(|glob| Walk::new(glob)).collect::<Result<_, _>>()?;
        let mut set = GlobSetBuilder::new();
        for glob in exclude {
            set.add(compile(glob).map_err(|reason| format!("`{glob}` {reason}"))?.glob().clone());
        }
        let exclude = set.build().map_err(|error| error.to_string())?;
        Ok(Self { globs, exclude, include_compressed })
    }

    /// Lists and stats afresh.
    pub fn list(&self) -> Listing {
        let (mut files, mut problems) = (BTreeMap::new(), Vec::new());
        for walk in &self.globs {
            let mut visit = Visit { lister: self, walk, files: &mut files, problems: &mut problems, above: Vec::new() };
            visit.start();
        }
        problems.sort();
        problems.dedup();
        Listing { files: files.into_iter().map(|(path, look)| Found { path, look }).collect(), problems }
    }

    fn left_out(&self, path: &Path) -> bool {
        let name = path.as_os_str().as_encoded_bytes();
        (!self.include_compressed && COMPRESSED.iter().any(|end| name.ends_with(end.as_bytes())))
            || self.exclude.is_match(path)
    }
}

impl Walk {
    fn new(glob: &str) -> Result<Self, String> {
        let whole = compile(glob).map_err(|reason| format!("`{glob}` {reason}"))?;
        let parts: Vec<_> = Path::new(glob).components().collect();
        let is_literal = |part: &Component<'_>| match part {
            Component::Normal(name) => {
                !name.as_encoded_bytes().iter().any(|byte| matches!(byte, b'*' | b'?' | b'[' | b'{' | b'\\'))
            }
            _ => true,
        };
        let literal = parts.iter().take_while(|part| is_literal(part)).count();
        let base: PathBuf = parts[..literal].iter().collect();
        let rest: Vec<String> =
            parts[literal..].iter().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
        // An alternative may hold separators: then components cannot be told apart, and only the whole path decides.
        let spans = |part: &String| part == "**" || part.contains(['{', '}', '[', '\\']);
        let plain = rest.iter().take_while(|part| !spans(part)).count();
        let components = rest[..plain].iter().map(|part| compile(part)).collect::<Result<_, _>>()?;
        let max_depth = if plain == rest.len() { rest.len() } else { MAX_DEPTH };
        Ok(Self { base, whole, components, max_depth })
    }
}

struct Visit<'a> {
    lister: &'a Lister,
    walk: &'a Walk,
    files: &'a mut BTreeMap<PathBuf, Look>,
    problems: &'a mut Vec<TailProblem>,
    above: Vec<Inode>,
}

impl Visit<'_> {
    fn start(&mut self) {
        let base = self.walk.base.clone();
        if self.walk.max_depth == 0 { self.file(base) } else { self.directory(&base, 0) }
    }

    fn directory(&mut self, path: &Path, depth: usize) {
        let here = match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Look::of(&metadata).inode,
            Ok(_) => return,
            Err(error) => return self.failed(path, &error),
        };
        if self.above.contains(&here) || depth >= MAX_DEPTH {
            return;
        }
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return self.failed(path, &error),
        };
        self.above.push(here);
        for entry in entries {
            match entry {
                Ok(entry) => self.entry(&entry, depth),
                Err(error) => self.failed(path, &error),
            }
        }
        self.above.pop();
    }

    fn entry(&mut self, entry: &std::fs::DirEntry, depth: usize) {
        if self.walk.components.get(depth).is_some_and(|component| !component.is_match(entry.file_name())) {
            return;
        }
        let path = entry.path();
        let is_last = depth + 1 >= self.walk.max_depth;
        let kind = match entry.file_type() {
            Ok(kind) if kind.is_symlink() => match std::fs::metadata(&path) {
                Ok(metadata) => metadata.file_type(),
                Err(error) if self.walk.whole.is_match(&path) => return self.failed(&path, &error),
                Err(_) => return,
            },
            Ok(kind) => kind,
            Err(error) => return self.failed(&path, &error),
        };
        if kind.is_dir() && !is_last {
            self.directory(&path, depth + 1);
        } else if kind.is_file() && self.walk.whole.is_match(&path) {
            self.file(path);
        }
    }

    fn file(&mut self, path: PathBuf) {
        if self.lister.left_out(&path) || self.files.contains_key(&path) {
            return;
        }
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                self.files.insert(path, Look::of(&metadata));
            }
            Ok(_) => {}
            Err(error) => self.failed(&path, &error),
        }
    }

    fn failed(&mut self, path: &Path, error: &io::Error) {
        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            self.problems.push(TailProblem::of(path, error));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(root: &Path, globs: &[&str], exclude: &[&str], compressed: bool) -> Vec<String> {
        let full =
            |globs: &[&str]| -> Vec<String> { globs.iter().map(|glob| format!("{}/{glob}", root.display())).collect() };
        let listing = Lister::new(&full(globs), &full(exclude), compressed).unwrap().list();
        assert_eq!(listing.problems, vec![]);
        let short = |found: &Found| found.path.strip_prefix(root).unwrap().display().to_string();
        listing.files.iter().map(short).collect()
    }

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in
            ["a.log", "b.txt", "d/a.log", "d/e/a.log", "d/e/b.log.gz", "x/logs/access.log", "x/other/access.log"]
        {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x\n").unwrap();
        }
        root
    }

    #[test]
    fn globs_match_as_written() {
        let root = tree();
        let at = root.path();
        assert_eq!(names(at, &["*.log"], &[], false), ["a.log"]);
        assert_eq!(names(at, &["a.log"], &[], false), ["a.log"]);
        assert_eq!(names(at, &["d/**/*.log"], &[], false), ["d/a.log", "d/e/a.log"]);
        assert_eq!(names(at, &["**/a.log"], &["d/e/**"], false), ["a.log", "d/a.log"]);
        assert_eq!(names(at, &["*/logs/*.log"], &[], false), ["x/logs/access.log"]);
        assert_eq!(names(at, &["{d/e,x/logs}/*.log", "d/e/*"], &[], false), ["d/e/a.log", "x/logs/access.log"]);
        assert_eq!(names(at, &["d/e/*"], &[], true), ["d/e/a.log", "d/e/b.log.gz"]);
        assert_eq!(names(at, &["later/**/*.log", "a.log/x"], &[], false), [""; 0]);
    }

    #[test]
    fn links_are_followed_and_loops_end() {
        let root = tree();
        std::os::unix::fs::symlink(root.path().join("d"), root.path().join("d/loop")).unwrap();
        std::os::unix::fs::symlink("x", root.path().join("current")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("d/gone.log")).unwrap();
        assert_eq!(names(root.path(), &["d/**/*.log"], &[], false), ["d/a.log", "d/e/a.log"]);
        assert_eq!(names(root.path(), &["current/logs/*.log"], &[], false), ["current/logs/access.log"]);
    }

    #[test]
    fn a_glob_that_is_none_is_refused() {
        assert!(Lister::new(&["/a/[".to_owned()], &[], false).unwrap_err().contains("`/a/[`"));
    }
}
