// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One activation, call by call, in the kernel's order: features, memory, vrings,
//! mappings, CID, running. Whatever can be refused is refused by
//! [`Setup::new`], before the kernel is touched.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use log::info;

use super::device::{Activation, Addressing};
use super::error::{CallError, Error, SET_FEATURES, SET_MEM_TABLE, SET_RUNNING, SET_RUNNING_IOTLB};
use super::ioctl::{Vhost, VringAddresses, BACKEND_F_IOTLB_MSG_V2};
use super::iotlb::message::{Command, Mapping, MessageFormat};
use super::iotlb::translator::{Identity, Translator};
use super::iotlb::{Iotlb, IotlbError, Service};
use super::queue::{QueueError, QueueIndex, Rings};
use crate::access::Access;
use crate::address::{Address, BusAddr, Iova, Range};
use crate::compat::{negotiate, Mode, Plan, Request};
use crate::event::EventFd;
use crate::features::FeatureSet;

/// Makes one call and names it when it fails.
pub(super) fn call<T>(
    name: &'static str,
    queue: Option<QueueIndex>,
    result: io::Result<T>,
) -> Result<T, Error> {
    result.map_err(|error| CallError::new(name, queue, error).into())
}

/// An activation that has been checked.
pub(super) struct Setup<'a> {
    kernel: &'a Arc<dyn Vhost>,
    host: FeatureSet,
    errors: &'a [EventFd; 2],
    table_limit: usize,
    activation: &'a Activation<'a>,
    /// What was asked for.
    pub(super) plan: Plan,
    /// The checked rings.
    pub(super) rings: [Rings; 2],
}

/// What a started device runs on.
#[derive(Debug)]
pub(super) struct Started {
    /// What is in force: not the plan that was asked for when the IOTLB of the
    /// descriptor stays on.
    pub(super) plan: Plan,
    pub(super) iotlb: Option<Service>,
}

impl Started {
    /// Whether it was halted: it cannot go on, only be started anew.
    pub(super) fn is_halted(&self) -> bool {
        let iotlb = self.iotlb.as_ref();
        iotlb.is_some_and(|service| service.0.is_halted())
    }
}

impl<'a> Setup<'a> {
    pub(super) fn new(
        kernel: &'a Arc<dyn Vhost>,
        host: FeatureSet,
        errors: &'a [EventFd; 2],
        table_limit: usize,
        activation: &'a Activation<'a>,
    ) -> Result<Self, Error> {
        let plan = plan(activation, host, activation.addressing.mode())?;
        Ok(Self {
            kernel,
            host,
            errors,
            table_limit,
            activation,
            plan,
            rings: check_queues(activation, plan)?,
        })
    }

    /// From scratch.
    pub(super) fn start(&self) -> Result<Started, Error> {
        let activation = self.activation;
        let mut plan = self.plan;
        if plan.mode.wants_iotlb() {
            // A queue whose last miss was denied asks for nothing more, in kernels
            // since 7.x not even with a new IOTLB: only turning it off ends that
            // (`vhost_clear_msg`).
            let without = plan.features - activation.iotlb_bit.either();
            let taken = self.kernel.set_features(without);
            call(SET_FEATURES, None, taken)?;
        }
        self.set_features(plan)?;
        if activation.messages == MessageFormat::V2 && plan.mode.wants_iotlb() {
            let accepted = self.kernel.set_backend_features(BACKEND_F_IOTLB_MSG_V2);
            call("VHOST_SET_BACKEND_FEATURES", None, accepted)?;
        }
        let taken = self.kernel.set_mem_table(&activation.memory);
        call(SET_MEM_TABLE, None, taken)?;

        if !plan.mode.wants_iotlb() && self.iotlb_stayed_on() {
            // Some kernels never turn it off again for a descriptor. Asking for it
            // anew empties it; then all of memory is mapped, which is what `off` gives.
            info!(
                "vhost-vsock CID {}: the IOTLB stays on from an earlier use of the descriptor; \
                 serving it with an identity map",
                activation.cid
            );
            plan = self::plan(activation, self.host, Mode::Identity)?;
            self.set_features(plan)?;
        }
        for queue in QueueIndex::ALL {
            let setup = &activation.queues[queue.number() as usize];
            let kernel = &**self.kernel;
            call(
                "VHOST_SET_VRING_NUM",
                Some(queue),
                kernel.set_vring_num(queue, setup.size),
            )?;
            call(
                "VHOST_SET_VRING_BASE",
                Some(queue),
                kernel.set_vring_base(queue, setup.base),
            )?;
            self.connect(plan, queue)?;
        }
        let iotlb = self.start_iotlb(plan)?;
        self.set_cid()?;
        let name = match plan.mode.wants_iotlb() {
            true => SET_RUNNING_IOTLB,
            false => SET_RUNNING,
        };
        call(name, None, self.kernel.set_running(true))?;
        info!(
            "vhost-vsock CID {}: running, IOTLB {}, features {}",
            activation.cid, plan.mode, plan.features
        );
        Ok(Started { plan, iotlb })
    }

    /// From where [`pause`](super::pause::pause) left the queues, with `was` still
    /// in force.
    pub(super) fn resume(&self, was: Started) -> Result<Started, Error> {
        // Mappings first: in IOTLB modes the rings are where they were.
        if let Some(Service(iotlb)) = &was.iotlb {
            iotlb.open();
            self.fill_iotlb(was.plan, iotlb)?;
        }
        for queue in QueueIndex::ALL {
            self.connect(was.plan, queue)?;
        }
        if let Some(Service(iotlb)) = &was.iotlb {
            let denied = iotlb.serve()?.into_iter().next();
            denied.map_or(Ok(()), |denial| Err(Error::Denied(denial)))?;
        }
        Ok(was)
    }

    fn set_features(&self, plan: Plan) -> Result<(), Error> {
        call(SET_FEATURES, None, self.kernel.set_features(plan.features))
    }

    /// Asks by behaviour: an update is taken exactly when the IOTLB is on. It maps
    /// what mode off gives the kernel anyway.
    fn iotlb_stayed_on(&self) -> bool {
        let region = self.activation.memory.regions()[0];
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

    /// Tells the kernel where a queue's rings are, and binds its events.
    fn connect(&self, plan: Plan, queue: QueueIndex) -> Result<(), Error> {
        let setup = &self.activation.queues[queue.number() as usize];
        let rings = &self.rings[queue.number() as usize];
        let address = |ring: Range<BusAddr>| match plan.iova(ring.first()) {
            Some(iova) => Some(iova.raw()),
            None => {
                let guest = ring.at(plan.gpa(ring.first())?)?;
                Some(self.activation.memory.host(&guest)?.first().raw())
            }
        };
        let addresses = (
            address(rings.desc),
            address(rings.avail),
            address(rings.used),
        );
        let (Some(desc), Some(avail), Some(used)) = addresses else {
            unreachable!("check_queues has found every ring in memory");
        };
        let addresses = VringAddresses { desc, avail, used };
        let error = self.errors[queue.number() as usize].as_fd();
        let kernel = &**self.kernel;
        let queue_call = |name, result| call(name, Some(queue), result);
        queue_call(
            "VHOST_SET_VRING_ADDR",
            kernel.set_vring_addr(queue, addresses),
        )?;
        queue_call(
            "VHOST_SET_VRING_ERR",
            kernel.set_vring_err(queue, Some(error)),
        )?;
        queue_call(
            "VHOST_SET_VRING_CALL",
            kernel.set_vring_call(queue, Some(setup.call)),
        )?;
        queue_call(
            "VHOST_SET_VRING_KICK",
            kernel.set_vring_kick(queue, Some(setup.kick)),
        )
    }

    fn start_iotlb(&self, plan: Plan) -> Result<Option<Service>, Error> {
        let memory = &self.activation.memory;
        let translator: Arc<dyn Translator> = match (&self.activation.addressing, plan.mode) {
            (_, Mode::Off) => return Ok(None),
            (Addressing::Restricted(window), _) => window.clone(),
            (Addressing::Translated(translator), _) => translator.clone(),
            (Addressing::Off | Addressing::Identity, _) => Arc::new(Identity(memory.clone())),
        };
        let service = Service(Arc::new(Iotlb::new(
            self.kernel.clone(),
            memory.clone(),
            translator,
            self.activation.messages,
            self.table_limit,
        )));
        let iotlb = &service.0;
        if let Addressing::Restricted(window) = &self.activation.addressing {
            window.attach(iotlb)?;
        }
        iotlb.discard_old_misses()?;
        self.fill_iotlb(plan, iotlb)?;
        Ok(Some(service))
    }

    /// Tells the kernel what the translator gives in advance, and all rings.
    fn fill_iotlb(&self, plan: Plan, iotlb: &Iotlb) -> Result<(), Error> {
        let told = plan.features;
        let off = |source| match source {
            IotlbError::Send { .. } => Error::IotlbOff { told, source },
            other => other.into(),
        };
        iotlb.preload().map_err(off)?;
        for (queue, rings) in QueueIndex::ALL.into_iter().zip(&self.rings) {
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
        Ok(())
    }

    fn set_cid(&self) -> Result<(), Error> {
        let cid = self.activation.cid;
        self.kernel
            .set_guest_cid(cid.raw())
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EADDRINUSE) => Error::CidInUse(cid),
                _ => CallError::new("VHOST_VSOCK_SET_GUEST_CID", None, error).into(),
            })
    }
}

fn plan(activation: &Activation<'_>, host: FeatureSet, mode: Mode) -> Result<Plan, Error> {
    let request = Request {
        vm: activation.vm,
        acked: activation.acked,
        mode,
        iotlb_bit: activation.iotlb_bit,
    };
    Ok(negotiate(&request, host)?)
}

/// Checks both queues; where the driver writes guest physical addresses, each
/// ring must lie in one region of memory.
fn check_queues(activation: &Activation<'_>, plan: Plan) -> Result<[Rings; 2], Error> {
    let check = |queue: QueueIndex| {
        let rings = activation.queues[queue.number() as usize].rings()?;
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
