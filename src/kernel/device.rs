// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device over `/dev/vhost-vsock`: open or adopt, own, activate, stop, reset.
//!
//! ```text
//!   open/adopt          own             activate
//!  ------------> new --------> idle ---------------> running
//!                               ^   <---------------    |
//!                               |    stop (vring bases) |
//!                               +---- reset ------------+
//! ```
//!
//! A failed [`activate`](VhostVsock::activate) ends in idle and can be tried
//! again. Resuming is activating with the vring bases that
//! [`stop`](VhostVsock::stop) returned: one code path for both.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use log::{info, warn};

use super::error::{
    CallError, Error, SET_FEATURES, SET_MEM_TABLE, SET_OWNER, SET_RUNNING, SET_RUNNING_IOTLB,
};
use super::ioctl::{Vhost, VhostFd, VringAddresses, BACKEND_F_IOTLB_MSG_V2};
use super::iotlb::message::{Access, Command, Mapping, MessageFormat};
use super::iotlb::table::KERNEL_LIMIT;
use super::iotlb::translator::{Identity, Translator, Window};
use super::iotlb::{Iotlb, IotlbError};
use super::monitor::Monitor;
use super::queue::{QueueError, QueueIndex, QueueSetup, Rings};
use crate::address::{Address, GuestCid, Iova, Range};
use crate::compat::{negotiate, IotlbBit, Mode, Plan, Request, Vm};
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
    Running { iotlb: Option<Arc<Iotlb>> },
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::New => "not owned yet: call own() first",
            Self::Idle => "idle",
            Self::Running { .. } => "running",
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

    /// The kernel's interface, to be kept open in a jail or polled.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.kernel.descriptor()
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

    /// Whether the device is running.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// The IOTLB service of the running device, if its mode has one.
    pub fn iotlb(&self) -> Option<&Arc<Iotlb>> {
        match &self.state {
            State::Running { iotlb } => iotlb.as_ref(),
            _ => None,
        }
    }

    /// Starts the device. The [`Monitor`] must be run, on whatever thread, for the
    /// IOTLB to be served and failures to be seen.
    pub fn activate(&mut self, activation: &Activation<'_>) -> Result<Monitor, Error> {
        let State::Idle = self.state else {
            return Err(self.refuse("activate"));
        };
        // All that can be refused is refused before the kernel is touched.
        let plan = self.plan(activation, activation.addressing.mode())?;
        let rings = check_queues(activation, plan)?;
        let iotlb = self.start(activation, plan, rings).inspect_err(|_| {
            // A start that failed half-way leaves nothing running behind.
            let _ = self.kernel.set_running(false);
            self.release();
        })?;
        let monitor = Monitor::new(
            activation.cid,
            self.kernel.clone(),
            iotlb.clone(),
            &self.errors,
            activation.queues.map(|queue| queue.kick),
        )
        .map_err(Error::Event)?;
        // A buffer made available before now may have had its notification
        // already, and one used before a stop may not: signal both ways.
        for queue in &activation.queues {
            signal(queue.kick)?;
            if queue.base != 0 {
                signal(queue.call)?;
            }
        }
        self.state = State::Running { iotlb };
        Ok(monitor)
    }

    /// Stops the device; returns the vring bases of both queues, with which a
    /// later activation goes on where this one was. When this returns, no queue
    /// touches guest memory.
    pub fn stop(&mut self) -> Result<[u16; 2], Error> {
        let State::Running { .. } = self.state else {
            return Err(self.refuse("stop"));
        };
        self.call(SET_RUNNING, None, |kernel| kernel.set_running(false))?;
        let mut bases = [0; 2];
        for (queue, base) in QueueIndex::ALL.into_iter().zip(&mut bases) {
            *base = self.call("VHOST_GET_VRING_BASE", Some(queue), |kernel| {
                kernel.vring_base(queue)
            })?;
        }
        self.release();
        self.state = State::Idle;
        Ok(bases)
    }

    /// Back to idle, whatever the state; keeps the descriptor, its owner and its CID.
    pub fn reset(&mut self) -> Result<(), Error> {
        match self.state {
            State::Running { .. } => self.stop().map(drop),
            _ => Ok(()),
        }
    }

    fn refuse(&self, call: &'static str) -> Error {
        let state = self.state.name();
        Error::State { call, state }
    }

    fn plan(&self, activation: &Activation<'_>, mode: Mode) -> Result<Plan, Error> {
        let request = Request {
            vm: activation.vm,
            acked: activation.acked,
            mode,
            iotlb_bit: activation.iotlb_bit,
        };
        Ok(negotiate(&request, self.features)?)
    }

    /// The kernel's order: features, memory, vrings, mappings, CID, running.
    fn start(
        &self,
        activation: &Activation<'_>,
        plan: Plan,
        rings: [Rings; 2],
    ) -> Result<Option<Arc<Iotlb>>, Error> {
        self.set_features(plan)?;
        if activation.messages == MessageFormat::V2 && plan.mode.wants_iotlb() {
            self.call("VHOST_SET_BACKEND_FEATURES", None, |kernel| {
                kernel.set_backend_features(BACKEND_F_IOTLB_MSG_V2)
            })?;
        }
        self.call(SET_MEM_TABLE, None, |kernel| {
            kernel.set_mem_table(&activation.memory)
        })?;

        let mut plan = plan;
        let mut addressing = activation.addressing.clone();
        if !plan.mode.wants_iotlb() && self.iotlb_stayed_on(activation) {
            // Linux before 6.2 or so never turns it off again for a descriptor.
            // Asking for it anew empties it; all of memory is mapped, which is
            // what `off` gives.
            info!(
                "vhost-vsock CID {}: the IOTLB stays on from an earlier use of the descriptor; \
                 serving it with an identity map",
                activation.cid
            );
            plan = self.plan(activation, Mode::Identity)?;
            addressing = Addressing::Identity;
            self.set_features(plan)?;
        }

        for (queue, rings) in QueueIndex::ALL.into_iter().zip(&rings) {
            self.set_vring(activation, plan, queue, rings)?;
        }
        let iotlb = self.start_iotlb(activation, plan, &addressing, &rings)?;
        self.set_cid(activation.cid)?;
        let call = match plan.mode.wants_iotlb() {
            true => SET_RUNNING_IOTLB,
            false => SET_RUNNING,
        };
        self.call(call, None, |kernel| kernel.set_running(true))?;
        info!(
            "vhost-vsock CID {}: running, IOTLB {}, features {}",
            activation.cid, plan.mode, plan.features
        );
        Ok(iotlb)
    }

    fn set_features(&self, plan: Plan) -> Result<(), Error> {
        self.call(SET_FEATURES, None, |kernel| {
            kernel.set_features(plan.features)
        })
    }

    /// Asks by behaviour: an update is taken exactly when the IOTLB is on. It maps
    /// what mode off gives the kernel anyway.
    fn iotlb_stayed_on(&self, activation: &Activation<'_>) -> bool {
        let region = activation.memory.regions()[0];
        let update = Command::Update(Mapping {
            range: match region.gpa().at(Iova(region.gpa().first().raw())) {
                Some(range) => range,
                None => return false,
            },
            host: region.hva().first(),
            access: Access::ReadWrite,
        });
        update
            .encode(MessageFormat::V1)
            .all(|message| self.kernel.send(&message).is_ok())
    }

    fn set_vring(
        &self,
        activation: &Activation<'_>,
        plan: Plan,
        queue: QueueIndex,
        rings: &Rings,
    ) -> Result<(), Error> {
        let setup = &activation.queues[queue.number() as usize];
        let host = |range: Range<_>| {
            let gpa = plan.gpa(range.first())?;
            Some(activation.memory.host(&range.at(gpa)?)?.first().raw())
        };
        let address = |range: Range<_>| match plan.iova(range.first()) {
            Some(iova) => Some(iova.raw()),
            None => host(range),
        };
        let (Some(desc), Some(avail), Some(used)) = (
            address(rings.desc),
            address(rings.avail),
            address(rings.used),
        ) else {
            // check_queues has found all of them in memory.
            unreachable!("a checked ring has an address");
        };
        let addresses = VringAddresses { desc, avail, used };
        let error = &self.errors[queue.number() as usize];
        let queue_call = |call, f: &dyn Fn(&dyn Vhost) -> io::Result<()>| {
            self.call(call, Some(queue), |kernel| f(kernel))
        };
        use std::os::fd::AsFd;
        queue_call("VHOST_SET_VRING_NUM", &|k| {
            k.set_vring_num(queue, setup.size)
        })?;
        queue_call("VHOST_SET_VRING_BASE", &|k| {
            k.set_vring_base(queue, setup.base)
        })?;
        queue_call("VHOST_SET_VRING_ADDR", &|k| {
            k.set_vring_addr(queue, addresses)
        })?;
        queue_call("VHOST_SET_VRING_KICK", &|k| {
            k.set_vring_kick(queue, Some(setup.kick))
        })?;
        queue_call("VHOST_SET_VRING_CALL", &|k| {
            k.set_vring_call(queue, Some(setup.call))
        })?;
        queue_call("VHOST_SET_VRING_ERR", &|k| {
            k.set_vring_err(queue, Some(error.as_fd()))
        })
    }

    fn start_iotlb(
        &self,
        activation: &Activation<'_>,
        plan: Plan,
        addressing: &Addressing,
        rings: &[Rings; 2],
    ) -> Result<Option<Arc<Iotlb>>, Error> {
        let translator: Arc<dyn Translator> = match addressing {
            Addressing::Off => return Ok(None),
            Addressing::Identity => Arc::new(Identity(activation.memory.clone())),
            Addressing::Restricted(window) => window.clone(),
            Addressing::Translated(translator) => translator.clone(),
        };
        let iotlb = Arc::new(Iotlb::new(
            self.kernel.clone(),
            activation.memory.clone(),
            translator,
            activation.messages,
            self.table_limit,
        ));
        if let Addressing::Restricted(window) = addressing {
            window.attach(&iotlb)?;
        }
        let told = plan.features;
        let off = |source| match source {
            IotlbError::Send { .. } => Error::IotlbOff { told, source },
            other => other.into(),
        };
        iotlb.preload().map_err(off)?;
        for (queue, rings) in QueueIndex::ALL.into_iter().zip(rings) {
            for (part, range) in rings.parts() {
                let iovas = plan.iova(range.first()).and_then(|first| range.at(first));
                let accessible = match iovas {
                    Some(iovas) => iotlb.require(iovas).map_err(off)?,
                    None => false,
                };
                if !accessible {
                    let mode = plan.mode;
                    let source = QueueError::Inaccessible { part, range, mode };
                    return Err(Error::Queue { queue, source });
                }
            }
        }
        Ok(Some(iotlb))
    }

    fn set_cid(&self, cid: GuestCid) -> Result<(), Error> {
        self.kernel
            .set_guest_cid(cid.raw())
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EADDRINUSE) => Error::CidInUse(cid),
                _ => CallError::new("VHOST_VSOCK_SET_GUEST_CID", None, error).into(),
            })
    }

    /// Lets go of the queues' event descriptors.
    fn release(&self) {
        for queue in QueueIndex::ALL {
            for result in [
                self.kernel.set_vring_kick(queue, None),
                self.kernel.set_vring_call(queue, None),
                self.kernel.set_vring_err(queue, None),
            ] {
                if let Err(error) = result {
                    warn!("vhost-vsock: queue {queue} keeps an event descriptor: {error}");
                }
            }
        }
    }

    fn call<T>(
        &self,
        call: &'static str,
        queue: Option<QueueIndex>,
        f: impl FnOnce(&dyn Vhost) -> io::Result<T>,
    ) -> Result<T, Error> {
        f(&*self.kernel).map_err(|error| CallError::new(call, queue, error).into())
    }
}

impl Drop for VhostVsock {
    /// A monitor may keep the descriptor open a little longer; the queues stop now.
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.kernel.set_running(false);
        }
    }
}

fn signal(event: BorrowedFd<'_>) -> Result<(), Error> {
    let event = event.try_clone_to_owned().map_err(Error::Event)?;
    EventFd::from(event).signal().map_err(Error::Event)
}

/// Checks both queues; where the driver writes guest physical addresses, each
/// ring must lie in one region of memory.
fn check_queues(activation: &Activation<'_>, plan: Plan) -> Result<[Rings; 2], Error> {
    let check = |queue: QueueIndex| {
        let setup = &activation.queues[queue.number() as usize];
        let rings = setup.rings()?;
        for (part, range) in rings.parts() {
            let guest = plan.gpa(range.first()).and_then(|first| range.at(first));
            let outside = guest.is_some_and(|guest| activation.memory.host(&guest).is_none());
            if outside {
                return Err(QueueError::OutsideMemory { part, range });
            }
        }
        Ok(rings)
    };
    let check = |queue| check(queue).map_err(|source| Error::Queue { queue, source });
    Ok([check(QueueIndex::Rx)?, check(QueueIndex::Tx)?])
}
