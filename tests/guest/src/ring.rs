// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's side of a split virtqueue (VIRTIO 1.2, 2.7).
//!
//! Keeps its own account of which descriptors are in flight and never reads
//! one back from shared memory, so whatever the device writes there shows up
//! as an error here. Limits: a chain is at most as long as the queue, also
//! when indirect (2.7.5.3.1), and the ring never waits: the caller does.

use std::sync::atomic::{fence, Ordering};
use std::sync::Arc;

use thiserror::Error;

use crate::bus::{AddressSpace, Buffer, BusAddr, BusError, Contiguity, Segment};
use crate::eventfd::EventFd;
use crate::memory::GpaRange;

/// The largest queue (2.7: "Queue Size value ... maximum is 32768").
pub const MAX_SIZE: u16 = 32768;

/// Flags of a descriptor (2.7.5).
pub mod descriptor_flags {
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device writes; without it, it reads.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors (2.7.5.3).
    pub const INDIRECT: u16 = 4;
}

/// `flags` of the available ring: don't call me (2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;
/// `flags` of the used ring: don't kick me (2.7.8).
const USED_NO_NOTIFY: u16 = 1;

/// Bytes of a descriptor.
const DESCRIPTOR_SIZE: usize = 16;

/// One entry of the descriptor table (2.7.5), in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Where the buffer begins.
    pub addr: BusAddr,
    /// Its size in bytes.
    pub len: u32,
    /// See [`descriptor_flags`].
    pub flags: u16,
    /// The next of the chain, if `NEXT` is set.
    pub next: u16,
}

impl Descriptor {
    fn to_bytes(self) -> [u8; DESCRIPTOR_SIZE] {
        let mut out = [0; DESCRIPTOR_SIZE];
        out[..8].copy_from_slice(&self.addr.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..14].copy_from_slice(&self.flags.to_le_bytes());
        out[14..].copy_from_slice(&self.next.to_le_bytes());
        out
    }
}

/// What the driver and the device agreed on, and where the ring may lie.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// How many descriptors: a power of two, 2 to 32768.
    pub size: u16,
    /// VIRTIO_F_EVENT_IDX (29) was negotiated.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC (28) was negotiated: chains of more than one
    /// descriptor go into an indirect table.
    pub indirect: bool,
    /// Where in guest memory the ring must lie, if anywhere.
    pub within: Option<GpaRange>,
}

/// Why a ring operation failed.
#[derive(Debug, Error)]
pub enum RingError {
    /// Not a power of two in 2..=32768.
    #[error("queue size {0} is not a power of two from 2 to 32768")]
    BadSize(u16),
    /// Not enough free descriptors now.
    #[error("the ring is full")]
    Full,
    /// No descriptor at all, or more than the queue has.
    #[error("a chain of {len} descriptors does not fit a queue of {size}")]
    BadChain {
        /// Its length.
        len: usize,
        /// The queue's size.
        size: u16,
    },
    /// The device returned a buffer that it does not have.
    #[error("the device used descriptor {0}, which is not the head of a buffer in flight")]
    BadUsedId(u32),
    /// The device returned more buffers than it has.
    #[error("used index {used} is ahead of {seen} by more than the {in_flight} buffers in flight")]
    BadUsedIndex {
        /// What the device published.
        used: u16,
        /// The last the driver has seen.
        seen: u16,
        /// How many buffers the device has.
        in_flight: u16,
    },
    /// Guest memory behind the ring.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The kick eventfd.
    #[error("cannot kick: {0}")]
    Kick(#[source] std::io::Error),
}

/// A buffer that the device has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The head that [`Ring::add`] returned.
    pub head: u16,
    /// How many bytes the device says it wrote.
    pub len: u32,
}

/// The three areas of a ring as the device is told them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub desc: BusAddr,
    /// The available ring, written by the driver.
    pub avail: BusAddr,
    /// The used ring, written by the device.
    pub used: BusAddr,
}

/// Where a ring stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingState {
    /// The index of the next available entry to publish.
    pub next_avail: u16,
    /// The index of the next used entry to read.
    pub last_used: u16,
    /// Chains that the device has.
    pub in_flight: u16,
    /// Descriptors that are free.
    pub free: u16,
}

/// True if going from `old` to `new` passes `event` (2.7.7.1, 2.7.10).
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// What the driver remembers of one descriptor.
#[derive(Debug, Default)]
struct Slot {
    /// The next free one, or the next of this chain.
    next: u16,
    /// As a head in flight: how many descriptors of the table it holds.
    held: u16,
    /// The indirect table of chains that begin here, kept for the next one.
    table: Option<Buffer>,
}

/// A split virtqueue.
#[derive(Debug)]
pub struct Ring {
    space: Arc<AddressSpace>,
    config: RingConfig,
    desc: Buffer,
    avail: Buffer,
    used: Buffer,
    slots: Vec<Slot>,
    free_head: u16,
    free: u16,
    in_flight: u16,
    /// Heads posted by `add_unchecked` and not yet returned.
    unchecked: u16,
    next_avail: u16,
    /// `next_avail` when the device was last considered for a kick.
    kicked: u16,
    last_used: u16,
    kick: Arc<EventFd>,
    call: Arc<EventFd>,
}

impl Ring {
    /// Allocates a ring, empty, both indices 0.
    pub fn new(space: Arc<AddressSpace>, config: RingConfig) -> Result<Self, RingError> {
        let size = config.size;
        if !size.is_power_of_two() || size < 2 {
            return Err(RingError::BadSize(size));
        }
        let n = usize::from(size);
        let alloc = |len| space.alloc(len, Contiguity::Bus, config.within.as_ref());
        let (desc, avail, used) = (
            alloc(DESCRIPTOR_SIZE * n)?,
            alloc(6 + 2 * n)?,
            alloc(6 + 8 * n)?,
        );
        let eventfd = || EventFd::new().map(Arc::new).map_err(RingError::Kick);
        let (kick, call) = (eventfd()?, eventfd()?);
        let mut ring = Ring {
            space,
            config,
            desc,
            avail,
            used,
            slots: std::iter::repeat_with(Slot::default).take(n).collect(),
            free_head: 0,
            free: 0,
            in_flight: 0,
            unchecked: 0,
            next_avail: 0,
            kicked: 0,
            last_used: 0,
            kick,
            call,
        };
        ring.reset(0)?;
        Ok(ring)
    }

    /// Forgets everything in flight and begins again with both indices at
    /// `base`; the device must not use the ring, and must be told `base`.
    pub fn reset(&mut self, base: u16) -> Result<(), RingError> {
        for area in [&self.desc, &self.avail, &self.used] {
            self.space.write(area.addr(), &vec![0; area.size()])?;
        }
        let last = self.slots.len() - 1;
        for (i, slot) in self.slots.iter_mut().enumerate() {
            slot.next = (if i == last { 0 } else { i + 1 }) as u16;
            slot.held = 0;
        }
        (self.free_head, self.free) = (0, self.config.size);
        (self.in_flight, self.unchecked) = (0, 0);
        (self.next_avail, self.kicked, self.last_used) = (base, base, base);
        self.store(&self.avail, 2, base, Ordering::Release)?;
        self.store(&self.used, 2, base, Ordering::Release)?;
        self.enable_call()?;
        Ok(())
    }

    /// What it was made with.
    pub fn config(&self) -> &RingConfig {
        &self.config
    }

    /// Where its areas are.
    pub fn addresses(&self) -> RingAddresses {
        RingAddresses {
            desc: self.desc.addr(),
            avail: self.avail.addr(),
            used: self.used.addr(),
        }
    }

    /// Where it stands.
    pub fn state(&self) -> RingState {
        RingState {
            next_avail: self.next_avail,
            last_used: self.last_used,
            in_flight: self.in_flight,
            free: self.free,
        }
    }

    /// Signalled by the driver when the device has something to do.
    pub fn kick_fd(&self) -> &Arc<EventFd> {
        &self.kick
    }

    /// Signalled by the device when it has used buffers.
    pub fn call_fd(&self) -> &Arc<EventFd> {
        &self.call
    }

    /// How many descriptors one chain may have.
    pub fn max_chain(&self) -> usize {
        self.slots.len()
    }

    /// Queues a buffer: first the parts that the device reads, then those it
    /// writes (2.7.4.2). The device sees it after [`publish`](Self::publish).
    pub fn add(&mut self, readable: &[Segment], writable: &[Segment]) -> Result<u16, RingError> {
        let len = readable.len() + writable.len();
        let size = self.config.size;
        if len == 0 || len > self.max_chain() {
            return Err(RingError::BadChain { len, size });
        }
        let chain = readable
            .iter()
            .map(|s| (s, 0))
            .chain(writable.iter().map(|s| (s, descriptor_flags::WRITE)));
        let head = self.free_head;
        let held = if self.config.indirect && len > 1 {
            1
        } else {
            len as u16
        };
        if held > self.free {
            return Err(RingError::Full);
        }
        if held == 1 && len > 1 {
            self.write_table(head, chain, len)?;
            self.free_head = self.slots[usize::from(head)].next;
        } else {
            let mut at = head;
            for (i, (segment, flags)) in chain.enumerate() {
                let next = self.slots[usize::from(at)].next;
                let more = i + 1 < len;
                let descriptor = Descriptor {
                    addr: segment.addr,
                    len: segment.len,
                    flags: flags | if more { descriptor_flags::NEXT } else { 0 },
                    next: if more { next } else { 0 },
                };
                self.write_descriptor(at, descriptor)?;
                (self.free_head, at) = (next, next);
            }
        }
        self.slots[usize::from(head)].held = held;
        self.free -= held;
        self.in_flight += 1;
        self.push(head)?;
        Ok(head)
    }

    fn write_table<'a>(
        &mut self,
        head: u16,
        chain: impl Iterator<Item = (&'a Segment, u16)>,
        len: usize,
    ) -> Result<(), RingError> {
        let bytes = len * DESCRIPTOR_SIZE;
        let slot = &mut self.slots[usize::from(head)];
        if let Some(small) = slot.table.take_if(|t| t.size() < bytes) {
            self.space.free(small);
        }
        if slot.table.is_none() {
            let within = self.config.within.as_ref();
            slot.table = Some(self.space.alloc(bytes, Contiguity::Bus, within)?);
        }
        let table = slot.table.as_ref().map_or(BusAddr(0), Buffer::addr);
        for (i, (segment, flags)) in chain.enumerate() {
            let more = i + 1 < len;
            let descriptor = Descriptor {
                addr: segment.addr,
                len: segment.len,
                flags: flags | if more { descriptor_flags::NEXT } else { 0 },
                next: if more { i as u16 + 1 } else { 0 },
            };
            let at = table.at((i * DESCRIPTOR_SIZE) as u64);
            self.space.write(at, &descriptor.to_bytes())?;
        }
        let descriptor = Descriptor {
            addr: table,
            len: bytes as u32,
            flags: descriptor_flags::INDIRECT,
            next: 0,
        };
        self.write_descriptor(head, descriptor)
    }

    /// Writes a descriptor, whatever it says. For tests that break the rules.
    pub fn write_descriptor(&self, index: u16, d: Descriptor) -> Result<(), RingError> {
        let at = self
            .desc
            .addr()
            .at(u64::from(index) * DESCRIPTOR_SIZE as u64);
        Ok(self.space.write(at, &d.to_bytes())?)
    }

    /// Takes `count` free descriptors out of the ring's hands, for chains
    /// written by [`write_descriptor`](Self::write_descriptor).
    pub fn reserve(&mut self, count: u16) -> Result<Vec<u16>, RingError> {
        if count > self.free {
            return Err(RingError::Full);
        }
        self.free -= count;
        let take = |_| {
            let index = self.free_head;
            self.free_head = self.slots[usize::from(index)].next;
            index
        };
        Ok((0..count).map(take).collect())
    }

    /// Gives reserved descriptors back.
    pub fn release(&mut self, indices: &[u16]) {
        for &index in indices {
            self.slots[usize::from(index)].next = self.free_head;
            self.free_head = index;
            self.free += 1;
        }
    }

    /// Makes any number available as a head, without a look at what it is.
    /// Its return is accepted once, also if its number is nonsense.
    pub fn add_unchecked(&mut self, head: u16) -> Result<(), RingError> {
        self.unchecked += 1;
        self.in_flight += 1;
        self.push(head)
    }

    fn push(&mut self, head: u16) -> Result<(), RingError> {
        let entry = u64::from(self.next_avail % self.config.size);
        self.store(&self.avail, 4 + 2 * entry, head, Ordering::Relaxed)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    /// Shows the device everything added so far (2.7.13.3: after a barrier).
    pub fn publish(&self) -> Result<(), RingError> {
        self.store(&self.avail, 2, self.next_avail, Ordering::Release)
    }

    /// Publishes, and kicks the device if it wants to be. Returns whether it
    /// was kicked.
    pub fn publish_and_kick(&mut self) -> Result<bool, RingError> {
        if self.kicked == self.next_avail {
            return Ok(false);
        }
        self.publish()?;
        // 2.7.13.4: the index must be visible before the device's wish is
        // read, or both sides can miss each other.
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked, self.next_avail);
        self.kicked = new;
        let wanted = if self.config.event_idx {
            let at = 4 + 8 * u64::from(self.config.size);
            need_event(self.load(&self.used, at, Ordering::Acquire)?, new, old)
        } else {
            self.load(&self.used, 0, Ordering::Acquire)? & USED_NO_NOTIFY == 0
        };
        if wanted {
            self.kick.signal().map_err(RingError::Kick)?;
        }
        Ok(wanted)
    }

    /// True if the device has returned buffers that were not taken yet.
    pub fn has_used(&self) -> Result<bool, RingError> {
        Ok(self.load(&self.used, 2, Ordering::Acquire)? != self.last_used)
    }

    /// Takes the next buffer that the device has returned.
    pub fn pop_used(&mut self) -> Result<Option<Used>, RingError> {
        let used = self.load(&self.used, 2, Ordering::Acquire)?;
        if used == self.last_used {
            return Ok(None);
        }
        if used.wrapping_sub(self.last_used) > self.in_flight {
            return Err(RingError::BadUsedIndex {
                used,
                seen: self.last_used,
                in_flight: self.in_flight,
            });
        }
        let entry = u64::from(self.last_used % self.config.size);
        let mut element = [0; 8];
        self.space
            .read(self.used.addr().at(4 + 8 * entry), &mut element)?;
        let [a, b, c, d, e, f, g, h] = element;
        let (id, len) = (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        );
        let slot = self.slots.get(id as usize);
        match slot.map(|s| s.held) {
            Some(held) if held > 0 => self.release_chain(id as u16, held),
            _ if self.unchecked > 0 => self.unchecked -= 1,
            _ => return Err(RingError::BadUsedId(id)),
        }
        self.last_used = self.last_used.wrapping_add(1);
        self.in_flight -= 1;
        Ok(Some(Used {
            head: id as u16,
            len,
        }))
    }

    fn release_chain(&mut self, head: u16, held: u16) {
        let mut last = usize::from(head);
        self.slots[last].held = 0;
        for _ in 1..held {
            last = usize::from(self.slots[last].next);
        }
        self.slots[last].next = self.free_head;
        self.free_head = head;
        self.free += held;
    }

    /// Asks the device for a call at the next buffer it returns. True if it
    /// has returned some already: then no call may come for them (2.7.14).
    pub fn enable_call(&self) -> Result<bool, RingError> {
        if self.config.event_idx {
            self.store_used_event(self.last_used)?;
        } else {
            self.store(&self.avail, 0, 0, Ordering::Release)?;
        }
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks the device not to call: a hint, it still may.
    pub fn disable_call(&self) -> Result<(), RingError> {
        if self.config.event_idx {
            // An index already passed: not reached again for 65535 entries.
            self.store_used_event(self.last_used.wrapping_sub(1))
        } else {
            self.store(&self.avail, 0, AVAIL_NO_INTERRUPT, Ordering::Release)
        }
    }

    fn store_used_event(&self, index: u16) -> Result<(), RingError> {
        let at = 4 + 2 * u64::from(self.config.size);
        self.store(&self.avail, at, index, Ordering::Release)
    }

    fn load(&self, area: &Buffer, offset: u64, order: Ordering) -> Result<u16, RingError> {
        Ok(self.space.load_u16(area.addr().at(offset), order)?)
    }

    fn store(&self, area: &Buffer, offset: u64, v: u16, order: Ordering) -> Result<(), RingError> {
        Ok(self.space.store_u16(area.addr().at(offset), v, order)?)
    }
}

#[cfg(test)]
#[path = "ring_test.rs"]
mod tests;
