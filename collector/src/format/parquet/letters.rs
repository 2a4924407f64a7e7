//! Dead letters made at the collector: events that are no rows. Their bodies were masked at the edge, with the rest of
//! their batch.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use proto::dead_letter::{DeadLetter, MAX_BODY_BYTES, Stage};
use proto::header::Data;

/// The dead letters of one batch, as JSON lines.
pub(super) struct Letters<'a> {
    agent: &'a str,
    data: &'a Data,
    time: String,
    lines: Vec<u8>,
    count: u64,
}

impl<'a> Letters<'a> {
    pub fn new(agent: &'a str, data: &'a Data, now: Timestamp) -> Self {
        Self { agent, data, time: now.to_string(), lines: Vec::new(), count: 0 }
    }

    pub fn add(&mut self, reason: &str, line: &[u8]) {
        let (body, body_base64) = match text_prefix(line) {
            Some(text) => (Some(text.to_owned()), None),
            None => (None, Some(STANDARD.encode(&line[..line.len().min(MAX_BODY_BYTES)]))),
        };
        let letter = DeadLetter {
            time: self.time.clone(),
            agent: self.agent.to_owned(),
            dataset: self.data.dataset.to_string(),
            source: self.data.wire.source.clone(),
            file: None,
            offset: None,
            stage: Stage::Columns,
            reason: reason.to_owned(),
            body,
            body_base64,
            body_bytes: line.len() as u64,
        };
        self.lines.extend_from_slice(&letter.to_line());
        self.count += 1;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn into_lines(self) -> Vec<u8> {
        self.lines
    }
}

/// At most [`MAX_BODY_BYTES`] of a line that is UTF-8, cut between characters; none if it is not.
fn text_prefix(line: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(line).ok()?;
    let mut end = text.len().min(MAX_BODY_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Some(&text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_cut_between_characters() {
        let long = "é".repeat(MAX_BODY_BYTES);
        assert_eq!(text_prefix(long.as_bytes()).unwrap().len(), MAX_BODY_BYTES);
        let odd = format!("x{long}");
        assert_eq!(text_prefix(odd.as_bytes()).unwrap().len(), MAX_BODY_BYTES - 1);
        assert_eq!(text_prefix(b"\xff"), None);
    }
}
