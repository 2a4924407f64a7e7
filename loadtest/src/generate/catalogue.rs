//! What visits go to: the pages of a shop that does not exist, and the user agents of its visitors. Made once from the
//! seed and shared by all hosts, as the servers of one site share its pages.

use super::rng::Rng;
use super::words;

/// Products in the shop.
const PRODUCTS: usize = 1_200;
/// Search pages.
const SEARCHES: usize = 200;

/// A page or asset. A line puts the event id between path and query.
#[derive(Debug)]
pub struct Page {
    /// From `/` up to the query.
    pub path: Vec<u8>,
    /// Without `?`; may be empty.
    pub query: Vec<u8>,
    /// Bytes of the usual answer.
    pub bytes: u32,
}

/// Everything that lines are put together from.
#[derive(Debug)]
pub struct Catalogue {
    /// Popular ones first.
    pub pages: Vec<Page>,
    /// What pages load.
    pub assets: Vec<Page>,
    /// Common ones first.
    pub agents: Vec<Vec<u8>>,
}

impl Catalogue {
    /// The catalogue of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed, u64::MAX);
        let mut pages = Vec::with_capacity(PRODUCTS + SEARCHES + 64);
        let mut add = |path: String, query: String, rng: &mut Rng| {
            let bytes = 800 + rng.below(40_000) as u32;
            pages.push(Page { path: path.into_bytes(), query: query.into_bytes(), bytes });
        };
        for path in words::FIXED_PAGES {
            add((*path).to_owned(), String::new(), &mut rng);
        }
        for category in words::CATEGORIES {
            add(format!("/c/{category}"), String::new(), &mut rng);
            add(format!("/c/{category}"), "page=2".to_owned(), &mut rng);
        }
        for number in 0..PRODUCTS + SEARCHES {
            let (adjective, noun) = (rng.pick(words::ADJECTIVES), rng.pick(words::NOUNS));
            if number % 7 == 3 {
                add("/search".to_owned(), format!("q={adjective}+{noun}"), &mut rng);
            } else {
                let category = rng.pick(words::CATEGORIES);
                add(format!("/p/{category}/{adjective}-{noun}"), String::new(), &mut rng);
            }
        }
        let assets = words::ASSETS.iter().map(|path| Page {
            path: path.as_bytes().to_vec(),
            query: format!("v={}", rng.below(90) + 10).into_bytes(),
            bytes: 300 + rng.below(90_000) as u32,
        });
        Self { assets: assets.collect(), pages, agents: agents() }
    }
}

/// Each user agent in some versions, the newest of the commonest first.
fn agents() -> Vec<Vec<u8>> {
    let mut agents = Vec::new();
    for version in (128..134).rev() {
        agents.extend(words::AGENTS.iter().map(|agent| agent.replace('#', &version.to_string()).into_bytes()));
    }
    agents
}
