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
//! Bit 33 may be acknowledged: as long as no front end translates, addresses are guest
//! physical. One with a vIOMMU does, and is refused as soon as it shows: its rings lie at
//! I/O virtual addresses, outside of its memory, and it sends IOTLB messages.
//!
//! `unsafe` here: telling [`GuestMemory`] that its regions are mapped.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use log::{debug, error};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};
use vm_memory::mmap::MmapRegion;

use crate::address::{Address, Gpa, Hva, Range};
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
    /// Kept open for the front end, which complains of one that is closed.
    _requests: Option<Backend>,
}

fn refuse(what: std::fmt::Arguments<'_>) -> Error {
    error!("vhost-user: {what}");
    Error::InvalidParam
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
            _requests: None,
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
        self._requests = None;
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

    fn queue(&self, index: usize) -> Result<Option<Queue>> {
        let vring = &self.vrings[index];
        let (true, Some(addresses)) = (self.is_ready(index), vring.addresses) else {
            return Ok(None);
        };
        let place = |address| {
            self.to_guest(address)
                .ok_or_else(|| self.misplaced(index, address))
        };
        let [descriptors, available, used] = addresses;
        Ok(Some(Queue {
            size: vring.size,
            descriptors: place(descriptors)?,
            available: place(available)?,
            used: place(used)?,
            base: vring.base,
            kick: vring.kick.clone(),
            call: vring.call.clone(),
        }))
    }

    /// A ring address that is not in the front end's memory. QEMU hands over I/O virtual
    /// addresses (`vhost_memory_map`) where it acknowledges bit 33, which it does only
    /// behind a vIOMMU.
    fn misplaced(&self, index: usize, address: u64) -> Error {
        let platform = self
            .acked
            .is_some_and(|acked| acked.has(Feature::ACCESS_PLATFORM));
        if platform {
            return refuse(format_args!(
                "queue {index}: {address:#x} is not guest memory, and ACCESS_PLATFORM is \
                 acknowledged: a vIOMMU translates for this device, which the daemon does not \
                 serve; keep the device out of it (QEMU: iommu_platform=off)"
            ));
        }
        refuse(format_args!(
            "queue {index}: {address:#x} is not guest memory"
        ))
    }

    /// Starts the device if all is there, or again if it runs and something has changed.
    fn start(&mut self) -> Result<()> {
        self.pause();
        let (Some(memory), Some(acked)) = (self.memory.clone(), self.acked) else {
            return Ok(());
        };
        if !self.is_ready(RX) || !self.is_ready(TX) {
            return Ok(());
        }
        let bases = [RX, TX, EVENT].map(|index| self.vrings[index].base);
        let resumed = self
            .stopped_at
            .is_some_and(|at| (at[RX], at[TX]) == (Some(bases[RX]), Some(bases[TX])));
        let activation = Activation {
            memory,
            queues: [self.queue(RX)?, self.queue(TX)?, self.queue(EVENT)?],
            features: acked - Feature::PROTOCOL_FEATURES.set(),
            resumed,
        };
        self.path
            .activate(activation)
            .map_err(|e| refuse(format_args!("the device cannot start: {e}")))
    }

    /// Stops the device, if it runs, and notes where.
    fn pause(&mut self) {
        if let Some(bases) = self.path.stop() {
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

fn map(region: &VhostUserMemoryRegion, file: File) -> Result<MmapRegion> {
    let (offset, size) = (region.mmap_offset, region.memory_size);
    let len = file.metadata().map_err(Error::ReqHandlerError)?.len();
    // Access beyond the end of a file is a SIGBUS, not an error.
    if offset.checked_add(size).is_none_or(|end| end > len) {
        return Err(refuse(format_args!(
            "a memory region of {size:#x} bytes at offset {offset:#x} of a file of {len:#x}"
        )));
    }
    region.mmap_region(file)
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

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mut mappings = Vec::new();
        let mut table = Vec::new();
        let mut views = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            let mapping = map(region, file)?;
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
        let active = self.path.is_active();
        self.pause();
        self.memory = Some(Arc::new(memory));
        self.views = views;
        if active {
            self.start()?;
        }
        Ok(None)
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
        self.path.set_call(index.into(), call);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        self.vring(index.into()).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            // QEMU takes no back end that offers bit 33 without a channel for IOTLB
            // misses; addresses are guest physical here, and the channel stays idle.
            | VhostUserProtocolFeatures::BACKEND_REQ)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn set_backend_req_fd(&mut self, requests: Backend) {
        self._requests = Some(requests);
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

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
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
