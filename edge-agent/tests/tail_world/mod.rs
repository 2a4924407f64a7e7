//! A directory of log files, a tail source over it and what an outbox would keep. Time moves only when told.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::units::Span;
use edge_agent::tail::{Chunk, DestroyedBy, Note, PieceKind, TailConfig, TailProblem, TailSource};

/// The world of one test.
pub struct World {
    root: tempfile::TempDir,
    config: TailConfig,
    source: Option<TailSource>,
    saved: BTreeMap<Vec<u8>, Vec<u8>>,
    now: Instant,
    pub kinds: Vec<PieceKind>,
    pub budget: usize,
}

impl World {
    /// With a source over `*.log*`.
    pub fn new() -> Self {
        Self::with(|_, _| {})
    }

    /// With a changed configuration.
    pub fn with(change: impl FnOnce(&mut TailConfig, &str)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().display().to_string();
        let quick = Span::millis(10);
        let paths = vec![format!("{at}/*.log*")];
        let mut config = TailConfig { paths, poll: quick, rescan: quick, ..TailConfig::default() };
        change(&mut config, &at);
        Self {
            root,
            config,
            source: None,
            saved: BTreeMap::new(),
            now: Instant::now(),
            kinds: Vec::new(),
            budget: 1 << 20,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A new file.
    pub fn write(&self, name: &str, text: &str) {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// The same inode with other content.
    pub fn write_in_place(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn append(&self, name: &str, text: &str) {
        self.append_bytes(name, text.as_bytes());
    }

    pub fn append_bytes(&self, name: &str, bytes: &[u8]) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(self.path(name)).unwrap();
        file.write_all(bytes).unwrap();
    }

    pub fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    pub fn copy(&self, from: &str, to: &str) {
        let bytes = fs::read(self.path(from)).unwrap();
        fs::write(self.path(to), bytes).unwrap();
    }

    pub fn truncate(&self, name: &str) {
        fs::OpenOptions::new().write(true).open(self.path(name)).unwrap().set_len(0).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Time passes.
    pub fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// One poll whose chunk is never stored, and the end of the process.
    pub fn crash_in_poll(&mut self) {
        let (now, budget) = (self.now, self.budget);
        self.source().poll(&mut Chunk::default(), budget, now);
        self.close();
    }

    /// Opens the source if it is not.
    pub fn open(&mut self) {
        if self.source.is_none() {
            let saved = self.saved.clone().into_iter().collect();
            self.source = Some(TailSource::open("test", &self.config, saved, self.now).unwrap());
        }
    }

    pub fn close(&mut self) {
        self.source = None;
    }

    pub fn reopen(&mut self) {
        self.close();
        self.open();
    }

    pub fn source(&mut self) -> &mut TailSource {
        self.open();
        self.source.as_mut().unwrap()
    }

    /// Lets the source look without reading.
    pub fn look(&mut self) {
        self.pass(2);
        let now = self.now;
        let mut chunk = Chunk::default();
        self.list();
        self.source().poll(&mut chunk, 0, now);
        assert_eq!(chunk.raw_bytes, 0);
        self.keep(&chunk);
    }

    /// Lists now, however long the walk before took on a busy machine; problems show in the numbers.
    fn list(&mut self) {
        drop(self.try_note());
    }

    /// Polls until nothing more comes; the events, in order.
    pub fn read(&mut self) -> Vec<String> {
        let mut events = Vec::new();
        let mut quiet = 0;
        while quiet < 2 {
            self.now += Duration::from_millis(200);
            let (more, at_end) = self.poll();
            quiet = if more.is_empty() && at_end { quiet + 1 } else { 0 };
            events.extend(more.iter().map(|event| text(event)));
        }
        events
    }

    pub fn read_sorted(&mut self) -> Vec<String> {
        let mut events = self.read();
        events.sort();
        events
    }

    /// One poll into one chunk that is kept.
    pub fn poll(&mut self) -> (Vec<Vec<u8>>, bool) {
        let (now, budget) = (self.now, self.budget);
        let mut chunk = Chunk::default();
        self.list();
        let outcome = self.source().poll(&mut chunk, budget, now);
        self.keep(&chunk);
        let mut events = Vec::new();
        for piece in &chunk.pieces {
            self.kinds.push(piece.kind);
            match piece.kind {
                PieceKind::Lines => {
                    assert_eq!(piece.bytes.last(), Some(&b'\n'));
                    let lines = piece.bytes[..piece.bytes.len() - 1].split(|byte| *byte == b'\n');
                    events.extend(lines.map(<[u8]>::to_vec));
                }
                PieceKind::Partial | PieceKind::TooLong { .. } => events.push(piece.bytes.to_vec()),
            }
        }
        assert_eq!(chunk.raw_bytes, chunk.pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>());
        (events, outcome.at_end)
    }

    fn keep(&mut self, chunk: &Chunk) {
        for update in &chunk.updates {
            match &update.value {
                Some(value) => self.saved.insert(update.key.clone(), value.clone()),
                None => self.saved.remove(&update.key),
            };
        }
    }

    /// Finishes; the remaining events.
    pub fn finish(&mut self) -> Vec<String> {
        self.source().finish();
        let mut events = Vec::new();
        loop {
            self.now += Duration::from_millis(200);
            let (more, at_end) = self.poll();
            events.extend(more.iter().map(|event| text(event)));
            if at_end {
                return events;
            }
        }
    }

    pub fn note(&mut self) -> Note {
        self.try_note().unwrap()
    }

    pub fn try_note(&mut self) -> Result<Note, Vec<TailProblem>> {
        let now = self.now;
        self.source().note(now)
    }

    pub fn pieces_of(&self, kind: PieceKind) -> usize {
        self.kinds.iter().filter(|known| **known == kind).count()
    }

    /// Files that have a saved position.
    pub fn saved_files(&self) -> usize {
        self.saved.keys().filter(|key| *key != b"started").count()
    }

    pub fn destroyed(&mut self) -> Vec<(String, u64, DestroyedBy)> {
        let root = format!("{}/", self.root.path().display());
        let name = |path: &str| path.replace(&root, "");
        self.source().take_destroyed().into_iter().map(|gone| (name(&gone.path), gone.bytes, gone.by)).collect()
    }
}

fn text(event: &[u8]) -> String {
    String::from_utf8_lossy(event).into_owned()
}
