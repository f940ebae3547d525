// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the driver writes into rings and descriptors: bus addresses.
//!
//! Everything the driver shares with the device is allocated here and reached
//! by its bus address, translated at each access. In *physical* mode a bus
//! address is a guest-physical address. In *paged* mode it is an I/O virtual
//! address: a page table scatters guest pages over a window that overlaps no
//! guest-physical address, so that a device which takes one for the other
//! fails at once. A test's vIOMMU answers the device from
//! [`AddressSpace::lookup`].

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use crate::memory::{Gpa, GpaRange, GuestMemory, MemoryError, PageAllocator, PAGE_SIZE};
use crate::rng::Rng;

/// An address as the device sees it: a GPA in physical mode, else an IOVA.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusAddr(pub u64);

impl BusAddr {
    /// The address `offset` bytes further on.
    pub fn at(self, offset: u64) -> BusAddr {
        BusAddr(self.0.wrapping_add(offset))
    }
}

impl fmt::Debug for BusAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BusAddr({:#x})", self.0)
    }
}

/// Why an address or a buffer could not be had.
#[derive(Debug, Error)]
pub enum BusError {
    /// The page table has no entry for this address.
    #[error("{0:?} is not mapped")]
    NotMapped(BusAddr),
    /// No free pages, or none where they were asked for.
    #[error("no {pages} free pages of guest memory in {within:x?}")]
    NoPages {
        /// How many were wanted.
        pages: u64,
        /// Where they had to be.
        within: Option<GpaRange>,
    },
    /// The IOVA window has no room for so many neighbouring pages.
    #[error("no room for {0} neighbouring pages in the IOVA window")]
    NoWindow(u64),
    /// Only a paged address space can do this.
    #[error("a physical address space cannot move pages")]
    Physical,
    /// The guest memory behind the address.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// How the driver computes bus addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// Bus addresses are guest-physical addresses.
    #[default]
    Physical,
    /// Bus addresses are IOVAs in a window of `pages` pages from `base`,
    /// handed out in the pseudo-random order of `seed`.
    Paged {
        /// The same seed gives the same addresses.
        seed: u64,
        /// The first IOVA of the window, page-aligned.
        base: u64,
        /// The size of the window in pages; several times the guest memory.
        pages: usize,
    },
}

impl Addressing {
    /// Paged with a window of 512 MiB far above the default guest memory.
    pub fn paged(seed: u64) -> Self {
        Addressing::Paged {
            seed,
            base: 0x70_0000_0000,
            pages: 1 << 17,
        }
    }
}

/// Which neighbourhood a buffer of several pages keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contiguity {
    /// Neighbouring guest-physical pages; in paged mode each has an IOVA
    /// elsewhere, and the buffer has one segment a page.
    Guest,
    /// Neighbouring bus addresses, so one segment; in paged mode the guest
    /// pages behind it are scattered. Rings need this.
    Bus,
}

/// Bytes that are neighbours on the bus: one descriptor's worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub addr: BusAddr,
    /// How many bytes it has.
    pub len: u32,
}

/// Whole pages shared with the device.
#[derive(Debug)]
pub struct Buffer {
    segments: Vec<Segment>,
}

impl Buffer {
    /// Its pieces in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Where it begins.
    pub fn addr(&self) -> BusAddr {
        self.segments[0].addr
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.segments.iter().map(|s| s.len as usize).sum()
    }
}

/// The guest's memory as the device addresses it, with its free pages.
#[derive(Debug)]
pub struct AddressSpace {
    memory: Arc<GuestMemory>,
    table: Option<PageTable>,
    /// Free pages, and the order in which IOVAs are tried.
    alloc: Mutex<(PageAllocator, Rng)>,
}

/// IOVA page -> guest page. Entries are atomics: the driver translates on
/// every access while a test remaps.
#[derive(Debug)]
struct PageTable {
    base: u64,
    slots: Box<[AtomicU64]>,
}

/// An entry without a page; no page is at this (unaligned) address.
const UNMAPPED: u64 = u64::MAX;

impl AddressSpace {
    /// An address space over all of `memory`.
    pub fn new(memory: Arc<GuestMemory>, addressing: &Addressing) -> Self {
        let (table, seed) = match *addressing {
            Addressing::Physical => (None, 0),
            Addressing::Paged { seed, base, pages } => {
                let slots = (0..pages).map(|_| AtomicU64::new(UNMAPPED)).collect();
                (Some(PageTable { base, slots }), seed)
            }
        };
        let pages = PageAllocator::new(&memory);
        AddressSpace {
            memory,
            table,
            alloc: Mutex::new((pages, Rng::new(seed))),
        }
    }

    /// The memory behind it.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Allocates `len` bytes, rounded up to pages, of guest memory inside
    /// `within` if given, and maps them.
    pub fn alloc(
        &self,
        len: usize,
        contiguity: Contiguity,
        within: Option<&GpaRange>,
    ) -> Result<Buffer, BusError> {
        let pages = (len as u64).div_ceil(PAGE_SIZE).max(1);
        let mut alloc = self.alloc.lock().unwrap_or_else(PoisonError::into_inner);
        let (free, rng) = &mut *alloc;
        let first = free.alloc(pages, within).ok_or_else(|| BusError::NoPages {
            pages,
            within: within.cloned(),
        })?;
        let gpas = (0..pages).map(|i| first.0 + i * PAGE_SIZE);
        let Some(table) = &self.table else {
            return Ok(Buffer {
                segments: vec![Segment {
                    addr: BusAddr(first.0),
                    len: (pages * PAGE_SIZE) as u32,
                }],
            });
        };
        let mapped = match contiguity {
            Contiguity::Guest => table.map_scattered(gpas.clone(), rng),
            Contiguity::Bus => table.map_run(scatter(gpas.clone().collect(), rng), rng),
        };
        if mapped.is_err() {
            gpas.for_each(|gpa| free.free_page(Gpa(gpa)));
        }
        mapped.map(|segments| Buffer { segments })
    }

    /// Gives a buffer's pages and bus addresses back.
    pub fn free(&self, buffer: Buffer) {
        let mut alloc = self.alloc.lock().unwrap_or_else(PoisonError::into_inner);
        for segment in &buffer.segments {
            for offset in (0..u64::from(segment.len)).step_by(PAGE_SIZE as usize) {
                let page = segment.addr.at(offset);
                if let Ok(gpa) = self.translate(page) {
                    alloc.0.free_page(gpa);
                }
                if let Some(slot) = self.table.as_ref().and_then(|t| t.slot(page)) {
                    slot.store(UNMAPPED, Ordering::Release);
                }
            }
        }
    }

    /// The guest page behind the page of an IOVA: what a vIOMMU answers.
    /// `None` if nothing is mapped there. In physical mode the page itself.
    pub fn lookup(&self, addr: BusAddr) -> Option<Gpa> {
        let page = BusAddr(addr.0 - addr.0 % PAGE_SIZE);
        self.translate(page).ok()
    }

    /// All mapped pages, lowest IOVA first; empty in physical mode.
    pub fn mappings(&self) -> Vec<(BusAddr, Gpa)> {
        let Some(table) = &self.table else {
            return Vec::new();
        };
        let mapped = |(i, slot): (usize, &AtomicU64)| {
            let gpa = slot.load(Ordering::Acquire);
            (gpa != UNMAPPED).then(|| (BusAddr(table.base + i as u64 * PAGE_SIZE), Gpa(gpa)))
        };
        table.slots.iter().enumerate().filter_map(mapped).collect()
    }

    /// Moves the page at `iova` to another guest page inside `within`: copies
    /// its bytes, then remaps. Returns the old and the new guest page; the old
    /// one is not handed out again until [`free_page`](Self::free_page), so that a test can watch it.
    ///
    /// The device must not reach the page meanwhile: pause the driver and
    /// invalidate the device's mapping first.
    pub fn move_page(
        &self,
        iova: BusAddr,
        within: Option<&GpaRange>,
    ) -> Result<(Gpa, Gpa), BusError> {
        let table = self.table.as_ref().ok_or(BusError::Physical)?;
        let page = BusAddr(iova.0 - iova.0 % PAGE_SIZE);
        let old = self.translate(page)?;
        let slot = table.slot(page).ok_or(BusError::NotMapped(page))?;
        let mut alloc = self.alloc.lock().unwrap_or_else(PoisonError::into_inner);
        let new = alloc.0.alloc(1, within).ok_or_else(|| BusError::NoPages {
            pages: 1,
            within: within.cloned(),
        })?;
        let mut bytes = [0; PAGE_SIZE as usize];
        self.memory.read(old, &mut bytes)?;
        self.memory.write(new, &bytes)?;
        slot.store(new.0, Ordering::Release);
        Ok((old, new))
    }

    /// Gives back a page that [`move_page`](Self::move_page) left behind.
    pub fn free_page(&self, page: Gpa) {
        let mut alloc = self.alloc.lock().unwrap_or_else(PoisonError::into_inner);
        alloc.0.free_page(page);
    }

    /// The guest-physical address behind a bus address.
    pub fn translate(&self, addr: BusAddr) -> Result<Gpa, BusError> {
        let Some(table) = &self.table else {
            return Ok(Gpa(addr.0));
        };
        match table.slot(addr).map(|s| s.load(Ordering::Acquire)) {
            None | Some(UNMAPPED) => Err(BusError::NotMapped(addr)),
            Some(gpa) => Ok(Gpa(gpa + addr.0 % PAGE_SIZE)),
        }
    }

    /// Copies bytes at a bus address into `out`.
    pub fn read(&self, addr: BusAddr, out: &mut [u8]) -> Result<(), BusError> {
        let mut done = 0;
        while done < out.len() {
            let at = addr.at(done as u64);
            let n = self.run_len(at, out.len() - done);
            let gpa = self.translate(at)?;
            self.memory.read(gpa, &mut out[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    /// Copies `data` to a bus address.
    pub fn write(&self, addr: BusAddr, data: &[u8]) -> Result<(), BusError> {
        let mut done = 0;
        while done < data.len() {
            let at = addr.at(done as u64);
            let n = self.run_len(at, data.len() - done);
            let gpa = self.translate(at)?;
            self.memory.write(gpa, &data[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    /// Loads a 16-bit ring field.
    pub fn load_u16(&self, addr: BusAddr, order: Ordering) -> Result<u16, BusError> {
        Ok(self.memory.load_u16(self.translate(addr)?, order)?)
    }

    /// Stores a 16-bit ring field.
    pub fn store_u16(&self, addr: BusAddr, value: u16, order: Ordering) -> Result<(), BusError> {
        Ok(self.memory.store_u16(self.translate(addr)?, value, order)?)
    }

    /// Copies the bytes from `offset` on out of a list of segments.
    pub fn gather(
        &self,
        segments: &[Segment],
        offset: usize,
        out: &mut [u8],
    ) -> Result<(), BusError> {
        each_piece(segments, offset, out.len(), |addr, range| {
            self.read(addr, &mut out[range])
        })
    }

    /// Copies `data` into a list of segments from `offset` on.
    pub fn scatter(
        &self,
        segments: &[Segment],
        offset: usize,
        data: &[u8],
    ) -> Result<(), BusError> {
        each_piece(segments, offset, data.len(), |addr, range| {
            self.write(addr, &data[range])
        })
    }

    /// How many of `len` bytes from `addr` one translation covers.
    fn run_len(&self, addr: BusAddr, len: usize) -> usize {
        match self.table {
            None => len,
            Some(_) => len.min((PAGE_SIZE - addr.0 % PAGE_SIZE) as usize),
        }
    }
}

/// Visits the pieces of `segments` that hold `len` bytes from `offset` on.
fn each_piece(
    segments: &[Segment],
    mut offset: usize,
    len: usize,
    mut visit: impl FnMut(BusAddr, std::ops::Range<usize>) -> Result<(), BusError>,
) -> Result<(), BusError> {
    let mut done = 0;
    for segment in segments {
        if done == len {
            break;
        }
        let size = segment.len as usize;
        if offset >= size {
            offset -= size;
            continue;
        }
        let n = (size - offset).min(len - done);
        visit(segment.addr.at(offset as u64), done..done + n)?;
        done += n;
        offset = 0;
    }
    if done < len {
        let end = segments
            .last()
            .map_or(BusAddr(0), |s| s.addr.at(s.len.into()));
        return Err(BusError::NotMapped(end));
    }
    Ok(())
}

/// Shuffles pages until none follows its neighbour; a reversed list, which
/// never does, where the dice don't get there.
fn scatter(mut pages: Vec<u64>, rng: &mut Rng) -> Vec<u64> {
    for _ in 0..16 {
        for i in (1..pages.len()).rev() {
            pages.swap(i, rng.up_to(i + 1) - 1);
        }
        if pages.windows(2).all(|w| w[0] + PAGE_SIZE != w[1]) {
            return pages;
        }
    }
    pages.sort_unstable_by(|a, b| b.cmp(a));
    pages
}

impl PageTable {
    fn slot(&self, addr: BusAddr) -> Option<&AtomicU64> {
        let offset = addr.0.checked_sub(self.base)?;
        self.slots.get((offset / PAGE_SIZE) as usize)
    }

    fn is_free(&self, slot: usize) -> bool {
        self.slots[slot].load(Ordering::Relaxed) == UNMAPPED
    }

    fn addr(&self, slot: usize) -> BusAddr {
        BusAddr(self.base + slot as u64 * PAGE_SIZE)
    }

    /// A pseudo-random run of free slots. Linear probing from a random start:
    /// the window is several times larger than what is mapped.
    fn find(&self, run: usize, rng: &mut Rng) -> Option<usize> {
        let starts = self.slots.len().checked_sub(run)? + 1;
        let first = rng.up_to(starts) - 1;
        (0..starts)
            .map(|i| (first + i) % starts)
            .find(|&s| (s..s + run).all(|slot| self.is_free(slot)))
    }

    fn map_scattered(
        &self,
        gpas: impl Iterator<Item = u64>,
        rng: &mut Rng,
    ) -> Result<Vec<Segment>, BusError> {
        let mut segments: Vec<Segment> = Vec::new();
        for gpa in gpas {
            let Some(slot) = self.find_apart(gpa, rng) else {
                for segment in &segments {
                    if let Some(slot) = self.slot(segment.addr) {
                        slot.store(UNMAPPED, Ordering::Relaxed);
                    }
                }
                return Err(BusError::NoWindow(1));
            };
            self.slots[slot].store(gpa, Ordering::Release);
            segments.push(Segment {
                addr: self.addr(slot),
                len: PAGE_SIZE as u32,
            });
        }
        Ok(segments)
    }

    /// A free slot whose neighbours do not hold the neighbours of `gpa`.
    fn find_apart(&self, gpa: u64, rng: &mut Rng) -> Option<usize> {
        let holds = |slot: Option<usize>, gpa: u64| {
            slot.and_then(|s| self.slots.get(s))
                .is_some_and(|s| s.load(Ordering::Relaxed) == gpa)
        };
        (0..64).find_map(|_| {
            let slot = self.find(1, rng)?;
            let near = holds(slot.checked_sub(1), gpa.wrapping_sub(PAGE_SIZE))
                || holds(slot.checked_add(1), gpa + PAGE_SIZE);
            (!near).then_some(slot)
        })
    }

    fn map_run(&self, gpas: Vec<u64>, rng: &mut Rng) -> Result<Vec<Segment>, BusError> {
        let first = self
            .find(gpas.len(), rng)
            .ok_or(BusError::NoWindow(gpas.len() as u64))?;
        for (i, gpa) in gpas.iter().enumerate() {
            self.slots[first + i].store(*gpa, Ordering::Release);
        }
        Ok(vec![Segment {
            addr: self.addr(first),
            len: (gpas.len() as u64 * PAGE_SIZE) as u32,
        }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::default_layout;

    fn space(addressing: Addressing) -> AddressSpace {
        let memory = Arc::new(GuestMemory::new(&default_layout()).unwrap());
        AddressSpace::new(memory, &addressing)
    }

    fn free_pages(space: &AddressSpace) -> u64 {
        space.alloc.lock().unwrap().0.free_pages()
    }

    #[test]
    fn paged_buffers_split_at_every_page() {
        let space = space(Addressing::paged(1));
        let all = free_pages(&space);
        let buffer = space.alloc(64 << 10, Contiguity::Guest, None).unwrap();
        assert_eq!(buffer.segments().len(), 16);
        let pages: Vec<_> = buffer.segments().iter().map(|s| s.addr.0).collect();
        assert!(pages.windows(2).all(|w| w[0] + PAGE_SIZE != w[1]));
        let gpas: Vec<_> = buffer
            .segments()
            .iter()
            .map(|s| space.lookup(s.addr.at(5)).unwrap().0)
            .collect();
        assert!(gpas.windows(2).all(|w| w[0] + PAGE_SIZE == w[1]));
        let data: Vec<u8> = (0..20_000u32).map(|i| i as u8).collect();
        space.scatter(buffer.segments(), 4000, &data).unwrap();
        let mut back = vec![0; data.len()];
        space.gather(buffer.segments(), 4000, &mut back).unwrap();
        assert_eq!(data, back);
        space.free(buffer);
        assert_eq!(free_pages(&space), all);
        assert!(space.mappings().is_empty());
    }

    #[test]
    fn bus_runs_are_scattered_in_guest_memory() {
        let space = space(Addressing::paged(2));
        let ring = space.alloc(40_000, Contiguity::Bus, None).unwrap();
        assert_eq!(ring.segments().len(), 1);
        let gpas: Vec<_> = (0..10)
            .map(|i| space.lookup(ring.addr().at(i * PAGE_SIZE)).unwrap().0)
            .collect();
        assert!(gpas.windows(2).all(|w| w[0] + PAGE_SIZE != w[1]));
        let data: Vec<u8> = (0..40_000u32).map(|i| (i / 3) as u8).collect();
        space.write(ring.addr(), &data).unwrap();
        let mut back = vec![0; data.len()];
        space.read(ring.addr(), &mut back).unwrap();
        assert_eq!(data, back);
    }

    #[test]
    fn a_moved_page_keeps_its_bytes_and_its_iova() {
        let space = space(Addressing::paged(3));
        let buffer = space.alloc(4096, Contiguity::Guest, None).unwrap();
        space.write(buffer.addr(), b"moved").unwrap();
        let second = space.memory().regions()[1].range();
        let (old, new) = space.move_page(buffer.addr(), Some(&second)).unwrap();
        assert_ne!(old, new);
        assert!(second.contains(&new));
        let mut back = [0; 5];
        space.read(buffer.addr(), &mut back).unwrap();
        assert_eq!(&back, b"moved");
    }

    #[test]
    fn the_same_seed_gives_the_same_addresses() {
        let addrs = |seed| {
            let space = space(Addressing::paged(seed));
            let buffer = space.alloc(20 << 12, Contiguity::Guest, None).unwrap();
            buffer.segments().to_vec()
        };
        assert_eq!(addrs(4), addrs(4));
        assert_ne!(addrs(4), addrs(5));
    }

    #[test]
    fn a_full_window_is_an_error_and_leaks_nothing() {
        let space = space(Addressing::Paged {
            seed: 1,
            base: 0x70_0000_0000,
            pages: 8,
        });
        let all = free_pages(&space);
        assert!(space.alloc(9 << 12, Contiguity::Guest, None).is_err());
        assert!(space.alloc(9 << 12, Contiguity::Bus, None).is_err());
        assert_eq!(free_pages(&space), all);
        assert!(space.mappings().is_empty());
        assert!(space.translate(BusAddr(0x1000_0000)).is_err());
    }
}
