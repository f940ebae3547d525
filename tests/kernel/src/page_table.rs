// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vIOMMU for tests: any page anywhere, changed at will.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crosvm_vsock::address::{Address, Gpa, Iova, Range};
use crosvm_vsock::kernel::{Access, Translation, Translator};
use crosvm_vsock::memory::{MemoryMap, PAGE};

/// Translates page by page and gives nothing in advance. It tells no service of
/// its changes: a test does, or tries what happens if nobody does.
#[derive(Debug, Default)]
pub struct PageTable(Mutex<BTreeMap<u64, (Gpa, Access)>>);

impl PageTable {
    /// Where [`scattered`](Self::scattered) begins.
    pub const BASE: Iova = Iova(0x100_0000_0000);

    /// All pages of `memory`, in an order of its own, from [`BASE`](Self::BASE) on:
    /// no two neighbours are neighbours in guest memory.
    pub fn scattered(memory: &MemoryMap) -> Self {
        let table = Self::default();
        let pages: Vec<Gpa> = memory
            .regions()
            .iter()
            .flat_map(|region| {
                let first = region.gpa().first().raw();
                (first..=region.gpa().last().raw())
                    .step_by(PAGE as usize)
                    .map(Gpa)
            })
            .collect();
        // 7 has no divisor with the test memory's page number in common.
        for i in 0..pages.len() {
            let iova = Iova(Self::BASE.raw() + i as u64 * PAGE);
            table.map(iova, pages[(i * 7 + 3) % pages.len()], Access::ReadWrite);
        }
        table
    }

    /// Makes the page at `iova` lead to `gpa`.
    pub fn map(&self, iova: Iova, gpa: Gpa, access: Access) {
        self.lock().insert(iova.raw() / PAGE, (gpa, access));
    }

    /// Makes the page at `iova` lead nowhere.
    pub fn unmap(&self, iova: Iova) {
        self.lock().remove(&(iova.raw() / PAGE));
    }

    /// Where the page at `iova` leads.
    pub fn gpa(&self, iova: Iova) -> Option<Gpa> {
        let (gpa, _) = *self.lock().get(&(iova.raw() / PAGE))?;
        gpa.checked_add(iova.raw() % PAGE)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (Gpa, Access)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Translator for PageTable {
    fn translate(&self, iova: Iova) -> Option<Translation> {
        let page = iova.raw() / PAGE;
        let (gpa, access) = *self.lock().get(&page)?;
        let range = Range::new(Iova(page * PAGE), PAGE).ok()?;
        Some(Translation { range, gpa, access })
    }
}
