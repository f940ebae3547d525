// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rings by hand, for tests that break the rules or look closely.
//!
//! While a [`Raw`] lives the driver's thread does not touch the rings. What
//! received packets mean is up to the test: connections made before hear
//! nothing of them.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bus::{AddressSpace, Buffer, Contiguity, Segment};
use crate::driver::{Guard, Inner};
use crate::engine::Mode;
use crate::eventfd::{wait_any, EventFd};
use crate::memory::GpaRange;
use crate::packet::{Header, Op, HEADER_SIZE};
use crate::queues::{Queue, QueueError, Split};
use crate::ring::{Descriptor, Ring, RingError, Used};

/// A received packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its header; zeros where the device wrote less.
    pub header: Header,
    /// All that the device wrote after the header, whatever `len` says.
    pub payload: Vec<u8>,
    /// How many bytes the device says it wrote.
    pub used_len: u32,
}

/// Exclusive low-level access to the rings.
pub struct Raw {
    inner: Arc<Inner>,
    space: Arc<AddressSpace>,
}

impl Raw {
    pub(crate) fn new(inner: Arc<Inner>, space: Arc<AddressSpace>) -> Self {
        Raw { inner, space }
    }

    /// Guest memory, by bus address.
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// Memory for a chain of one's own; give it back to `space().free()`.
    pub fn alloc(&self, len: usize, within: Option<&GpaRange>) -> io::Result<Buffer> {
        self.space
            .alloc(len, Contiguity::Guest, within)
            .map_err(io::Error::other)
    }

    /// Anything the ring itself can do.
    pub fn with_ring<T>(
        &self,
        queue: Queue,
        act: impl FnOnce(&mut Ring) -> Result<T, RingError>,
    ) -> io::Result<T> {
        act(self.inner.lock().ring(queue)).map_err(io::Error::other)
    }

    /// Queues a chain of any segments, publishes it and kicks as the device
    /// wishes. Returns its head.
    pub fn post(&self, q: Queue, readable: &[Segment], writable: &[Segment]) -> io::Result<u16> {
        self.with_ring(q, |ring| {
            let head = ring.add(readable, writable)?;
            ring.publish_and_kick()?;
            Ok(head)
        })
    }

    /// Writes descriptors exactly as they are into reserved places, makes the
    /// first available and kicks. `next` counts within the slice where it is
    /// smaller than its length; other numbers are written as they are.
    /// Returns the places, to be released when the device has let go.
    pub fn post_descriptors(&self, q: Queue, chain: &[Descriptor]) -> io::Result<Vec<u16>> {
        self.with_ring(q, |ring| {
            let places = ring.reserve(chain.len() as u16)?;
            for (place, descriptor) in places.iter().zip(chain) {
                let mut descriptor = *descriptor;
                if let Some(next) = places.get(usize::from(descriptor.next)) {
                    descriptor.next = *next;
                }
                ring.write_descriptor(*place, descriptor)?;
            }
            ring.add_unchecked(places.first().copied().unwrap_or(u16::MAX))?;
            ring.publish_and_kick()?;
            Ok(places)
        })
    }

    /// Sends a packet with exactly this header.
    pub fn send(&self, header: &Header, payload: &[u8]) -> io::Result<()> {
        let split = self.inner.lock().tx.config.split.clone();
        self.send_split(header, payload, &split)
    }

    /// Sends a packet with exactly this header, cut in this way.
    pub fn send_split(&self, header: &Header, payload: &[u8], split: &Split) -> io::Result<()> {
        let deadline = Instant::now() + self.inner.timeout;
        let mut engine = self.inner.lock();
        loop {
            let reclaimed = engine.tx.reclaim();
            self.settle(&mut engine, reclaimed)?;
            let reserved = engine.tx.reserve_split(payload.len(), split);
            if let Some(slot) = self.settle(&mut engine, reserved)? {
                if slot.room < payload.len() {
                    let why = "so many descriptors do not fit the queue";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
                }
                let sent = engine.tx.submit(slot, header, payload);
                self.settle(&mut engine, sent)?;
                let kicked = engine.kick(Queue::Tx);
                return self.settle(&mut engine, kicked);
            }
            engine = self.await_call(engine, Queue::Tx, deadline)?;
        }
    }

    /// Sends packets without payload that become available all at once.
    /// `WouldBlock`: the queue is too full for so many.
    pub fn send_all(&self, headers: &[Header]) -> io::Result<()> {
        let mut engine = self.inner.lock();
        let reclaimed = engine.tx.reclaim();
        self.settle(&mut engine, reclaimed)?;
        for header in headers {
            let reserved = engine.tx.reserve_split(0, &Split::Whole);
            let slot = self.settle(&mut engine, reserved)?;
            let slot = slot.ok_or(io::ErrorKind::WouldBlock)?;
            let sent = engine.tx.submit(slot, header, &[]);
            self.settle(&mut engine, sent)?;
        }
        let kicked = engine.kick(Queue::Tx);
        self.settle(&mut engine, kicked)
    }

    /// The next packet in a posted receive buffer, which is posted again.
    /// `TimedOut` if none comes.
    pub fn recv(&self, timeout: Duration) -> io::Result<Packet> {
        let deadline = Instant::now() + timeout;
        let mut engine = self.inner.lock();
        loop {
            let popped = engine.rx.pop();
            if let Some(received) = self.settle(&mut engine, popped)? {
                let buffer = &received.pooled.buffer;
                let written = (received.used_len as usize).min(buffer.size());
                let mut bytes = vec![0; written.max(HEADER_SIZE)];
                let gathered = self
                    .space
                    .gather(buffer.segments(), 0, &mut bytes[..written]);
                let payload = bytes.split_off(HEADER_SIZE);
                let mut header = [0; HEADER_SIZE];
                header.copy_from_slice(&bytes);
                let used_len = received.used_len;
                engine.rx.recycle(received);
                gathered.map_err(io::Error::other)?;
                let filled = engine.rx.fill().and_then(|()| engine.kick(Queue::Rx));
                self.settle(&mut engine, filled)?;
                return Ok(Packet {
                    header: Header::from_bytes(&header),
                    payload,
                    used_len,
                });
            }
            engine = self.await_call(engine, Queue::Rx, deadline)?;
        }
    }

    /// The next packet, which has to be of this kind; what came instead is
    /// part of the error.
    pub fn expect(&self, op: Op, timeout: Duration) -> io::Result<Packet> {
        let packet = self.recv(timeout)?;
        if packet.header.op == op {
            return Ok(packet);
        }
        let why = format!("expected {op:?}, got {:?}", packet.header);
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// The next returned chain of a queue, also if it was posted by
    /// [`post`](Self::post). `TimedOut` if none comes.
    pub fn wait_used(&self, queue: Queue, timeout: Duration) -> io::Result<Used> {
        let deadline = Instant::now() + timeout;
        let mut engine = self.inner.lock();
        loop {
            let popped = engine.ring(queue).pop_used();
            if let Some(used) = popped.map_err(io::Error::other)? {
                if queue == Queue::Tx {
                    engine.tx.give_back(used.head);
                }
                return Ok(used);
            }
            engine = self.await_call(engine, queue, deadline)?;
        }
    }

    /// Kicks, wanted or not.
    pub fn kick(&self, queue: Queue) -> io::Result<()> {
        self.inner.lock().ring(queue).kick_fd().signal()
    }

    /// True if the device has called since this was last asked.
    pub fn take_call(&self, queue: Queue) -> io::Result<bool> {
        let call = self.inner.lock().ring(queue).call_fd().clone();
        Ok(call.take()? > 0)
    }

    /// Asks for a call and waits for it, without the lock.
    fn await_call<'a>(
        &'a self,
        mut engine: Guard<'a>,
        queue: Queue,
        deadline: Instant,
    ) -> io::Result<Guard<'a>> {
        let ring = engine.ring(queue);
        if ring.enable_call().map_err(io::Error::other)? {
            return Ok(engine);
        }
        let call: Arc<EventFd> = ring.call_fd().clone();
        drop(engine);
        let left = deadline.saturating_duration_since(Instant::now());
        let [called] = wait_any([&call], Some(left))?;
        if !called && Instant::now() >= deadline {
            let why = format!("timed out: no call on the {queue:?} queue");
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        call.take()?;
        Ok(self.inner.lock())
    }

    fn settle<T>(&self, engine: &mut Guard<'_>, result: Result<T, QueueError>) -> io::Result<T> {
        self.inner.settle(engine, result)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let mut engine = self.inner.lock();
        if engine.mode == Mode::Raw {
            engine.mode = Mode::Driven;
            engine.rescan = true;
        }
        drop(engine);
        self.inner.wake();
    }
}
