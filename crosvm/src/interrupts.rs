// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the kernel's calls for used buffers reach the guest.
//!
//! On an unmodified crosvm the kernel signals an event of ours, and the worker
//! relays it. With the feature `msix-status` an unmasked vector's irqfd goes to
//! the kernel itself, and follows masking: no thread is woken for an interrupt.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use base::{error, Event, EventWaitResult};
use devices::virtio::{Interrupt, Queue};

use crate::guest_memory::{RX, TX};

/// `VIRTIO_MSI_NO_VECTOR` (VIRTIO 1.2, 4.1.4.3).
const NO_VECTOR: u16 = 0xffff;

/// What the kernel signals for used buffers of the two queues that it serves, and
/// where that goes.
pub struct Calls {
    events: [Event; 2],
    vectors: [u16; 2],
    interrupt: Interrupt,
}

impl Calls {
    /// For these queues, with the vectors that they have now.
    pub fn new(queues: &BTreeMap<usize, Queue>, interrupt: &Interrupt) -> Result<Self> {
        let event = || Event::new().context("an event for interrupts");
        let vector = |index| queues.get(index).map_or(NO_VECTOR, Queue::vector);
        Ok(Self {
            events: [event()?, event()?],
            vectors: [vector(&RX), vector(&TX)],
            interrupt: interrupt.clone(),
        })
    }

    /// The event of a queue that is relayed.
    pub fn event(&self, queue: usize) -> &Event {
        &self.events[queue]
    }

    /// Relays a call, if one waits. Does not block.
    pub fn relay(&self, queue: usize) -> Result<()> {
        match self.events[queue].wait_timeout(Duration::ZERO) {
            Ok(EventWaitResult::Signaled) => signal(&self.interrupt, self.vectors[queue]),
            Ok(EventWaitResult::TimedOut) => {}
            Err(error) => return Err(error).context("a call"),
        }
        Ok(())
    }

    /// Relays every call that waits, so that none is left with us when crosvm
    /// flushes interrupts.
    pub fn flush(&self) {
        for queue in [RX, TX] {
            if let Err(error) = self.relay(queue) {
                error!("vsock: an interrupt of queue {queue} is lost: {error:#}");
            }
        }
    }
}

/// Interrupts the guest. The vector is a number that the guest has written: one
/// that its MSI-X table does not have interrupts nobody.
pub fn signal(interrupt: &Interrupt, vector: u16) {
    let exists = interrupt.get_msix_config().as_ref().is_none_or(|config| {
        let config = config.lock();
        !config.enabled() || vector == NO_VECTOR || vector < config.num_vectors()
    });
    if exists {
        interrupt.signal_used_queue(vector);
    }
}

#[cfg(feature = "msix-status")]
mod direct {
    use crosvm_vsock::kernel::{Error, QueueIndex, VhostVsock};
    use devices::MsixStatus;

    use super::Calls;
    use crate::guest_memory::borrow;

    impl Calls {
        /// Gives the kernel the irqfd of each queue that `status` is about and whose
        /// vector is not masked, and our event for the others. Waits for nobody.
        pub fn follow(&self, device: &VhostVsock, status: MsixStatus) -> Result<(), Error> {
            let about = |vector: u16| match status {
                MsixStatus::Changed => true,
                MsixStatus::EntryChanged(entry) => usize::from(vector) == entry,
                MsixStatus::NothingToDo => false,
            };
            for (queue, vector) in QueueIndex::ALL.into_iter().zip(self.vectors) {
                if about(vector) {
                    self.bind(device, queue, vector)?;
                }
            }
            Ok(())
        }

        fn bind(&self, device: &VhostVsock, queue: QueueIndex, vector: u16) -> Result<(), Error> {
            let relayed = self.event(queue.number() as usize);
            let Some(config) = self.interrupt.get_msix_config() else {
                return device.set_call(queue, borrow(relayed));
            };
            // Held over the call: a mask that comes later finds it done.
            let config = config.lock();
            let open = config.enabled()
                && vector < config.num_vectors()
                && !config.masked()
                && !config.table_masked(usize::from(vector));
            let irqfd = config.get_irqfd(usize::from(vector)).filter(|_| open);
            device.set_call(queue, borrow(irqfd.unwrap_or(relayed)))
        }
    }
}
