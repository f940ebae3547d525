// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`GuestMemory`]: the regions of memory that the guest sees.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::Arc;

use base::{pagesize, AsRawDescriptor, AsRawDescriptors, RawDescriptor, SharedMemory};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::mapping::Mapping;
use crate::GuestAddress;

/// Why memory could not be made or accessed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A region's file could not be opened.
    #[error("failed to open file for file backed mapping: {0}")]
    FiledBackedOpenFailed(#[source] std::io::Error),
    /// No region holds the address.
    #[error("invalid guest address {0}")]
    InvalidGuestAddress(GuestAddress),
    /// No one region holds the range.
    #[error("invalid guest range at {0} of size {1}")]
    InvalidGuestRange(GuestAddress, u64),
    /// A range of no bytes.
    #[error("size {0} must not be zero")]
    InvalidSize(usize),
    /// The memory could not be had.
    #[error("failed to create shm region: {0}")]
    MemoryCreationFailed(#[source] base::Error),
    /// The memory could not be mapped.
    #[error("failed to map guest memory: {0}")]
    MemoryMappingFailed(#[source] base::Error),
    /// A size that is no multiple of the page size.
    #[error("guest memory region {0}+{1:#x} is not page aligned")]
    MemoryNotAligned(GuestAddress, u64),
    /// Two regions share an address, or are not in order.
    #[error("memory regions overlap")]
    MemoryRegionOverlap,
    /// The region ended before the read did.
    #[error("incomplete read of {completed} instead of {expected} bytes")]
    ShortRead {
        /// Bytes wanted.
        expected: usize,
        /// Bytes read.
        completed: usize,
    },
    /// The region ended before the write did, or is read-only.
    #[error("incomplete write of {completed} instead of {expected} bytes")]
    ShortWrite {
        /// Bytes given.
        expected: usize,
        /// Bytes written.
        completed: usize,
    },
}

/// The result of accessing guest memory.
pub type Result<T> = std::result::Result<T, Error>;

/// What a region's memory lies in.
#[derive(Clone, Debug)]
pub enum BackingObject {
    /// A memfd.
    Shm(Arc<SharedMemory>),
    /// A file.
    File(Arc<File>),
}

impl AsRawDescriptor for BackingObject {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        match self {
            Self::Shm(shm) => shm.as_raw_descriptor(),
            Self::File(file) => file.as_raw_descriptor(),
        }
    }
}

/// What a region is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryRegionPurpose {
    /// The BIOS or firmware ROM.
    Bios,
    /// Ordinary memory.
    #[default]
    GuestMemoryRegion,
    /// The firmware of protected VMs.
    ProtectedFirmwareRegion,
    /// Memory that the guest is told is reserved.
    ReservedMemory,
    /// The bounce buffer that a protected guest shares with its devices.
    #[cfg(target_arch = "aarch64")]
    StaticSwiotlbRegion,
}

/// A region that is a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileBackedMappingParameters {
    /// The file.
    pub path: PathBuf,
    /// Where the guest sees it.
    pub address: u64,
    /// How much of it, in bytes.
    pub size: u64,
    /// From where on, in bytes.
    pub offset: u64,
    /// Whether the mapping can be written.
    pub writable: bool,
    /// Whether writes are synchronous.
    pub sync: bool,
    /// Whether the mapping may be rounded to pages.
    pub align: bool,
    /// Whether the guest is told that this is memory.
    pub ram: bool,
}

/// What is special about a region.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemoryRegionOptions {
    /// What it is for.
    pub purpose: MemoryRegionPurpose,
    /// How its host address is aligned.
    pub align: u64,
    /// The file that it is, if it is one.
    pub file_backed: Option<FileBackedMappingParameters>,
}

impl MemoryRegionOptions {
    /// Ordinary memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// With this purpose.
    pub fn purpose(mut self, purpose: MemoryRegionPurpose) -> Self {
        self.purpose = purpose;
        self
    }

    /// With this file.
    pub fn file_backed(mut self, params: FileBackedMappingParameters) -> Self {
        self.file_backed = Some(params);
        self
    }
}

/// A region, as [`GuestMemory::regions`] tells it.
pub struct MemoryRegionInformation<'a> {
    /// Its number.
    pub index: usize,
    /// Where the guest sees it.
    pub guest_addr: GuestAddress,
    /// Its size in bytes.
    pub size: usize,
    /// Where this process sees it.
    pub host_addr: usize,
    /// What it lies in.
    pub shm: &'a BackingObject,
    /// Where it lies there, in bytes.
    pub shm_offset: u64,
    /// What is special about it.
    pub options: MemoryRegionOptions,
}

#[derive(Debug)]
struct Region {
    mapping: Mapping,
    start: GuestAddress,
    backing: BackingObject,
    offset: u64,
    options: MemoryRegionOptions,
}

impl Region {
    fn end(&self) -> GuestAddress {
        self.start.unchecked_add(self.mapping.size() as u64)
    }

    fn contains(&self, addr: GuestAddress) -> bool {
        self.start <= addr && addr < self.end()
    }
}

/// The memory of a guest; clones share it.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    regions: Arc<[Region]>,
}

impl AsRawDescriptors for GuestMemory {
    fn as_raw_descriptors(&self) -> Vec<RawDescriptor> {
        let regions = self.regions.iter();
        regions.map(|r| r.backing.as_raw_descriptor()).collect()
    }
}

impl GuestMemory {
    /// Memory of these ranges, in ascending order.
    pub fn new(ranges: &[(GuestAddress, u64)]) -> Result<GuestMemory> {
        let with_options: Vec<_> = ranges
            .iter()
            .map(|&(addr, size)| (addr, size, MemoryRegionOptions::new()))
            .collect();
        Self::new_with_options(&with_options)
    }

    /// Memory of these ranges, in ascending order, with their options.
    pub fn new_with_options(
        ranges: &[(GuestAddress, u64, MemoryRegionOptions)],
    ) -> Result<GuestMemory> {
        let page = pagesize() as u64;
        if let Some((addr, size, _)) = ranges.iter().find(|(_, size, _)| size % page != 0) {
            return Err(Error::MemoryNotAligned(*addr, *size));
        }
        let in_memfd = ranges.iter().filter(|r| r.2.file_backed.is_none());
        let total = in_memfd.map(|(_, size, _)| size).sum();
        let shm = SharedMemory::new("guest", total).map_err(Error::MemoryCreationFailed)?;
        let shm = Arc::new(shm);
        let mut next_offset = 0;
        let mut regions: Vec<Region> = Vec::new();
        for (start, size, options) in ranges {
            if regions.last().is_some_and(|last| last.end() > *start) {
                return Err(Error::MemoryRegionOverlap);
            }
            let (backing, offset, writable) = match &options.file_backed {
                Some(params) => (open(params)?, params.offset, params.writable),
                None => {
                    let offset = next_offset;
                    next_offset += size;
                    (BackingObject::Shm(shm.clone()), offset, true)
                }
            };
            let mapping = Mapping::new(&backing, offset, *size as usize, writable)
                .map_err(Error::MemoryMappingFailed)?;
            regions.push(Region {
                mapping,
                start: *start,
                backing,
                offset,
                options: options.clone(),
            });
        }
        Ok(GuestMemory {
            regions: regions.into(),
        })
    }

    /// The address after the last region.
    pub fn end_addr(&self) -> GuestAddress {
        let ends = self.regions.iter().map(Region::end);
        ends.max().unwrap_or(GuestAddress(0))
    }

    /// The size of all regions in bytes.
    pub fn memory_size(&self) -> u64 {
        let regions = self.regions.iter();
        regions.map(|region| region.mapping.size() as u64).sum()
    }

    /// Whether a region holds `addr`.
    pub fn address_in_range(&self, addr: GuestAddress) -> bool {
        self.regions.iter().any(|region| region.contains(addr))
    }

    /// Whether one region holds all of a range that is not empty.
    pub fn is_valid_range(&self, start: GuestAddress, length: u64) -> bool {
        let Some(last) = length.checked_sub(1).and_then(|n| start.checked_add(n)) else {
            return false;
        };
        let mut regions = self.regions.iter();
        regions.any(|region| region.contains(start) && region.contains(last))
    }

    /// The number of regions.
    pub fn num_regions(&self) -> u64 {
        self.regions.len() as u64
    }

    /// The regions, by ascending address.
    pub fn regions(&self) -> impl Iterator<Item = MemoryRegionInformation<'_>> {
        let regions = self.regions.iter().enumerate();
        regions.map(|(index, region)| MemoryRegionInformation {
            index,
            guest_addr: region.start,
            size: region.mapping.size(),
            host_addr: region.mapping.as_ptr() as usize,
            shm: &region.backing,
            shm_offset: region.offset,
            options: region.options.clone(),
        })
    }

    /// Writes as much of `buf` as the region at `guest_addr` takes.
    pub fn write_at_addr(&self, buf: &[u8], guest_addr: GuestAddress) -> Result<usize> {
        let (mapping, offset) = self.find(guest_addr)?;
        Ok(mapping.write(offset, buf))
    }

    /// Writes all of `buf`.
    pub fn write_all_at_addr(&self, buf: &[u8], guest_addr: GuestAddress) -> Result<()> {
        let expected = buf.len();
        match self.write_at_addr(buf, guest_addr)? {
            completed if completed == expected => Ok(()),
            completed => Err(Error::ShortWrite {
                expected,
                completed,
            }),
        }
    }

    /// Reads as much of `buf` as the region at `guest_addr` gives.
    pub fn read_at_addr(&self, buf: &mut [u8], guest_addr: GuestAddress) -> Result<usize> {
        let (mapping, offset) = self.find(guest_addr)?;
        Ok(mapping.read(offset, buf))
    }

    /// Reads all of `buf`.
    pub fn read_exact_at_addr(&self, buf: &mut [u8], guest_addr: GuestAddress) -> Result<()> {
        let expected = buf.len();
        match self.read_at_addr(buf, guest_addr)? {
            completed if completed == expected => Ok(()),
            completed => Err(Error::ShortRead {
                expected,
                completed,
            }),
        }
    }

    /// Reads a value.
    pub fn read_obj_from_addr<T: FromBytes>(&self, guest_addr: GuestAddress) -> Result<T> {
        let mut bytes = vec![0; size_of::<T>()];
        self.read_exact_at_addr(&mut bytes, guest_addr)?;
        T::read_from_bytes(&bytes).map_err(|_| Error::InvalidGuestAddress(guest_addr))
    }

    /// Writes a value.
    pub fn write_obj_at_addr<T: IntoBytes + Immutable>(
        &self,
        val: T,
        guest_addr: GuestAddress,
    ) -> Result<()> {
        self.write_all_at_addr(val.as_bytes(), guest_addr)
    }

    /// Reads an aligned value that the guest may be changing, in one access where
    /// its size allows.
    pub fn read_obj_from_addr_volatile<T: FromBytes>(&self, guest_addr: GuestAddress) -> Result<T> {
        let (mapping, offset) = self.find(guest_addr)?;
        let size = size_of::<T>() as u64;
        let value = mapping.read_volatile(offset);
        value.ok_or(Error::InvalidGuestRange(guest_addr, size))
    }

    /// Writes an aligned value that the guest may be reading, in one access where
    /// its size allows.
    pub fn write_obj_at_addr_volatile<T: IntoBytes + Immutable>(
        &self,
        val: T,
        guest_addr: GuestAddress,
    ) -> Result<()> {
        let (mapping, offset) = self.find(guest_addr)?;
        let size = size_of::<T>() as u64;
        let written = mapping.write_volatile(offset, val);
        written.ok_or(Error::InvalidGuestRange(guest_addr, size))
    }

    /// Where this process sees `guest_addr`.
    pub fn get_host_address(&self, guest_addr: GuestAddress) -> Result<*const u8> {
        let (mapping, offset) = self.find(guest_addr)?;
        Ok(mapping.as_ptr().wrapping_add(offset).cast_const())
    }

    /// Where this process sees `size` bytes from `guest_addr` on, in one region.
    pub fn get_host_address_range(
        &self,
        guest_addr: GuestAddress,
        size: usize,
    ) -> Result<*const u8> {
        if size == 0 {
            return Err(Error::InvalidSize(size));
        }
        let (mapping, offset) = self.find(guest_addr)?;
        if mapping.size() - offset < size {
            return Err(Error::InvalidGuestAddress(guest_addr));
        }
        self.get_host_address(guest_addr)
    }

    fn find(&self, addr: GuestAddress) -> Result<(&Mapping, usize)> {
        let mut regions = self.regions.iter();
        let region = regions.find(|region| region.contains(addr));
        let region = region.ok_or(Error::InvalidGuestAddress(addr))?;
        Ok((&region.mapping, addr.offset_from(region.start) as usize))
    }
}

fn open(params: &FileBackedMappingParameters) -> Result<BackingObject> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(params.writable);
    let file = options.open(&params.path);
    let file = file.map_err(Error::FiledBackedOpenFailed)?;
    Ok(BackingObject::File(Arc::new(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 0x1000;

    fn two_regions() -> GuestMemory {
        GuestMemory::new(&[
            (GuestAddress(0x1000), 2 * PAGE),
            (GuestAddress(0x8000), PAGE),
        ])
        .unwrap()
    }

    #[test]
    fn clones_share_and_regions_end() {
        let memory = two_regions();
        let clone = memory.clone();
        memory
            .write_all_at_addr(b"hello", GuestAddress(0x2ffb))
            .unwrap();
        let mut back = [0; 5];
        clone
            .read_exact_at_addr(&mut back, GuestAddress(0x2ffb))
            .unwrap();
        assert_eq!(&back, b"hello");
        assert!(matches!(
            memory.write_all_at_addr(b"hello", GuestAddress(0x2ffc)),
            Err(Error::ShortWrite { completed: 4, .. })
        ));
        assert!(matches!(
            memory.read_exact_at_addr(&mut back, GuestAddress(0x8ffe)),
            Err(Error::ShortRead { completed: 2, .. })
        ));
        assert!(memory
            .read_at_addr(&mut back, GuestAddress(0x3000))
            .is_err());
        memory
            .write_obj_at_addr(0x1234_5678u32, GuestAddress(0x8000))
            .unwrap();
        let half = |at| clone.read_obj_from_addr_volatile::<u16>(GuestAddress(at));
        assert_eq!(half(0x8000).unwrap(), 0x5678);
        assert!(half(0x8001).is_err());
        memory
            .write_obj_at_addr_volatile(7u16, GuestAddress(0x8002))
            .unwrap();
        let whole: u32 = clone.read_obj_from_addr(GuestAddress(0x8000)).unwrap();
        assert_eq!(whole, 0x0007_5678);
    }

    #[test]
    fn regions_tell_where_they_are() {
        let memory = two_regions();
        assert_eq!(memory.num_regions(), 2);
        assert_eq!(memory.memory_size(), 3 * PAGE);
        assert_eq!(memory.end_addr(), GuestAddress(0x9000));
        let regions: Vec<_> = memory.regions().collect();
        assert_eq!(regions[1].guest_addr, GuestAddress(0x8000));
        assert_eq!(regions[1].shm_offset, 2 * PAGE);
        assert_eq!(
            regions[0].shm.as_raw_descriptor(),
            memory.as_raw_descriptors()[1]
        );
        let host = memory.get_host_address_range(GuestAddress(0x8010), 0xff0);
        assert_eq!(host.unwrap() as usize, regions[1].host_addr + 0x10);
        assert!(memory
            .get_host_address_range(GuestAddress(0x8010), 0xff1)
            .is_err());
        assert!(memory
            .get_host_address_range(GuestAddress(0x8010), 0)
            .is_err());
    }

    #[test]
    fn ranges_must_be_in_one_region() {
        let memory = two_regions();
        for (start, length, valid) in [
            (0x1000, 2 * PAGE, true),
            (0x1000, 2 * PAGE + 1, false),
            (0x1000, 0, false),
            (0x0fff, 1, false),
            (0x8fff, 1, true),
            (u64::MAX, 2, false),
        ] {
            let is = memory.is_valid_range(GuestAddress(start), length);
            assert_eq!(is, valid, "{start:#x}+{length:#x}");
        }
        let overlap = [(GuestAddress(0), 2 * PAGE), (GuestAddress(PAGE), PAGE)];
        assert!(matches!(
            GuestMemory::new(&overlap),
            Err(Error::MemoryRegionOverlap)
        ));
        assert!(matches!(
            GuestMemory::new(&[(GuestAddress(0), PAGE + 1)]),
            Err(Error::MemoryNotAligned(..))
        ));
    }

    #[test]
    fn a_region_can_be_a_read_only_file() {
        let params = FileBackedMappingParameters {
            path: "/proc/self/exe".into(),
            address: 0x10_0000,
            size: PAGE,
            offset: 0,
            writable: false,
            sync: false,
            align: false,
            ram: false,
        };
        let options = MemoryRegionOptions::new().file_backed(params);
        let memory = GuestMemory::new_with_options(&[
            (GuestAddress(0), PAGE, MemoryRegionOptions::new()),
            (GuestAddress(0x10_0000), PAGE, options),
        ])
        .unwrap();
        let magic: [u8; 4] = memory.read_obj_from_addr(GuestAddress(0x10_0000)).unwrap();
        assert_eq!(&magic, b"\x7fELF");
        assert!(memory
            .write_all_at_addr(b"x", GuestAddress(0x10_0000))
            .is_err());
    }
}
