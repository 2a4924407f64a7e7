//! The two passes of `docs/masking.md` over one event: what is a match, what is rejected, what is put in its place.
//!
//! Invariant: `QUICK` never changes the result, it only saves the search from trying an escape again from each of
//! its neighbours (else lines of many escapes would take time quadratic in their length).

use regex::bytes::Regex;

use super::grammar;
use super::token::{Kind, Tokens, normal_email};

/// Compiled patterns; immutable.
#[derive(Debug, Clone)]
pub(super) struct Passes {
    email: Regex,
    local_run: Regex,
    dot: Regex,
    whole_tld: Regex,
    phone: Regex,
    group: Regex,
}

/// Most digits of a phone number (E.164).
const MAX_DIGITS: usize = 15;

impl Passes {
    pub(super) fn new() -> Self {
        let regex = |pattern: String| Regex::new(&pattern).expect("the grammar's patterns are fixed and compile");
        Self {
            email: regex(grammar::email()),
            local_run: regex(grammar::local_run()),
            dot: regex(grammar::dot()),
            whole_tld: regex(grammar::whole_tld()),
            phone: regex(grammar::phone()),
            group: regex(grammar::group_or_separator()),
        }
    }

    /// Pass 1. True if something was replaced: then `out` (cleared first) holds the result, else it is not meaningful.
    pub(super) fn emails<const QUICK: bool>(&self, line: &[u8], tokens: &Tokens, out: &mut Vec<u8>) -> bool {
        out.clear();
        let (mut position, mut copied) = (0, 0);
        while let Some(found) = self.email.find_at(line, position) {
            let groups = self.email.captures_at(line, found.start());
            let Some(groups) = groups.filter(|groups| groups.get(1).is_some()) else {
                position = if QUICK { self.behind_escape(line, found.start(), found.end(), true) } else { found.end() };
                continue;
            };
            let end = match groups.get(3) {
                None => Some(found.end()),
                Some(domain) => self.domain_end(domain.as_bytes()).map(|end| domain.start() + end),
            };
            let Some(end) = end else {
                position = groups.get(2).map_or(found.end(), |at| at.end());
                continue;
            };
            out.extend_from_slice(&line[copied..found.start()]);
            tokens.push(Kind::Email, |form| normal_email(&line[found.start()..end], form), out);
            (position, copied) = (end, end);
        }
        out.extend_from_slice(&line[copied..]);
        copied > 0
    }

    /// Where the domain ends once words that are no TLD are dropped; none if no domain is left.
    fn domain_end(&self, domain: &[u8]) -> Option<usize> {
        let mut end = domain.len();
        loop {
            let last_dot = self.dot.find_iter(&domain[..end]).last()?;
            let last = &domain[last_dot.end()..end];
            if grammar::NO_TLD.iter().any(|word| last.eq_ignore_ascii_case(word.as_bytes())) {
                end = last_dot.start();
            } else {
                return self.whole_tld.is_match(last).then_some(end);
            }
        }
    }

    /// Where the search can go on behind an escape at `start..end` that began no match.
    fn behind_escape(&self, line: &[u8], start: usize, end: usize, in_address: bool) -> usize {
        if line[start..].starts_with(br"\\") {
            // In a run of backslashes every later pair fails as this one did.
            let run = line[start..].iter().take_while(|byte| **byte == b'\\').count();
            return start + run - run % 2;
        }
        if in_address {
            // If the escape could begin a local part, the search from anywhere inside that would fail at the same place.
            let run = self.local_run.find(&line[start..]).map_or(0, |run| run.end());
            return end.max(start + run);
        }
        end
    }

    /// Pass 2, as [`Passes::emails`].
    pub(super) fn phones<const QUICK: bool>(&self, line: &[u8], tokens: &Tokens, out: &mut Vec<u8>) -> bool {
        out.clear();
        let (mut position, mut copied, mut clean) = (0, 0, 0);
        while let Some(found) = self.phone.find_at(line, position) {
            let start = found.start();
            let Some(groups) = self.phone.captures_at(line, start) else { break };
            let at_edge =
                |also: u8| start == clean || !(line[start - 1].is_ascii_alphanumeric() || line[start - 1] == also);
            let number = if let (Some(whole), Some(number)) =
                (groups.get(1).or(groups.get(3)), groups.get(2).or(groups.get(4)))
            {
                let end = at_edge(b'_').then(|| self.number_end(number.as_bytes(), 8)).flatten();
                end.map(|end| (whole.start(), number.start() + end))
            } else if let Some(number) = groups.get(7) {
                let edge = groups.get(6).is_none() || at_edge(b'A');
                let end = edge.then(|| self.number_end(number.as_bytes(), 7)).flatten();
                end.map(|end| (number.start(), number.start() + end))
            } else if let Some(number) = groups.get(8) {
                (number.len() <= MAX_DIGITS + 2).then_some((number.start(), number.end()))
            } else {
                let escape = matches!(line[start], b'\\' | b'%');
                let end = found.end();
                position = if QUICK && escape { self.behind_escape(line, start, end, false) } else { end };
                clean = position;
                continue;
            };
            let Some((from, to)) = number else {
                position = start + 1;
                continue;
            };
            out.extend_from_slice(&line[copied..from]);
            tokens.push(Kind::Phone, |form| self.normal_phone(&line[from..to], groups.get(8).is_some(), form), out);
            (position, copied, clean) = (to, to, to);
        }
        out.extend_from_slice(&line[copied..]);
        copied > 0
    }

    /// Digit groups of a number: `(start, end)`.
    fn groups<'a>(&'a self, number: &'a [u8]) -> impl Iterator<Item = (usize, usize)> + 'a {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < number.len() {
                let piece = self.group.captures(&number[at..])?;
                let start = at;
                at += piece.get(0)?.end();
                if piece.get(1).is_some() {
                    return Some((start, at));
                }
            }
            None
        })
    }

    /// Where the number ends; none if it is none.
    fn number_end(&self, number: &[u8], least: usize) -> Option<usize> {
        let mut groups = self.groups(number);
        let first = groups.next()?;
        let mut digits = first.1 - first.0;
        if digits >= least {
            return (digits <= MAX_DIGITS).then_some(first.1);
        }
        let (mut end, mut count, mut second) = (first.1, 1, 0);
        for (from, to) in groups {
            if digits + to - from > MAX_DIGITS {
                break;
            }
            digits += to - from;
            (end, count) = (to, count + 1);
            if count == 2 {
                second = from;
            }
        }
        let decimal = count == 2 && &number[first.1..second] == b".";
        (digits >= least && !decimal).then_some(end)
    }

    fn normal_phone(&self, number: &[u8], behind_zeros: bool, out: &mut Vec<u8>) {
        let number = if behind_zeros { &number[2..] } else { number };
        for (from, to) in self.groups(number) {
            out.extend_from_slice(&number[from..to]);
        }
    }
}
