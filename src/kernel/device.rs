// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device over `/dev/vhost-vsock`: open or adopt, own, activate, stop, reset.
//!
//! ```text
//!   open/adopt        own           activate            stop (vring bases)
//!  ------------> new -----> idle ------------> running -----------> stopped
//!                            ^                   | ^                  |
//!                            |      reset        | |     activate     |
//!                            +-------------------+ +------------------+
//!                            +------------------- reset --------------+
//! ```
//!
//! A failed [`activate`](VhostVsock::activate) ends in idle and can be tried
//! again. Resuming is activating with the vring bases that
//! [`stop`](VhostVsock::stop) returned.
//!
//! A device with an IOTLB is *halted* by the first miss that is denied, and by a
//! failure of its service: it is still running here, and is to be stopped or reset
//! as ever, but its queues are not. What is activated after that starts from
//! scratch.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use log::warn;

use super::error::{CallError, Error, SET_OWNER, SET_RUNNING};
use super::ioctl::{Vhost, VhostFd};
use super::iotlb::message::MessageFormat;
use super::iotlb::table::KERNEL_LIMIT;
use super::iotlb::translator::{Translator, Window};
use super::iotlb::Iotlb;
use super::monitor::Monitor;
use super::pause::pause;
use super::queue::{QueueIndex, QueueSetup, Rings};
use super::setup::{call, Setup, Started};
use crate::address::GuestCid;
use crate::compat::{IotlbBit, Mode, Plan, Vm};
use crate::event::EventFd;
use crate::features::FeatureSet;
use crate::memory::MemoryMap;

/// How the kernel is to reach guest memory: a [`Mode`] with what it needs.
#[derive(Clone)]
pub enum Addressing {
    /// No IOTLB.
    Off,
    /// IOTLB with all of guest memory.
    Identity,
    /// IOTLB with what the guest has shared.
    Restricted(Arc<Window>),
    /// IOTLB answered by a vIOMMU.
    Translated(Arc<dyn Translator>),
}

impl Addressing {
    /// The mode by name.
    pub fn mode(&self) -> Mode {
        match self {
            Self::Off => Mode::Off,
            Self::Identity => Mode::Identity,
            Self::Restricted(_) => Mode::Restricted,
            Self::Translated(_) => Mode::Translated,
        }
    }
}

/// The same mode with the same window or translator.
impl PartialEq for Addressing {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Off, Self::Off) | (Self::Identity, Self::Identity) => true,
            (Self::Restricted(ours), Self::Restricted(theirs)) => Arc::ptr_eq(ours, theirs),
            (Self::Translated(ours), Self::Translated(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        }
    }
}

impl std::fmt::Debug for Addressing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.mode().fmt(f)
    }
}

/// All that an activation needs.
#[derive(Clone, Debug)]
pub struct Activation<'a> {
    /// The guest's CID.
    pub cid: GuestCid,
    /// What stands between the guest and its memory.
    pub vm: Vm,
    /// The feature bits that the guest acknowledged.
    pub acked: FeatureSet,
    /// The bit that stands for the IOTLB on a split kernel.
    pub iotlb_bit: IotlbBit,
    /// How the kernel reaches guest memory.
    pub addressing: Addressing,
    /// The layout of IOTLB messages.
    pub messages: MessageFormat,
    /// Guest memory; stays mapped while the device runs.
    pub memory: MemoryMap,
    /// The receive and the transmit queue.
    pub queues: [QueueSetup<'a>; 2],
}

#[derive(Debug)]
enum State {
    New,
    Idle,
    Running(Active, Started),
    Paused(Active, Started, [u16; 2]),
}

/// What a running device was started with.
#[derive(Debug, PartialEq)]
struct Active {
    cid: GuestCid,
    memory: MemoryMap,
    messages: MessageFormat,
    addressing: Addressing,
    plan: Plan,
    rings: [Rings; 2],
}

impl Active {
    fn new(activation: &Activation<'_>, setup: &Setup<'_>) -> Self {
        Self {
            cid: activation.cid,
            memory: activation.memory.clone(),
            messages: activation.messages,
            addressing: activation.addressing.clone(),
            plan: setup.plan,
            rings: setup.rings,
        }
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::New => "not owned yet: call own() first",
            Self::Idle => "idle",
            Self::Running(..) => "running",
            Self::Paused(..) => "stopped",
        }
    }
}

/// A vhost-vsock device of the host kernel.
pub struct VhostVsock {
    kernel: Arc<dyn Vhost>,
    features: FeatureSet,
    errors: [EventFd; 2],
    table_limit: usize,
    state: State,
}

impl std::fmt::Debug for VhostVsock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostVsock")
            .field("features", &self.features)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl VhostVsock {
    /// The device file's usual place.
    pub const PATH: &'static str = "/dev/vhost-vsock";

    /// Opens the device file at `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let kernel = VhostFd::open(path).map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::with_kernel(Arc::new(kernel))
    }

    /// Takes over a descriptor of the device file.
    pub fn adopt(fd: OwnedFd) -> Result<Self, Error> {
        let kernel = VhostFd::adopt(fd).map_err(Error::Event)?;
        Self::with_kernel(Arc::new(kernel))
    }

    /// Runs on whatever answers as vhost-vsock does.
    pub fn with_kernel(kernel: Arc<dyn Vhost>) -> Result<Self, Error> {
        let features = kernel
            .features()
            .map_err(|_| Error::NotVhostVsock("it does not answer VHOST_GET_FEATURES"))?;
        // vhost-vsock alone knows this request, and refuses the hypervisor's CID.
        match kernel.set_guest_cid(0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            _ => {
                return Err(Error::NotVhostVsock(
                    "it is a vhost device of another type: it does not know guest CIDs",
                ))
            }
        }
        let errors = [EventFd::new(), EventFd::new()].map(|event| event.map_err(Error::Event));
        let [rx, tx] = errors;
        Ok(Self {
            kernel,
            features,
            errors: [rx?, tx?],
            table_limit: KERNEL_LIMIT,
            state: State::New,
        })
    }

    /// The bits that the kernel offers, unfiltered: what may be shown to a guest
    /// is [`offer`](crate::compat::offer)'s to say.
    pub fn features(&self) -> FeatureSet {
        self.features
    }

    /// All that the device has open: to be kept when a jail closes the rest.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        let [rx, tx] = &self.errors;
        [self.kernel.descriptor(), rx.as_fd(), tx.as_fd()]
    }

    /// Lets the kernel signal another event for used buffers of `queue`, while it
    /// runs: the way to follow interrupt masking.
    pub fn set_call(&self, queue: QueueIndex, event: BorrowedFd<'_>) -> Result<(), Error> {
        if !self.is_running() {
            return Err(self.refuse("set_call"));
        }
        let set = self.kernel.set_vring_call(queue, Some(event));
        call("VHOST_SET_VRING_CALL", Some(queue), set)
    }

    /// Ties the descriptor to this process (`VHOST_SET_OWNER`). A step of its own:
    /// whoever forks into a jail calls it there, since host addresses are resolved
    /// in the owner's address space. Doing it twice is harmless.
    pub fn own(&mut self) -> Result<(), Error> {
        match self.kernel.set_owner() {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                // Any vring request tells whether the owner is this process.
                self.kernel
                    .vring_base(QueueIndex::Rx)
                    .map_err(|_| Error::OwnedElsewhere)?;
            }
            Err(error) => return Err(CallError::new(SET_OWNER, None, error).into()),
        }
        if let State::New = self.state {
            self.state = State::Idle;
        }
        Ok(())
    }

    /// Whether the device was activated and not stopped since; a halted device was.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running(..))
    }

    /// The IOTLB service of the running device, if its mode has one.
    pub fn iotlb(&self) -> Option<&Arc<Iotlb>> {
        match &self.state {
            State::Running(_, started) => started.iotlb.as_ref().map(|service| &service.0),
            _ => None,
        }
    }

    /// Starts the device, or lets it go on after a [`stop`](Self::stop) when
    /// nothing but time has passed and it was not halted. The [`Monitor`] must be
    /// run, on whatever thread, for the IOTLB to be served and failures to be seen.
    pub fn activate(&mut self, activation: &Activation<'_>) -> Result<Monitor, Error> {
        if !matches!(self.state, State::Idle | State::Paused(..)) {
            return Err(self.refuse("activate"));
        }
        let setup = Setup::new(
            &self.kernel,
            self.features,
            &self.errors,
            self.table_limit,
            activation,
        )?;
        let bases = activation.queues.map(|queue| queue.base);
        let active = Active::new(activation, &setup);
        let started = match std::mem::replace(&mut self.state, State::Idle) {
            State::Paused(was, started, at)
                if at == bases && was == active && !started.is_halted() =>
            {
                setup.resume(started)
            }
            State::Paused(was, started, _) => {
                drop((was, started));
                self.halt().and_then(|()| setup.start())
            }
            _ => setup.start(),
        };
        let watched = started.and_then(|started| {
            let kicks = activation.queues.map(|queue| queue.kick);
            let iotlb = started.iotlb.as_ref().map(|service| service.0.clone());
            let kernel = self.kernel.clone();
            let monitor = Monitor::new(activation.cid, kernel, iotlb, &self.errors, kicks);
            signal_all(&activation.queues)?;
            Ok((started, monitor.map_err(Error::Event)?))
        });
        // A start that failed half-way leaves nothing running behind.
        let (started, monitor) = watched.inspect_err(|_| drop(self.halt()))?;
        self.state = State::Running(active, started);
        Ok(monitor)
    }

    /// Stops the device; returns the vring bases of both queues, with which a
    /// later activation goes on where this one was. When this returns, no queue
    /// touches guest memory. Connections stay open, and what the host's programs
    /// write waits.
    pub fn stop(&mut self) -> Result<[u16; 2], Error> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Running(active, started) => {
                // Queues without rings complain, which means nothing any more.
                self.unbind(|kernel, queue| kernel.set_vring_err(queue, None));
                let bases = pause(
                    &*self.kernel,
                    started.iotlb.as_ref().map(|service| &*service.0),
                )
                .inspect_err(|_| drop(self.halt()))?;
                self.unbind(|kernel, queue| kernel.set_vring_kick(queue, None));
                self.unbind(|kernel, queue| kernel.set_vring_call(queue, None));
                self.state = State::Paused(active, started, bases);
                Ok(bases)
            }
            other => {
                self.state = other;
                Err(self.refuse("stop"))
            }
        }
    }

    /// Back to idle, whatever the state; keeps the descriptor, its owner and its CID.
    pub fn reset(&mut self) -> Result<(), Error> {
        match self.state {
            State::New | State::Idle => Ok(()),
            State::Running(..) | State::Paused(..) => {
                let halted = self.halt();
                self.state = State::Idle;
                halted
            }
        }
    }

    fn refuse(&self, call: &'static str) -> Error {
        let state = self.state.name();
        Error::State { call, state }
    }

    /// Stops the queues for good and lets go of their event descriptors.
    fn halt(&self) -> Result<(), Error> {
        let halted = self.kernel.set_running(false);
        self.unbind(|kernel, queue| kernel.set_vring_kick(queue, None));
        self.unbind(|kernel, queue| kernel.set_vring_call(queue, None));
        self.unbind(|kernel, queue| kernel.set_vring_err(queue, None));
        call(SET_RUNNING, None, halted)
    }

    fn unbind(&self, unbind: impl Fn(&dyn Vhost, QueueIndex) -> io::Result<()>) {
        for queue in QueueIndex::ALL {
            if let Err(error) = unbind(&*self.kernel, queue) {
                warn!("vhost-vsock: queue {queue} keeps an event descriptor: {error}");
            }
        }
    }
}

impl Drop for VhostVsock {
    /// A monitor may keep the descriptor open a little longer; the queues stop now.
    fn drop(&mut self) {
        // Nobody is left to be told of a failure.
        let _ = self.reset();
    }
}

/// A buffer made available before the start may have had its notification already,
/// and one used before a stop may not: signal both ways.
fn signal_all(queues: &[QueueSetup<'_>; 2]) -> Result<(), Error> {
    for queue in queues {
        signal(queue.kick)?;
        if queue.base != 0 {
            signal(queue.call)?;
        }
    }
    Ok(())
}

fn signal(event: BorrowedFd<'_>) -> Result<(), Error> {
    let event = event.try_clone_to_owned().map_err(Error::Event)?;
    EventFd::from(event).signal().map_err(Error::Event)
}
