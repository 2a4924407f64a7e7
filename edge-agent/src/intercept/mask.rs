//! Masking: e-mail addresses and phone numbers become tokens before an event leaves the host, by the grammar of
//! `docs/masking.md`.
//!
//! Invariant: the scan in front of the patterns never changes a result; a line without a match is never copied.

#[cfg(test)]
mod differential;
mod grammar;
mod passes;
mod scan;
mod show;
mod token;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use self::passes::Passes;
use self::scan::Scan;
pub use self::show::{Shown, show};
use self::token::Tokens;

/// Bytes of a key below which guessing it is too easy.
const MIN_KEY_BYTES: usize = 16;

/// `[mask]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskConfig {
    /// On unless switched off.
    pub enabled: bool,
    /// What stands in place of personal data.
    pub mode: MaskMode,
    /// For `hmac`: a file with the key, at least 16 bytes; a line break at its end does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

impl Default for MaskConfig {
    fn default() -> Self {
        Self { enabled: true, mode: MaskMode::Replace, key_file: None }
    }
}

/// What stands in place of personal data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskMode {
    /// `<email>`, `<phone>`.
    #[default]
    Replace,
    /// `<email:16 hex digits>`, the same for the same address, so that joins still work.
    Hmac,
}

/// Why masking cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    /// `hmac` without a key.
    #[error("mask.key_file is missing: mode hmac needs a file with at least {MIN_KEY_BYTES} random bytes")]
    NoKeyFile,
    /// The key cannot be read.
    #[error("mask.key_file {path} cannot be read: {source}")]
    Key {
        /// As configured.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is too short.
    #[error("mask.key_file {path} holds {bytes} bytes, a key needs at least {MIN_KEY_BYTES}")]
    ShortKey {
        /// As configured.
        path: PathBuf,
        /// Its length without the line break.
        bytes: usize,
    },
}

/// Masks events. Owned by one pipeline: it holds buffers that are used again.
#[derive(Debug, Clone)]
pub struct Masker {
    passes: Passes,
    tokens: Tokens,
    stage: Vec<u8>,
}

impl Masker {
    /// Reads the key, if there is one. `enabled` is the caller's business.
    pub fn new(config: &MaskConfig) -> Result<Self, MaskError> {
        let tokens = match config.mode {
            MaskMode::Replace => Tokens::Replace,
            MaskMode::Hmac => {
                let path = config.key_file.as_ref().ok_or(MaskError::NoKeyFile)?;
                let content = std::fs::read(path).map_err(|source| MaskError::Key { path: path.clone(), source })?;
                let end = content.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
                if end < MIN_KEY_BYTES {
                    return Err(MaskError::ShortKey { path: path.clone(), bytes: end });
                }
                Tokens::keyed(&content[..end])
            }
        };
        Ok(Self { passes: Passes::new(), tokens, stage: Vec::new() })
    }

    /// Masks one event into `out` (cleared first). False: nothing to mask, and `out` is not meaningful.
    pub fn mask(&mut self, event: &[u8], out: &mut Vec<u8>) -> bool {
        Scan::new(event).has_candidate(0, event.len()) && self.match_exactly(event, out)
    }

    /// As [`Masker::mask`], without the scan.
    fn match_exactly(&mut self, event: &[u8], out: &mut Vec<u8>) -> bool {
        let emails = self.passes.emails::<true>(event, &self.tokens, &mut self.stage);
        let after_emails = if emails { &self.stage[..] } else { event };
        let phones = self.passes.phones::<true>(after_emails, &self.tokens, out);
        if emails && !phones {
            std::mem::swap(&mut self.stage, out);
        }
        emails || phones
    }
}

/// Masks the lines of one buffer in ascending order, with one scan over the whole of it.
pub struct MaskedLines<'a> {
    bytes: &'a [u8],
    scan: Scan<'a>,
}

impl<'a> MaskedLines<'a> {
    /// Begins at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, scan: Scan::new(bytes) }
    }

    /// Masks the event that lies at `start..end`; as [`Masker::mask`]. Events are given in ascending order.
    #[inline]
    pub fn mask(&mut self, masker: &mut Masker, start: usize, end: usize, out: &mut Vec<u8>) -> bool {
        self.scan.has_candidate(start, end) && masker.match_exactly(&self.bytes[start..end], out)
    }
}

#[cfg(test)]
mod tests;
