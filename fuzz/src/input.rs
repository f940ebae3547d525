// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes as a story: numbers and choices are read off the front. At the end there are
//! only zeroes, so any bytes make a story.

/// What is left of the story.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of it.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether the story is over.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes: as many as wished, or as there are.
    pub fn bytes(&mut self, wished: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(wished.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut all = [0; N];
        let taken = self.bytes(N);
        all[..taken.len()].copy_from_slice(taken);
        all
    }

    /// A number of 8 bits.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// A number of 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number of 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A number of 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One time in `n`.
    pub fn once_in(&mut self, n: u8) -> bool {
        self.u8() % n == 1
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }
}
