// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The userspace data path: a guest's socket device on one side, Unix sockets (or the
//! host's vsock, or another VM) on the other.
//!
//! # The protocol in short (VIRTIO 1.2, 5.10)
//!
//! ```text
//!  guest's transmit queue                                guest's receive queue
//!    REQUEST ------------------>  connect  ------------------->  RESPONSE or RST
//!    RW + bytes --------------->  sendmsg
//!                                 recvmsg  ------------------->  RW + bytes
//!    SHUTDOWN(send) ----------->  shutdown(SHUT_WR)
//!                                 end of file ---------------->  SHUTDOWN(send)
//!    SHUTDOWN(both) ----------->  rest delivered, close ------>  RST
//! ```
//!
//! Every packet is a 44-byte header and perhaps payload, and every header tells how much
//! the sender may still be sent: `buf_alloc` bytes beyond the `fwd_cnt` that have left its
//! buffer.
//!
//! # Where things are
//! - [`packet`] the header; [`credit`] flow control; [`ring`] the queues;
//! - `connection` one connection's state; `muxer` all of them, the guest's side;
//!   `clients` and `host` the host's side, `upkeep` clock and books; `tx` and `rx` move packets
//!   between rings and these; `reset_event` tells the guest that they are gone;
//! - [`listener`] where host programs are, [`hybrid`] how they ask; [`sibling`] how VMs of
//!   one process meet; [`acceptor`] listeners that an operator has put in a program's place,
//!   `management` what else an operator may ask;
//! - [`socket`] system calls; `completions`, `outbox`, `polling`, `slab`, `timer`, `tokens`,
//!   `waiting` small parts;
//! - [`limits`], [`stats`].
//!
//! # Rules that make it fast, and keep it fair
//! One thread a VM; a bounded burst from each queue a turn; many packets to a system call
//! in both directions; rings published once a burst, with at most one notification, and
//! mere completions once an eighth of a ring; sockets registered once, edge-triggered, and watched for room only after they were full; no
//! copy but what a full socket refuses, bounded by credit. Nothing waits for one
//! connection: not a full socket, not a full backlog, not a guest without buffers.

pub mod acceptor;
mod clients;
mod completions;
mod connection;
pub mod credit;
mod host;
pub mod hybrid;
pub mod limits;
pub mod listener;
mod management;
mod muxer;
mod outbox;
pub mod packet;
mod polling;
pub(crate) mod reset_event;
pub mod ring;
mod rx;
pub mod sibling;
mod slab;
pub mod socket;
pub mod stats;
mod timer;
mod tokens;
mod tx;
mod upkeep;
mod waiting;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::info;

use self::completions::Completions;
use self::hybrid::Reply;
use self::limits::Limits;
use self::listener::{HostPlace, HostSide};
use self::muxer::Muxer;
use self::polling::Polling;
use self::ring::{RingError, SplitRing, MAX_QUEUE_SIZE};
use self::sibling::{JoinError, Neighbourhood};
use self::stats::Stats;
use crate::address::GuestCid;
use crate::bus::Bus;
use crate::epoll::{Epoll, Interest, Token};
use crate::event::EventFd;
use crate::features::{Feature, FeatureSet};
use crate::path::{Activation, DataPath, EVENT, QUEUES, RX, TX};

/// What this path implements. `ACCESS_PLATFORM` is among it so that a guest with
/// protected memory uses its DMA API. What addresses mean does not follow from it: they
/// are guest physical unless the front end brings an IOTLB along.
pub const FEATURES: FeatureSet = FeatureSet::of(&[
    Feature::VERSION_1,
    Feature::EVENT_IDX,
    Feature::INDIRECT_DESC,
    Feature::ACCESS_PLATFORM,
    Feature::STREAM,
    Feature::SEQPACKET,
]);

/// What a VM's device is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The guest's CID.
    pub cid: GuestCid,
    /// Where the host's programs are.
    pub host: HostPlace,
    /// Which port host clients are told.
    pub reply: Reply,
    /// Groups of VMs that the guest can reach.
    pub groups: Vec<String>,
    /// The largest queue a driver may set up.
    pub max_queue_size: u16,
    /// What the VM may use.
    pub limits: Limits,
    /// How long to look for the next packet before sleeping, where it is expected soon.
    /// Zero: not at all.
    pub poll: Duration,
}

/// How long a [`Config`] looks for a packet unless it is told: about what it takes to be
/// woken in a virtual machine.
pub const DEFAULT_POLL: Duration = Duration::from_micros(60);

impl Config {
    /// The defaults for a guest with host programs around `host`.
    pub fn new(cid: GuestCid, host: HostPlace) -> Self {
        Self {
            cid,
            host,
            reply: Reply::default(),
            groups: vec!["default".to_owned()],
            max_queue_size: MAX_QUEUE_SIZE,
            limits: Limits::default(),
            poll: DEFAULT_POLL,
        }
    }
}

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Sockets, epoll.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its place among siblings.
    #[error(transparent)]
    Join(#[from] JoinError),
}

/// The queues and the memory of a guest that runs.
struct Active {
    bus: Bus,
    features: FeatureSet,
    rings: [Option<SplitRing>; QUEUES],
    calls: [Option<Arc<EventFd>>; QUEUES],
    kicks: [Option<Arc<EventFd>>; QUEUES],
    completions: Completions,
}

/// The data path of one VM.
pub struct UserspacePath {
    muxer: Muxer,
    active: Option<Active>,
    polling: Polling,
    /// The guest is to be told that its connections are gone, once it can be.
    reset_event: bool,
    /// The driver has made a queue unusable.
    broken: bool,
    max_queue_size: u16,
}

impl UserspacePath {
    /// Opens the host's side of a device; `epoll` will deliver its events.
    pub fn new(
        config: Config,
        neighbourhood: &Arc<Neighbourhood>,
        epoll: Arc<Epoll>,
    ) -> Result<Self, SetupError> {
        let Config {
            cid,
            host,
            reply,
            groups,
            max_queue_size,
            limits,
            poll,
        } = config;
        let membership = neighbourhood.join(cid, groups, limits.sibling_requests)?;
        let muxer = Muxer::new(cid, HostSide::open(host)?, reply, limits, membership, epoll);
        muxer.watch()?;
        Ok(Self {
            muxer,
            active: None,
            polling: Polling::new(poll),
            reset_event: false,
            broken: false,
            max_queue_size,
        })
    }

    /// The device's counters.
    pub fn stats(&self) -> Arc<Stats> {
        self.muxer.stats.clone()
    }
}

impl Active {
    fn new(activation: Activation, epoll: &Epoll) -> io::Result<Self> {
        let Activation {
            memory,
            iotlb,
            queues,
            features,
            resumed: _,
        } = activation;
        let event_idx = features.has(Feature::EVENT_IDX);
        let indirect = features.has(Feature::INDIRECT_DESC);
        let mut active = Self {
            bus: Bus::new(memory, iotlb),
            features,
            rings: [None, None, None],
            calls: [None, None, None],
            kicks: [None, None, None],
            completions: Completions::new(),
        };
        for (index, queue) in queues.into_iter().enumerate() {
            let Some(queue) = queue else { continue };
            let ring = SplitRing::new(active.bus.memory().clone(), &queue, event_idx, indirect)
                .map_err(|e| {
                    io::Error::new(io::ErrorKind::InvalidInput, format!("queue {index}: {e}"))
                })?;
            active.rings[index] = Some(ring);
            active.calls[index] = queue.call;
            active.kicks[index] = queue.kick;
        }
        if active.rings[RX].is_none() || active.rings[TX].is_none() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the receive and the transmit queue must both be set up",
            ));
        }
        for (index, kick) in active.kicks.iter().enumerate() {
            if let Some(kick) = kick {
                if let Err(error) =
                    epoll.add(kick.as_ref(), tokens::kick(index), Interest::READABLE_EDGE)
                {
                    active.unwatch(epoll);
                    return Err(error);
                }
            }
        }
        Ok(active)
    }

    fn unwatch(&self, epoll: &Epoll) {
        for kick in self.kicks.iter().flatten() {
            // Not registered, if registering it was what failed.
            let _ = epoll.remove(kick.as_ref());
        }
    }

    /// Shows the guest what was used in a queue, and tells it if it wants to be told.
    fn publish(&mut self, queue: usize, muxer: &Muxer) {
        if let Some(ring) = &mut self.rings[queue] {
            if ring.publish() {
                if let Some(call) = &self.calls[queue] {
                    if let Err(error) = call.signal() {
                        muxer.note(format_args!("a call event cannot be signalled: {error}"));
                    }
                }
            }
        }
    }

    /// Serves all queues once. Whether there is more to do at once.
    fn turn(
        &mut self,
        muxer: &mut Muxer,
        reset_event: &mut bool,
        polling: &mut Polling,
        now: Instant,
    ) -> Result<bool, RingError> {
        let mut more = false;
        let moved = |muxer: &Muxer| {
            let stats = &muxer.stats;
            (stats.packets_from_guest.get(), stats.packets_to_guest.get())
        };
        let before = moved(muxer);
        if let Some(ring) = &mut self.rings[TX] {
            more |= tx::pump(ring, &self.bus, muxer, now)?;
            let new = muxer.stats.packets_from_guest.get() != before.0;
            let (owed, size) = (ring.owed(), ring.size());
            if ring.has_unpublished() && self.completions.tell(owed, size, new, now) {
                self.publish(TX, muxer);
            }
        }
        if let Some(ring) = &mut self.rings[RX] {
            let progress = rx::pump(ring, &self.bus, muxer, now)?;
            more |= progress.more;
            // Kicks for buffers are of interest only while one is missing.
            if progress.starved {
                more |= ring.enable_kicks();
            } else {
                ring.disable_kicks();
            }
        }
        self.publish(RX, muxer);
        if *reset_event {
            if let Some(ring) = &mut self.rings[EVENT] {
                *reset_event = !reset_event::report(ring, &self.bus)?;
            }
            self.publish(EVENT, muxer);
        }
        let after = moved(muxer);
        let look = polling.turned(after.0 != before.0, after.1 != before.1, now);
        if !more && look {
            // Whoever is to answer may need this processor.
            std::thread::yield_now();
            more = true;
        }
        if !more {
            if let Some(ring) = &mut self.rings[TX] {
                more = ring.enable_kicks();
            }
        }
        Ok(more)
    }
}

impl DataPath for UserspacePath {
    fn features(&self) -> FeatureSet {
        FEATURES
    }

    fn cid(&self) -> GuestCid {
        self.muxer.guest
    }

    fn max_queue_size(&self) -> u16 {
        self.max_queue_size
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.stop();
        let resumed = activation.resumed;
        if !resumed {
            self.muxer.forget_guest();
            // A driver whose queues were served before knows connections that we do not.
            self.reset_event = activation.was_served();
            // A guest can reset its driver as often as it likes.
            if self.muxer.reports.allow() {
                let (guest, features) = (self.muxer.guest, activation.features);
                info!("vm {guest}: the driver is there, features: {features}");
            }
        }
        self.active = Some(Active::new(activation, &self.muxer.epoll)?);
        self.muxer.listening = true;
        self.broken = false;
        Ok(())
    }

    fn is_active(&self) -> bool {
        self.active.is_some()
    }

    fn stop(&mut self) -> Option<[Option<u16>; QUEUES]> {
        let mut active = self.active.take()?;
        active.publish(TX, &self.muxer);
        active.unwatch(&self.muxer.epoll);
        self.muxer.note(format_args!("queues stopped"));
        let base = |ring: Option<SplitRing>| ring.map(|ring| ring.base());
        Some(active.rings.map(base))
    }

    fn forget_guest(&mut self) {
        self.stop();
        self.muxer.forget_guest();
        self.muxer.listening = false;
        self.broken = false;
    }

    fn set_call(&mut self, queue: usize, call: Option<Arc<EventFd>>) -> io::Result<()> {
        if let Some(place) = self.active.as_mut().and_then(|a| a.calls.get_mut(queue)) {
            if let Some(call) = &call {
                call.signal()?;
            }
            *place = call;
        }
        Ok(())
    }

    fn event(&mut self, token: Token, interest: Interest) {
        let now = Instant::now();
        match token.kind {
            tokens::CONNECTION => self
                .muxer
                .connection_event(tokens::id(token), interest, now),
            tokens::CLIENT => self.muxer.client_event(tokens::id(token), now),
            tokens::LISTENER => self.muxer.accept(token.slot as usize, now),
            _ if token == tokens::MAILBOX => self.muxer.mail(now),
            // Kicks: the turn looks at all queues.
            _ => {}
        }
    }

    fn turn(&mut self, now: Instant) -> Option<Duration> {
        self.muxer.tick(now);
        let more = match &mut self.active {
            None => false,
            Some(active) => match active.turn(
                &mut self.muxer,
                &mut self.reset_event,
                &mut self.polling,
                now,
            ) {
                Ok(more) => more,
                Err(broken) => {
                    self.muxer.report(format_args!(
                        "{broken}: its queues are left alone until it is reset"
                    ));
                    self.forget_guest();
                    self.broken = true;
                    false
                }
            },
        };
        if more {
            return Some(Duration::ZERO);
        }
        let due = self.active.as_ref().and_then(|a| a.completions.due());
        let deadline = [self.muxer.next_deadline(), due].into_iter().flatten();
        let deadline = deadline.min()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    fn epoll(&self) -> &Arc<Epoll> {
        &self.muxer.epoll
    }
}
