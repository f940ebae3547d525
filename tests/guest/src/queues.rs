// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The three virtqueues of the socket device (VIRTIO 1.2, 5.10.2) with their
//! buffers: receive buffers posted and posted again, transmit slots pooled,
//! event buffers. Knows headers as bytes only; the protocol is elsewhere.

use std::sync::Arc;

use thiserror::Error;

use crate::bus::{AddressSpace, Buffer, BusError, Contiguity, Segment};
use crate::memory::GpaRange;
use crate::packet::{Event, Header, HEADER_SIZE};
use crate::ring::{Ring, RingConfig, RingError};
use crate::rng::Rng;
pub use crate::split::Split;

/// Which virtqueue (5.10.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Packets from the device.
    Rx = 0,
    /// Packets to the device.
    Tx = 1,
    /// Events from the device.
    Event = 2,
}

/// Why a queue failed: for good, unless the guest is reset.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The ring.
    #[error("{0:?} queue: {1}")]
    Ring(Queue, #[source] RingError),
    /// Guest memory, or a lack of it.
    #[error("{0:?} queue: {1}")]
    Bus(Queue, #[source] BusError),
}

/// A buffer and the policy under which it was allocated.
#[derive(Debug)]
pub(crate) struct Pooled {
    pub(crate) buffer: Buffer,
    generation: u32,
}

/// Makes buffers of one size where the policy says, and knows which of them
/// are out of date.
#[derive(Debug)]
struct Pool {
    space: Arc<AddressSpace>,
    size: usize,
    within: Option<GpaRange>,
    generation: u32,
    spare: Vec<Pooled>,
    allocated: usize,
    limit: usize,
}

impl Pool {
    fn new(space: &Arc<AddressSpace>, size: usize, limit: usize, within: Option<GpaRange>) -> Pool {
        Pool {
            space: space.clone(),
            size,
            within,
            generation: 0,
            spare: Vec::new(),
            allocated: 0,
            limit,
        }
    }

    /// A buffer; `None` if all that may be are out.
    fn take(&mut self) -> Result<Option<Pooled>, BusError> {
        if let Some(pooled) = self.spare.pop() {
            return Ok(Some(pooled));
        }
        if self.allocated >= self.limit {
            return Ok(None);
        }
        let alloc = self
            .space
            .alloc(self.size, Contiguity::Guest, self.within.as_ref());
        match alloc {
            Ok(buffer) => {
                self.allocated += 1;
                Ok(Some(Pooled {
                    buffer,
                    generation: self.generation,
                }))
            }
            Err(_) if self.allocated > 0 => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn put(&mut self, pooled: Pooled) {
        if pooled.generation == self.generation {
            self.spare.push(pooled);
        } else {
            self.allocated -= 1;
            self.space.free(pooled.buffer);
        }
    }

    fn set_within(&mut self, within: Option<GpaRange>) {
        self.within = within;
        self.generation += 1;
        for pooled in std::mem::take(&mut self.spare) {
            self.put(pooled);
        }
    }
}

/// Receive buffers.
#[derive(Clone, Debug)]
pub struct RxConfig {
    /// How many to post; fewer if the ring holds fewer. 0: none.
    pub buffers: usize,
    /// The size of one in bytes, header included.
    pub size: usize,
    /// How one is cut into descriptors.
    pub split: Split,
}

impl Default for RxConfig {
    fn default() -> Self {
        RxConfig {
            buffers: 128,
            size: 4096,
            split: Split::Whole,
        }
    }
}

/// A packet as the device left it in a receive buffer.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) used_len: u32,
    pub(crate) pooled: Pooled,
}

/// The receive queue.
#[derive(Debug)]
pub(crate) struct RxQueue {
    pub(crate) ring: Ring,
    config: RxConfig,
    pool: Pool,
    posted: Vec<Option<Pooled>>,
    count: usize,
    rng: Rng,
    cuts: Vec<Segment>,
}

impl RxQueue {
    pub(crate) fn new(
        space: &Arc<AddressSpace>,
        ring: RingConfig,
        config: RxConfig,
        within: Option<GpaRange>,
        seed: u64,
    ) -> Result<Self, QueueError> {
        let pool = Pool::new(space, config.size, config.buffers, within);
        Ok(RxQueue {
            posted: (0..ring.size).map(|_| None).collect(),
            ring: new_ring(Queue::Rx, space, ring)?,
            config,
            pool,
            count: 0,
            rng: Rng::new(seed),
            cuts: Vec::new(),
        })
    }

    /// Posts as many buffers as the configuration wants and the ring holds.
    pub(crate) fn fill(&mut self) -> Result<(), QueueError> {
        while self.count < self.config.buffers {
            let taken = self.pool.take();
            let Some(pooled) = taken.map_err(|e| QueueError::Bus(Queue::Rx, e))? else {
                break;
            };
            let (split, max) = (&self.config.split, self.ring.max_chain());
            let segments = pooled.buffer.segments();
            split.cut(
                segments,
                self.config.size,
                max,
                &mut self.rng,
                &mut self.cuts,
            );
            match self.ring.add(&[], &self.cuts) {
                Ok(head) => self.posted[usize::from(head)] = Some(pooled),
                Err(RingError::Full) => {
                    self.pool.put(pooled);
                    break;
                }
                Err(e) => return Err(QueueError::Ring(Queue::Rx, e)),
            }
            self.count += 1;
        }
        Ok(())
    }

    /// The next packet, in the buffer that has it.
    pub(crate) fn pop(&mut self) -> Result<Option<Received>, QueueError> {
        let ring_error = |e| QueueError::Ring(Queue::Rx, e);
        while let Some(used) = self.ring.pop_used().map_err(ring_error)? {
            // A chain that a test posted by hand has no buffer here.
            let Some(pooled) = self.posted[usize::from(used.head)].take() else {
                continue;
            };
            self.count -= 1;
            return Ok(Some(Received {
                used_len: used.len,
                pooled,
            }));
        }
        Ok(None)
    }

    /// Takes a buffer back after its packet was read; `fill` posts it again.
    pub(crate) fn recycle(&mut self, received: Received) {
        self.pool.put(received.pooled);
    }

    pub(crate) fn configure(&mut self, config: RxConfig) {
        let within = self.pool.within.clone();
        self.pool.size = config.size;
        self.pool.limit = config.buffers;
        self.config = config;
        self.pool.set_within(within);
    }

    pub(crate) fn set_within(&mut self, within: Option<GpaRange>) {
        self.pool.set_within(within);
    }

    pub(crate) fn reset(&mut self, base: u16) -> Result<(), QueueError> {
        take_back(&mut self.posted, |p| self.pool.put(p));
        self.count = 0;
        self.ring
            .reset(base)
            .map_err(|e| QueueError::Ring(Queue::Rx, e))
    }
}

/// How much payload goes into one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chunking {
    /// As much as credit and the slot allow.
    #[default]
    Max,
    /// At most so many bytes.
    Fixed(usize),
    /// 1 to so many bytes, by the guest's seed.
    Random(usize),
}

/// Transmission.
#[derive(Clone, Debug)]
pub struct TxConfig {
    /// The most payload of one packet in bytes. Linux's vhost takes 64 KiB.
    pub max_payload: usize,
    /// How data is cut into packets.
    pub chunking: Chunking,
    /// How a packet is cut into descriptors.
    pub split: Split,
    /// Slots for packets of up to a page, header included.
    pub small_slots: usize,
    /// Slots for packets of up to `max_payload`.
    pub large_slots: usize,
}

impl Default for TxConfig {
    fn default() -> Self {
        TxConfig {
            max_payload: 64 << 10,
            chunking: Chunking::Max,
            split: Split::Whole,
            small_slots: 256,
            large_slots: 32,
        }
    }
}

/// Bytes of a small slot.
const SMALL: usize = crate::memory::PAGE_SIZE as usize;

/// A place in the transmit queue for one packet with `room` bytes of payload.
#[derive(Debug)]
pub(crate) struct TxSlot {
    pooled: Pooled,
    large: bool,
    pub(crate) room: usize,
}

/// The transmit queue.
#[derive(Debug)]
pub(crate) struct TxQueue {
    space: Arc<AddressSpace>,
    pub(crate) ring: Ring,
    pub(crate) config: TxConfig,
    small: Pool,
    large: Pool,
    in_flight: Vec<Option<(Pooled, bool)>>,
    rng: Rng,
    cuts: Vec<Segment>,
}

impl TxQueue {
    pub(crate) fn new(
        space: &Arc<AddressSpace>,
        ring: RingConfig,
        config: TxConfig,
        within: Option<GpaRange>,
        seed: u64,
    ) -> Result<Self, QueueError> {
        let large_size = config.max_payload + HEADER_SIZE;
        Ok(TxQueue {
            space: space.clone(),
            in_flight: (0..ring.size).map(|_| None).collect(),
            ring: new_ring(Queue::Tx, space, ring)?,
            small: Pool::new(space, SMALL, config.small_slots, within.clone()),
            large: Pool::new(space, large_size, config.large_slots, within),
            config,
            rng: Rng::new(seed),
            cuts: Vec::new(),
        })
    }

    /// The payload of the next packet when `available` bytes could be sent.
    pub(crate) fn chunk(&mut self, available: usize) -> usize {
        let limit = match self.config.chunking {
            Chunking::Max => self.config.max_payload,
            Chunking::Fixed(n) => n.max(1),
            Chunking::Random(max) => self.rng.up_to(max),
        };
        available.min(limit).min(self.config.max_payload)
    }

    /// A slot for up to `payload` bytes, or `None` while there is none; the
    /// caller fills it at once with [`submit`](Self::submit).
    pub(crate) fn reserve(&mut self, payload: usize) -> Result<Option<TxSlot>, QueueError> {
        // Out of the way of the borrow, not copied: this is the hot path.
        let split = std::mem::take(&mut self.config.split);
        let slot = self.reserve_split(payload, &split);
        self.config.split = split;
        slot
    }

    /// Like [`reserve`](Self::reserve), cut in its own way.
    pub(crate) fn reserve_split(
        &mut self,
        payload: usize,
        split: &Split,
    ) -> Result<Option<TxSlot>, QueueError> {
        let len = HEADER_SIZE + payload;
        let large = len > SMALL;
        let pool = if large {
            &mut self.large
        } else {
            &mut self.small
        };
        let taken = pool.take().map_err(|e| QueueError::Bus(Queue::Tx, e))?;
        let Some(pooled) = taken else {
            return Ok(None);
        };
        let segments = pooled.buffer.segments();
        let max = self.ring.max_chain();
        let covered = split.cut(segments, len, max, &mut self.rng, &mut self.cuts);
        let needed = if self.ring.config().indirect {
            1
        } else {
            self.cuts.len()
        };
        if needed > usize::from(self.ring.state().free) {
            pool.put(pooled);
            return Ok(None);
        }
        let room = covered.saturating_sub(HEADER_SIZE);
        Ok(Some(TxSlot {
            pooled,
            large,
            room,
        }))
    }

    /// Writes a packet into the slot that was just reserved and queues it;
    /// `publish_and_kick` on the ring sends it. `data` is `room` bytes long.
    pub(crate) fn submit(
        &mut self,
        slot: TxSlot,
        header: &Header,
        data: &[u8],
    ) -> Result<(), QueueError> {
        let bus_error = |e| QueueError::Bus(Queue::Tx, e);
        let segments = slot.pooled.buffer.segments();
        let bytes = header.to_bytes();
        self.space.scatter(segments, 0, &bytes).map_err(bus_error)?;
        self.space
            .scatter(segments, HEADER_SIZE, data)
            .map_err(bus_error)?;
        let head = self
            .ring
            .add(&self.cuts, &[])
            .map_err(|e| QueueError::Ring(Queue::Tx, e))?;
        self.in_flight[usize::from(head)] = Some((slot.pooled, slot.large));
        Ok(())
    }

    /// Takes back the slots of packets that the device has consumed.
    pub(crate) fn reclaim(&mut self) -> Result<usize, QueueError> {
        let mut count = 0;
        let ring_error = |e| QueueError::Ring(Queue::Tx, e);
        while let Some(used) = self.ring.pop_used().map_err(ring_error)? {
            self.give_back(used.head);
            count += 1;
        }
        Ok(count)
    }

    /// Frees the slot behind a returned chain, if it is one of the driver's.
    pub(crate) fn give_back(&mut self, head: u16) {
        if let Some((pooled, large)) = self.in_flight[usize::from(head)].take() {
            self.pool(large).put(pooled);
        }
    }

    fn pool(&mut self, large: bool) -> &mut Pool {
        if large {
            &mut self.large
        } else {
            &mut self.small
        }
    }

    pub(crate) fn set_within(&mut self, within: Option<GpaRange>) {
        self.small.set_within(within.clone());
        self.large.set_within(within);
    }

    pub(crate) fn reset(&mut self, base: u16) -> Result<(), QueueError> {
        let (small, large) = (&mut self.small, &mut self.large);
        take_back(&mut self.in_flight, |(p, is_large)| {
            if is_large { &mut *large } else { &mut *small }.put(p)
        });
        self.ring
            .reset(base)
            .map_err(|e| QueueError::Ring(Queue::Tx, e))
    }
}

/// Bytes of struct virtio_vsock_event (5.10.6.7).
const EVENT_SIZE: usize = 4;
/// How many event buffers are posted.
const EVENT_BUFFERS: usize = 8;

/// The event queue.
#[derive(Debug)]
pub(crate) struct EventQueue {
    space: Arc<AddressSpace>,
    pub(crate) ring: Ring,
    pool: Pool,
    posted: Vec<Option<Pooled>>,
}

impl EventQueue {
    pub(crate) fn new(
        space: &Arc<AddressSpace>,
        ring: RingConfig,
        within: Option<GpaRange>,
    ) -> Result<Self, QueueError> {
        Ok(EventQueue {
            space: space.clone(),
            posted: (0..ring.size).map(|_| None).collect(),
            ring: new_ring(Queue::Event, space, ring)?,
            pool: Pool::new(space, EVENT_SIZE, EVENT_BUFFERS, within),
        })
    }

    /// Posts all free event buffers.
    pub(crate) fn fill(&mut self) -> Result<(), QueueError> {
        let bus_error = |e| QueueError::Bus(Queue::Event, e);
        while self.ring.state().free > 0 {
            let Some(pooled) = self.pool.take().map_err(bus_error)? else {
                break;
            };
            let segment = Segment {
                addr: pooled.buffer.addr(),
                len: EVENT_SIZE as u32,
            };
            let head = self
                .ring
                .add(&[], &[segment])
                .map_err(|e| QueueError::Ring(Queue::Event, e))?;
            self.posted[usize::from(head)] = Some(pooled);
        }
        Ok(())
    }

    /// The next event; `None` inside if the device wrote less than one.
    pub(crate) fn pop(&mut self) -> Result<Option<Option<Event>>, QueueError> {
        let ring_error = |e| QueueError::Ring(Queue::Event, e);
        let Some(used) = self.ring.pop_used().map_err(ring_error)? else {
            return Ok(None);
        };
        let Some(pooled) = self.posted[usize::from(used.head)].take() else {
            return Ok(Some(None));
        };
        let mut id = [0; EVENT_SIZE];
        let read = self.space.read(pooled.buffer.addr(), &mut id);
        self.pool.put(pooled);
        read.map_err(|e| QueueError::Bus(Queue::Event, e))?;
        let whole = used.len as usize >= EVENT_SIZE;
        Ok(Some(whole.then_some(Event(u32::from_le_bytes(id)))))
    }

    pub(crate) fn set_within(&mut self, within: Option<GpaRange>) {
        self.pool.set_within(within);
    }

    pub(crate) fn reset(&mut self, base: u16) -> Result<(), QueueError> {
        take_back(&mut self.posted, |p| self.pool.put(p));
        self.ring
            .reset(base)
            .map_err(|e| QueueError::Ring(Queue::Event, e))
    }
}

fn new_ring(q: Queue, space: &Arc<AddressSpace>, config: RingConfig) -> Result<Ring, QueueError> {
    Ring::new(space.clone(), config).map_err(|e| QueueError::Ring(q, e))
}

fn take_back<T>(entries: &mut [Option<T>], mut put: impl FnMut(T)) {
    entries
        .iter_mut()
        .filter_map(Option::take)
        .for_each(&mut put);
}
