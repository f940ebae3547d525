// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The event queue of a device whose other queues the kernel serves: vhost-vsock knows
//! two, and leaves it to the VMM to tell the guest of a transport reset.

use std::io;
use std::sync::Arc;

use crate::bus::Bus;
use crate::epoll::{Epoll, Interest, Token};
use crate::event::EventFd;
use crate::features::{Feature, FeatureSet};
use crate::guest_memory::GuestMemory;
use crate::path::Queue;
use crate::rate_limit::{debug_within, RateLimit};
use crate::userspace::reset_event;
use crate::userspace::ring::{RingError, SplitRing};

/// An event queue that is being served.
pub(super) struct EventQueue {
    ring: SplitRing,
    bus: Bus,
    kick: Option<Arc<EventFd>>,
    call: Option<Arc<EventFd>>,
    notes: RateLimit,
}

impl EventQueue {
    /// Takes the queue over where the driver has set it up.
    pub(super) fn new(
        queue: &Queue,
        memory: &Arc<GuestMemory>,
        features: FeatureSet,
    ) -> Result<Self, RingError> {
        let event_idx = features.has(Feature::EVENT_IDX);
        let indirect = features.has(Feature::INDIRECT_DESC);
        Ok(Self {
            ring: SplitRing::new(memory.clone(), queue, event_idx, indirect)?,
            bus: Bus::new(memory.clone(), None),
            kick: queue.kick.clone(),
            call: queue.call.clone(),
            notes: RateLimit::default(),
        })
    }

    /// The available entry that is taken next.
    pub(super) fn base(&self) -> u16 {
        self.ring.base()
    }

    /// Has the driver's kicks delivered as `token`.
    pub(super) fn watch(&self, epoll: &Epoll, token: Token) -> io::Result<()> {
        match &self.kick {
            Some(kick) => epoll.add(kick.as_ref(), token, Interest::READABLE_EDGE),
            None => Ok(()),
        }
    }

    /// Undoes [`watch`](Self::watch).
    pub(super) fn unwatch(&self, epoll: &Epoll) {
        if let Some(kick) = &self.kick {
            // Not registered, if registering it was what failed.
            let _ = epoll.remove(kick.as_ref());
        }
    }

    /// Signals another event from now on, and at once: whoever waits on it has missed what
    /// the old one said.
    pub(super) fn set_call(&mut self, call: Option<Arc<EventFd>>) {
        self.call = call;
        self.signal();
    }

    /// Tells the driver that its connections are gone. Whether it had a buffer for that; if
    /// not, its next kick is the time to try again.
    pub(super) fn report_reset(&mut self) -> Result<bool, RingError> {
        let reported = reset_event::report(&mut self.ring, &self.bus)?;
        if self.ring.publish() {
            self.signal();
        }
        Ok(reported)
    }

    fn signal(&self) {
        if let Some(call) = &self.call {
            if let Err(error) = call.signal() {
                debug_within!(self.notes, "a call event cannot be signalled: {error}");
            }
        }
    }
}
