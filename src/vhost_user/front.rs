// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a front end has said so far, and when it is enough to start.
//!
//! Rings start and stop as the vhost-user protocol has it: a ring is started by its
//! kick descriptor and stopped by GET_VRING_BASE; it is enabled by SET_VRING_ENABLE, or
//! from the beginning if the protocol features were not acknowledged. The device runs
//! while receive and transmit queue are both started and enabled.
//!
//! A device that is stopped and started at the same place (a paused VM, memory that
//! was plugged in) keeps its connections. One that starts elsewhere is a guest that
//! does not know them.
//!
//! Bit 33 may be acknowledged; what addresses mean does not follow from it. Those of the
//! rings tell: in the front end's memory, and all addresses are guest physical (crosvm, and
//! QEMU without a vIOMMU); outside of it, and they are I/O virtual (QEMU's
//! `vhost_memory_map` behind a vIOMMU). Then the device starts once the front end has said
//! where its rings are, and pauses when it takes that back.

use std::io;
use std::sync::Arc;

use log::error;
use vhost::vhost_user::{Error, Result};

use super::iotlb::{Channel, Message};
use super::vring::{Part, Setup, Vring};
use crate::address::{Address, Gpa, Hva, Iova, Range};
use crate::bus::{Iotlb, NoPlace};
use crate::features::{Feature, FeatureSet};
use crate::guest_memory::GuestMemory;
use crate::path::{Activation, DataPath, Queue, EVENT, QUEUES, RX, TX};
use crate::rate_limit::{debug_within, RateLimit};

/// Guest memory as the front end sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) front_end: Range<Hva>,
    pub(super) guest: Gpa,
}

/// A front end's requests to a data path.
pub struct Front<P> {
    /// What serves the queues.
    pub path: P,
    pub(super) acked: Option<FeatureSet>,
    pub(super) memory: Option<Arc<GuestMemory>>,
    pub(super) views: Vec<View>,
    pub(super) vrings: [Vring; QUEUES],
    /// Where the queues stood when the device was last stopped.
    stopped_at: Option<[Option<u16>; QUEUES]>,
    /// Where misses go. QEMU complains of a channel that is closed, used or not.
    channel: Option<Channel>,
    iotlb: Arc<Iotlb>,
    /// The device would run if it were known where its rings are.
    waiting: bool,
    pub(super) told_of_loose_memory: bool,
    reports: RateLimit,
    pub(super) notes: RateLimit,
}

/// The reason is logged by whoever hangs up on the front end.
pub(super) fn refuse(what: std::fmt::Arguments<'_>) -> Error {
    Error::ReqHandlerError(io::Error::other(what.to_string()))
}

impl<P: DataPath> Front<P> {
    /// For a front end that has not said anything yet.
    pub fn new(path: P) -> Self {
        Self {
            path,
            acked: None,
            memory: None,
            views: Vec::new(),
            vrings: Default::default(),
            stopped_at: None,
            channel: None,
            iotlb: Arc::default(),
            waiting: false,
            told_of_loose_memory: false,
            reports: RateLimit::default(),
            notes: RateLimit::default(),
        }
    }

    /// The front end is gone, and with it the guest.
    pub fn disconnected(&mut self) {
        self.path.forget_guest();
        self.acked = None;
        self.memory = None;
        self.views.clear();
        self.vrings = Default::default();
        self.stopped_at = None;
        self.channel = None;
        self.iotlb = Arc::default();
        self.waiting = false;
    }

    pub(super) fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        self.vrings
            .get_mut(index as usize)
            .ok_or_else(|| refuse(format_args!("there is no queue {index}, only 0 to 2")))
    }

    /// Whether a ring may be served.
    fn is_ready(&self, index: usize) -> bool {
        let vring = &self.vrings[index];
        let enabled = vring.enabled
            || self
                .acked
                .is_some_and(|acked| !acked.has(Feature::PROTOCOL_FEATURES));
        vring.started && enabled && vring.size > 0 && vring.addresses.is_some()
    }

    fn to_guest(&self, address: u64) -> Option<Gpa> {
        let view = self
            .views
            .iter()
            .find(|view| view.front_end.contains(Hva(address)))?;
        let offset = Hva(address).offset_from(view.front_end.first())?;
        view.guest.checked_add(offset)
    }

    /// Whether addresses are I/O virtual ones: bit 33 is acknowledged, and a ring's lie
    /// outside of the front end's memory.
    fn is_translated(&self) -> bool {
        let platform = self
            .acked
            .is_some_and(|acked| acked.has(Feature::ACCESS_PLATFORM));
        let outside = |vring: &Vring| {
            let addresses = vring.addresses.unwrap_or_default();
            addresses.iter().any(|at| self.to_guest(*at).is_none())
        };
        platform && outside(&self.vrings[RX]) && outside(&self.vrings[TX])
    }

    fn queue(&self, index: usize, translated: bool) -> Result<Setup> {
        let vring = &self.vrings[index];
        let (true, Some(parts)) = (self.is_ready(index), vring.parts()) else {
            return Ok(Setup::Absent);
        };
        let mut places = [None; 3];
        for (place, part) in places.iter_mut().zip(parts) {
            *place = if translated {
                self.translate(index, &part)?
            } else {
                Some(self.to_guest(part.address).ok_or_else(|| {
                    refuse(format_args!(
                        "queue {index}: the {} at {:#x} is not guest memory",
                        part.name, part.address
                    ))
                })?)
            };
        }
        let [Some(descriptors), Some(available), Some(used)] = places else {
            return Ok(Setup::Waiting);
        };
        Ok(Setup::Ready(Queue {
            size: vring.size,
            descriptors,
            available,
            used,
            base: vring.base,
            kick: vring.kick.clone(),
            call: vring.call.clone(),
        }))
    }

    /// Where a part of a ring is; `None`: the front end will be asked.
    fn translate(&self, index: usize, part: &Part) -> Result<Option<Gpa>> {
        let (name, address) = (part.name, part.address);
        if self.channel.is_none() {
            return Err(refuse(format_args!(
                "queue {index}: the {name} at {address:#x} is not guest memory, and ACCESS_PLATFORM \
                 is acknowledged: a vIOMMU translates for this device, but the front end has \
                 opened no channel to ask it (protocol feature BACKEND_REQ)"
            )));
        }
        let range = Range::new(Iova(address), part.len)
            .map_err(|e| refuse(format_args!("queue {index}: the {name}: {e}")))?;
        match self.iotlb.whole(range, part.access) {
            Ok(place) => Ok(Some(place)),
            Err(NoPlace::Untranslated) => Ok(None),
            Err(NoPlace::Scattered) => Err(refuse(format_args!(
                "queue {index}: the pages of the {name} at {address:#x} are not neighbours in \
                 guest memory: use a smaller queue (up to 256 entries each part is one page)"
            ))),
        }
    }

    /// Starts the device if all is there, or again if it runs and something has changed.
    pub(super) fn start(&mut self) -> Result<()> {
        self.pause();
        self.waiting = false;
        let (Some(memory), Some(acked)) = (self.memory.clone(), self.acked) else {
            return Ok(());
        };
        if !self.is_ready(RX) || !self.is_ready(TX) {
            return Ok(());
        }
        let translated = self.is_translated();
        let mut queues = [Setup::Absent, Setup::Absent, Setup::Absent];
        for (index, queue) in queues.iter_mut().enumerate() {
            *queue = self.queue(index, translated)?;
        }
        if queues.iter().any(|queue| matches!(queue, Setup::Waiting)) {
            self.waiting = true;
            return Ok(());
        }
        let bases = [RX, TX, EVENT].map(|index| self.vrings[index].base);
        let resumed = self
            .stopped_at
            .is_some_and(|at| (at[RX], at[TX]) == (Some(bases[RX]), Some(bases[TX])));
        let activation = Activation {
            memory,
            iotlb: translated.then(|| self.iotlb.clone()),
            queues: queues.map(Setup::ready),
            features: acked - Feature::PROTOCOL_FEATURES.set(),
            resumed,
        };
        self.path
            .activate(activation)
            .map_err(|e| refuse(format_args!("the device cannot start: {e}")))
    }

    /// Takes a request of those that a vIOMMU needs.
    pub(super) fn iotlb_message(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Channel(channel) => self.channel = Some(channel),
            Message::Update {
                range,
                host,
                access,
            } => {
                let gpa = self.whole_to_guest(range, host).ok_or_else(|| {
                    refuse(format_args!(
                        "an IOTLB update of {range} to {host}, which is not guest memory"
                    ))
                })?;
                self.iotlb.update(range, gpa, access);
                if self.waiting {
                    self.start()?;
                }
            }
            Message::Invalidate(range) => {
                let rings = self.path.is_active()
                    && self.is_translated()
                    && self.vrings.iter().any(|vring| vring.lies_in(range));
                if rings {
                    self.pause();
                }
                self.iotlb.invalidate(range);
                if rings {
                    self.start()?;
                }
            }
        }
        Ok(())
    }

    /// Where the front end sees memory that `range` leads to, from `host` on, in the guest.
    fn whole_to_guest(&self, range: Range<Iova>, host: Hva) -> Option<Gpa> {
        let range = range.at(host)?;
        let view = self
            .views
            .iter()
            .find(|view| view.front_end.covers(&range))?;
        view.guest
            .checked_add(host.offset_from(view.front_end.first())?)
    }

    /// Asks the front end for the translations that are missing.
    pub(super) fn ask(&mut self) {
        for miss in self.iotlb.questions() {
            debug_within!(
                self.notes,
                "vm {}: asks where {} leads ({})",
                self.path.cid(),
                miss.iova,
                miss.access
            );
            let sent = self.channel.as_mut().map(|channel| channel.ask(miss));
            if let Some(Err(error)) = sent {
                if self.reports.allow() {
                    error!(
                        "vm {}: the front end cannot be asked to translate {}: {error}",
                        self.path.cid(),
                        miss.iova
                    );
                }
            }
        }
    }

    /// Stops the device, if it runs, and notes where.
    pub(super) fn pause(&mut self) {
        if let Some(bases) = self.path.stop() {
            self.iotlb.forget_questions();
            for (vring, base) in self.vrings.iter_mut().zip(bases) {
                // A ring that has not run yet is where the front end says.
                if let (true, Some(base)) = (vring.started, base) {
                    vring.base = base;
                }
            }
            self.stopped_at = Some(bases);
        }
    }

    /// Applies a change that matters only while the device runs or could run.
    pub(super) fn changed(&mut self, index: u32) -> Result<()> {
        if self.path.is_active() || self.is_ready(index as usize) {
            self.start()?;
        }
        Ok(())
    }
}
