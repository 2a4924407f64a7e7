//! What went in: the files that the patterns match, counted by the documented rule, and the ids that the log writer says
//! it destroyed itself.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::lines::{self, Line};
use super::masker::Masker;
use super::tally::{LONG_BYTES, Tally};
use crate::event_id::Finder;
use crate::generate::log_file::DESTROYED_NAME;

/// Compressed files that agents leave out unless asked for.
const COMPRESSED: [&str; 4] = [".gz", ".zst", ".bz2", ".xz"];

/// Files matched by `patterns`, sorted, each once. A plain path is a pattern too; one that matches nothing is an error.
pub fn matched_files(patterns: &[String]) -> Result<Vec<PathBuf>> {
    let mut files = BTreeSet::new();
    for pattern in patterns {
        let before = files.len();
        let globs = compile(pattern)?;
        walk(&fixed_part(pattern), &globs, &mut files)?;
        if files.len() == before && !Path::new(pattern).exists() {
            bail!("nothing matches {pattern}");
        }
    }
    Ok(files.into_iter().collect())
}

fn compile(pattern: &str) -> Result<GlobSet> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    let glob = glob.with_context(|| format!("{pattern} is no pattern"))?;
    Ok(GlobSetBuilder::new().add(glob).build()?)
}

/// The folder (or file) in front of the first wildcard.
fn fixed_part(pattern: &str) -> PathBuf {
    let Some(wild) = pattern.find(['*', '?', '[', '{']) else { return PathBuf::from(pattern) };
    match pattern[..wild].rfind('/') {
        Some(0) => PathBuf::from("/"),
        Some(at) => PathBuf::from(&pattern[..at]),
        None => PathBuf::from("."),
    }
}

fn walk(path: &Path, globs: &GlobSet, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    let Ok(meta) = fs::metadata(path) else { return Ok(()) };
    if meta.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
            walk(&entry?.path(), globs, files)?;
        }
        return Ok(());
    }
    let name = path.to_string_lossy();
    let plain = path.strip_prefix(".").unwrap_or(path);
    let compressed = COMPRESSED.iter().any(|end| name.ends_with(end));
    if meta.is_file() && !compressed && (globs.is_match(path) || globs.is_match(plain)) {
        files.insert(path.to_owned());
    }
    Ok(())
}

/// Counts every event of `files` as one that went in; returns the bytes read.
pub fn count(files: &[PathBuf], masker: &Masker, tally: &mut Tally) -> Result<u64> {
    let finder = Finder::default();
    let mut bytes = 0;
    for path in files {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let reader = BufReader::with_capacity(1 << 20, file);
        let read = lines::for_each(reader, |line| expect(line, &finder, masker, tally));
        bytes += read.with_context(|| format!("cannot read {}", path.display()))?;
    }
    let folders: BTreeSet<&Path> = files.iter().filter_map(|path| path.parent()).collect();
    for folder in folders {
        let Ok(text) = fs::read(folder.join(DESTROYED_NAME)) else { continue };
        for id in text.split(|b| *b == b'\n').filter_map(|line| finder.find(line)) {
            tally.destroyed_id(id);
        }
    }
    Ok(bytes)
}

fn expect(line: Line<'_>, finder: &Finder, masker: &Masker, tally: &mut Tally) {
    if let Some(id) = finder.find(line.bytes) {
        tally.expect_id(id);
    } else if line.is_cut() {
        tally.expect_line(&masker.mask(&line.bytes[..LONG_BYTES]), false);
    } else {
        tally.expect_line(&masker.mask(line.bytes), true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_with_stars_and_plain_paths() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/x.log", "a/b/y.log", "a/b/y.log.1", "a/b/old.log.gz", "z.txt"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"1\n").unwrap();
        }
        let root = dir.path().to_str().unwrap();
        let names = |pattern: String| matched_files(&[pattern]).unwrap().len();
        assert_eq!(names(format!("{root}/**/*.log")), 2);
        assert_eq!(names(format!("{root}/a/b/*")), 2);
        assert_eq!(names(format!("{root}/*/*.log")), 1);
        assert_eq!(names(format!("{root}/z.txt")), 1);
        assert!(matched_files(&[format!("{root}/nothing/*.log")]).is_err());
    }
}
