//! Events that cannot be placed, as JSON lines. Their bodies are masked before they are cut, and of one that is known
//! only by its beginning the last, incomplete word is dropped: so no half of an address or number is left.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proto::dead_letter::{DeadLetter, MAX_BODY_BYTES, Stage};

/// How far back the end of an incomplete body is dropped, in bytes: longer than any address or number.
const TAIL_BYTES: usize = 1024;

/// Why an event is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    NoTime,
    TooLong,
    Future,
    TooOld,
    OutOfRange,
    Grown,
}

impl Reason {
    fn text(self) -> &'static str {
        match self {
            Self::NoTime => "no usable time",
            Self::TooLong => "longer than the maximum event size",
            Self::Future => "dated more than 24 h ahead",
            Self::TooOld => "dated before the oldest day of the dataset",
            Self::Grown => "longer than 8 MiB after interceptors",
            Self::OutOfRange => "dated outside of the years 1900 to 2261",
        }
    }
}

/// What is known of an event beside its body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Letter<'a> {
    pub time: &'a str,
    pub agent: &'a str,
    pub dataset: &'a str,
    pub source: &'a str,
    pub file: &'a str,
    pub offset: u64,
    pub reason: Reason,
    /// Length of the whole body before masking, in bytes.
    pub body_bytes: u64,
}

impl Letter<'_> {
    /// The JSON line. `masked` is the masked body, or what is left of it by [`without_incomplete_end`].
    pub fn to_line(self, masked: &[u8]) -> Vec<u8> {
        let cut = &masked[..masked.len().min(MAX_BODY_BYTES)];
        let valid = match std::str::from_utf8(cut) {
            Ok(text) => Some(text),
            // The cut may go through a character.
            Err(error) if error.error_len().is_none() && masked.len() > cut.len() => {
                std::str::from_utf8(&cut[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        let letter = DeadLetter {
            time: self.time.to_owned(),
            agent: self.agent.to_owned(),
            dataset: self.dataset.to_owned(),
            source: self.source.to_owned(),
            file: Some(self.file.to_owned()),
            offset: Some(self.offset),
            stage: Stage::Decode,
            reason: self.reason.text().to_owned(),
            body: valid.map(str::to_owned),
            body_base64: valid.is_none().then(|| STANDARD.encode(cut)),
            body_bytes: self.body_bytes,
        };
        letter.to_line()
    }
}

/// The masked beginning of an event without the word at its end that may be the beginning of an address or number.
pub(crate) fn without_incomplete_end(masked: &[u8]) -> &[u8] {
    let floor = masked.len().saturating_sub(TAIL_BYTES);
    let strip = |end: usize, of: fn(u8) -> bool| {
        let kept = masked[floor..end].iter().rposition(|byte| !of(*byte)).map_or(floor, |last| floor + last + 1);
        kept.min(end)
    };
    // An address (also one whose local part is quoted) ...
    let mut end = strip(masked.len(), in_address);
    if end > floor && masked[end - 1] == b'"' {
        end = strip(end - 1, |byte| in_address(byte) || byte == b' ');
        end -= usize::from(end > floor && masked[end - 1] == b'"');
    }
    // ... or the groups of a number before it.
    &masked[..strip(end, in_number)]
}

fn in_address(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || b"_+.'|%\\@-[:".contains(&byte)
}

fn in_number(byte: u8) -> bool {
    byte.is_ascii_digit() || byte >= 0x80 || b" .()/+%-".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> &str {
        std::str::from_utf8(without_incomplete_end(text.as_bytes())).unwrap()
    }

    #[test]
    fn no_half_of_an_address_or_number_is_left() {
        assert_eq!(end("GET /?e=jane.doe@exam"), "GET /?e=");
        assert_eq!(end("GET /?e=jane.doe%4"), "GET /?e=");
        assert_eq!(end("rcpt \"jane doe\"@exam"), "rcpt");
        assert_eq!(end("tel: +49 30 12"), "tel:");
        assert_eq!(end("to=%2B1%20415-66"), "to=");
        assert_eq!(end("mobile=0999012"), "mobile=");
        assert_eq!(end("say <email> and more words"), "say <email> and more");
        let long = "x".repeat(5000);
        assert_eq!(end(&long).len(), 5000 - TAIL_BYTES);
    }

    #[test]
    fn bodies_that_are_no_text_and_bodies_that_are_cut() {
        let letter = Letter {
            time: "2026-11-20T00:00:00Z",
            agent: "web-1",
            dataset: "d",
            source: "s",
            file: "/var/log/x",
            offset: 7,
            reason: Reason::NoTime,
            body_bytes: 3,
        };
        let read = |line: Vec<u8>| serde_json::from_slice::<DeadLetter>(&line).unwrap();
        assert_eq!(read(letter.to_line(b"a\xffb")).body_base64.as_deref(), Some("Yf9i"));
        assert_eq!(read(letter.to_line(b"a")).body.as_deref(), Some("a"));
        let long = format!("a{}", "ü".repeat(MAX_BODY_BYTES));
        assert_eq!(read(letter.to_line(long.as_bytes())).body.unwrap().len(), MAX_BODY_BYTES - 1);
    }
}
