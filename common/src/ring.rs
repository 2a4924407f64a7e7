//! The hash ring: which nodes a key belongs to, in order of preference. Every process computes the same ring from the
//! same names, in any version and on any machine: keys and points are hashed as explicit bytes with XXH3, and a golden
//! test pins the positions. A change there would move every agent at once.
//!
//! `hashring` keeps the points and finds a key's first one. It gives one point per node and no way to walk, so each
//! node has 200 points, and successors are found by stepping from point to point (so ask once per key and membership).

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use hashring::HashRing;
use xxhash_rust::xxh3::xxh3_64;

/// Points of each node. With 200, the largest of five shares is about a tenth over the mean.
const POINTS: u32 = 200;

/// A ring over a fixed list of nodes. Cheap to clone.
#[derive(Clone)]
pub struct Ring {
    inner: Arc<Inner>,
}

struct Inner {
    nodes: Vec<String>,
    points: HashRing<Point, Positions>,
}

/// One of a node's places.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    position: u64,
    /// Into `nodes`.
    node: u16,
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.position);
    }
}

/// Hands positions through: they are hashed before they come here.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Positions;

#[derive(Default)]
struct PassThrough(u64);

impl BuildHasher for Positions {
    type Hasher = PassThrough;
    fn build_hasher(&self) -> PassThrough {
        PassThrough::default()
    }
}

impl Hasher for PassThrough {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only positions are given to the ring");
    }
    fn write_u64(&mut self, position: u64) {
        self.0 = position;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ring").field(&self.inner.nodes).finish()
    }
}

impl Ring {
    /// Builds a ring; the order of `nodes` and repeated names change nothing. At most 65,535 nodes count.
    pub fn new(nodes: &[String]) -> Self {
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.truncate(usize::from(u16::MAX));
        let mut points: Vec<Point> = (0..POINTS)
            .flat_map(|n| nodes.iter().zip(0u16..).map(move |(name, node)| (name, node, n)))
            .map(|(name, node, n)| Point { position: point_position(name, n), node })
            .collect();
        points.sort_unstable_by_key(|point| (point.position, point.node));
        // Two points in one place: the node that sorts first has it.
        points.dedup_by_key(|point| point.position);
        let mut ring = HashRing::with_hasher(Positions);
        ring.batch_add(points);
        Self { inner: Arc::new(Inner { nodes, points: ring }) }
    }

    /// All nodes, each once, the one the key belongs to first. Each step costs a search among the points.
    pub fn successors(&self, key: &[u8]) -> impl Iterator<Item = &str> {
        let mut from = xxh3_64(key);
        let mut met = vec![false; self.inner.nodes.len()];
        let mut left = met.len();
        std::iter::from_fn(move || {
            while left > 0 {
                let point = self.inner.points.get(&Place(from))?;
                from = point.position.wrapping_add(1);
                if !std::mem::replace(&mut met[usize::from(point.node)], true) {
                    left -= 1;
                    return Some(self.inner.nodes[usize::from(point.node)].as_str());
                }
            }
            None
        })
    }

    /// The node the key belongs to.
    pub fn owner(&self, key: &[u8]) -> Option<&str> {
        self.successors(key).next()
    }

    /// The nodes, sorted.
    pub fn nodes(&self) -> &[String] {
        &self.inner.nodes
    }
}

/// A place on the ring to look from.
struct Place(u64);

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// Where point `n` of a node lies: the name's bytes, a zero byte, then `n` as four bytes, little endian.
fn point_position(node: &str, n: u32) -> u64 {
    let mut bytes = Vec::with_capacity(node.len() + 5);
    bytes.extend_from_slice(node.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(&n.to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn names(n: usize) -> Vec<String> {
        (1..=n).map(|n| format!("10.0.0.{n}:7070")).collect()
    }

    /// These values are part of the protocol between versions: never change them.
    #[test]
    fn positions_are_pinned() {
        assert_eq!(point_position("10.0.0.1:7070", 0), 5_270_808_593_984_470_721);
        assert_eq!(point_position("10.0.0.1:7070", 199), 13_307_267_849_378_354_654);
        assert_eq!(xxh3_64(b"web-17"), 13_340_571_108_264_666_927);
        let ring = Ring::new(&names(5));
        let orders: Vec<Vec<&str>> =
            ["web-1", "web-17", "k8s-prod/node-9"].map(|key| ring.successors(key.as_bytes()).collect()).into();
        assert_eq!(
            orders,
            [
                ["10.0.0.1:7070", "10.0.0.4:7070", "10.0.0.3:7070", "10.0.0.5:7070", "10.0.0.2:7070"],
                ["10.0.0.1:7070", "10.0.0.5:7070", "10.0.0.3:7070", "10.0.0.4:7070", "10.0.0.2:7070"],
                ["10.0.0.4:7070", "10.0.0.2:7070", "10.0.0.5:7070", "10.0.0.3:7070", "10.0.0.1:7070"]
            ]
        );
    }

    #[test]
    fn each_share_is_near_the_mean() {
        let ring = Ring::new(&names(5));
        let mut shares: BTreeMap<String, u32> = BTreeMap::new();
        for n in 0..10_000 {
            *shares.entry(ring.owner(format!("web-{n}").as_bytes()).unwrap().to_owned()).or_default() += 1;
        }
        assert_eq!(shares.len(), 5);
        assert!(shares.values().all(|&share| (1400..=2600).contains(&share)), "{shares:?}");
    }

    #[test]
    fn successors_are_all_nodes_once_and_agree_with_a_walk_over_sorted_points() {
        let nodes = names(7);
        let ring = Ring::new(&nodes);
        let mut sorted: Vec<(u64, &str)> =
            nodes.iter().flat_map(|name| (0..POINTS).map(move |n| (point_position(name, n), name.as_str()))).collect();
        sorted.sort_unstable();
        for n in 0..500 {
            let key = format!("agent-{n}");
            let start = sorted.partition_point(|&(position, _)| position < xxh3_64(key.as_bytes()));
            let mut seen = BTreeSet::new();
            let walk: Vec<&str> = sorted
                .iter()
                .cycle()
                .skip(start)
                .take(sorted.len())
                .map(|&(_, name)| name)
                .filter(|name| seen.insert(*name))
                .collect();
            assert_eq!(ring.successors(key.as_bytes()).collect::<Vec<_>>(), walk, "{key}");
        }
    }

    #[test]
    fn a_node_that_goes_moves_only_its_keys() {
        let all = Ring::new(&names(5));
        let fewer = Ring::new(&names(4));
        for n in 0..2_000 {
            let key = format!("web-{n}");
            let without: Vec<&str> = all.successors(key.as_bytes()).filter(|name| *name != "10.0.0.5:7070").collect();
            assert_eq!(fewer.successors(key.as_bytes()).collect::<Vec<_>>(), without);
        }
    }

    #[test]
    fn order_and_repetition_change_nothing_and_empty_is_empty() {
        let mut shuffled = names(4);
        shuffled.reverse();
        shuffled.push(shuffled[0].clone());
        let (one, two) = (Ring::new(&names(4)), Ring::new(&shuffled));
        assert!(one.successors(b"x").eq(two.successors(b"x")));
        assert_eq!(Ring::new(&[]).successors(b"x").count(), 0);
    }
}
