// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the addresses in a driver's descriptors to guest memory.
//!
//! A [`BusAddr`] is a guest physical address, unless a vIOMMU stands between the device
//! and memory: then it is an I/O virtual one, and the [`Iotlb`] says where it leads. The
//! VMM fills that table, on demand: an address that it has no entry for is noted as a
//! [`Miss`], the chain that holds it stays where it is, and is looked at again when
//! the VMM has answered. An address that the VMM does not answer for is never touched.
//!
//! Entries lead to guest physical addresses, not to mappings of this process: what a
//! VMM takes out of its memory table is gone, whatever an old entry says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::access::{Access, Miss};
use crate::address::{Address, BusAddr, Gpa, Iova, Range};
use crate::guest_memory::{GuestMemory, Segment};

/// Entries an [`Iotlb`] holds: as many as the kernel's (`max_iotlb_entries`).
const MOST_ENTRIES: usize = 2048;

/// Misses that may wait for an answer; a ring has one at a time.
const MOST_QUESTIONS: usize = 64;

/// Why an address cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not guest memory.
    NotMemory,
    /// The VMM has not said yet where it leads; it will be asked.
    Untranslated,
}

/// Why the parts of a ring have no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// The VMM has not said yet where it is; it will be asked.
    Untranslated,
    /// Its pages are not neighbours in guest memory.
    Scattered,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    last: Iova,
    gpa: Gpa,
    access: Access,
}

#[derive(Debug, Default)]
struct Table {
    /// By first address; none overlaps another.
    entries: BTreeMap<Iova, Entry>,
    /// Asked, or about to be, and not answered yet.
    open: Vec<Miss>,
    /// How many of them, from the front, were handed to the VMM.
    asked: usize,
}

/// What a vIOMMU lets the device reach, as far as the VMM has told.
#[derive(Debug, Default)]
pub struct Iotlb(Mutex<Table>);

impl Iotlb {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `range` leads to `gpa` and up, whatever it led to before.
    pub fn update(&self, range: Range<Iova>, gpa: Gpa, access: Access) {
        let mut table = self.table();
        table.drop_overlapping(range);
        if table.entries.len() == MOST_ENTRIES {
            // Any will do: it is asked for again if it is needed.
            table.entries.pop_first();
        }
        let (first, last) = (range.first(), range.last());
        table.entries.insert(first, Entry { last, gpa, access });
        table.close(|miss| range.contains(miss.iova) && access.allows(miss.access));
    }

    /// Nothing in `range` is known any more, nor what shares an entry with it.
    pub fn invalidate(&self, range: Range<Iova>) {
        self.table().drop_overlapping(range);
    }

    /// Forgets what was asked: whoever needs it asks again.
    pub fn forget_questions(&self) {
        self.table().close(|_| true);
    }

    /// The misses to ask the VMM about; each is handed out once.
    pub fn questions(&self) -> Vec<Miss> {
        let mut table = self.table();
        let new = table.open[table.asked..].to_vec();
        table.asked = table.open.len();
        new
    }

    /// Where `iova` leads and how many bytes go there in one piece, if `access` is
    /// allowed; else it is to be asked.
    fn find(&self, iova: Iova, access: Access) -> Option<(Gpa, u64)> {
        let mut table = self.table();
        let found = table.find(iova, access);
        if found.is_none() {
            table.ask(Miss { iova, access });
        }
        found
    }

    /// Where all of `range` leads, in one piece: a part of a ring.
    pub fn whole(&self, range: Range<Iova>, access: Access) -> Result<Gpa, NoPlace> {
        let (begin, left) = self
            .find(range.first(), access)
            .ok_or(NoPlace::Untranslated)?;
        let mut done = left;
        // Entries are neighbours in one address space, seldom in the other.
        while let Some(next) = range.first().checked_add(done) {
            if !range.contains(next) {
                break;
            }
            let (gpa, left) = self.find(next, access).ok_or(NoPlace::Untranslated)?;
            if begin.checked_add(done) != Some(gpa) {
                return Err(NoPlace::Scattered);
            }
            done = done.saturating_add(left);
        }
        Ok(begin)
    }
}

impl Table {
    fn find(&self, iova: Iova, access: Access) -> Option<(Gpa, u64)> {
        let (first, entry) = self.entries.range(..=iova).next_back()?;
        if entry.last < iova || !entry.access.allows(access) {
            return None;
        }
        let gpa = entry.gpa.checked_add(iova.offset_from(*first)?)?;
        Some((gpa, (entry.last.raw() - iova.raw()).saturating_add(1)))
    }

    fn ask(&mut self, miss: Miss) {
        if !self.open.contains(&miss) && self.open.len() < MOST_QUESTIONS {
            self.open.push(miss);
        }
    }

    fn close(&mut self, mut answered: impl FnMut(&Miss) -> bool) {
        let asked = self.asked;
        let mut index = 0;
        self.open.retain(|miss| {
            let keep = !answered(miss);
            self.asked -= usize::from(!keep && index < asked);
            index += 1;
            keep
        });
    }

    fn drop_overlapping(&mut self, range: Range<Iova>) {
        while let Some((first, entry)) = self.entries.range(..=range.last()).next_back() {
            if entry.last < range.first() {
                break;
            }
            let first = *first;
            self.entries.remove(&first);
        }
    }
}

/// Guest memory as a device's descriptors address it.
#[derive(Clone, Debug)]
pub struct Bus {
    memory: Arc<GuestMemory>,
    iotlb: Option<Arc<Iotlb>>,
}

impl Bus {
    /// Addresses are guest physical ones; with an `iotlb`, I/O virtual ones.
    pub fn new(memory: Arc<GuestMemory>, iotlb: Option<Arc<Iotlb>>) -> Self {
        Self { memory, iotlb }
    }

    /// The memory behind it.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Whether a vIOMMU translates.
    pub fn is_translated(&self) -> bool {
        self.iotlb.is_some()
    }

    /// The longest piece of the `len` bytes at `start` that is mapped in one go. `len` is
    /// not 0.
    fn piece(&self, start: BusAddr, len: usize, access: Access) -> Result<Segment<'_>, Fault> {
        let (gpa, len) = match &self.iotlb {
            None => (Gpa(start.raw()), len),
            Some(iotlb) => {
                let (gpa, left) = iotlb
                    .find(Iova(start.raw()), access)
                    .ok_or(Fault::Untranslated)?;
                (gpa, len.min(usize::try_from(left).unwrap_or(usize::MAX)))
            }
        };
        self.memory.piece(gpa, len).ok_or(Fault::NotMemory)
    }

    fn pieces<'m>(
        &'m self,
        start: BusAddr,
        len: usize,
        access: Access,
        mut each: impl FnMut(Segment<'m>),
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < len {
            let at = start.checked_add(done as u64).ok_or(Fault::NotMemory)?;
            let piece = self.piece(at, len - done, access)?;
            done += piece.len();
            each(piece);
        }
        Ok(())
    }

    /// Cuts the `len` bytes at `start` into pieces of memory and appends them to `out`. On
    /// a fault `out` is as it was.
    pub fn cut<'m>(
        &'m self,
        start: BusAddr,
        len: usize,
        access: Access,
        out: &mut Vec<Segment<'m>>,
    ) -> Result<(), Fault> {
        let before = out.len();
        self.pieces(start, len, access, |piece| out.push(piece))
            .inspect_err(|_| out.truncate(before))
    }

    /// Reads `out.len()` bytes at `start`.
    pub fn read(&self, start: BusAddr, out: &mut [u8]) -> Result<(), Fault> {
        let (len, mut done) = (out.len(), 0);
        self.pieces(start, len, Access::Read, |piece| {
            done += piece.read(&mut out[done..]);
        })
    }
}
