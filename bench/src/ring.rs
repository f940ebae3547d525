// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's side of a split virtqueue, with as little between the measurement and
//! the device as can be: descriptors are written once, entries are published once a
//! batch, and the device is trusted. For a driver that trusts nobody see `guest_driver`.
//!
//! Limits: VIRTIO_F_EVENT_IDX is negotiated; chains are direct.

use std::sync::atomic::{fence, Ordering};
use std::sync::Arc;

use anyhow::Result;
use guest_driver::memory::{Gpa, GuestMemory};

/// `VIRTQ_DESC_F_NEXT`: the chain goes on (VIRTIO 1.2, 2.7.5).
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: for the device to write.
pub const WRITE: u16 = 2;

/// Size of a descriptor in bytes.
const DESCRIPTOR: u64 = 16;

/// Where the three parts of a ring are.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The descriptor table.
    pub descriptors: Gpa,
    /// The available ring.
    pub available: Gpa,
    /// The used ring.
    pub used: Gpa,
}

/// A ring.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<GuestMemory>,
    place: Place,
    size: u16,
    next_available: u16,
    published: u16,
    next_used: u16,
}

impl Ring {
    /// Bytes that a ring of `size` entries takes.
    pub fn bytes(size: u16) -> u64 {
        let entries = u64::from(size);
        DESCRIPTOR * entries + (8 + 2 * entries) + (8 + 8 * entries)
    }

    /// A ring of `size` entries in the zeroed memory at `start`, which is page-aligned.
    pub fn new(memory: &Arc<GuestMemory>, start: Gpa, size: u16) -> Self {
        let entries = u64::from(size);
        let available = start.0 + DESCRIPTOR * entries;
        Self {
            memory: memory.clone(),
            place: Place {
                descriptors: start,
                available: Gpa(available),
                used: Gpa(available + 8 + 2 * entries),
            },
            size,
            next_available: 0,
            published: 0,
            next_used: 0,
        }
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Its entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, gpa: Gpa, len: u32, flags: u16, next: u16) -> Result<()> {
        let mut raw = [0; DESCRIPTOR as usize];
        raw[..8].copy_from_slice(&gpa.0.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        let at = Gpa(self.place.descriptors.0 + DESCRIPTOR * u64::from(index));
        Ok(self.memory.write(at, &raw)?)
    }

    /// Makes a chain available with the next [`publish`](Self::publish).
    pub fn offer(&mut self, head: u16) -> Result<()> {
        let slot = u64::from(self.next_available % self.size);
        let at = Gpa(self.place.available.0 + 4 + 2 * slot);
        self.memory.store_u16(at, head, Ordering::Relaxed)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(())
    }

    /// Shows the device what was offered. Whether it wants to be kicked.
    pub fn publish(&mut self) -> Result<bool> {
        let (old, new) = (self.published, self.next_available);
        if old == new {
            return Ok(false);
        }
        let index = Gpa(self.place.available.0 + 2);
        self.memory.store_u16(index, new, Ordering::Release)?;
        self.published = new;
        // 2.7.13.4: the index must be visible before the device's wish is read.
        fence(Ordering::SeqCst);
        let event = Gpa(self.place.used.0 + 4 + 8 * u64::from(self.size));
        let event = self.memory.load_u16(event, Ordering::Relaxed)?;
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// Whether the device has used chains that were not taken yet.
    pub fn has_used(&self) -> Result<bool> {
        let index = Gpa(self.place.used.0 + 2);
        Ok(self.memory.load_u16(index, Ordering::Acquire)? != self.next_used)
    }

    /// Takes a chain that the device has used: its head.
    pub fn take_used(&mut self) -> Result<Option<u16>> {
        if !self.has_used()? {
            return Ok(None);
        }
        let slot = u64::from(self.next_used % self.size);
        let mut id = [0; 2];
        let at = Gpa(self.place.used.0 + 4 + 8 * slot);
        self.memory.read(at, &mut id)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(u16::from_le_bytes(id)))
    }

    /// Asks the device to call when it uses the next chain. Whether it has done so
    /// meanwhile. Until this is said again, the stale index keeps it quiet.
    pub fn enable_call(&self) -> Result<bool> {
        let at = Gpa(self.place.available.0 + 4 + 2 * u64::from(self.size));
        self.memory
            .store_u16(at, self.next_used, Ordering::Relaxed)?;
        fence(Ordering::SeqCst);
        self.has_used()
    }
}
