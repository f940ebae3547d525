// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a queue handler does with addresses: the rings first, then one descriptor.

use crosvm_vsock::address::{Address, BusAddr, Gpa, Hva, Iova, Range};
use crosvm_vsock::features::Feature;
use crosvm_vsock::kernel::{Access, QueueIndex};
use crosvm_vsock::memory::MemoryMap;

use crate::iotlb::Hole;
use crate::kernel::ModelKernel;
use crate::state::index;
use crate::vring::NOWHERE;

/// How far a handler came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It used the buffer: these host addresses.
    Done(Vec<Range<Hva>>),
    /// It asked for an address and idles until an update wakes it.
    Missed,
    /// It signalled the queue's error event and gave up, for this reason.
    Refused(i32),
    /// It gave up without a word: a ring with too little access, or no address.
    SilentStall,
    /// The queue is not started.
    Stopped,
}

impl ModelKernel {
    /// Runs the handler of `queue` over one buffer, as its descriptor names it
    /// (`vq_meta_prefetch`, then `translate_desc`). `access` is `Read` for what
    /// the guest sends and `Write` for what it receives.
    pub fn access(&self, queue: QueueIndex, at: BusAddr, size: u64, access: Access) -> Outcome {
        let mut state = self.state();
        let outcome = state.handle(queue, at, size, access as u8);
        self.update_waiting(&state);
        outcome
    }

    /// Whether the handler finds each ring of `queue` in one entry, which keeps
    /// its metadata cache (`vhost_vq_meta_update`).
    pub fn caches_rings(&self, queue: QueueIndex) -> bool {
        let state = self.state();
        let event_idx = state.acked.has(Feature::EVENT_IDX);
        let rings = state.vrings[index(queue)].rings(event_idx);
        state.iotlb.as_ref().is_some_and(|table| {
            let entries = table.entries();
            rings
                .iter()
                .all(|(ring, _)| entries.iter().any(|entry| entry.range.covers(ring)))
        })
    }
}

impl crate::state::State {
    fn handle(&mut self, queue: QueueIndex, at: BusAddr, size: u64, perm: u8) -> Outcome {
        let vring = &self.vrings[index(queue)];
        if !vring.backend {
            return Outcome::Stopped;
        }
        if vring.addresses == NOWHERE {
            return Outcome::SilentStall;
        }
        let Some(table) = &self.iotlb else {
            return match self.reaches_rings(queue) {
                true => self.handle_untranslated(queue, at, size),
                false => self.refuse(queue, libc::EFAULT),
            };
        };
        let rings = vring.rings(self.acked.has(Feature::EVENT_IDX));
        for (ring, ring_perm) in rings {
            match table.walk(ring, ring_perm) {
                Ok(_) => {}
                Err(Hole::Missing(iova)) => {
                    self.miss(queue, iova, ring_perm);
                    return Outcome::Missed;
                }
                Err(Hole::Forbidden) => return Outcome::SilentStall,
            }
        }
        let buffer = Range::new(Iova(at.raw()), size);
        match buffer.map(|buffer| table.walk(buffer, perm)) {
            Ok(Ok(pieces)) => self.done(queue, pieces),
            Ok(Err(Hole::Missing(iova))) => {
                self.miss(queue, iova, perm);
                Outcome::Missed
            }
            Ok(Err(Hole::Forbidden)) => self.refuse(queue, libc::EPERM),
            Err(_) => self.refuse(queue, libc::EFAULT),
        }
    }

    /// Whether a handler could use a byte of one of its rings.
    pub(crate) fn reaches_rings(&self, queue: QueueIndex) -> bool {
        let event_idx = self.acked.has(Feature::EVENT_IDX);
        let rings = self.vrings[index(queue)].rings(event_idx);
        rings.iter().any(|(ring, _)| match &self.iotlb {
            Some(table) => table.entries().iter().any(|old| old.range.overlaps(ring)),
            None => ring.at(Hva(ring.first().raw())).is_some_and(|host| {
                let regions = self.memory.iter().flat_map(MemoryMap::regions);
                regions
                    .into_iter()
                    .any(|region| region.hva().overlaps(&host))
            }),
        })
    }

    /// Without the IOTLB a descriptor's address is looked up in the memory table.
    fn handle_untranslated(&mut self, queue: QueueIndex, at: BusAddr, size: u64) -> Outcome {
        let buffer = Range::new(Gpa(at.raw()), size).ok();
        let pieces = buffer.zip(self.memory.as_ref()).map(|(buffer, memory)| {
            let pieces: Vec<_> = memory.parts(buffer).map(|(_, host)| host).collect();
            let found = pieces.iter().filter_map(Range::size).map(|size| size.get());
            (found.sum::<u64>() == size).then_some(pieces)
        });
        match pieces.flatten() {
            Some(pieces) => self.done(queue, pieces),
            None => self.refuse(queue, libc::EFAULT),
        }
    }

    fn done(&mut self, queue: QueueIndex, pieces: Vec<Range<Hva>>) -> Outcome {
        let vring = &mut self.vrings[index(queue)];
        vring.next_avail = vring.next_avail.wrapping_add(1);
        Outcome::Done(pieces)
    }

    fn refuse(&self, queue: QueueIndex, errno: i32) -> Outcome {
        self.vrings[index(queue)].signal_error();
        Outcome::Refused(errno)
    }
}
