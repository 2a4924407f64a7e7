//! The saved form of a file's position: one small record per file, opaque to the outbox that keeps it.
//!
//! Invariant: the format is versioned and pinned by a golden test; a record of a newer version is refused, never guessed at.
//! Little-endian: version u8, inode u64, device u64, offset u64, seen length u64,
//! absent since u64, flags u8 (1: elsewhere), head (length u16, hash u64, 11 rungs u32),
//! tail (length u16, hash u64), path (the rest, UTF-8).

use super::fingerprint::{Head, RUNGS, Tail};

const VERSION: u8 = 1;
/// Key of the record that says that this source has been started before.
pub(super) const STARTED_KEY: &[u8] = b"started";

/// What is kept of a file between two runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Inode number.
    pub ino: u64,
    /// Device number, a hint: it changes at reboots.
    pub dev: u64,
    /// The next byte that has not been handed out.
    pub offset: u64,
    /// The length the file had when it was last looked at, for counting what is destroyed.
    pub seen_len: u64,
    /// Since when no known path led to it, in seconds since 1970; 0: it was reachable.
    pub absent_since: u64,
    /// It was last seen to exist in a place that no glob leads to.
    pub elsewhere: bool,
    /// Its first bytes.
    pub head: Head,
    /// The bytes before `offset`.
    pub tail: Tail,
    /// Its last known path.
    pub path: String,
}

/// A saved record that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PositionError {
    /// It was written by a later release.
    #[error("a saved position has format {0}, this release reads up to {VERSION}: start the newer release again")]
    Newer(u8),
    /// It is not whole.
    #[error("a saved position of {0} bytes is damaged")]
    Damaged(usize),
}

/// Key of a file's record.
pub fn key(id: u64) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

/// The id in a key made by [`key`].
pub fn id_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

impl Position {
    /// The bytes to save.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(100 + self.path.len());
        out.push(VERSION);
        for word in [self.ino, self.dev, self.offset, self.seen_len, self.absent_since] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.push(u8::from(self.elsewhere));
        out.extend_from_slice(&self.head.len.to_le_bytes());
        out.extend_from_slice(&self.head.hash.to_le_bytes());
        for rung in self.head.rungs {
            out.extend_from_slice(&rung.to_le_bytes());
        }
        out.extend_from_slice(&self.tail.len.to_le_bytes());
        out.extend_from_slice(&self.tail.hash.to_le_bytes());
        out.extend_from_slice(self.path.as_bytes());
        out
    }

    /// Reads what [`Position::encode`] wrote; errors: a newer version, or damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, PositionError> {
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&version) if version > VERSION => return Err(PositionError::Newer(version)),
            _ => return Err(PositionError::Damaged(bytes.len())),
        }
        let mut rest = Fields(&bytes[1..]);
        rest.position().ok_or(PositionError::Damaged(bytes.len()))
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn word(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn position(&mut self) -> Option<Position> {
        let (ino, dev, offset, seen_len) = (self.word()?, self.word()?, self.word()?, self.word()?);
        let absent_since = self.word()?;
        let elsewhere = self.take::<1>()?[0] & 1 != 0;
        let mut head = Head { len: u16::from_le_bytes(self.take()?), hash: self.word()?, rungs: [0; RUNGS] };
        for rung in &mut head.rungs {
            *rung = u32::from_le_bytes(self.take()?);
        }
        let tail = Tail { len: u16::from_le_bytes(self.take()?), hash: self.word()? };
        let path = std::str::from_utf8(self.0).ok()?.to_owned();
        Some(Position { ino, dev, offset, seen_len, absent_since, elsewhere, head, tail, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Position {
        Position {
            ino: 11,
            dev: 2049,
            offset: 6,
            seen_len: 9,
            absent_since: 77,
            elsewhere: true,
            head: Head::of(b"one\ntwo\nx"),
            tail: Tail::of(b"one\ntw"),
            path: "/logs/a.log".to_owned(),
        }
    }

    #[test]
    fn golden() {
        let hex: String = sample().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "010b000000000000000108000000000000060000000000000009000000000000004d000000000000000109004dfa9f4c454045682b01ed72eff453b91ec4dafd1dc024ca000000000000000000000000000000000000000000000000000000000600c8f91451a61f59372f6c6f67732f612e6c6f67"
        );
    }

    #[test]
    fn reads_what_it_wrote_and_refuses_the_rest() {
        let bytes = sample().encode();
        assert_eq!(Position::decode(&bytes), Ok(sample()));
        assert_eq!(Position::decode(&bytes[..50]), Err(PositionError::Damaged(50)));
        assert_eq!(Position::decode(b""), Err(PositionError::Damaged(0)));
        let mut newer = bytes;
        newer[0] = 9;
        assert_eq!(Position::decode(&newer), Err(PositionError::Newer(9)));
        assert_eq!(id_of(&key(7)), Some(7));
        assert_eq!(id_of(STARTED_KEY), None);
    }
}
