//! The two passes of `docs/masking.md` over one event: what is a match, what is rejected, what is put in its place.
//!
//! Invariant: `QUICK` never changes the result. It tells the parts of a match by its bytes instead of by groups, which
//! are slow, and saves the search from trying an escape again from each of its neighbours (else lines of many escapes
//! would take time quadratic in their length).

use regex::bytes::Regex;

use super::grammar;
use super::token::{Kind, Tokens, normal_email};

/// Compiled patterns; immutable.
#[derive(Debug, Clone)]
pub(super) struct Passes {
    email: Regex,
    at: Regex,
    local_run: Regex,
    dot: Regex,
    whole_tld: Regex,
    phone: Regex,
    whole_escape: Regex,
    plus: Regex,
    group: Regex,
}

/// What pass 2 found; `number` is where NUMBER begins.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// TOKEN, CLOCK or ESC.
    Copied,
    /// A or B.
    Plus { number: usize },
    /// K.
    Key { short: bool, number: usize },
    /// Z.
    Zeros { number: usize },
}

/// Most digits of a phone number (E.164).
const MAX_DIGITS: usize = 15;

impl Passes {
    pub(super) fn new() -> Self {
        let regex = |pattern: String| Regex::new(&pattern).expect("the grammar's patterns are fixed and compile");
        Self {
            email: regex(grammar::email()),
            at: regex(grammar::at()),
            local_run: regex(grammar::local_run()),
            dot: regex(grammar::dot()),
            whole_tld: regex(grammar::whole_tld()),
            phone: regex(grammar::phone()),
            whole_escape: regex(grammar::whole_escape()),
            plus: regex(grammar::begins_with_plus()),
            group: regex(grammar::group_or_separator()),
        }
    }

    /// Pass 1. True if something was replaced: then `out` (cleared first) holds the result, else it is not meaningful.
    pub(super) fn emails<const QUICK: bool>(&self, line: &[u8], tokens: &Tokens, out: &mut Vec<u8>) -> bool {
        out.clear();
        let (mut position, mut copied) = (0, 0);
        while let Some(found) = self.email.find_at(line, position) {
            let Some((at_end, domain)) = self.address::<QUICK>(line, found.start(), found.end()) else {
                position = if QUICK { self.behind_escape(line, found.start(), found.end(), true) } else { found.end() };
                continue;
            };
            let end = match domain {
                None => Some(found.end()),
                Some(domain) => self.domain_end(&line[domain..found.end()]).map(|end| domain + end),
            };
            let Some(end) = end else {
                position = at_end;
                continue;
            };
            out.extend_from_slice(&line[copied..found.start()]);
            tokens.push(Kind::Email, |form| normal_email(&line[found.start()..end], form), out);
            (position, copied) = (end, end);
        }
        out.extend_from_slice(&line[copied..]);
        copied > 0
    }

    /// For a match that is an address: where AT ends, and where DOMAIN begins if it is none in brackets.
    fn address<const QUICK: bool>(&self, line: &[u8], start: usize, end: usize) -> Option<(usize, Option<usize>)> {
        if QUICK {
            // No local part holds an AT, so the first one is it; an escape that is an AT begins with it.
            let at = self.at.find(&line[start..end]).filter(|at| at.start() > 0)?;
            let at_end = start + at.end();
            return Some((at_end, (line[at_end] != b'[').then_some(at_end)));
        }
        let groups = self.email.captures_at(line, start)?;
        groups.get(1)?;
        Some((groups.get(2)?.end(), groups.get(3).map(|domain| domain.start())))
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
            let at_edge =
                |also: u8| start == clean || !(line[start - 1].is_ascii_alphanumeric() || line[start - 1] == also);
            let rule = self.rule::<QUICK>(line, start, found.end());
            let number = match rule {
                Rule::Copied => {
                    let escape = matches!(line[start], b'\\' | b'%');
                    let end = found.end();
                    position = if QUICK && escape { self.behind_escape(line, start, end, false) } else { end };
                    clean = position;
                    continue;
                }
                Rule::Plus { number } if at_edge(b'_') => {
                    self.number_end(&line[number..found.end()], 8).map(|end| (start, number + end))
                }
                Rule::Key { short, number } if !short || at_edge(b'A') => {
                    self.number_end(&line[number..found.end()], 7).map(|end| (number, number + end))
                }
                Rule::Zeros { number } => (found.end() - number <= MAX_DIGITS + 2).then_some((number, found.end())),
                Rule::Plus { .. } | Rule::Key { .. } => None,
            };
            let Some((from, to)) = number else {
                position = start + 1;
                continue;
            };
            let zeros = matches!(rule, Rule::Zeros { .. });
            out.extend_from_slice(&line[copied..from]);
            tokens.push(Kind::Phone, |form| self.normal_phone(&line[from..to], zeros, form), out);
            (position, copied, clean) = (to, to, to);
        }
        out.extend_from_slice(&line[copied..]);
        copied > 0
    }

    /// By which rule pass 2 found `start..end`. The quick way tells the common ones by their first bytes.
    fn rule<const QUICK: bool>(&self, line: &[u8], start: usize, end: usize) -> Rule {
        let text = &line[start..end];
        if QUICK {
            match text[0] {
                b'<' | b'0'..=b'9' => return Rule::Copied,
                b'+' => return Rule::Plus { number: start + 1 },
                b'%' | b'\\' if self.whole_escape.is_match(text) => return Rule::Copied,
                b'%' | b'\\' => {
                    if let Some(plus) = self.plus.find(text) {
                        return Rule::Plus { number: start + plus.end() };
                    }
                }
                _ => {}
            }
        }
        let Some(groups) = self.phone.captures_at(line, start) else { return Rule::Copied };
        let begin = |group: usize| groups.get(group).map(|group| group.start());
        if let Some(number) = begin(2).or(begin(4)) {
            Rule::Plus { number }
        } else if let Some(number) = begin(7) {
            Rule::Key { short: groups.get(6).is_some(), number }
        } else if let Some(number) = begin(8) {
            Rule::Zeros { number }
        } else {
            Rule::Copied
        }
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
