// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes that tell where they belong, and a sum over them.
//!
//! A sender and a receiver that know only the seed produce the same stream; the sum finds
//! what is lost, doubled or out of order.

/// Bytes made from a seed: xorshift64*, eight at a time.
#[derive(Clone, Debug)]
pub struct Pattern {
    state: u64,
}

impl Pattern {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        // The generator has no way out of 0.
        Self {
            state: seed.wrapping_mul(2).wrapping_add(1),
        }
    }

    /// The next bytes. Pieces that are no multiple of eight drop what is left of a word.
    pub fn fill(&mut self, into: &mut [u8]) {
        for word in into.chunks_mut(8) {
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            let bytes = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
    }
}

/// FNV-1a over 64 bits: order matters, and it needs no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum(u64);

impl Default for Sum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Sum {
    /// Takes bytes in.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The sum so far.
    pub fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_stream() {
        let take = |seed| {
            let mut bytes = [0; 64];
            Pattern::new(seed).fill(&mut bytes);
            bytes
        };
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
        assert_ne!(take(0), [0; 64]);
        let mut whole = [0; 64];
        let mut pattern = Pattern::new(1);
        for piece in whole.chunks_mut(16) {
            pattern.fill(piece);
        }
        assert_eq!(whole, take(1));
    }

    #[test]
    fn the_sum_sees_order_and_loss() {
        let sum = |pieces: &[&[u8]]| {
            let mut sum = Sum::default();
            pieces.iter().for_each(|piece| sum.add(piece));
            sum.value()
        };
        // The published test vector of FNV-1a.
        assert_eq!(sum(&[b"foobar"]), 0x8594_4171_f739_67e8);
        assert_eq!(sum(&[b"foo", b"bar"]), sum(&[b"foobar"]));
        assert_ne!(sum(&[b"fobar"]), sum(&[b"foobar"]));
        assert_ne!(sum(&[b"ofobar"]), sum(&[b"foobar"]));
    }
}
