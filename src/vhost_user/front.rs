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
//!
//! `unsafe` here: telling [`GuestMemory`] that its regions are mapped.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use log::{debug, error, warn};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use super::iotlb::{Channel, Message};
use super::shared_memory::{map, Size};
use crate::access::Access;
use crate::address::{Address, Gpa, Hva, Iova, Range};
use crate::bus::{Iotlb, NoPlace};
use crate::event::EventFd;
use crate::features::{Feature, FeatureSet};
use crate::guest_memory::GuestMemory;
use crate::memory::{MemoryMap, Region};
use crate::path::{Activation, DataPath, Queue, EVENT, QUEUES, RX, TX};

/// Size of the device's configuration space: `guest_cid` (VIRTIO 1.2, 5.10.4).
const CONFIG_LEN: u32 = 8;

/// What a front end has said about one ring.
#[derive(Debug, Default)]
struct Vring {
    size: u16,
    /// Descriptor table, available ring, used ring: in the front end's address space.
    addresses: Option<[u64; 3]>,
    base: u16,
    kick: Option<Arc<EventFd>>,
    call: Option<Arc<EventFd>>,
    enabled: bool,
    started: bool,
}

/// Guest memory as the front end sees it.
#[derive(Clone, Copy, Debug)]
struct View {
    front_end: Range<Hva>,
    guest: Gpa,
}

/// A front end's requests to a data path.
pub struct Front<P> {
    /// What serves the queues.
    pub path: P,
    acked: Option<FeatureSet>,
    memory: Option<Arc<GuestMemory>>,
    views: Vec<View>,
    vrings: [Vring; QUEUES],
    /// Where the queues stood when the device was last stopped.
    stopped_at: Option<[Option<u16>; QUEUES]>,
    /// Where misses go. QEMU complains of a channel that is closed, used or not.
    channel: Option<Channel>,
    iotlb: Arc<Iotlb>,
    /// The device would run if it were known where its rings are.
    waiting: bool,
    told_of_loose_memory: bool,
}

/// A part of a ring (VIRTIO 1.2, 2.7).
struct Part {
    name: &'static str,
    address: u64,
    len: u64,
    access: Access,
}

impl Vring {
    /// Whether a part of it lies in `range`.
    fn lies_in(&self, range: Range<Iova>) -> bool {
        let parts = self.parts().into_iter().flatten();
        parts
            .filter_map(|part| Range::new(Iova(part.address), part.len).ok())
            .any(|part| part.overlaps(&range))
    }

    /// Descriptor table, available ring, used ring, with their event fields.
    fn parts(&self) -> Option<[Part; 3]> {
        let [descriptors, available, used] = self.addresses?;
        let size = u64::from(self.size);
        let part = |name, address, len, access| Part {
            name,
            address,
            len,
            access,
        };
        Some([
            part("descriptor table", descriptors, 16 * size, Access::Read),
            part("available ring", available, 6 + 2 * size, Access::Read),
            part("used ring", used, 6 + 8 * size, Access::ReadWrite),
        ])
    }
}

/// What is known of a queue.
enum Setup {
    /// It is not to be served.
    Absent,
    /// It will be, once it is known where it is.
    Waiting,
    Ready(Queue),
}

impl Setup {
    fn ready(self) -> Option<Queue> {
        match self {
            Self::Ready(queue) => Some(queue),
            Self::Absent | Self::Waiting => None,
        }
    }
}

/// The reason is logged by whoever hangs up on the front end.
fn refuse(what: std::fmt::Arguments<'_>) -> Error {
    Error::ReqHandlerError(io::Error::other(what.to_string()))
}

fn bad_memory(error: impl std::fmt::Display) -> Error {
    refuse(format_args!("guest memory: {error}"))
}

fn event_fd(file: File) -> Arc<EventFd> {
    Arc::new(EventFd::from(OwnedFd::from(file)))
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

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
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
    fn start(&mut self) -> Result<()> {
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
            debug!(
                "vm {}: asks where {} leads ({})",
                self.path.cid(),
                miss.iova,
                miss.access
            );
            let sent = self.channel.as_mut().map(|channel| channel.ask(miss));
            if let Some(Err(error)) = sent {
                error!(
                    "vm {}: the front end cannot be asked to translate {}: {error}",
                    self.path.cid(),
                    miss.iova
                );
            }
        }
    }

    /// Stops the device, if it runs, and notes where.
    fn pause(&mut self) {
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
    fn changed(&mut self, index: u32) -> Result<()> {
        if self.path.is_active() || self.is_ready(index as usize) {
            self.start()?;
        }
        Ok(())
    }
}

impl<P: DataPath> VhostUserBackendReqHandlerMut for Front<P> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.disconnected();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.disconnected();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok((self.path.features() | Feature::PROTOCOL_FEATURES.set()).bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let acked = FeatureSet::from_bits(features);
        let offered = self.path.features() | Feature::PROTOCOL_FEATURES.set();
        let unknown = acked - offered;
        if !unknown.is_empty() {
            return Err(refuse(format_args!(
                "the front end acknowledges what was not offered: {unknown}"
            )));
        }
        if self.acked != Some(acked) {
            debug!("vm {}: features {acked}", self.path.cid());
            self.acked = Some(acked);
            if self.path.is_active() {
                self.start()?;
            }
        }
        Ok(())
    }

    fn set_mem_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let mut mappings = Vec::new();
        let mut table = Vec::new();
        let mut views = Vec::new();
        let mut loose = false;
        for (region, file) in regions.iter().zip(files) {
            let (mapping, file_size) = map(region, file)?;
            loose |= file_size == Size::Loose;
            let (guest, size) = (Gpa(region.guest_phys_addr), region.memory_size);
            let host = Hva(mapping.as_ptr() as u64);
            table.push(Region::new(guest, host, size).map_err(bad_memory)?);
            views.push(View {
                front_end: Range::new(Hva(region.user_addr), size).map_err(bad_memory)?,
                guest,
            });
            mappings.push(mapping);
        }
        let map = MemoryMap::new(table).map_err(bad_memory)?;
        // SAFETY: each region is the whole of a shared, writable mapping that `mappings`
        // owns and that nothing else refers to.
        let memory = unsafe { GuestMemory::new(map, Arc::new(mappings)) };
        if loose && !std::mem::replace(&mut self.told_of_loose_memory, true) {
            warn!(
                "vm {}: guest memory is a file that cannot be sealed against shrinking: a front end \
                 that shrinks it ends this process (a memfd that allows sealing is safe)",
                self.path.cid()
            );
        }
        let active = self.path.is_active();
        self.pause();
        self.memory = Some(Arc::new(memory));
        self.views = views;
        if active {
            self.start()?;
        }
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let most = self.path.max_queue_size();
        let size = u16::try_from(num)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= most)
            .ok_or_else(|| {
                refuse(format_args!(
                    "queue {index} of {num} entries: a power of two up to {most} is possible (see --queue-size)"
                ))
            })?;
        self.vring(index)?.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = Some([descriptor, available, used]);
        let vring = self.vring(index)?;
        if vring.addresses != addresses {
            vring.addresses = addresses;
            self.changed(index)?;
        }
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base)
            .map_err(|_| refuse(format_args!("queue {index}: base {base} is no ring index")))?;
        self.vring(index)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.vring(index)?;
        self.pause();
        let vring = self.vring(index)?;
        vring.started = false;
        vring.kick = None;
        vring.call = None;
        Ok(VhostUserVringState::new(index, vring.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = fd.ok_or_else(|| {
            refuse(format_args!(
                "queue {index} without a kick descriptor: this device does not poll"
            ))
        })?;
        let vring = self.vring(index.into())?;
        vring.kick = Some(event_fd(kick));
        vring.started = true;
        self.changed(index.into())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = fd.map(event_fd);
        self.vring(index.into())?.call.clone_from(&call);
        self.path
            .set_call(index.into(), call)
            .map_err(|e| refuse(format_args!("queue {index}: another call event: {e}")))
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        self.vring(index.into()).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            // For IOTLB misses: QEMU takes no back end that offers bit 33 without it.
            | VhostUserProtocolFeatures::BACKEND_REQ)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let vring = self.vring(index)?;
        if vring.enabled != enable {
            if !enable && index as usize != EVENT {
                self.pause();
            }
            self.vring(index)?.enabled = enable;
            self.changed(index)?;
        }
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let end = offset.checked_add(size).filter(|end| *end <= CONFIG_LEN);
        let Some(end) = end else {
            return Err(refuse(format_args!(
                "{size} bytes at {offset} of a configuration space of {CONFIG_LEN} bytes"
            )));
        };
        let config = self.path.cid().raw().to_le_bytes();
        Ok(config[offset as usize..end as usize].to_vec())
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _buf: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        Err(refuse(format_args!("the configuration space is read-only")))
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("this is not a GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("nothing is ever in flight"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("nothing is ever in flight"))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(Error::InvalidOperation("memory slots are not offered"))
    }

    fn add_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion, _fd: File) -> Result<()> {
        Err(Error::InvalidOperation("memory slots are not offered"))
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidOperation("memory slots are not offered"))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("device state is not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("device state is not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory regions"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("dirty logging is not offered"))
    }
}
