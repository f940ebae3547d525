// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory as the kernel path needs it: where each region lies, nothing more.
//!
//! No mapping is made or read here, so there is no `unsafe` and no dependency on
//! a memory crate: crosvm's and rust-vmm's share a name and cannot be linked
//! into one Soong module. Whoever builds a [`MemoryMap`] keeps the memory mapped
//! for as long as a device runs on it.

use std::sync::Arc;

use crate::address::{Address, Gpa, Hva, Range, RangeError};

/// The granule of regions, shares and translations, in bytes.
///
/// Page-wise boundaries cannot split a ring's `u16` or `u32` field, which vhost
/// reads with one access (`vhost_get_user`).
pub const PAGE: u64 = 4096;

/// A stretch of guest memory, mapped at `hva` in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    gpa: Range<Gpa>,
    hva: Range<Hva>,
}

impl Region {
    /// `size` bytes at `gpa`, mapped at `hva`; all three multiples of [`PAGE`].
    pub fn new(gpa: Gpa, hva: Hva, size: u64) -> Result<Self, MemoryError> {
        let error = |reason| MemoryError::Region { gpa, size, reason };
        if (gpa.raw() | hva.raw() | size) % PAGE != 0 {
            return Err(error("its addresses and size are not multiples of 4096"));
        }
        let gpa = Range::new(gpa, size)?;
        let hva = gpa.at(hva).ok_or(error("its host mapping wraps"))?;
        Ok(Self { gpa, hva })
    }

    /// Where the guest sees it.
    pub fn gpa(&self) -> Range<Gpa> {
        self.gpa
    }

    /// Where this process sees it.
    pub fn hva(&self) -> Range<Hva> {
        self.hva
    }

    /// Where the part that holds all of `range` is mapped.
    fn host(&self, range: &Range<Gpa>) -> Option<Range<Hva>> {
        let offset = range.first().offset_from(self.gpa.first())?;
        self.gpa.covers(range).then_some(())?;
        range.at(self.hva.first().checked_add(offset)?)
    }
}

/// All regions of one guest: 1 to 64 of them, in order, without overlap.
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap(Arc<[Region]>);

impl MemoryMap {
    /// The most regions that vhost takes by default (`max_mem_regions`).
    pub const MAX_REGIONS: usize = 64;

    /// Checks number and overlap; the order of `regions` does not matter.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        if regions.is_empty() || regions.len() > Self::MAX_REGIONS {
            return Err(MemoryError::Count(regions.len()));
        }
        regions.sort_by_key(|region| region.gpa.first());
        for pair in regions.windows(2) {
            if pair[0].gpa.overlaps(&pair[1].gpa) {
                return Err(MemoryError::Overlap(pair[0].gpa, pair[1].gpa));
            }
        }
        Ok(Self(regions.into()))
    }

    /// The regions by rising guest address.
    pub fn regions(&self) -> &[Region] {
        &self.0
    }

    /// The region that holds `gpa`.
    pub fn region(&self, gpa: Gpa) -> Option<&Region> {
        self.0.iter().find(|region| region.gpa.contains(gpa))
    }

    /// Where `range` is mapped, if one region holds all of it.
    pub fn host(&self, range: &Range<Gpa>) -> Option<Range<Hva>> {
        self.region(range.first())?.host(range)
    }

    /// The parts of `range` that are memory, each with its mapping.
    pub fn parts(&self, range: Range<Gpa>) -> impl Iterator<Item = (Range<Gpa>, Range<Hva>)> + '_ {
        self.0.iter().filter_map(move |region| {
            let part = region.gpa.intersection(&range)?;
            Some((part, region.host(&part)?))
        })
    }
}

/// A memory layout that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// One region by itself.
    #[error("the memory region of {size:#x} bytes at GPA {gpa} is refused: {reason}")]
    Region {
        /// Its guest address.
        gpa: Gpa,
        /// Its size in bytes.
        size: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Empty or wrapping.
    #[error("a memory region is refused: {0}")]
    Range(#[from] RangeError),
    /// None, or more than vhost takes.
    #[error("{0} memory regions are refused: vhost takes 1 to {max}", max = MemoryMap::MAX_REGIONS)]
    Count(usize),
    /// Two regions share guest addresses.
    #[error("the memory regions at GPA {0} and {1} overlap")]
    Overlap(Range<Gpa>, Range<Gpa>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(gpa: u64, hva: u64, size: u64) -> Region {
        Region::new(Gpa(gpa), Hva(hva), size).unwrap()
    }

    fn gpas(first: u64, size: u64) -> Range<Gpa> {
        Range::new(Gpa(first), size).unwrap()
    }

    #[test]
    fn layouts_that_cannot_be_are_refused_with_the_reason() {
        let refused = |result: Result<Region, MemoryError>| result.unwrap_err().to_string();
        assert!(refused(Region::new(Gpa(1), Hva(0), PAGE)).contains("multiples of 4096"));
        assert!(refused(Region::new(Gpa(0), Hva(0), 0)).contains("size is 0"));
        assert!(
            refused(Region::new(Gpa(0u64.wrapping_sub(PAGE)), Hva(0), 2 * PAGE)).contains("past")
        );
        assert!(
            refused(Region::new(Gpa(0), Hva(0u64.wrapping_sub(PAGE)), 2 * PAGE)).contains("wraps")
        );

        let page = |n: u64| region(n * PAGE, n * PAGE, PAGE);
        assert_eq!(MemoryMap::new(vec![]), Err(MemoryError::Count(0)));
        assert!(MemoryMap::new((0..64).map(page).collect()).is_ok());
        assert_eq!(
            MemoryMap::new((0..65).map(page).collect()),
            Err(MemoryError::Count(65))
        );
    }

    #[test]
    fn overlap_is_found_in_any_order() {
        let overlap = vec![region(0x4000, 0, 0x2000), region(0x1000, 0x10000, 0x4000)];
        assert_eq!(
            MemoryMap::new(overlap),
            Err(MemoryError::Overlap(
                gpas(0x1000, 0x4000),
                gpas(0x4000, 0x2000)
            ))
        );
    }

    #[test]
    fn a_range_is_found_whole_or_in_parts() {
        let map = MemoryMap::new(vec![
            region(0x8000, 0x70_0000, 0x2000),
            region(0x1000, 0x50_0000, 0x2000),
        ])
        .unwrap();
        assert_eq!(
            map.host(&gpas(0x2ff0, 0x10)).unwrap().first(),
            Hva(0x50_1ff0)
        );
        assert_eq!(map.host(&gpas(0x2ff0, 0x11)), None);
        assert_eq!(map.host(&gpas(0x3000, 1)), None);
        let parts: Vec<_> = map.parts(gpas(0, u64::MAX)).collect();
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].0, gpas(0x1000, 0x2000));
        assert_eq!(parts[1].1.first(), Hva(0x70_0000));
        let cut: Vec<_> = map.parts(gpas(0x2000, 0x7000)).collect();
        assert_eq!(cut[0].0, gpas(0x2000, 0x1000));
        assert_eq!(cut[1].0, gpas(0x8000, 0x1000));
    }
}
