//! The lines of one host, one after the other: requests of visits in combined log format, 2 % of them with personal data
//! in the URL, and a few odd ones (not UTF-8, very long, undated). Every line carries its id; nothing here does IO.

use jiff::civil::Date;

use super::catalogue::Catalogue;
use super::clock::Clock;
use super::rng::Rng;
use super::visitor::{Step, Visitor};
use super::words;
use crate::event_id;

/// Lines in a million that carry an e-mail address or a phone number.
pub const PERSONAL_PER_MILLION: u32 = 20_000;
/// Visits that are under way at a host at any time.
const VISITORS: usize = 250;
/// Lines in a million that begin a burst from an older day, and lines of such a burst.
const OLDER_PER_MILLION: u32 = 20;
const OLDER_BURST: u32 = 24;
/// Older days that bursts come from: these many days before the first of the three.
const OLDER_DAYS: [i64; 5] = [2, 5, 9, 16, 34];

/// Writes the lines of one host.
#[derive(Debug)]
pub struct LineWriter<'a> {
    host: Vec<u8>,
    catalogue: &'a Catalogue,
    rng: Rng,
    clock: Clock,
    visitors: Vec<Visitor>,
    current: usize,
    number: u64,
    older: Option<(u32, i64)>,
    odd_per_million: u32,
}

impl<'a> LineWriter<'a> {
    /// The writer of host number `index`; `end` is the day its main dates end with.
    pub fn new(host: &str, index: usize, seed: u64, end: Date, odd_per_million: u32, catalogue: &'a Catalogue) -> Self {
        let mut rng = Rng::new(seed, index as u64);
        let visitors = (0..VISITORS).map(|_| Visitor::arrive(&mut rng, catalogue)).collect();
        Self {
            host: host.as_bytes().to_vec(),
            catalogue,
            rng,
            clock: Clock::new(end, index),
            visitors,
            current: 0,
            number: 0,
            older: None,
            odd_per_million,
        }
    }

    /// Lines written so far; the number in the next one's id.
    pub fn written(&self) -> u64 {
        self.number
    }

    /// Appends the next line with its LF. `part` (0 up to 1) says how much of the whole log was written before it.
    pub fn push_line(&mut self, out: &mut Vec<u8>, part: f64) {
        if self.rng.chance(self.odd_per_million) {
            self.push_odd(out, part);
        } else if self.rng.chance(PERSONAL_PER_MILLION) {
            self.push_personal(out, part);
        } else {
            self.push_visit(out, part);
        }
        out.push(b'\n');
        self.number += 1;
    }

    fn push_visit(&mut self, out: &mut Vec<u8>, part: f64) {
        let catalogue = self.catalogue;
        let step = loop {
            if self.rng.chance(750_000) {
                self.current = self.rng.below(self.visitors.len());
            }
            match self.visitors[self.current].step(&mut self.rng, catalogue) {
                Some(step) => break step,
                None => self.visitors[self.current] = Visitor::arrive(&mut self.rng, catalogue),
            }
        };
        self.push_head(out, part);
        match step {
            Step::View(page) => {
                self.push_request(out, "GET", &page.path, &page.query);
                let varied = page.bytes + self.rng.below(3_000) as u32;
                let status = if self.rng.chance(20_000) { "404" } else { "200" };
                self.push_tail(out, status, varied, true);
            }
            Step::Load(asset) => {
                self.push_request(out, "GET", &asset.path, &asset.query);
                let (status, bytes) = if self.rng.chance(300_000) { ("304", 0) } else { ("200", asset.bytes) };
                self.push_tail(out, status, bytes, false);
            }
            Step::Beacon(event) => {
                self.push_request(out, "POST", b"/track", b"ev=");
                let closing = out.len() - " HTTP/1.1\" ".len();
                out.truncate(closing);
                out.extend_from_slice(event.as_bytes());
                out.extend_from_slice(b" HTTP/1.1\" ");
                self.push_tail(out, "204", 0, false);
            }
        }
    }

    /// A request whose URL names somebody.
    fn push_personal(&mut self, out: &mut Vec<u8>, part: f64) {
        let mut query = Vec::with_capacity(64);
        let path: &[u8] = match self.rng.below(4) {
            0 => {
                query.extend_from_slice(b"email=");
                self.push_mail(&mut query, b"%40");
                b"/newsletter/confirm"
            }
            1 => {
                query.extend_from_slice(b"to=");
                self.push_mail(&mut query, b"@");
                b"/account/invite"
            }
            2 => {
                query.extend_from_slice(b"phone=");
                self.push_phone(&mut query);
                b"/account/callback"
            }
            _ => {
                query.extend_from_slice(b"step=2&user=");
                self.push_mail(&mut query, b"@");
                b"/checkout/contact"
            }
        };
        self.push_head(out, part);
        self.push_request(out, "GET", path, &query);
        let bytes = 200 + self.rng.below(900) as u32;
        self.push_tail(out, "302", bytes, true);
    }

    fn push_mail(&mut self, out: &mut Vec<u8>, at: &[u8]) {
        out.extend_from_slice(self.rng.pick(words::GIVEN).as_bytes());
        out.push(b'.');
        out.extend_from_slice(self.rng.pick(words::FAMILY).as_bytes());
        if self.rng.chance(300_000) {
            out.extend_from_slice((1950 + self.rng.below(60)).to_string().as_bytes());
        }
        out.extend_from_slice(at);
        out.extend_from_slice(self.rng.pick(words::MAIL_DOMAINS).as_bytes());
    }

    fn push_phone(&mut self, out: &mut Vec<u8>) {
        let tail = format!("{:04}", self.rng.below(10_000));
        let text = match self.rng.below(4) {
            0 => format!("+4930{}55{tail}", 10 + self.rng.below(90)),
            1 => format!("%2B4420794{}{tail}", 10 + self.rng.below(90)),
            2 => format!("212-555-{tail}"),
            _ => format!("+1-{}-555-{tail}", 201 + self.rng.below(700)),
        };
        out.extend_from_slice(text.as_bytes());
    }

    /// Not UTF-8, very long, or undated.
    fn push_odd(&mut self, out: &mut Vec<u8>, part: f64) {
        match self.rng.below(3) {
            0 => {
                self.push_head(out, part);
                self.push_request(out, "GET", b"/search", b"q=caf\xe9+\xff\xfe\x80noir");
                self.push_tail(out, "400", 0, true);
            }
            1 => {
                let mut query = b"basket=".to_vec();
                let bytes = 4_096 + self.rng.below(16_384);
                while query.len() < bytes {
                    query.extend_from_slice(self.rng.pick(words::ADJECTIVES).as_bytes());
                    query.push(b'-');
                    query.extend_from_slice(self.rng.pick(words::NOUNS).as_bytes());
                    query.push(b'.');
                }
                self.push_head(out, part);
                self.push_request(out, "GET", b"/basket/restore", &query);
                self.push_tail(out, "414", 0, true);
            }
            _ => {
                out.extend_from_slice(b"upstream timed out while reading /api/stock?");
                event_id::push(out, &self.host, self.number);
                out.extend_from_slice(b" from inventory-");
                out.extend_from_slice(self.rng.pick(words::NOUNS).as_bytes());
            }
        }
    }

    /// Address and time of the current visitor.
    fn push_head(&mut self, out: &mut Vec<u8>, part: f64) {
        let second = self.clock.at(part);
        let second = match &mut self.older {
            Some((left, days)) => {
                let second = self.clock.older(second, *days);
                *left -= 1;
                if *left == 0 {
                    self.older = None;
                }
                second
            }
            None => {
                if self.rng.chance(OLDER_PER_MILLION) {
                    self.older = Some((OLDER_BURST, OLDER_DAYS[self.rng.below(OLDER_DAYS.len())]));
                }
                second
            }
        };
        out.extend_from_slice(&self.visitors[self.current].address);
        out.extend_from_slice(b" - - ");
        self.clock.push(out, second);
    }

    /// ` "GET /path?eid=...&query HTTP/1.1" `
    fn push_request(&mut self, out: &mut Vec<u8>, method: &str, path: &[u8], query: &[u8]) {
        out.extend_from_slice(b" \"");
        out.extend_from_slice(method.as_bytes());
        out.push(b' ');
        out.extend_from_slice(path);
        out.push(b'?');
        event_id::push(out, &self.host, self.number);
        if !query.is_empty() {
            out.push(b'&');
            out.extend_from_slice(query);
        }
        out.extend_from_slice(b" HTTP/1.1\" ");
    }

    /// Status, bytes, referer (the page before, or the one that is open) and user agent.
    fn push_tail(&mut self, out: &mut Vec<u8>, status: &str, bytes: u32, from_before: bool) {
        let visitor = &self.visitors[self.current];
        out.extend_from_slice(status.as_bytes());
        out.push(b' ');
        out.extend_from_slice(bytes.to_string().as_bytes());
        out.extend_from_slice(b" \"");
        let referer = if from_before { &visitor.before } else { &visitor.here };
        out.extend_from_slice(if referer.is_empty() { b"-" } else { referer });
        out.extend_from_slice(b"\" \"");
        out.extend_from_slice(&self.catalogue.agents[visitor.agent]);
        out.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    fn sample(bytes: usize, seed: u64, odd: u32) -> Vec<u8> {
        let catalogue = Catalogue::new(seed);
        let mut writer = LineWriter::new("web-01", 0, seed, date(2026, 11, 20), odd, &catalogue);
        let mut out = Vec::new();
        while out.len() < bytes {
            let part = out.len() as f64 / bytes as f64;
            writer.push_line(&mut out, part);
        }
        out
    }

    /// What the issue promises of generated logs; dates as dense as in a log of 500 MB per host.
    #[test]
    fn lines_average_230_bytes_and_compress_7_to_11_times() {
        let catalogue = Catalogue::new(3);
        let mut writer = LineWriter::new("web-02", 1, 3, date(2026, 11, 20), 100, &catalogue);
        let mut out = Vec::new();
        while out.len() < 16 << 20 {
            let part = 0.4 + out.len() as f64 / 500e6;
            writer.push_line(&mut out, part);
        }
        let average = out.len() as f64 / writer.written() as f64;
        assert!((220.0..240.0).contains(&average), "{average} bytes per line");
        for (number, piece) in out.chunks_exact(1 << 20).enumerate() {
            let ratio = piece.len() as f64 / zstd::bulk::compress(piece, 1).unwrap().len() as f64;
            assert!((7.0..11.0).contains(&ratio), "MiB {number}: {ratio}");
        }
    }

    #[test]
    fn two_percent_carry_personal_data() {
        let out = sample(8 << 20, 5, 0);
        let lines = out.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let (mut all, mut personal) = (0u32, 0u32);
        for line in lines {
            let text = std::str::from_utf8(line).unwrap();
            all += 1;
            personal += u32::from(text.contains('@') || text.contains("%40") || text.contains("phone="));
        }
        let part = f64::from(personal) / f64::from(all);
        assert!((0.018..0.022).contains(&part), "{part}");
    }

    #[test]
    fn ids_count_up_and_a_seed_gives_the_same_bytes() {
        let out = sample(2 << 20, 11, 2_000);
        assert_eq!(out, sample(2 << 20, 11, 2_000));
        assert_ne!(out, sample(2 << 20, 12, 2_000));
        let finder = event_id::Finder::default();
        let (mut next, mut undated, mut long, mut not_utf8) = (0, 0, 0, 0);
        for line in out.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            assert_eq!(finder.find(line).map(|id| id.number), Some(next));
            assert_eq!(memchr::memmem::find_iter(line, event_id::KEY).count(), 1, "one id per line");
            next += 1;
            undated += u32::from(!line.contains(&b'['));
            long += u32::from(line.len() > 4_000);
            not_utf8 += u32::from(std::str::from_utf8(line).is_err());
        }
        assert!(undated > 0 && long > 0 && not_utf8 > 0, "{undated} {long} {not_utf8}");
    }
}
