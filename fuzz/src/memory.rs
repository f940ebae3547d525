// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's memory for the target `packets`.
//!
//! `unsafe` here: telling `GuestMemory` where it lies.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

use crosvm_vsock::address::{Gpa, Hva};
use crosvm_vsock::guest_memory::GuestMemory;
use crosvm_vsock::memory::{MemoryMap, Region};

/// The end of the piece in which rings and buffers are.
pub const END: u64 = 0x1_0000;
/// Guest memory in pages; the last two are adjacent to the guest and apart in the process.
const PAGES: usize = 20;

#[repr(align(4096))]
struct Page([AtomicU8; 4096]);

/// Guest memory: 64 KiB in one piece, a hole, and two pages whose order is the other way
/// round in this process.
pub struct Memory {
    pages: Arc<Vec<Page>>,
    /// As the device takes it.
    pub guest: Arc<GuestMemory>,
}

impl Memory {
    /// All zeroes.
    pub fn new() -> Self {
        let page = || Page([const { AtomicU8::new(0) }; 4096]);
        let pages: Arc<Vec<Page>> = Arc::new((0..PAGES).map(|_| page()).collect());
        let host = |page: usize| Hva(pages[page].0.as_ptr() as u64);
        let region = |gpa, page, size| Region::new(Gpa(gpa), host(page), size).expect("a region");
        let map = MemoryMap::new(vec![
            region(0, 0, END),
            region(2 * END, 17, 0x1000),
            region(2 * END + 0x1000, 16, 0x1000),
        ]);
        // SAFETY: the pages live as long as the handle, and are reached as atomics only.
        let guest = unsafe { GuestMemory::new(map.expect("a map"), pages.clone()) };
        Self {
            guest: Arc::new(guest),
            pages,
        }
    }

    /// Writes `bytes`, as far as they fit.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at % END..END).zip(bytes) {
            self.pages[at as usize / 4096].0[at as usize % 4096].store(*byte, Ordering::Relaxed);
        }
    }

    /// Reads what is at `at`.
    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        std::array::from_fn(|i| {
            let at = (at % END) as usize + i;
            self.pages[at / 4096].0[at % 4096].load(Ordering::Relaxed)
        })
    }

    /// A number of 16 bits.
    pub fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at))
    }

    /// A number of 32 bits.
    pub fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at))
    }
}
