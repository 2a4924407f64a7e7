//! Intercept: what is done to each event between decode and cut, as a closed list of steps in the order configured.
//!
//! Invariant: an event is a slice of the read buffer until a step changes it; only then is it copied, into a buffer that
//! the chain owns and uses again. Nothing here allocates, locks or calls the system per event.

mod config;
pub mod mask;

use std::collections::{BTreeMap, HashMap};

use regex::bytes::Regex;

pub use self::config::InterceptorConfig;
pub(crate) use self::config::{check_dataset, check_headers};
use self::mask::{MaskedLines, Masker};

/// Most header interceptors of a source: which ones applied to an event is a bit set.
const MAX_HEADERS: usize = 64;

/// What the steps decide about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its time; none if it has no usable one.
    pub time_us: Option<i64>,
    /// Index of its dataset.
    pub dataset: u16,
    /// Which header interceptors applied.
    pub headers: u64,
}

#[derive(Debug, Clone)]
enum Step {
    Timestamp { replace: bool },
    Header { bit: u64, when: Option<Regex> },
    Keep { pattern: Regex, matching: bool },
    Replace { pattern: Regex, replacement: Vec<u8> },
    Mask,
    Route { pattern: Regex, dataset: u16 },
    RouteByHeader { header: String, datasets: HashMap<String, u16> },
}

/// A compiled chain.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    steps: Vec<Step>,
    headers: Vec<(String, String)>,
    masker: Option<Masker>,
    /// The body, once a step has changed it.
    body: Vec<u8>,
    spare: Vec<u8>,
}

/// A pattern that does not compile (validation finds it first), or too many headers.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A regular expression.
    #[error("interceptors[{index}]: {source}")]
    Pattern {
        /// Which interceptor.
        index: usize,
        /// What is wrong with it.
        source: Box<regex::Error>,
    },
    /// Over the bound.
    #[error("interceptors: at most {MAX_HEADERS} of them can set headers")]
    Headers,
}

impl Chain {
    /// Compiles `interceptors`; `dataset` gives the index of a dataset's name; `host` is the value of the header `host`.
    pub fn new(
        interceptors: &[InterceptorConfig],
        masker: Option<Masker>,
        host: &str,
        dataset: impl Fn(&str) -> u16,
    ) -> Result<Self, ChainError> {
        let mut chain = Self { steps: Vec::new(), headers: Vec::new(), masker, body: Vec::new(), spare: Vec::new() };
        if !interceptors.iter().any(|one| matches!(one, InterceptorConfig::Host { .. })) {
            chain.add_header("host", host, None)?;
        }
        for (index, interceptor) in interceptors.iter().enumerate() {
            let regex = |pattern: &str| {
                Regex::new(pattern).map_err(|source| ChainError::Pattern { index, source: Box::new(source) })
            };
            match interceptor {
                InterceptorConfig::Timestamp { replace } => chain.steps.push(Step::Timestamp { replace: *replace }),
                InterceptorConfig::Host { header, value } => {
                    chain.add_header(header, value.as_deref().unwrap_or(host), None)?;
                }
                InterceptorConfig::Static { header, value, when } => {
                    let when = when.as_deref().map(regex).transpose()?;
                    chain.add_header(header, value, when)?;
                }
                InterceptorConfig::Include { pattern } => {
                    chain.steps.push(Step::Keep { pattern: regex(pattern)?, matching: true });
                }
                InterceptorConfig::Exclude { pattern } => {
                    chain.steps.push(Step::Keep { pattern: regex(pattern)?, matching: false });
                }
                InterceptorConfig::SearchReplace { pattern, replacement } => {
                    let replacement = replacement.clone().into_bytes();
                    chain.steps.push(Step::Replace { pattern: regex(pattern)?, replacement });
                }
                InterceptorConfig::Mask {} => chain.steps.push(Step::Mask),
                InterceptorConfig::Route { pattern, dataset: name } => {
                    chain.steps.push(Step::Route { pattern: regex(pattern)?, dataset: dataset(name) });
                }
                InterceptorConfig::RouteByHeader { header, datasets } => chain.steps.push(Step::RouteByHeader {
                    header: header.clone(),
                    datasets: datasets.iter().map(|(value, name)| (value.clone(), dataset(name))).collect(),
                }),
            }
        }
        chain.place_mask();
        Ok(chain)
    }

    fn add_header(&mut self, header: &str, value: &str, when: Option<Regex>) -> Result<(), ChainError> {
        if self.headers.len() == MAX_HEADERS {
            return Err(ChainError::Headers);
        }
        self.steps.push(Step::Header { bit: 1 << self.headers.len(), when });
        self.headers.push((header.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Masking stands where it was placed, else before the first route, else last; nowhere if it is switched off.
    fn place_mask(&mut self) {
        if self.masker.is_none() {
            self.steps.retain(|step| !matches!(step, Step::Mask));
        } else if !self.steps.iter().any(|step| matches!(step, Step::Mask)) {
            let route = |step: &Step| matches!(step, Step::Route { .. } | Step::RouteByHeader { .. });
            let at = self.steps.iter().position(route).unwrap_or(self.steps.len());
            self.steps.insert(at, Step::Mask);
        }
    }

    /// Runs the steps over the event at `range` of the buffer behind `lines`. None: it is filtered out. Else its body.
    pub fn apply<'a>(
        &'a mut self,
        bytes: &'a [u8],
        lines: &mut MaskedLines<'_>,
        range: std::ops::Range<usize>,
        now_us: i64,
        event: &mut Event,
    ) -> Option<&'a [u8]> {
        let (mut changed, mut routed) = (false, false);
        let slice = &bytes[range.clone()];
        for step in &self.steps {
            let body = if changed { &self.body[..] } else { slice };
            match step {
                Step::Timestamp { replace } => {
                    if *replace || event.time_us.is_none() {
                        event.time_us = Some(now_us);
                    }
                }
                Step::Header { bit, when } => {
                    if when.as_ref().is_none_or(|when| when.is_match(body)) {
                        event.headers |= bit;
                    }
                }
                Step::Keep { pattern, matching } => {
                    if pattern.is_match(body) != *matching {
                        return None;
                    }
                }
                Step::Replace { pattern, replacement } => {
                    if replace_all(pattern, replacement, body, &mut self.spare) {
                        std::mem::swap(&mut self.body, &mut self.spare);
                        changed = true;
                    }
                }
                Step::Mask => {
                    let Some(masker) = &mut self.masker else { continue };
                    let masked = if changed {
                        masker.mask(&self.body, &mut self.spare)
                    } else {
                        lines.mask(masker, range.start, range.end, &mut self.spare)
                    };
                    if masked {
                        std::mem::swap(&mut self.body, &mut self.spare);
                        changed = true;
                    }
                }
                Step::Route { pattern, dataset } => {
                    if !routed && pattern.is_match(body) {
                        (event.dataset, routed) = (*dataset, true);
                    }
                }
                Step::RouteByHeader { header, datasets } => {
                    let value = header_value(&self.headers, event.headers, header);
                    if let Some(dataset) = value.filter(|_| !routed).and_then(|value| datasets.get(value)) {
                        (event.dataset, routed) = (*dataset, true);
                    }
                }
            }
        }
        Some(if changed { &self.body } else { slice })
    }

    /// The masker, for bodies that do not go through the steps.
    pub fn masker(&mut self) -> Option<&mut Masker> {
        self.masker.as_mut()
    }

    /// The headers that a bit set stands for; of several with one name the last.
    pub fn headers(&self, bits: u64) -> BTreeMap<String, String> {
        let set = |(index, pair): (usize, &(String, String))| (bits & (1 << index) != 0).then(|| pair.clone());
        self.headers.iter().enumerate().filter_map(set).collect()
    }

    /// The bits of headers that are on every event.
    pub fn fixed_headers(&self) -> u64 {
        let fixed = |step: &Step| if let Step::Header { bit, when: None } = step { *bit } else { 0 };
        self.steps.iter().map(fixed).sum()
    }
}

fn header_value<'a>(headers: &'a [(String, String)], bits: u64, name: &str) -> Option<&'a str> {
    let found =
        headers.iter().enumerate().rev().find(|(index, (header, _))| bits & (1 << index) != 0 && header == name);
    found.map(|(_, (_, value))| value.as_str())
}

/// Replaces all matches into `out` (cleared first); false if there is none.
fn replace_all(pattern: &Regex, replacement: &[u8], body: &[u8], out: &mut Vec<u8>) -> bool {
    if !pattern.is_match(body) {
        return false;
    }
    out.clear();
    let mut copied = 0;
    for groups in pattern.captures_iter(body) {
        let Some(found) = groups.get(0) else { continue };
        out.extend_from_slice(&body[copied..found.start()]);
        groups.expand(replacement, out);
        copied = found.end();
    }
    out.extend_from_slice(&body[copied..]);
    true
}

#[cfg(test)]
mod tests {
    use super::mask::MaskConfig;
    use super::*;

    fn run(interceptors: &[InterceptorConfig], body: &str) -> Option<(String, Event)> {
        let masker = Masker::new(&MaskConfig::default()).unwrap();
        let mut chain = Chain::new(interceptors, Some(masker), "web-1", |name| name.len() as u16).unwrap();
        let mut event = Event { time_us: None, dataset: 0, headers: 0 };
        let bytes = body.as_bytes();
        let body = chain.apply(bytes, &mut MaskedLines::new(bytes), 0..bytes.len(), 42, &mut event)?;
        Some((String::from_utf8(body.to_vec()).unwrap(), event))
    }

    fn replace(pattern: &str, replacement: &str) -> InterceptorConfig {
        InterceptorConfig::SearchReplace { pattern: pattern.into(), replacement: replacement.into() }
    }

    fn route(pattern: &str, dataset: &str) -> InterceptorConfig {
        InterceptorConfig::Route { pattern: pattern.into(), dataset: dataset.into() }
    }

    #[test]
    fn masking_stands_before_the_first_route_unless_it_is_placed() {
        let to_email = route("<email>", "abc");
        let (body, event) = run(std::slice::from_ref(&to_email), "jane@example.com").unwrap();
        assert_eq!((body.as_str(), event.dataset), ("<email>", 3));
        let (body, event) = run(&[to_email, InterceptorConfig::Mask {}], "jane@example.com").unwrap();
        assert_eq!((body.as_str(), event.dataset), ("<email>", 0), "placed behind the route");
        let (body, _) = run(&[replace("AT", "@")], "janeATexample.com").unwrap();
        assert_eq!(body, "<email>", "what a replacement makes is masked");
    }

    #[test]
    fn filters_and_replacements() {
        let include = InterceptorConfig::Include { pattern: "GET".into() };
        let exclude = InterceptorConfig::Exclude { pattern: "/health".into() };
        let both = [include, exclude];
        assert!(run(&both, "POST /").is_none());
        assert!(run(&both, "GET /health").is_none());
        assert_eq!(run(&both, "GET /").unwrap().0, "GET /");
        assert_eq!(
            run(&[replace(r"sid=(\w)\w+", "sid=$1...")], "a sid=abc b sid=def").unwrap().0,
            "a sid=a... b sid=d..."
        );
    }

    #[test]
    fn the_first_route_decides() {
        let routes = [route("api", "a"), route("", "bb")];
        assert_eq!(run(&routes, "/api").unwrap().1.dataset, 1);
        assert_eq!(run(&routes, "/").unwrap().1.dataset, 2);
    }

    #[test]
    fn headers_route_and_the_last_of_a_name_counts() {
        let fixed = InterceptorConfig::Static { header: "env".into(), value: "prod".into(), when: None };
        let test = InterceptorConfig::Static { header: "env".into(), value: "test".into(), when: Some("test".into()) };
        let datasets = [("prod".to_owned(), "a".to_owned()), ("test".to_owned(), "bb".to_owned())].into();
        let by = InterceptorConfig::RouteByHeader { header: "env".into(), datasets };
        let steps = [fixed, test, by];
        assert_eq!(run(&steps, "x").unwrap().1.dataset, 1);
        let (_, event) = run(&steps, "a test").unwrap();
        assert_eq!(event.dataset, 2);
        let chain = Chain::new(&steps, None, "web-1", |_| 0).unwrap();
        let headers = chain.headers(event.headers);
        assert_eq!((headers["host"].as_str(), headers["env"].as_str()), ("web-1", "test"));
        assert_eq!(chain.headers(chain.fixed_headers())["env"], "prod");
    }

    #[test]
    fn timestamps_fill_in_what_is_missing() {
        let (_, event) = run(&[InterceptorConfig::Timestamp { replace: false }], "x").unwrap();
        assert_eq!(event.time_us, Some(42));
        assert_eq!(run(&[], "x").unwrap().1.time_us, None);
    }
}
