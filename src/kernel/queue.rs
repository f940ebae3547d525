// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtqueue as the driver set it up, checked before the kernel sees it.

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::address::{Address, BusAddr, Range};

/// The two queues that vhost-vsock serves (VIRTIO 1.2, 5.10.2). The event queue
/// stays with the device's front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueIndex {
    /// Host to guest, 0.
    Rx,
    /// Guest to host, 1.
    Tx,
}

impl QueueIndex {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::Rx, Self::Tx];

    /// The number of the queue.
    pub fn number(self) -> u32 {
        match self {
            Self::Rx => 0,
            Self::Tx => 1,
        }
    }
}

impl fmt::Display for QueueIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rx => "0 (receive)",
            Self::Tx => "1 (transmit)",
        })
    }
}

/// Where a queue lies and how it is signalled.
#[derive(Clone, Copy, Debug)]
pub struct QueueSetup<'a> {
    /// Number of descriptors: a power of two from 1 to 32768.
    pub size: u16,
    /// Descriptor table, as the driver wrote it.
    pub desc: BusAddr,
    /// Available ring, as the driver wrote it.
    pub avail: BusAddr,
    /// Used ring, as the driver wrote it.
    pub used: BusAddr,
    /// The available index to go on from: 0 for a new queue.
    pub base: u16,
    /// eventfd that the driver's notifications signal.
    pub kick: BorrowedFd<'a>,
    /// eventfd that the kernel signals for used buffers.
    pub call: BorrowedFd<'a>,
}

/// One part of a split virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingPart {
    /// The descriptor table.
    Descriptors,
    /// The available (driver) ring.
    Available,
    /// The used (device) ring.
    Used,
}

impl fmt::Display for RingPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptor table",
            Self::Available => "available ring",
            Self::Used => "used ring",
        })
    }
}

/// The rings of one queue as checked ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// The descriptor table.
    pub desc: Range<BusAddr>,
    /// The available ring with `used_event`.
    pub avail: Range<BusAddr>,
    /// The used ring with `avail_event`.
    pub used: Range<BusAddr>,
}

impl Rings {
    /// Every part with its name.
    pub fn parts(&self) -> [(RingPart, Range<BusAddr>); 3] {
        [
            (RingPart::Descriptors, self.desc),
            (RingPart::Available, self.avail),
            (RingPart::Used, self.used),
        ]
    }
}

impl QueueSetup<'_> {
    /// The largest queue (VIRTIO 1.2, 2.7: sizes are at most 32768).
    pub const MAX_SIZE: u16 = 32768;

    /// Sizes and alignments of VIRTIO 1.2, 2.7. The two event-index bytes are
    /// always counted in: the kernel reaches for them once EVENT_IDX is acked.
    pub fn rings(&self) -> Result<Rings, QueueError> {
        if !self.size.is_power_of_two() {
            return Err(QueueError::Size(self.size));
        }
        let size = u64::from(self.size);
        let ring = |part, first: BusAddr, bytes, alignment| {
            if first.raw() % alignment != 0 {
                return Err(QueueError::Alignment {
                    part,
                    first,
                    alignment,
                });
            }
            Range::new(first, bytes).map_err(|_| QueueError::Wraps { part, first })
        };
        Ok(Rings {
            desc: ring(RingPart::Descriptors, self.desc, 16 * size, 16)?,
            avail: ring(RingPart::Available, self.avail, 6 + 2 * size, 2)?,
            used: ring(RingPart::Used, self.used, 6 + 8 * size, 4)?,
        })
    }
}

/// A queue that cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Zero, or no power of two.
    #[error("its size {0} is not a power of two from 1 to {max}", max = QueueSetup::MAX_SIZE)]
    Size(u16),
    /// Not where the specification allows it.
    #[error("its {part} at {first} is not aligned to {alignment} bytes")]
    Alignment {
        /// Which ring.
        part: RingPart,
        /// Its address.
        first: BusAddr,
        /// What it must be a multiple of.
        alignment: u64,
    },
    /// Past the last address.
    #[error("its {part} at {first} runs past the last 64-bit address")]
    Wraps {
        /// Which ring.
        part: RingPart,
        /// Its address.
        first: BusAddr,
    },
    /// Not in one memory region.
    #[error("its {part} at {range} does not lie inside one region of guest memory")]
    OutsideMemory {
        /// Which ring.
        part: RingPart,
        /// Its addresses.
        range: Range<BusAddr>,
    },
    /// The IOTLB's translator does not give it for reading and writing.
    #[error(
        "its {part} at {range} may not be read and written by the device in IOTLB mode {mode}: \
         the guest has to share it (restricted) or map it read-write (translated)"
    )]
    Inaccessible {
        /// Which ring.
        part: RingPart,
        /// Its addresses.
        range: Range<BusAddr>,
        /// The mode in force.
        mode: crate::compat::Mode,
    },
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn check(size: u16, desc: u64, avail: u64, used: u64) -> Result<Rings, String> {
        let file = std::fs::File::open("/dev/null").unwrap();
        let setup = QueueSetup {
            size,
            desc: BusAddr(desc),
            avail: BusAddr(avail),
            used: BusAddr(used),
            base: 0,
            kick: file.as_fd(),
            call: file.as_fd(),
        };
        setup.rings().map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_and_alignments_of_the_specification() {
        for size in [0, 3, 255, 32769, u16::MAX] {
            let text = check(size, 0, 0, 0).unwrap_err();
            assert!(text.contains(&format!("size {size} ")), "{text}");
        }
        assert!(check(32768, 0, 0, 0).is_ok());
        assert!(check(1, 0, 0, 0).is_ok());
        assert!(check(2, 8, 0, 0).unwrap_err().contains("descriptor table"));
        assert!(check(2, 0, 1, 0).unwrap_err().contains("available ring"));
        assert!(check(2, 0, 0, 2).unwrap_err().contains("used ring"));
    }

    #[test]
    fn rings_end_after_their_event_index_and_never_wrap() {
        let rings = check(4, 0x1000, 0x2000, 0x3000).unwrap();
        assert_eq!(rings.desc.last(), BusAddr(0x1000 + 64 - 1));
        assert_eq!(rings.avail.last(), BusAddr(0x2000 + 14 - 1));
        assert_eq!(rings.used.last(), BusAddr(0x3000 + 38 - 1));
        assert!(check(4, 0u64.wrapping_sub(16), 0, 0)
            .unwrap_err()
            .contains("past"));
    }
}
