// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Deterministic pseudo-random numbers (SplitMix64), so that a failing test
//! can be run again with the same seed. Not for anything secret.

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The `index`-th number of the sequence of `seed`, without the ones before.
pub fn word_at(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(STEP));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A seeded generator.
#[derive(Clone, Debug)]
pub struct Rng {
    seed: u64,
    index: u64,
}

impl Rng {
    /// A generator that always yields the same sequence for the same seed.
    pub fn new(seed: u64) -> Self {
        Rng { seed, index: 0 }
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        let word = word_at(self.seed, self.index);
        self.index += 1;
        word
    }

    /// A number in `1..=max`; 1 where `max` is 0.
    pub fn up_to(&mut self, max: usize) -> usize {
        1 + (self.next_u64() % max.max(1) as u64) as usize
    }
}
