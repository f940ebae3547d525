// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`QueueConfig`], what the driver sets up, and [`Queue`], what the device then
//! runs. VIRTIO 1.2, 2.7.
//!
//! As crosvm's, an activated queue trusts that its rings lie in memory and
//! panics when they don't: only their arithmetic is checked. The device must look
//! first.

use std::num::Wrapping;
use std::sync::atomic::{fence, Ordering};

use anyhow::{bail, ensure, Context, Result};
use base::{error, warn, Event};
use serde::{Deserialize, Serialize};
use snapshot::AnySnapshot;
use vm_memory::{GuestAddress, GuestMemory};

use crate::virtio::descriptor_chain::DESCRIPTOR_SIZE;
use crate::virtio::{
    DescriptorChain, Interrupt, VIRTIO_F_RING_PACKED, VIRTIO_MSI_NO_VECTOR, VIRTIO_RING_F_EVENT_IDX,
};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const IN_MEMORY: &str = "the rings of an activated queue lie in memory";

#[derive(Clone, Serialize, Deserialize)]
struct Settings {
    activated: bool,
    max_size: u16,
    size: u16,
    ready: bool,
    vector: u16,
    features: u64,
    acked_features: u64,
    desc_table: GuestAddress,
    avail_ring: GuestAddress,
    used_ring: GuestAddress,
    next_avail: Wrapping<u16>,
    next_used: Wrapping<u16>,
}

/// A queue's settings, which the driver writes.
pub struct QueueConfig(Settings);

macro_rules! setting {
    ($(#[$doc:meta])* $name:ident, $set:ident: $type:ty) => {
        $(#[$doc])*
        pub fn $name(&self) -> $type {
            self.0.$name
        }

        /// Sets it; ignored once the queue is ready.
        pub fn $set(&mut self, val: $type) {
            match self.0.ready {
                true => warn!(concat!("ignoring write to ", stringify!($name), " on ready queue")),
                false => self.0.$name = val,
            }
        }
    };
}

impl QueueConfig {
    /// The settings of a queue of at most `max_size` entries.
    pub fn new(max_size: u16, features: u64) -> Self {
        assert!(max_size > 0 && max_size <= Queue::MAX_SIZE);
        Self(Settings {
            activated: false,
            max_size,
            size: max_size,
            ready: false,
            vector: VIRTIO_MSI_NO_VECTOR,
            features,
            acked_features: 0,
            desc_table: GuestAddress(0),
            avail_ring: GuestAddress(0),
            used_ring: GuestAddress(0),
            next_avail: Wrapping(0),
            next_used: Wrapping(0),
        })
    }

    /// The largest size.
    pub fn max_size(&self) -> u16 {
        self.0.max_size
    }

    /// The size.
    pub fn size(&self) -> u16 {
        self.0.size
    }

    /// Sets the size; ignored once the queue is ready or above the largest.
    pub fn set_size(&mut self, val: u16) {
        if self.0.ready || val > self.0.max_size {
            warn!("ignoring queue size {val}");
            return;
        }
        self.0.size = val;
    }

    setting!(
        /// The MSI-X vector.
        vector, set_vector: u16
    );
    setting!(
        /// Where the descriptors are.
        desc_table, set_desc_table: GuestAddress
    );
    setting!(
        /// Where the available ring is.
        avail_ring, set_avail_ring: GuestAddress
    );
    setting!(
        /// Where the used ring is.
        used_ring, set_used_ring: GuestAddress
    );
    setting!(
        /// The next available entry to process.
        next_avail, set_next_avail: Wrapping<u16>
    );
    setting!(
        /// The next used entry to write.
        next_used, set_next_used: Wrapping<u16>
    );

    /// The features that the driver accepted.
    pub fn acked_features(&self) -> u64 {
        self.0.acked_features
    }

    /// The driver accepts these features.
    pub fn ack_features(&mut self, features: u64) {
        self.0.acked_features |= features & self.0.features;
    }

    /// Whether the driver made the queue ready.
    pub fn ready(&self) -> bool {
        self.0.ready
    }

    /// The driver makes the queue ready, or takes that back.
    pub fn set_ready(&mut self, enable: bool) {
        self.0.ready = enable;
    }

    /// The queue of these settings; only once until a reset.
    pub fn activate(
        &mut self,
        mem: &GuestMemory,
        event: Event,
        interrupt: Interrupt,
    ) -> Result<Queue> {
        ensure!(self.0.ready, "attempted to activate a non-ready queue");
        ensure!(!self.0.activated, "queue is already activated");
        if self.0.acked_features >> VIRTIO_F_RING_PACKED & 1 != 0 {
            bail!("the stand-in has no packed rings");
        }
        let queue = SplitQueue::new(&self.0, mem, event, interrupt)?;
        self.0.activated = true;
        Ok(Queue::SplitVirtQueue(queue))
    }

    /// Back to the settings of a new queue.
    pub fn reset(&mut self) {
        *self = Self::new(self.0.max_size, self.0.features);
    }

    /// The settings, for [`restore`](Self::restore).
    pub fn snapshot(&self) -> Result<AnySnapshot> {
        AnySnapshot::to_any(&self.0)
    }

    /// Takes over the settings of a snapshot.
    pub fn restore(&mut self, data: AnySnapshot) -> Result<()> {
        self.0 = AnySnapshot::from_any(data).context("error deserializing")?;
        Ok(())
    }
}

/// A queue on a packed ring. The stand-in cannot make one.
#[derive(Debug)]
pub enum PackedQueue {}

/// A queue on split rings.
#[derive(Debug)]
pub struct SplitQueue {
    mem: GuestMemory,
    event: Event,
    interrupt: Interrupt,
    state: SplitState,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SplitState {
    size: u16,
    vector: u16,
    desc_table: GuestAddress,
    avail_ring: GuestAddress,
    used_ring: GuestAddress,
    features: u64,
    next_avail: Wrapping<u16>,
    next_used: Wrapping<u16>,
    /// `next_used` at the last interrupt.
    last_used: Wrapping<u16>,
}

impl SplitQueue {
    fn new(
        settings: &Settings,
        mem: &GuestMemory,
        event: Event,
        interrupt: Interrupt,
    ) -> Result<Self> {
        let entries = u64::from(settings.size);
        ensure!(
            settings.size.is_power_of_two(),
            "split queue size {entries} is not a power of 2"
        );
        for (name, start, length) in [
            (
                "descriptor table",
                settings.desc_table,
                DESCRIPTOR_SIZE * entries,
            ),
            ("available ring", settings.avail_ring, 6 + 2 * entries),
            ("used ring", settings.used_ring, 6 + 8 * entries),
        ] {
            let end = start.checked_add(length);
            end.with_context(|| format!("virtio queue {name} goes out of bounds: {start}"))?;
        }
        Ok(Self {
            mem: mem.clone(),
            event,
            interrupt,
            state: SplitState {
                size: settings.size,
                vector: settings.vector,
                desc_table: settings.desc_table,
                avail_ring: settings.avail_ring,
                used_ring: settings.used_ring,
                features: settings.acked_features,
                next_avail: settings.next_avail,
                next_used: settings.next_used,
                last_used: Wrapping(0),
            },
        })
    }

    fn load(&self, addr: GuestAddress) -> u16 {
        let value = self.mem.read_obj_from_addr_volatile::<u16>(addr);
        u16::from_le(value.expect(IN_MEMORY))
    }

    fn store(&self, value: u16, addr: GuestAddress) {
        let stored = self.mem.write_obj_at_addr_volatile(value.to_le(), addr);
        stored.expect(IN_MEMORY);
    }

    fn by_index(&self) -> bool {
        self.state.features >> VIRTIO_RING_F_EVENT_IDX & 1 != 0
    }

    fn slot(&self, index: Wrapping<u16>) -> u64 {
        u64::from(index.0 % self.state.size)
    }

    /// The next chain, without taking it; none when it is not valid.
    fn peek(&self) -> Option<DescriptorChain> {
        let state = &self.state;
        if self.load(state.avail_ring.unchecked_add(2)) == state.next_avail.0 {
            return None;
        }
        // What the driver wrote before the index is read after it.
        fence(Ordering::Acquire);
        let entry = 4 + 2 * self.slot(state.next_avail);
        let head = self.load(state.avail_ring.unchecked_add(entry));
        let chain = DescriptorChain::walk(&self.mem, state.desc_table, state.size, head);
        chain.inspect_err(|e| error!("{e:#}")).ok()
    }

    fn pop(&mut self) -> Option<DescriptorChain> {
        let chain = self.peek()?;
        self.state.next_avail += 1;
        if self.by_index() {
            fence(Ordering::SeqCst);
            let avail_event = 4 + 8 * u64::from(self.state.size);
            let addr = self.state.used_ring.unchecked_add(avail_event);
            self.store(self.state.next_avail.0, addr);
        }
        Some(chain)
    }

    fn add_used(&mut self, chain: &DescriptorChain, len: u32) {
        let entry = 4 + 8 * self.slot(self.state.next_used);
        let element = u64::from(chain.index()) | u64::from(len) << 32;
        let addr = self.state.used_ring.unchecked_add(entry);
        let written = self.mem.write_obj_at_addr(element.to_le(), addr);
        written.expect(IN_MEMORY);
        self.state.next_used += 1;
        // The driver sees the element before the index.
        fence(Ordering::Release);
        let index = self.state.used_ring.unchecked_add(2);
        self.store(self.state.next_used.0, index);
    }

    /// VIRTIO 1.2, 2.7.7.2.
    fn wants_interrupt(&self) -> bool {
        fence(Ordering::SeqCst);
        let state = &self.state;
        if !self.by_index() {
            return self.load(state.avail_ring) & AVAIL_F_NO_INTERRUPT == 0;
        }
        let used_event = 4 + 2 * u64::from(state.size);
        let used_event = self.load(state.avail_ring.unchecked_add(used_event));
        let since_asked = state.next_used - Wrapping(used_event) - Wrapping(1);
        since_asked < state.next_used - state.last_used
    }

    fn trigger_interrupt(&mut self) -> bool {
        let wanted = self.wants_interrupt();
        if wanted {
            self.state.last_used = self.state.next_used;
            self.interrupt.signal_used_queue(self.state.vector);
        }
        wanted
    }

    fn vhost_user_reclaim(&mut self, vring_base: u16) {
        self.state.next_avail = Wrapping(vring_base);
        self.state.next_used = Wrapping(self.load(self.state.used_ring.unchecked_add(2)));
        self.state.last_used = Wrapping(0);
    }
}

/// A queue that the device runs.
#[derive(Debug)]
pub enum Queue {
    /// On split rings.
    SplitVirtQueue(SplitQueue),
    /// On a packed ring.
    PackedVirtQueue(PackedQueue),
}

impl Queue {
    /// The largest number of entries.
    pub const MAX_SIZE: u16 = 32768;

    fn split(&self) -> &SplitQueue {
        match self {
            Queue::SplitVirtQueue(queue) => queue,
            Queue::PackedVirtQueue(queue) => match *queue {},
        }
    }

    fn split_mut(&mut self) -> &mut SplitQueue {
        match self {
            Queue::SplitVirtQueue(queue) => queue,
            Queue::PackedVirtQueue(queue) => match *queue {},
        }
    }

    /// Takes the next chain that the driver made available.
    ///
    /// None as well when that chain is not valid: it stays, and so does the queue.
    pub fn pop(&mut self) -> Option<DescriptorChain> {
        self.split_mut().pop()
    }

    /// Gives a chain back, with what its writer wrote.
    pub fn add_used(&mut self, desc_chain: DescriptorChain) {
        let written = desc_chain.writer.bytes_written();
        let len = u32::try_from(written).expect("a chain is shorter than 4 GiB");
        self.add_used_with_bytes_written(desc_chain, len);
    }

    /// Gives a chain back, saying that `len` bytes were written.
    pub fn add_used_with_bytes_written(&mut self, desc_chain: DescriptorChain, len: u32) {
        self.split_mut().add_used(&desc_chain, len);
    }

    /// Interrupts the driver if it wants to be; tells whether.
    pub fn trigger_interrupt(&mut self) -> bool {
        self.split_mut().trigger_interrupt()
    }

    /// Goes on where another process left off.
    pub fn vhost_user_reclaim(&mut self, vring_base: u16) {
        self.split_mut().vhost_user_reclaim(vring_base);
    }

    /// The next available entry to process.
    pub fn next_avail_to_process(&self) -> u16 {
        self.split().state.next_avail.0
    }

    /// The MSI-X vector.
    pub fn vector(&self) -> u16 {
        self.split().state.vector
    }

    /// Where the descriptors are.
    pub fn desc_table(&self) -> GuestAddress {
        self.split().state.desc_table
    }

    /// Where the available ring is.
    pub fn avail_ring(&self) -> GuestAddress {
        self.split().state.avail_ring
    }

    /// Where the used ring is.
    pub fn used_ring(&self) -> GuestAddress {
        self.split().state.used_ring
    }

    /// The number of entries.
    pub fn size(&self) -> u16 {
        self.split().state.size
    }

    /// What the driver signals.
    pub fn event(&self) -> &Event {
        &self.split().event
    }

    /// How the driver is reached.
    pub fn interrupt(&self) -> &Interrupt {
        &self.split().interrupt
    }

    /// The state, for [`restore`](Self::restore).
    pub fn snapshot(&self) -> Result<AnySnapshot> {
        AnySnapshot::to_any(&self.split().state)
    }

    /// A queue in the state of a snapshot.
    pub fn restore(
        _queue_config: &QueueConfig,
        queue_value: AnySnapshot,
        mem: &GuestMemory,
        event: Event,
        interrupt: Interrupt,
    ) -> Result<Queue> {
        Ok(Queue::SplitVirtQueue(SplitQueue {
            mem: mem.clone(),
            event,
            interrupt,
            state: AnySnapshot::from_any(queue_value)?,
        }))
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
