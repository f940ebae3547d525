// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel path behind vhost-user: the host kernel's vhost-vsock moves the data.
//!
//! The front end's address space is not ours: [`Front`](super::front::Front) has already
//! turned its ring addresses into guest physical ones. Bit 33 is offered, as crosvm does
//! for protected VMs, and goes no further than the shim: without IOTLB messages from the
//! front end addresses are guest physical, so the mode is `off` on every kernel, or what
//! [`KernelPath::with_addressing`] was told. `management` holds what else may be asked.
//!
//! A guest that goes for good takes its connections with it, which vhost-vsock does
//! when its descriptor closes: the device is opened anew for the next guest.
//!
//! A guest that outlives its front end is told that its connections are gone, in the event
//! queue, and so is one whose queues the kernel has given up on. Limits: QEMU keeps that
//! queue to itself; such a guest learns of it by RST.

mod management;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info};

use super::event_queue::EventQueue;
use crate::address::{Address, BusAddr, Gpa, GuestCid};
use crate::compat::{offer, IotlbBit, Vm};
use crate::epoll::{Epoll, Interest, Token};
use crate::event::EventFd;
use crate::features::FeatureSet;
use crate::kernel::{
    self, Addressing, Error, Failure, MessageFormat, Monitor, QueueIndex, QueueSetup, VhostVsock,
};
use crate::path::{Activation, DataPath, Queue, EVENT, PATH_KINDS, QUEUES, RX, TX};
use crate::rate_limit::RateLimit;
use crate::watchers::{Event, Watchers};

/// What the monitor watches; the slot is a number in its list.
const MONITOR: u8 = PATH_KINDS;
/// The event queue's kick.
const EVENT_KICK: Token = Token::lasting(PATH_KINDS + 1, 0);

/// Makes a device: opens the device file, or what stands in for it.
pub type Open = Box<dyn Fn() -> Result<VhostVsock, Error> + Send>;

/// The data path of one VM through `/dev/vhost-vsock`.
pub struct KernelPath {
    cid: GuestCid,
    max_queue_size: u16,
    offered: FeatureSet,
    open: Open,
    device: VhostVsock,
    /// What the device runs on; its memory stays mapped while the device is stopped, since
    /// it may go on there.
    activation: Option<Activation>,
    monitor: Option<Monitor>,
    events: Option<EventQueue>,
    /// The call event of a queue whose driver wants none.
    unheard: EventFd,
    /// The guest is to be told that its connections are gone, once it can be.
    reset_event: bool,
    addressing: Addressing,
    /// A queue was given up.
    broken: bool,
    resets: u64,
    denials: u64,
    watchers: Arc<Watchers>,
    epoll: Arc<Epoll>,
    /// Limits what a guest can make us log.
    reports: RateLimit,
}

impl KernelPath {
    /// Opens the device.
    pub fn new(
        cid: GuestCid,
        max_queue_size: u16,
        open: Open,
        epoll: Arc<Epoll>,
    ) -> Result<Self, Error> {
        let device = opened(&open)?;
        Ok(Self {
            cid,
            max_queue_size,
            offered: offer(
                Vm::Protected,
                IotlbBit::NONE,
                device.features(),
                FeatureSet::EMPTY,
            ),
            open,
            device,
            activation: None,
            monitor: None,
            events: None,
            unheard: EventFd::new().map_err(Error::Event)?,
            reset_event: false,
            addressing: Addressing::Off,
            broken: false,
            resets: 0,
            denials: 0,
            watchers: Arc::default(),
            epoll,
            reports: RateLimit::default(),
        })
    }

    /// The same with another way to reach guest memory: off is the default, and a vIOMMU
    /// there is none.
    pub fn with_addressing(mut self, addressing: Addressing) -> Self {
        self.addressing = addressing;
        self
    }

    fn start(&mut self, activation: &Activation) -> Result<Monitor, Error> {
        let [rx, tx, _] = &activation.queues;
        self.device.activate(&kernel::Activation {
            cid: self.cid,
            vm: Vm::Protected,
            acked: activation.features,
            iotlb_bit: match self.addressing.mode().wants_iotlb() {
                true => IotlbBit::default(),
                false => IotlbBit::NONE,
            },
            addressing: self.addressing.clone(),
            messages: MessageFormat::V1,
            memory: activation.memory.map().clone(),
            queues: [
                setup(rx, QueueIndex::Rx, &self.unheard)?,
                setup(tx, QueueIndex::Tx, &self.unheard)?,
            ],
        })
    }

    /// Tells the guest what it is to be told, if it has a buffer for that.
    fn report_reset(&mut self) {
        let (true, Some(events)) = (self.reset_event, &mut self.events) else {
            return;
        };
        match events.report_reset() {
            Ok(reported) => self.reset_event = !reported,
            Err(broken) => {
                if self.reports.allow() {
                    error!("vm {}: event queue: {broken}", self.cid);
                }
                self.reset_event = false;
            }
        }
    }

    /// Opens the device again: its connections end.
    fn renew(&mut self) -> Result<(), Error> {
        self.stop();
        self.device = opened(&self.open)?;
        self.activation = None;
        self.broken = false;
        self.resets += 1;
        Ok(())
    }
}

fn opened(open: &Open) -> Result<VhostVsock, Error> {
    let mut device = open()?;
    device.own()?;
    Ok(device)
}

fn setup<'a>(
    queue: &'a Option<Queue>,
    index: QueueIndex,
    unheard: &'a EventFd,
) -> Result<QueueSetup<'a>, Error> {
    let missing = || {
        let why = format!("queue {index} needs a kick descriptor");
        Error::Event(io::Error::new(io::ErrorKind::InvalidInput, why))
    };
    let queue = queue.as_ref().ok_or_else(missing)?;
    let bus = |address: Gpa| BusAddr::new(address.raw());
    Ok(QueueSetup {
        size: queue.size,
        desc: bus(queue.descriptors),
        avail: bus(queue.available),
        used: bus(queue.used),
        base: queue.base,
        kick: queue.kick.as_deref().ok_or_else(missing)?.as_fd(),
        call: queue.call.as_deref().unwrap_or(unheard).as_fd(),
    })
}

impl DataPath for KernelPath {
    fn features(&self) -> FeatureSet {
        self.offered
    }

    fn cid(&self) -> GuestCid {
        self.cid
    }

    fn max_queue_size(&self) -> u16 {
        self.max_queue_size
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        if activation.iotlb.is_some() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a vIOMMU translates for this device, which the kernel path does not serve: \
                 use --backend userspace, or keep the device out of it (QEMU: iommu_platform=off)",
            ));
        }
        if !activation.resumed {
            if self.activation.is_some() {
                self.renew().map_err(io::Error::other)?;
            }
            // A driver whose queues were served before knows connections that we do not.
            self.reset_event = activation.was_served();
        }
        let events = activation.queues[EVENT]
            .as_ref()
            .map(|queue| EventQueue::new(queue, &activation.memory, activation.features))
            .transpose()
            .map_err(|error| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("queue {EVENT}: {error}"),
                )
            })?;
        let monitor = self.start(&activation).map_err(io::Error::other)?;
        let mut watched = Ok(());
        for (slot, descriptor) in monitor.descriptors().into_iter().enumerate() {
            let token = Token::lasting(MONITOR, slot as u32);
            watched = watched.and(self.epoll.add(descriptor, token, Interest::READABLE));
        }
        if let Some(events) = &events {
            watched = watched.and(events.watch(&self.epoll, EVENT_KICK));
        }
        if !activation.resumed {
            // A guest can reset its driver as often as it likes.
            if self.reports.allow() {
                let (cid, features) = (self.cid, activation.features);
                info!("vm {cid}: the driver is there, features: {features}");
            }
        }
        self.monitor = Some(monitor);
        self.broken = false;
        self.events = events;
        self.activation = Some(activation);
        if watched.is_err() {
            self.stop();
        }
        self.report_reset();
        watched
    }

    fn is_active(&self) -> bool {
        self.device.is_running()
    }

    fn stop(&mut self) -> Option<[Option<u16>; QUEUES]> {
        if let Some(monitor) = self.monitor.take() {
            for descriptor in monitor.descriptors() {
                // Not registered, if registering it was what failed.
                let _ = self.epoll.remove(descriptor);
            }
        }
        let events = self.events.take();
        if let Some(events) = &events {
            events.unwatch(&self.epoll);
        }
        if !self.device.is_running() {
            return None;
        }
        let start = |queue: usize| {
            let queue = self.activation.as_ref()?.queues[queue].as_ref();
            queue.map(|queue| queue.base)
        };
        let event = events.map(|events| events.base());
        match self.device.stop() {
            Ok([rx, tx]) => Some([Some(rx), Some(tx), event]),
            Err(error) => {
                error!("vm {}: {error}", self.cid);
                Some([start(RX), start(TX), event])
            }
        }
    }

    fn forget_guest(&mut self) {
        if self.activation.is_some() {
            if let Err(error) = self.renew() {
                error!("vm {}: the next guest cannot be served: {error}", self.cid);
            }
        }
    }

    fn set_call(&mut self, queue: usize, call: Option<Arc<EventFd>>) -> io::Result<()> {
        let index = match queue {
            RX => Some(QueueIndex::Rx),
            TX => Some(QueueIndex::Tx),
            _ => None,
        };
        if let (Some(index), true) = (index, self.device.is_running()) {
            let event = call.as_deref().unwrap_or(&self.unheard);
            self.device
                .set_call(index, event.as_fd())
                .map_err(io::Error::other)?;
            event.signal()?;
        }
        if let (EVENT, Some(events)) = (queue, &mut self.events) {
            events.set_call(call.clone());
        }
        let active = self.activation.as_mut();
        if let Some(Some(place)) = active.and_then(|a| a.queues.get_mut(queue)) {
            place.call = call;
        }
        Ok(())
    }

    fn event(&mut self, token: Token, _interest: Interest) {
        if let (MONITOR, Some(monitor)) = (token.kind, &mut self.monitor) {
            // Logged there. Told of a reset, the guest ends its connections instead of
            // waiting for ever; vhost-user has no way to say more, the watchers have.
            let failures = monitor.handle();
            if !failures.is_empty() {
                self.broken = true;
                self.reset_event = true;
                for failure in failures {
                    if let Failure::Denied(denial) = failure {
                        self.denials += 1;
                        self.watchers.tell(|| Event::Denied(denial));
                    }
                }
                self.report_reset();
            }
        }
        if token == EVENT_KICK {
            self.report_reset();
        }
    }

    fn turn(&mut self, _now: Instant) -> Option<Duration> {
        None
    }

    fn epoll(&self) -> &Arc<Epoll> {
        &self.epoll
    }
}
