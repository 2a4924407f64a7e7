//! Fingerprints: what a file's content is recognised by when its name or inode says nothing.
//!
//! A [`Head`] knows up to the first KiB of a content and grows with it; a [`Tail`] knows the last bytes before a position.
//! Invariant: two contents are only ever compared on bytes that both are known to have, so a content that grows
//! never stops matching itself.

use xxhash_rust::xxh3::xxh3_64;

/// The most bytes at the start of a file that its [`Head`] covers.
pub const HEAD_MAX: usize = 1024;
/// The most bytes before a position that its [`Tail`] covers.
pub const TAIL_MAX: usize = 256;
/// Prefix lengths 1, 2, 4 ... 1024 at which a head can be compared with a shorter content.
pub(super) const RUNGS: usize = 11;

/// Hash of the first bytes of a content, with a ladder of hashes of shorter prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    pub(super) len: u16,
    pub(super) hash: u64,
    pub(super) rungs: [u32; RUNGS],
}

/// How a content relates to a [`Head`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadMatch {
    /// Every byte the head knows is there.
    Same,
    /// The content is shorter than the head and agrees so far.
    Prefix,
    /// It is another content.
    Differs,
}

impl Head {
    /// The head of a content that begins with `bytes` (only the first KiB counts).
    pub fn of(bytes: &[u8]) -> Self {
        let bytes = &bytes[..bytes.len().min(HEAD_MAX)];
        let mut rungs = [0; RUNGS];
        for (power, rung) in rungs.iter_mut().enumerate() {
            if let Some(prefix) = bytes.get(..1 << power) {
                *rung = short(prefix);
            }
        }
        Self { len: bytes.len() as u16, hash: xxh3_64(bytes), rungs }
    }

    /// Bytes covered.
    pub fn len(&self) -> u64 {
        u64::from(self.len)
    }

    /// True for the head of an empty content, which matches nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Compares with a content of which `bytes` are the first bytes (all of them if they are fewer than a KiB).
    pub fn compare(&self, bytes: &[u8]) -> HeadMatch {
        let known = usize::from(self.len);
        if known == 0 {
            return HeadMatch::Same;
        }
        if bytes.len() >= known {
            return if xxh3_64(&bytes[..known]) == self.hash { HeadMatch::Same } else { HeadMatch::Differs };
        }
        if bytes.is_empty() {
            return HeadMatch::Prefix;
        }
        let power = bytes.len().ilog2() as usize;
        if short(&bytes[..1 << power]) == self.rungs[power] { HeadMatch::Prefix } else { HeadMatch::Differs }
    }

    /// A fast first look: false when the two heads certainly belong to different contents.
    pub fn may_agree(&self, other: &Self) -> bool {
        let shared = self.len.min(other.len);
        if shared == 0 {
            return false;
        }
        let power = shared.ilog2() as usize;
        self.rungs[power] == other.rungs[power]
    }
}

/// Hash of the last bytes before a position; covers `min(TAIL_MAX, position)` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tail {
    pub(super) len: u16,
    pub(super) hash: u64,
}

impl Tail {
    /// The tail at the end of `bytes`, which are the last bytes before the position (only the last 256 count).
    pub fn of(bytes: &[u8]) -> Self {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL_MAX)..];
        Self { len: bytes.len() as u16, hash: xxh3_64(bytes) }
    }

    /// Bytes covered.
    pub fn len(&self) -> u64 {
        u64::from(self.len)
    }

    /// True at position 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True if exactly these bytes stand before the position.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        self.len == 0 || (bytes.len() == usize::from(self.len) && xxh3_64(bytes) == self.hash)
    }
}

fn short(bytes: &[u8]) -> u32 {
    xxh3_64(bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_matches_what_grew_from_it_and_what_is_on_its_way_to_it() {
        let content: Vec<u8> = (0..3000u32).map(|n| (n % 251) as u8).collect();
        for known in [1, 2, 3, 100, 1023, 1024, 3000] {
            let head = Head::of(&content[..known]);
            assert_eq!(head.compare(&content), HeadMatch::Same);
            for shorter in 0..known.min(HEAD_MAX) {
                assert_eq!(head.compare(&content[..shorter]), HeadMatch::Prefix, "{shorter} of {known}");
            }
            let mut other = content.clone();
            other[0] ^= 1;
            assert_eq!(head.compare(&other), HeadMatch::Differs);
            assert_eq!(head.compare(&other[..1]), if known == 0 { HeadMatch::Prefix } else { HeadMatch::Differs });
            assert!(head.may_agree(&Head::of(&content)));
            assert!(!head.may_agree(&Head::of(&other)));
        }
    }

    #[test]
    fn a_tail_matches_only_its_own_bytes() {
        let tail = Tail::of(&[7; 1000]);
        assert_eq!(tail.len(), TAIL_MAX as u64);
        assert!(tail.matches(&[7; TAIL_MAX]));
        assert!(!tail.matches(&[7; TAIL_MAX - 1]));
        assert!(!tail.matches(&[8; TAIL_MAX]));
        assert!(Tail::default().matches(b""));
    }
}
