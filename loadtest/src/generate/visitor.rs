//! A visit: one address and one user agent that go from page to page; each page loads assets, sends beacons, and is the
//! referer of the next.

use super::catalogue::{Catalogue, Page};
use super::rng::Rng;
use super::words;

/// One visitor on the way through the site.
#[derive(Debug)]
pub struct Visitor {
    /// Remote address.
    pub address: Vec<u8>,
    /// Index into the catalogue's user agents.
    pub agent: usize,
    /// The page that is open, as a URL without the event id.
    pub here: Vec<u8>,
    /// The page before, or where the visit came from; empty for none.
    pub before: Vec<u8>,
    pages_left: usize,
    assets_left: usize,
}

/// What a visitor asks for next.
#[derive(Debug)]
pub enum Step<'a> {
    /// A page; its referer is the page before.
    View(&'a Page),
    /// A part of the page that is open.
    Load(&'a Page),
    /// A report about the page that is open.
    Beacon(&'static str),
}

impl Visitor {
    /// Somebody new.
    pub fn arrive(rng: &mut Rng, catalogue: &Catalogue) -> Self {
        // Blocks of addresses that are never routed: benchmarking (198.18/15) and private ones.
        let address = match rng.below(3) {
            0 => format!("198.18.{}.{}", rng.below(64), 1 + rng.below(250)),
            1 => format!("10.{}.{}.{}", rng.below(4), rng.below(32), 1 + rng.below(250)),
            _ => format!("172.16.{}.{}", rng.below(64), 1 + rng.below(250)),
        };
        Self {
            address: address.into_bytes(),
            agent: rng.popular(catalogue.agents.len()),
            here: rng.pick(words::ENTRIES).as_bytes().to_vec(),
            before: Vec::new(),
            pages_left: 2 + rng.below(24),
            assets_left: 0,
        }
    }

    /// What comes next, or nothing when the visit is over.
    pub fn step<'a>(&mut self, rng: &mut Rng, catalogue: &'a Catalogue) -> Option<Step<'a>> {
        if self.assets_left > 0 {
            self.assets_left -= 1;
            let asset = &catalogue.assets[self.assets_left % catalogue.assets.len()];
            return Some(Step::Load(asset));
        }
        if !self.before.is_empty() && rng.chance(300_000) {
            return Some(Step::Beacon(rng.pick(words::BEACONS)));
        }
        if self.pages_left == 0 {
            return None;
        }
        self.pages_left -= 1;
        self.assets_left = rng.below(4);
        let page = &catalogue.pages[rng.popular(catalogue.pages.len())];
        self.open(page);
        Some(Step::View(page))
    }

    fn open(&mut self, page: &Page) {
        std::mem::swap(&mut self.before, &mut self.here);
        self.here.clear();
        self.here.extend_from_slice(words::SITE.as_bytes());
        self.here.extend_from_slice(&page.path);
        if !page.query.is_empty() {
            self.here.push(b'?');
            self.here.extend_from_slice(&page.query);
        }
    }
}
