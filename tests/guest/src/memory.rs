// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory: regions of shared memory at guest-physical addresses, and the
//! allocator that hands out their pages.
//!
//! Contains `unsafe`: it maps memory that the device writes at any moment, so
//! it is reached through raw pointers and atomics only; no reference into it
//! is ever made. Every access is bounds-checked. Limits: the regions are fixed
//! when the memory is made, and no access crosses from one into the next.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use thiserror::Error;

use crate::rng::word_at;

/// The size of a page, in bytes, and the grain of every allocation.
pub const PAGE_SIZE: u64 = 4096;

/// A guest-physical address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpa({:#x})", self.0)
    }
}

/// A range of guest-physical addresses.
pub type GpaRange = Range<Gpa>;

/// Why guest memory could not be made or reached.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The range is not inside one region.
    #[error("{len} bytes at {gpa:?} are not inside one region of guest memory")]
    OutOfBounds {
        /// Where the access began.
        gpa: Gpa,
        /// How many bytes it covered.
        len: u64,
    },
    /// A 16-bit access at an odd address.
    #[error("16-bit access at odd address {0:?}")]
    Misaligned(Gpa),
    /// A region is empty, not page-aligned, wraps or overlaps another.
    #[error("region {size:#x} bytes at {gpa:?}: {why}")]
    BadRegion {
        /// Where the region begins.
        gpa: Gpa,
        /// Its size in bytes.
        size: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// memfd_create, ftruncate or mmap failed.
    #[error("cannot map guest memory: {0}")]
    Map(#[source] io::Error),
}

/// Where one region of guest memory lies.
#[derive(Clone, Debug)]
pub struct RegionLayout {
    /// Its first guest-physical address, page-aligned.
    pub gpa: Gpa,
    /// Its size in bytes, a multiple of [`PAGE_SIZE`].
    pub size: u64,
    /// Where in its file it begins, a multiple of [`PAGE_SIZE`].
    pub fd_offset: u64,
}

/// The default layout: two regions with a gap between them, neither at GPA 0,
/// the second above 4 GiB and not at the beginning of its file.
pub fn default_layout() -> Vec<RegionLayout> {
    vec![
        RegionLayout {
            gpa: Gpa(0x1000_0000),
            size: 32 << 20,
            fd_offset: 0,
        },
        RegionLayout {
            gpa: Gpa(0x1_4000_0000),
            size: 32 << 20,
            fd_offset: 4 * PAGE_SIZE,
        },
    ]
}

/// One region, in all the numbers a device may be told.
#[derive(Debug)]
pub struct Region {
    /// Its first guest-physical address.
    pub gpa: Gpa,
    /// Its size in bytes.
    pub size: u64,
    /// Where it is mapped in this process.
    pub hva: u64,
    /// The memfd behind it.
    pub fd: OwnedFd,
    /// Where in the memfd it begins.
    pub fd_offset: u64,
}

impl Region {
    /// The guest-physical addresses it covers.
    pub fn range(&self) -> GpaRange {
        self.gpa..Gpa(self.gpa.0 + self.size)
    }
}

/// The memory of a guest, shared with the device.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

impl GuestMemory {
    /// Makes and maps memory of this layout, filled with zeros.
    pub fn new(layout: &[RegionLayout]) -> Result<Self, MemoryError> {
        check_layout(layout)?;
        let mut memory = GuestMemory {
            regions: Vec::with_capacity(layout.len()),
        };
        for wanted in layout {
            memory.regions.push(map_region(wanted, new_memfd(wanted)?)?);
        }
        Ok(memory)
    }

    /// Maps memory that somebody else has made: each region lies in its file.
    pub fn shared(regions: Vec<(RegionLayout, OwnedFd)>) -> Result<Self, MemoryError> {
        let layout: Vec<_> = regions.iter().map(|(layout, _)| layout.clone()).collect();
        check_layout(&layout)?;
        let mut memory = GuestMemory {
            regions: Vec::with_capacity(layout.len()),
        };
        for (wanted, fd) in regions {
            memory.regions.push(map_region(&wanted, fd)?);
        }
        Ok(memory)
    }

    /// The regions, in the order of the layout.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Where `len` bytes at `gpa` are mapped in this process.
    pub fn hva(&self, gpa: Gpa, len: u64) -> Result<u64, MemoryError> {
        self.regions
            .iter()
            .find_map(|r| {
                let offset = gpa.0.checked_sub(r.gpa.0)?;
                (offset.checked_add(len)? <= r.size).then(|| r.hva + offset)
            })
            .ok_or(MemoryError::OutOfBounds { gpa, len })
    }

    /// Copies guest memory into `out`.
    pub fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), MemoryError> {
        let hva = self.hva(gpa, out.len() as u64)?;
        // SAFETY: `hva` and the `out.len()` bytes after it lie in a mapping
        // that lives as long as `self`; `out` is private memory, so the two
        // do not overlap. The device may write meanwhile: then the bytes are
        // undefined in value, which the caller has to expect of shared memory.
        unsafe { std::ptr::copy_nonoverlapping(hva as *const u8, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// Copies `data` into guest memory.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError> {
        let hva = self.hva(gpa, data.len() as u64)?;
        // SAFETY: as in `read`, with the direction turned round. No Rust
        // reference to this memory exists that the write could invalidate.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), hva as *mut u8, data.len()) };
        Ok(())
    }

    /// Loads a little-endian 16-bit number that the device may be writing.
    pub fn load_u16(&self, gpa: Gpa, order: Ordering) -> Result<u16, MemoryError> {
        Ok(u16::from_le(self.atomic_u16(gpa)?.load(order)))
    }

    /// Stores a little-endian 16-bit number that the device may be reading.
    pub fn store_u16(&self, gpa: Gpa, value: u16, order: Ordering) -> Result<(), MemoryError> {
        self.atomic_u16(gpa)?.store(value.to_le(), order);
        Ok(())
    }

    fn atomic_u16(&self, gpa: Gpa) -> Result<&AtomicU16, MemoryError> {
        let hva = self.hva(gpa, 2)?;
        if hva % 2 != 0 {
            return Err(MemoryError::Misaligned(gpa));
        }
        // SAFETY: in bounds of a mapping that outlives the returned reference,
        // aligned, and an atomic may be changed by others at any time.
        Ok(unsafe { AtomicU16::from_ptr(hva as *mut u16) })
    }

    /// Fills a range with a pattern that depends on the seed and the address.
    pub fn fill_pattern(&self, range: GpaRange, seed: u64) -> Result<(), MemoryError> {
        let mut page = [0u8; PAGE_SIZE as usize];
        for_each_page(range, |gpa, len| {
            pattern(seed, gpa, &mut page[..len]);
            self.write(gpa, &page[..len])
        })
    }

    /// The first address in the range that no longer holds the pattern of
    /// [`fill_pattern`](Self::fill_pattern), if any.
    pub fn check_pattern(&self, range: GpaRange, seed: u64) -> Result<Option<Gpa>, MemoryError> {
        let mut want = [0u8; PAGE_SIZE as usize];
        let mut have = [0u8; PAGE_SIZE as usize];
        let mut first = None;
        for_each_page(range, |gpa, len| {
            if first.is_some() {
                return Ok(());
            }
            pattern(seed, gpa, &mut want[..len]);
            self.read(gpa, &mut have[..len])?;
            first = (0..len)
                .find(|&i| want[i] != have[i])
                .map(|i| Gpa(gpa.0 + i as u64));
            Ok(())
        })?;
        Ok(first)
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        for r in &self.regions {
            // SAFETY: this is the mapping made in `map_region`; nothing that
            // borrows from `self` can be alive any more.
            unsafe { libc::munmap(r.hva as *mut libc::c_void, r.size as usize) };
        }
    }
}

fn check_layout(layout: &[RegionLayout]) -> Result<(), MemoryError> {
    for (i, r) in layout.iter().enumerate() {
        let bad = |why| MemoryError::BadRegion {
            gpa: r.gpa,
            size: r.size,
            why,
        };
        if r.size == 0 {
            return Err(bad("it is empty"));
        }
        if [r.gpa.0, r.size, r.fd_offset]
            .iter()
            .any(|n| n % PAGE_SIZE != 0)
        {
            return Err(bad("it is not page-aligned"));
        }
        let end = r.gpa.0.checked_add(r.size).ok_or(bad("it wraps"))?;
        let overlaps = |o: &RegionLayout| o.gpa.0 < end && r.gpa.0 < o.gpa.0 + o.size;
        if layout[..i].iter().any(overlaps) {
            return Err(bad("it overlaps another region"));
        }
    }
    Ok(())
}

fn last_error() -> MemoryError {
    MemoryError::Map(io::Error::last_os_error())
}

/// A memfd large enough for the region.
fn new_memfd(wanted: &RegionLayout) -> Result<OwnedFd, MemoryError> {
    // SAFETY: the name is a C string; the result is checked before use.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let file_size = (wanted.fd_offset + wanted.size) as libc::off_t;
    // SAFETY: no memory is involved.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), file_size) } < 0 {
        return Err(last_error());
    }
    Ok(fd)
}

fn map_region(wanted: &RegionLayout, fd: OwnedFd) -> Result<Region, MemoryError> {
    // SAFETY: a new mapping at an address of the kernel's choice; it replaces
    // nothing, and its length is that of the file behind it.
    let hva = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            wanted.size as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            wanted.fd_offset as libc::off_t,
        )
    };
    if hva == libc::MAP_FAILED {
        return Err(last_error());
    }
    Ok(Region {
        gpa: wanted.gpa,
        size: wanted.size,
        hva: hva as u64,
        fd,
        fd_offset: wanted.fd_offset,
    })
}

fn for_each_page(
    range: GpaRange,
    mut visit: impl FnMut(Gpa, usize) -> Result<(), MemoryError>,
) -> Result<(), MemoryError> {
    let mut at = range.start.0;
    while at < range.end.0 {
        let len = (PAGE_SIZE - at % PAGE_SIZE).min(range.end.0 - at);
        visit(Gpa(at), len as usize)?;
        at += len;
    }
    Ok(())
}

fn pattern(seed: u64, gpa: Gpa, out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        let at = gpa.0 + i as u64;
        *byte = word_at(seed, at / 8).to_le_bytes()[(at % 8) as usize];
    }
}

/// Hands out whole pages of guest-physical memory.
#[derive(Debug)]
pub struct PageAllocator {
    /// Free extents: first address -> end address; never adjacent.
    free: BTreeMap<u64, u64>,
}

impl PageAllocator {
    /// An allocator over all the pages of `memory`.
    pub fn new(memory: &GuestMemory) -> Self {
        let free = memory.regions().iter().map(|r| (r.gpa.0, r.gpa.0 + r.size));
        PageAllocator {
            free: free.collect(),
        }
    }

    /// Takes `pages` neighbouring pages, all inside `within` if given: the
    /// lowest that are free, or `None`.
    pub fn alloc(&mut self, pages: u64, within: Option<&GpaRange>) -> Option<Gpa> {
        let len = pages.checked_mul(PAGE_SIZE)?;
        let (low, high) = within.map_or((0, u64::MAX), |r| (r.start.0, r.end.0));
        let low = low.checked_next_multiple_of(PAGE_SIZE)?;
        let (start, end, at) = self.free.iter().find_map(|(&start, &end)| {
            let at = start.max(low);
            (at.checked_add(len)? <= end.min(high)).then_some((start, end, at))
        })?;
        self.free.remove(&start);
        if start < at {
            self.free.insert(start, at);
        }
        if at + len < end {
            self.free.insert(at + len, end);
        }
        Some(Gpa(at))
    }

    /// Gives back one page.
    pub fn free_page(&mut self, page: Gpa) {
        let (mut start, mut end) = (page.0, page.0 + PAGE_SIZE);
        if let Some(next_end) = self.free.remove(&end) {
            end = next_end;
        }
        if let Some((&before, &before_end)) = self.free.range(..start).next_back() {
            if before_end == start {
                start = before;
            }
        }
        self.free.insert(start, end);
    }

    /// How many pages are free.
    pub fn free_pages(&self) -> u64 {
        self.free.iter().map(|(s, e)| (e - s) / PAGE_SIZE).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_differ_and_bounds_hold() {
        let memory = GuestMemory::new(&default_layout()).unwrap();
        for r in memory.regions() {
            assert_ne!(r.gpa.0, r.hva);
            assert_ne!(r.gpa.0, 0);
            let last = Gpa(r.range().end.0 - 4);
            memory.write(last, &[1, 2, 3, 4]).unwrap();
            assert!(memory.write(Gpa(last.0 + 1), &[0; 4]).is_err());
        }
        assert!(memory.read(Gpa(0), &mut [0]).is_err());
        assert!(memory.read(Gpa(u64::MAX), &mut [0; 2]).is_err());
        assert!(memory
            .load_u16(Gpa(0x1000_0001), Ordering::Relaxed)
            .is_err());
    }

    #[test]
    fn bad_layouts_are_refused() {
        let region = |gpa, size| RegionLayout {
            gpa: Gpa(gpa),
            size,
            fd_offset: 0,
        };
        for layout in [
            vec![region(0x1000, 0)],
            vec![region(0x1001, 0x1000)],
            vec![region(u64::MAX - 0xfff, 0x1000)],
            vec![region(0x1000, 0x2000), region(0x2000, 0x1000)],
        ] {
            assert!(GuestMemory::new(&layout).is_err(), "{layout:?}");
        }
    }

    #[test]
    fn pattern_finds_one_changed_byte() {
        let memory = GuestMemory::new(&default_layout()).unwrap();
        let range = Gpa(0x1000_0100)..Gpa(0x1000_5003);
        memory.fill_pattern(range.clone(), 7).unwrap();
        assert_eq!(memory.check_pattern(range.clone(), 7).unwrap(), None);
        let mut byte = [0];
        let victim = Gpa(0x1000_5002);
        memory.read(victim, &mut byte).unwrap();
        memory.write(victim, &[!byte[0]]).unwrap();
        assert_eq!(memory.check_pattern(range, 7).unwrap(), Some(victim));
    }

    #[test]
    fn pages_are_kept_within_a_range_and_merge_again() {
        let memory = GuestMemory::new(&default_layout()).unwrap();
        let mut pages = PageAllocator::new(&memory);
        let all = pages.free_pages();
        let window = Gpa(0x1000_4000)..Gpa(0x1000_7000);
        let a = pages.alloc(2, Some(&window)).unwrap();
        let b = pages.alloc(1, Some(&window)).unwrap();
        assert_eq!((a, b), (Gpa(0x1000_4000), Gpa(0x1000_6000)));
        assert_eq!(pages.alloc(1, Some(&window)), None);
        for page in [b, a, Gpa(a.0 + PAGE_SIZE)] {
            pages.free_page(page);
        }
        assert_eq!(pages.free_pages(), all);
        assert_eq!(pages.free.len(), 2);
    }
}
