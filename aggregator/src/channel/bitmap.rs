//! One bit per batch of a segment.

/// Bits 0 to `len`, all clear at first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    len: u32,
}

impl Bitmap {
    /// `len` clear bits.
    pub fn new(len: u32) -> Self {
        Self { words: vec![0; (len as usize).div_ceil(64)], len }
    }

    /// Number of bits.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// No bits at all?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds one clear bit at the end.
    pub fn push(&mut self) {
        self.len += 1;
        self.words.resize((self.len as usize).div_ceil(64), 0);
    }

    /// Is the bit set? False past the end.
    pub fn get(&self, bit: u32) -> bool {
        self.words.get(bit as usize / 64).is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    /// Sets a bit; false if it was set already or is past the end.
    pub fn set(&mut self, bit: u32) -> bool {
        if bit >= self.len || self.get(bit) {
            return false;
        }
        self.words[bit as usize / 64] |= 1 << (bit % 64);
        true
    }

    /// Clears a bit.
    pub fn clear(&mut self, bit: u32) {
        if bit < self.len {
            self.words[bit as usize / 64] &= !(1 << (bit % 64));
        }
    }

    /// Number of set bits.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// The first clear bit at or after `from`.
    pub fn next_clear(&self, from: u32) -> Option<u32> {
        let mut bit = from;
        while bit < self.len {
            let free = !self.words[bit as usize / 64] >> (bit % 64);
            if free != 0 {
                let found = bit + free.trailing_zeros();
                return (found < self.len).then_some(found);
            }
            bit = (bit / 64 + 1) * 64;
        }
        None
    }

    /// As little-endian bytes, as many as are needed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate((self.len as usize).div_ceil(8));
        bytes
    }

    /// From those bytes; none when there are not exactly as many as `len` bits need.
    pub fn from_bytes(len: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != (len as usize).div_ceil(8) {
            return None;
        }
        let mut map = Self::new(len);
        for (at, byte) in bytes.iter().enumerate() {
            map.words[at / 8] |= u64::from(*byte) << (at % 8 * 8);
        }
        if let Some(last) = map.words.last_mut()
            && !len.is_multiple_of(64)
        {
            *last &= (1 << (len % 64)) - 1;
        }
        Some(map)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_plain_bits(len in 0u32..300, bits in prop::collection::vec(0u32..300, 0..200)) {
            let mut map = Bitmap::new(len);
            let mut model = vec![false; len as usize];
            for bit in bits {
                let fresh = bit < len && !model[bit as usize];
                prop_assert_eq!(map.set(bit), fresh);
                if bit < len { model[bit as usize] = true; }
            }
            prop_assert_eq!(map.count() as usize, model.iter().filter(|b| **b).count());
            for from in 0..len + 2 {
                let expected = (from..len).find(|bit| !model[*bit as usize]);
                prop_assert_eq!(map.next_clear(from), expected);
            }
            prop_assert_eq!(Bitmap::from_bytes(len, &map.to_bytes()), Some(map.clone()));
            prop_assert_eq!(Bitmap::from_bytes(len + 8, &map.to_bytes()), None);
        }
    }
}
