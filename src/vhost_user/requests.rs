// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The requests of a front end, one by one: what each changes in [`Front`], and which are
//! refused.
//!
//! `unsafe` here: telling [`GuestMemory`] that its regions are mapped.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use log::warn;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use super::front::{refuse, Front, View};
use super::shared_memory::{map, Size};
use crate::address::{Gpa, Hva, Range};
use crate::event::EventFd;
use crate::features::{Feature, FeatureSet};
use crate::guest_memory::GuestMemory;
use crate::memory::{MemoryMap, Region};
use crate::path::{DataPath, EVENT, QUEUES};
use crate::rate_limit::debug_within;

/// Size of the device's configuration space: `guest_cid` (VIRTIO 1.2, 5.10.4).
const CONFIG_LEN: u32 = 8;

fn bad_memory(error: impl std::fmt::Display) -> Error {
    refuse(format_args!("guest memory: {error}"))
}

fn event_fd(file: File) -> Arc<EventFd> {
    Arc::new(EventFd::from(OwnedFd::from(file)))
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
            debug_within!(self.notes, "vm {}: features {acked}", self.path.cid());
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
