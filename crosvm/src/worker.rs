// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread of an active device: relays the kernel's calls as interrupts,
//! serves the monitor, and delivers what is owed on the event queue.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use base::{error, warn, Descriptor, Event, EventToken, WaitContext};
use crosvm_vsock::kernel::Monitor;
use crosvm_vsock::rate_limit::RateLimit;
use devices::virtio::{Interrupt, Queue};

use crate::guest_memory::{EVENT, RX, TX};
use crate::interrupts::{signal, Calls};

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (VIRTIO 1.2, 5.10.6.7), little-endian.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Everything that the thread needs, and gives back when it ends.
pub struct Worker {
    /// The receive, transmit and event queue.
    pub queues: BTreeMap<usize, Queue>,
    /// Where interrupts of the event queue go.
    pub interrupt: Interrupt,
    /// The kernel's calls.
    pub calls: Arc<Calls>,
    /// Watches the kernel; none when it does not run or has failed.
    pub monitor: Option<Monitor>,
    /// The guest must be told that its connections are gone.
    pub owes_reset: bool,
    /// Limits what a guest can make us log.
    pub complaints: RateLimit,
}

#[derive(EventToken)]
enum Token {
    Call { queue: usize },
    Monitor,
    EventQueue,
    Kill,
}

impl Worker {
    /// Runs until `kill` is signalled.
    pub fn run(&mut self, kill: &Event) {
        if let Err(error) = self.serve(kill) {
            error!("vsock: the worker ended: {error:#}");
        }
    }

    fn serve(&mut self, kill: &Event) -> Result<()> {
        let wait = WaitContext::build_with(&[
            (kill, Token::Kill),
            (self.calls.event(RX), Token::Call { queue: RX }),
            (self.calls.event(TX), Token::Call { queue: TX }),
            (event_queue(&mut self.queues)?.event(), Token::EventQueue),
        ])
        .context("waiting for events")?;
        // Noted now: a monitor that has failed no longer names all of them, and one that
        // stays readable would keep the worker awake for ever.
        let watched: Vec<Descriptor> = self
            .monitor
            .iter()
            .flat_map(Monitor::descriptors)
            .map(|descriptor| Descriptor(descriptor.as_raw_fd()))
            .collect();
        for descriptor in &watched {
            wait.add(descriptor, Token::Monitor)
                .context("waiting for the kernel")?;
        }
        self.deliver_reset()?;
        loop {
            for event in wait.wait().context("waiting for events")?.iter() {
                match event.token {
                    Token::Kill => return Ok(()),
                    Token::Call { queue } => self.calls.relay(queue)?,
                    Token::EventQueue => {
                        let queue = event_queue(&mut self.queues)?;
                        queue.event().wait().context("the event queue")?;
                        self.deliver_reset()?;
                    }
                    Token::Monitor => {
                        let failures = self.monitor.as_mut().map(Monitor::handle);
                        if !failures.unwrap_or_default().is_empty() {
                            self.fail(&wait, &watched)?;
                        }
                    }
                }
            }
        }
    }

    /// Delivers the reset once the guest has posted a buffer for it; until then
    /// it stays owed. A buffer that is too short is handed back empty.
    fn deliver_reset(&mut self) -> Result<()> {
        if !self.owes_reset {
            return Ok(());
        }
        let queue = event_queue(&mut self.queues)?;
        let vector = queue.vector();
        for _ in 0..queue.size() {
            let Some(mut chain) = queue.pop() else {
                return Ok(());
            };
            let delivered = chain.writer.available_bytes() >= TRANSPORT_RESET.len()
                && chain.writer.write_all(&TRANSPORT_RESET).is_ok();
            queue.add_used(chain);
            // Not `trigger_interrupt`, which trusts the vector: this event is rare
            // enough to be announced always.
            signal(&self.interrupt, vector);
            if delivered {
                self.owes_reset = false;
                return Ok(());
            }
            if self.complaints.allow() {
                warn!("vsock: the guest's event buffer is too short for an event of 4 bytes");
            }
        }
        // A guest that posts such buffers as fast as they come back must not keep
        // the worker from anything else, least of all from ending.
        queue.event().signal().context("the event queue")
    }

    /// A queue has stopped for good; the monitor has logged why. A running device
    /// cannot set `DEVICE_NEEDS_RESET` in crosvm: the transport does, and only
    /// when an activation fails. Told of a transport reset, the guest ends its
    /// connections with an error instead of waiting for ever.
    fn fail(&mut self, wait: &WaitContext<Token>, watched: &[Descriptor]) -> Result<()> {
        for descriptor in watched {
            wait.delete(descriptor)
                .context("leaving the kernel alone")?;
        }
        self.give_up();
        self.deliver_reset()
    }

    /// The kernel serves the queues no more: nobody has to watch it, and the guest
    /// has to know.
    pub fn give_up(&mut self) {
        self.monitor = None;
        self.owes_reset = true;
    }
}

fn event_queue(queues: &mut BTreeMap<usize, Queue>) -> Result<&mut Queue> {
    queues
        .get_mut(&EVENT)
        .context("the event queue is not ready")
}
