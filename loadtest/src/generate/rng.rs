//! A small generator of random numbers whose stream is part of the product: the same seed gives the same logs with
//! every release, whatever the `rand` crate does to its own.

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// One of many independent streams of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Self(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        rng.next();
        rng
    }

    /// 64 random bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is above 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// True `per_million` times in a million.
    pub fn chance(&mut self, per_million: u32) -> bool {
        self.below(1_000_000) < per_million as usize
    }

    /// One of `items`, which are not empty.
    pub fn pick<'a, T: ?Sized>(&mut self, items: &'a [&'a T]) -> &'a T {
        items[self.below(items.len())]
    }

    /// A number below `n`, small ones far more often: about as popular pages are.
    pub fn popular(&mut self, n: usize) -> usize {
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        ((n as f64).powf(unit) as usize - 1).min(n - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_a_seed_is_pinned() {
        let mut rng = Rng::new(1, 2);
        assert_eq!([rng.next(), rng.next()], [5_359_685_208_387_261_911, 8_259_069_269_008_920_792]);
    }

    #[test]
    fn popular_stays_in_range_and_prefers_the_small() {
        let mut rng = Rng::new(7, 0);
        let mut low = 0;
        for _ in 0..10_000 {
            let n = rng.popular(1000);
            assert!(n < 1000);
            low += usize::from(n < 10);
        }
        assert!(low > 2_000, "{low}");
    }
}
