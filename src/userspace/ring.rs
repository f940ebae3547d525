// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's side of a split virtqueue (VIRTIO 1.2, 2.7).
//!
//! Why not `virtio-queue`: its `add_used` publishes the used index for every entry,
//! and nothing in it defers that, while publishing once a batch is what makes small
//! packets fast (a store and a full fence per 64-byte packet cost more than the
//! packet); and its chains resolve each descriptor through a reference-counted
//! memory trait, where here segments come out as the `iovec`s of the coming system
//! call. What is left is small enough to own: three arrays and three indices.
//!
//! Everything read from the ring is the driver's word and checked here: indices,
//! chain lengths, loops, directions, addresses. A bad chain is an error of that
//! chain ([`ChainError`]) and is handed back unused; only an available index that
//! cannot be ([`RingError`]) spoils the queue.
//!
//! `unsafe` here: the rings' own memory, reached by raw pointers that
//! [`SplitRing::new`] has checked for place, size and alignment.

use std::sync::atomic::{fence, AtomicU16, Ordering};
use std::sync::Arc;

use crate::access::Access;
use crate::address::{Address, BusAddr, Gpa};
use crate::bus::{Bus, Fault};
use crate::guest_memory::{GuestMemory, Segment};
use crate::path::Queue;

/// The largest split queue (VIRTIO 1.2, 2.7).
pub const MAX_QUEUE_SIZE: u16 = 1 << 15;

/// Descriptors looked at in a turn, give or take a chain: a driver may fill the largest
/// queue with chains of its own length, and go on filling it while the device looks.
const TURN: usize = 1 << 16;

/// `VIRTQ_DESC_F_NEXT`: the chain goes on.
const DESC_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: for the device to write.
const DESC_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`: a table of descriptors.
const DESC_INDIRECT: u16 = 4;
/// Size of a descriptor in bytes.
const DESC_SIZE: usize = 16;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`, `VIRTQ_USED_F_NO_NOTIFY`: leave me alone.
const NO_NOTIFICATION: u16 = 1;
/// Bytes before the entries in the available and in the used ring: flags, index.
const RING_HEADER: usize = 4;
/// Size of a used element in bytes: id, len.
const USED_SIZE: usize = 8;

/// Why a queue cannot be used, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Not a power of two up to 32768.
    #[error("a queue of {0} entries: the size must be a power of two up to 32768")]
    Size(u16),
    /// A part of the queue is outside of guest memory or across two regions.
    #[error("the {part} at {address} does not lie in one region of guest memory")]
    Place {
        /// Which part.
        part: &'static str,
        /// Where the driver put it.
        address: Gpa,
    },
    /// A part of the queue is at an address its type cannot have.
    #[error("the {part} at {address} is not aligned to {alignment} bytes")]
    Alignment {
        /// Which part.
        part: &'static str,
        /// Where the driver put it.
        address: Gpa,
        /// What its address must be a multiple of.
        alignment: usize,
    },
    /// The driver claims more entries than the queue has.
    #[error("the driver's available index {index} is {ahead} entries ahead in a queue of {size}")]
    AvailableIndex {
        /// The driver's index.
        index: u16,
        /// How far it is ahead of the device.
        ahead: u16,
        /// Entries in the queue.
        size: u16,
    },
}

/// Why a chain of descriptors is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A descriptor number beyond the table.
    #[error("descriptor {0} is beyond the table")]
    Index(u16),
    /// More descriptors than the queue has entries: a loop.
    #[error("the chain is longer than the queue: it loops")]
    Loop,
    /// An address outside of guest memory.
    #[error("{len} bytes at {address} are not guest memory")]
    Address {
        /// Where it begins.
        address: BusAddr,
        /// Its length in bytes.
        len: u32,
    },
    /// An address that the VMM has yet to translate: the chain is not looked at before.
    #[error("an address that is not translated yet")]
    Untranslated,
    /// A writable buffer where the device reads, or the reverse.
    #[error("a descriptor with the wrong direction")]
    Direction,
    /// An indirect table inside another, with a successor, of a bad size, or not negotiated.
    #[error("a bad indirect table")]
    Indirect,
    /// 4 GiB and more.
    #[error("the chain's buffers add up to 4 GiB or more")]
    TooLong,
}

/// Who uses a chain's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads them.
    Readable,
    /// The device writes them.
    Writable,
}

/// A chain as the driver has made it available: its first descriptor's number, and
/// what became of its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a chain that is not handed back is lost to the driver"]
pub struct Chain {
    /// For [`SplitRing::push_used`].
    pub head: u16,
    /// The buffers' length in bytes, or why they are unusable.
    pub buffers: Result<u32, ChainError>,
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: BusAddr,
    len: u32,
    flags: u16,
    next: u16,
}

/// A split virtqueue in guest memory.
pub struct SplitRing {
    /// Keeps the ring's own memory mapped.
    _memory: Arc<GuestMemory>,
    size: u16,
    descriptors: *const u8,
    available: *mut u8,
    used: *mut u8,
    event_idx: bool,
    indirect: bool,
    /// The available entry to take next.
    next_available: u16,
    /// The driver's available index when it was last read.
    seen_available: u16,
    /// Where the next used element goes; ahead of `published` within a batch.
    next_used: u16,
    /// The used index the driver sees.
    published: u16,
    /// Chains and their descriptors looked at in this turn.
    looked_at: usize,
    /// Entries of the descriptor table in chains taken since the driver was last shown
    /// what was handed back.
    owed: u32,
}

// SAFETY: the pointers lead into guest memory, which `_memory` keeps mapped and which
// belongs to no thread; the ring itself is used by one thread at a time (`&mut`).
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Takes over the queue that `queue` describes. `event_idx` and `indirect` say
    /// what the driver has acknowledged.
    pub fn new(
        memory: Arc<GuestMemory>,
        queue: &Queue,
        event_idx: bool,
        indirect: bool,
    ) -> Result<Self, RingError> {
        let size = queue.size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(RingError::Size(size));
        }
        let entries = usize::from(size);
        let place = |part, address: Gpa, len, alignment: usize| {
            let segment = memory
                .whole(address, len)
                .ok_or(RingError::Place { part, address })?;
            let pointer = segment.as_ptr();
            if pointer.align_offset(alignment) != 0 || address.raw() % alignment as u64 != 0 {
                return Err(RingError::Alignment {
                    part,
                    address,
                    alignment,
                });
            }
            Ok(pointer)
        };
        // Sizes and alignments: VIRTIO 1.2, 2.7; with the event field at the end.
        let descriptors = place(
            "descriptor table",
            queue.descriptors,
            DESC_SIZE * entries,
            16,
        )?;
        let available = place(
            "available ring",
            queue.available,
            RING_HEADER + 2 * entries + 2,
            2,
        )?;
        let used = place(
            "used ring",
            queue.used,
            RING_HEADER + USED_SIZE * entries + 2,
            4,
        )?;
        let mut ring = Self {
            size,
            descriptors,
            available,
            used,
            event_idx,
            indirect,
            next_available: queue.base,
            seen_available: queue.base,
            next_used: 0,
            published: 0,
            looked_at: 0,
            owed: 0,
            _memory: memory,
        };
        ring.next_used = ring.used_u16(2).load(Ordering::Acquire);
        ring.published = ring.next_used;
        Ok(ring)
    }

    fn available_u16(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset <= RING_HEADER + 2 * usize::from(self.size));
        // SAFETY: `new` has checked that the available ring is mapped, up to and with
        // the event field, and 2-aligned; every offset used is even and within it.
        unsafe { &*self.available.add(offset).cast() }
    }

    fn used_u16(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset <= RING_HEADER + USED_SIZE * usize::from(self.size));
        // SAFETY: as above, for the used ring, which is 4-aligned.
        unsafe { &*self.used.add(offset).cast() }
    }

    fn used_event(&self) -> u16 {
        let offset = RING_HEADER + 2 * usize::from(self.size);
        self.available_u16(offset).load(Ordering::Relaxed)
    }

    fn set_available_event(&self, index: u16) {
        let offset = RING_HEADER + USED_SIZE * usize::from(self.size);
        self.used_u16(offset).store(index, Ordering::Relaxed);
    }

    /// Entries in the queue.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The available entry the device takes next: where another device goes on.
    pub fn base(&self) -> u16 {
        self.next_available
    }

    /// How many chains the driver has made available and the device not yet taken.
    pub fn available(&mut self) -> Result<u16, RingError> {
        // Acquire: the entries and descriptors below were written before the index.
        let index = self.available_u16(2).load(Ordering::Acquire);
        let ahead = index.wrapping_sub(self.next_available);
        if ahead > self.size {
            return Err(RingError::AvailableIndex {
                index,
                ahead,
                size: self.size,
            });
        }
        self.seen_available = index;
        Ok(ahead)
    }

    /// Takes the next chain and appends its buffers to `out`: if it is bad, those before the
    /// fault. `None`: there is none, or its addresses have yet to be translated.
    pub fn pop<'m>(
        &mut self,
        bus: &'m Bus,
        direction: Direction,
        out: &mut Vec<Segment<'m>>,
    ) -> Result<Option<Chain>, RingError> {
        if self.next_available == self.seen_available && self.available()? == 0 {
            return Ok(None);
        }
        let slot = usize::from(self.next_available % self.size);
        let head = self
            .available_u16(RING_HEADER + 2 * slot)
            .load(Ordering::Relaxed);
        let before = out.len();
        let mut walk = Walk {
            bus,
            direction,
            out,
            // VIRTIO 1.2, 2.7.5.3.1: a chain is no longer than the queue, tables included.
            left: self.size,
            total: 0,
        };
        let walked = self.walk(head, &mut walk);
        let (left, total) = (walk.left, walk.total);
        self.looked_at += 1 + usize::from(self.size - left);
        if walked == Err(ChainError::Untranslated) {
            out.truncate(before);
            // All that is there has been seen: no reason to look again at once.
            self.available()?;
            return Ok(None);
        }
        self.next_available = self.next_available.wrapping_add(1);
        let buffers = walked.map(|()| total);
        Ok(Some(Chain { head, buffers }))
    }

    /// Begins a turn.
    pub fn begin_turn(&mut self) {
        self.looked_at = 0;
    }

    /// Whether enough was looked at in this turn: others are to have theirs.
    pub fn turn_is_over(&self) -> bool {
        self.looked_at >= TURN
    }

    /// Puts the last `count` chains back as if never taken.
    pub fn unpop(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    fn table_entry(&self, index: u16) -> Descriptor {
        let mut raw = [0u8; DESC_SIZE];
        let offset = DESC_SIZE * usize::from(index);
        // SAFETY: the caller has checked that `index` is in the table, which `new`
        // has checked to be mapped.
        unsafe {
            let entry = self.descriptors.add(offset);
            std::ptr::copy_nonoverlapping(entry, raw.as_mut_ptr(), DESC_SIZE);
        }
        Descriptor::parse(&raw)
    }

    /// Whether the driver has not been shown all that was handed back.
    pub fn has_unpublished(&self) -> bool {
        self.published != self.next_used
    }

    /// How many entries of its descriptor table the driver would get back now: counted
    /// when chains are taken.
    pub fn owed(&self) -> u32 {
        self.owed
    }

    fn walk(&mut self, head: u16, chain: &mut Walk<'_, '_>) -> Result<(), ChainError> {
        if head >= self.size {
            return Err(ChainError::Index(head));
        }
        let mut index = head;
        loop {
            let descriptor = self.table_entry(index);
            self.owed = self.owed.saturating_add(1);
            if descriptor.flags & DESC_INDIRECT != 0 {
                // 2.7.5.3.1: an indirect descriptor ends its chain.
                if !self.indirect || descriptor.flags & DESC_NEXT != 0 {
                    return Err(ChainError::Indirect);
                }
                return chain.indirect(descriptor);
            }
            chain.buffer(descriptor)?;
            if descriptor.flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
            if index >= self.size {
                return Err(ChainError::Index(index));
            }
        }
    }

    /// Hands a chain back with `len` bytes written to it. The driver sees it with the
    /// next [`publish`](Self::publish).
    pub fn push_used(&mut self, head: u16, len: u32) {
        let slot = usize::from(self.next_used % self.size);
        let mut element = [0u8; USED_SIZE];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&len.to_le_bytes());
        // SAFETY: `slot` is below the ring's size, which `new` has checked to be mapped.
        unsafe {
            let place = self.used.add(RING_HEADER + USED_SIZE * slot);
            std::ptr::copy_nonoverlapping(element.as_ptr(), place, USED_SIZE);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver all that was handed back since the last time. Whether it
    /// wants to be told (VIRTIO 1.2, 2.7.7).
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.used_u16(2).store(new, Ordering::Release);
        self.published = new;
        self.owed = 0;
        // The index must be visible before the driver's wish is read: the driver
        // writes its wish and then looks at the index.
        fence(Ordering::SeqCst);
        if self.event_idx {
            needs_event(self.used_event(), new, old)
        } else {
            self.available_u16(0).load(Ordering::Relaxed) & NO_NOTIFICATION == 0
        }
    }

    /// Asks the driver to keep quiet while the device is looking anyway. With event
    /// indices this costs nothing: the stale index does it.
    pub fn disable_kicks(&self) {
        if !self.event_idx {
            self.used_u16(0).store(NO_NOTIFICATION, Ordering::Relaxed);
        }
    }

    /// Asks the driver to say when it adds the next chain. `true`: it has added one
    /// meanwhile, look again.
    pub fn enable_kicks(&self) -> bool {
        if self.event_idx {
            self.set_available_event(self.seen_available);
        } else {
            self.used_u16(0).store(0, Ordering::Relaxed);
        }
        // The wish must be visible before the index is read again.
        fence(Ordering::SeqCst);
        self.available_u16(2).load(Ordering::Relaxed) != self.seen_available
    }
}

/// `vring_need_event` (VIRTIO 1.2, 2.7.10): whether going from `old` to `new` passes `event`.
fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl Descriptor {
    fn parse(raw: &[u8; DESC_SIZE]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        let mut address = [0; 8];
        address.copy_from_slice(&raw[..8]);
        let mut len = [0; 4];
        len.copy_from_slice(&raw[8..12]);
        Self {
            address: BusAddr(u64::from_le_bytes(address)),
            len: u32::from_le_bytes(len),
            flags: u16_at(12),
            next: u16_at(14),
        }
    }
}

fn chain_error(fault: Fault, address: BusAddr, len: u32) -> ChainError {
    match fault {
        Fault::NotMemory => ChainError::Address { address, len },
        Fault::Untranslated => ChainError::Untranslated,
    }
}

/// The state of walking one chain.
struct Walk<'a, 'm> {
    bus: &'m Bus,
    direction: Direction,
    out: &'a mut Vec<Segment<'m>>,
    left: u16,
    total: u32,
}

impl Walk<'_, '_> {
    fn buffer(&mut self, descriptor: Descriptor) -> Result<(), ChainError> {
        self.left = self.left.checked_sub(1).ok_or(ChainError::Loop)?;
        let writable = descriptor.flags & DESC_WRITE != 0;
        if writable != (self.direction == Direction::Writable) {
            return Err(ChainError::Direction);
        }
        let Descriptor { address, len, .. } = descriptor;
        self.total = self.total.checked_add(len).ok_or(ChainError::TooLong)?;
        let access = match self.direction {
            Direction::Readable => Access::Read,
            Direction::Writable => Access::Write,
        };
        self.bus
            .cut(address, len as usize, access, self.out)
            .map_err(|fault| chain_error(fault, address, len))
    }

    fn indirect(&mut self, table: Descriptor) -> Result<(), ChainError> {
        let len = table.len as usize;
        let count = len / DESC_SIZE;
        if len == 0 || len % DESC_SIZE != 0 || count > usize::from(MAX_QUEUE_SIZE) {
            return Err(ChainError::Indirect);
        }
        let mut index = 0u16;
        loop {
            let offset = (usize::from(index) * DESC_SIZE) as u64;
            let mut raw = [0u8; DESC_SIZE];
            let at = table.address.checked_add(offset);
            at.ok_or(Fault::NotMemory)
                .and_then(|at| self.bus.read(at, &mut raw))
                .map_err(|fault| chain_error(fault, table.address, table.len))?;
            let descriptor = Descriptor::parse(&raw);
            if descriptor.flags & DESC_INDIRECT != 0 {
                return Err(ChainError::Indirect);
            }
            self.buffer(descriptor)?;
            if descriptor.flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
            if usize::from(index) >= count {
                return Err(ChainError::Index(index));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_passed_once_also_across_the_wrap() {
        assert!(needs_event(5, 6, 5));
        assert!(!needs_event(6, 6, 5), "not reached");
        assert!(!needs_event(4, 6, 5), "passed before");
        assert!(needs_event(u16::MAX, 1, u16::MAX - 1));
        assert!(!needs_event(1, 1, u16::MAX));
        assert!(!needs_event(5, 5, 5), "nothing new");
    }
}
