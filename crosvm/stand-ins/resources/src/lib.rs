// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for crosvm's `resources`: the allocator of addresses and
//! interrupts that a device module is handed. A vsock device takes nothing from
//! it, so this one has nothing to give. Host tests only; never built by Soong.

/// Addresses from `start` to `end`, both included.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// The first address.
    pub start: u64,
    /// The last address.
    pub end: u64,
}

/// Why there is no allocator.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// A range ends before it starts.
    #[error("Out of bounds")]
    OutOfBounds,
}

/// The result of making an allocator.
pub type Result<T> = std::result::Result<T, Error>;

/// What there is to give out.
pub struct SystemAllocatorConfig {
    /// I/O ports.
    pub io: Option<AddressRange>,
    /// MMIO below 4 GiB.
    pub low_mmio: AddressRange,
    /// MMIO above 4 GiB.
    pub high_mmio: AddressRange,
    /// MMIO of the platform.
    pub platform_mmio: Option<AddressRange>,
    /// The first interrupt.
    pub first_irq: u32,
}

/// The allocator.
#[derive(Debug)]
pub struct SystemAllocator(());

impl SystemAllocator {
    /// An allocator of what `config` names.
    pub fn new(
        config: SystemAllocatorConfig,
        _reserve_region_size: Option<u64>,
        _mmio_address_ranges: &[AddressRange],
    ) -> Result<Self> {
        let ranges = [config.low_mmio, config.high_mmio];
        match ranges.iter().all(|range| range.start <= range.end) {
            true => Ok(Self(())),
            false => Err(Error::OutOfBounds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_not_end_before_it_starts() {
        let allocator = |end| {
            let config = SystemAllocatorConfig {
                io: None,
                low_mmio: AddressRange { start: 2, end },
                high_mmio: AddressRange { start: 8, end: 9 },
                platform_mmio: None,
                first_irq: 5,
            };
            SystemAllocator::new(config, None, &[])
        };
        assert!(allocator(3).is_ok());
        assert_eq!(allocator(1).unwrap_err(), Error::OutOfBounds);
    }
}
