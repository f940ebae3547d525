// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a front end (vhost-user) and a data path (userspace, kernel) ask of each other.
//!
//! A front end collects memory, queues and features from the VMM and hands them
//! over in one piece with [`DataPath::activate`]; [`DataPath::stop`] takes the
//! queues back. The path's descriptors are watched by the front end's event loop,
//! under [`Token`] kinds from [`PATH_KINDS`] on, so that one thread serves a VM
//! with one `epoll_wait` a wake-up.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::address::{Address, Gpa, GuestCid};
use crate::bus::Iotlb;
use crate::epoll::{Epoll, Interest, Token};
use crate::event::EventFd;
use crate::features::FeatureSet;
use crate::guest_memory::GuestMemory;
use crate::management::Managed;

/// Queues of a socket device: receive, transmit, event (VIRTIO 1.2, 5.10.2).
pub const QUEUES: usize = 3;
/// The guest's receive queue: buffers for the device to fill.
pub const RX: usize = 0;
/// The guest's transmit queue: packets for the device to take.
pub const TX: usize = 1;
/// The event queue: buffers for the device to report a transport reset in.
pub const EVENT: usize = 2;

/// The first token kind that belongs to the data path; those below are the front end's.
pub const PATH_KINDS: u8 = 0x10;

/// A queue as the driver has set it up.
#[derive(Debug)]
pub struct Queue {
    /// Entries: a power of two, 32768 at most (VIRTIO 1.2, 2.7).
    pub size: u16,
    /// Where the descriptor table begins.
    pub descriptors: Gpa,
    /// Where the available ring begins.
    pub available: Gpa,
    /// Where the used ring begins.
    pub used: Gpa,
    /// The available entry the device takes next.
    pub base: u16,
    /// Signalled by the driver: look at the queue. `None`: the driver never says so.
    pub kick: Option<Arc<EventFd>>,
    /// Signalled by the device: look at the used ring. `None`: the driver polls.
    pub call: Option<Arc<EventFd>>,
}

/// Everything a data path needs to run.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory; where the queues are is guest physical.
    pub memory: Arc<GuestMemory>,
    /// What the addresses in descriptors are translated by, behind a vIOMMU. `None`: they
    /// are guest physical.
    pub iotlb: Option<Arc<Iotlb>>,
    /// The queues by index. Receive and transmit are there; the event queue may not be.
    pub queues: [Option<Queue>; QUEUES],
    /// What the driver has acknowledged.
    pub features: FeatureSet,
    /// Whether connections of the activation before this one may go on: the front
    /// end saw the device stop and go on at the same place.
    pub resumed: bool,
}

impl Queue {
    /// The last element of the used ring (VIRTIO 1.2, 2.7.8), zeroes where there is none.
    fn last_used(&self, memory: &GuestMemory) -> [u8; 8] {
        const HEADER: u64 = 4;
        const ELEMENT: u64 = 8;
        let mut element = [0; ELEMENT as usize];
        let offset = HEADER + ELEMENT * u64::from(self.size.saturating_sub(1));
        let place = self.used.checked_add(offset);
        if let Some(segment) = place.and_then(|place| memory.whole(place, element.len())) {
            segment.read(&mut element);
        }
        element
    }
}

impl Activation {
    /// Whether a device has served these queues before, so that the driver may know
    /// connections. Queues that go on past their first entry tell it, and so does, when
    /// their indices have just wrapped to 0, what was used last: drivers zero their rings,
    /// and nothing in the receive queue is used without a header's length.
    pub fn was_served(&self) -> bool {
        let was_served = |queue: &Queue| queue.base != 0 || queue.last_used(&self.memory) != [0; 8];
        self.queues[..EVENT].iter().flatten().any(was_served)
    }
}

/// A way to move packets between a guest's queues and the host.
pub trait DataPath: Managed {
    /// The feature bits this path implements, those of the rings included.
    fn features(&self) -> FeatureSet;

    /// The guest's CID, as config space shows it.
    fn cid(&self) -> GuestCid;

    /// The largest queue the path takes.
    fn max_queue_size(&self) -> u16;

    /// Starts to serve the queues. On an error nothing runs and the path can be
    /// activated again.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;

    /// Whether the queues are being served.
    fn is_active(&self) -> bool;

    /// Lets go of the queues and the guest memory; the place where each queue
    /// goes on, by index, for those that were handed over. `None` when nothing runs.
    fn stop(&mut self) -> Option<[Option<u16>; QUEUES]>;

    /// Ends every connection: the guest behind the front end is gone.
    fn forget_guest(&mut self);

    /// Swaps a queue's call event while it runs, and signals the new one: whoever waits on
    /// it has missed what the old one said. An error: the old one stays.
    fn set_call(&mut self, queue: usize, call: Option<Arc<EventFd>>) -> io::Result<()>;

    /// Takes note of an event for a token of this path's.
    fn event(&mut self, token: Token, interest: Interest);

    /// Does a bounded amount of work. How long the loop may sleep afterwards:
    /// `Some(ZERO)` when there is more to do, `None` for ever.
    fn turn(&mut self, now: Instant) -> Option<Duration>;

    /// The event loop the path's descriptors are registered with.
    fn epoll(&self) -> &Arc<Epoll>;
}
