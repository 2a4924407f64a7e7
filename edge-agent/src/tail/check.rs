//! The listing behind `check`: every matched file with the first line it begins with.
//!
//! Invariant: it reads and changes no state; at most 64 KiB of a file are looked at.

use memchr::memchr;

use super::chunk::TOO_LONG_KEPT;
use super::config::TailConfig;
use super::files::open_file;
use super::listing::Lister;
use super::problem::TailProblem;
use super::reading::read_range;
use super::source::TailSource;

/// A matched file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchedFile {
    /// Its path.
    pub path: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its first line without LF, 64 KiB at most; `None` for an empty file.
    pub first_line: Option<Vec<u8>>,
}

/// What the globs of a source match now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matched {
    /// Files in path order.
    pub files: Vec<MatchedFile>,
    /// What cannot be listed or opened.
    pub problems: Vec<TailProblem>,
}

impl TailSource {
    /// Lists every matched file. Errors: a glob that is none.
    pub fn matched(config: &TailConfig) -> Result<Matched, String> {
        let lister = Lister::new(&config.paths, &config.exclude, config.include_compressed)?;
        let listing = lister.list();
        let mut matched = Matched { files: Vec::new(), problems: listing.problems };
        for found in listing.files {
            match open_file(&found.path).and_then(|file| read_range(&file, 0, TOO_LONG_KEPT)) {
                Ok(mut start) => {
                    let is_empty = start.is_empty();
                    start.truncate(memchr(b'\n', &start).unwrap_or(start.len()));
                    let path = found.path.display().to_string();
                    let first_line = (!is_empty).then_some(start);
                    matched.files.push(MatchedFile { path, bytes: found.look.len, first_line });
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => matched.problems.push(TailProblem::of(&found.path, &error)),
            }
        }
        Ok(matched)
    }
}
