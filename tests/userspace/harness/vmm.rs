// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's side of vhost-user: memory table, vrings, kicks and calls.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use guest_driver::bus::BusAddr;
use guest_driver::{Guest, GuestConfig};
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::Device;

pub const VERSION_1: u64 = 1 << 32;
pub const ACCESS_PLATFORM: u64 = 1 << 33;
pub const SEQPACKET: u64 = 1 << 1;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
const PROTOCOL: u64 = 1 << 30;

/// A front end.
pub struct Vmm {
    front_end: Frontend,
    /// Features acknowledged beside those that the guest's configuration says.
    pub extra_features: u64,
    /// Queues to set up: QEMU keeps the event queue to itself.
    pub queues: usize,
}

fn event_fd(fd: impl AsFd) -> EventFd {
    let fd = fd.as_fd().try_clone_to_owned().unwrap();
    // SAFETY: the descriptor was just duplicated and is given away.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

impl Vmm {
    pub fn connect(socket: impl AsRef<Path>) -> Self {
        Self {
            front_end: Frontend::connect(socket, 3).unwrap(),
            extra_features: SEQPACKET,
            queues: 3,
        }
    }

    /// What the device offers.
    pub fn features(&self) -> u64 {
        self.front_end.get_features().unwrap()
    }

    /// Features and memory, as at the boot of a guest.
    pub fn negotiate(&mut self, guest: &Guest, config: &GuestConfig) {
        let front_end = &mut self.front_end;
        front_end.set_owner().unwrap();
        let offered = front_end.get_features().unwrap();
        let mut features = VERSION_1 | PROTOCOL | self.extra_features;
        if config.event_idx {
            features |= EVENT_IDX;
        }
        if config.indirect {
            features |= INDIRECT;
        }
        if Device::is_foreign() {
            // Without sequenced packets, tests of other things can still be passed.
            features &= offered | !SEQPACKET;
        }
        assert_eq!(features & !offered, 0, "offered: {offered:#x}");
        let protocol = front_end.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK;
        assert!(protocol.contains(wanted), "{protocol:?}");
        front_end.set_protocol_features(wanted).unwrap();
        assert_eq!(front_end.get_queue_num().unwrap(), 3);
        let flags = VhostUserConfigFlags::empty();
        let (_, cid) = front_end.get_config(0, 8, flags, &[0; 8]).unwrap();
        assert_eq!(cid, config.cid.to_le_bytes());
        front_end.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        front_end.set_features(features).unwrap();
        self.share_memory(guest);
    }

    /// Shares all of the guest's memory.
    pub fn share_memory(&self, guest: &Guest) {
        let regions: Vec<_> = guest
            .memory()
            .regions()
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.gpa.0,
                memory_size: region.size,
                userspace_addr: region.hva,
                mmap_offset: region.fd_offset,
                mmap_handle: region.fd.as_raw_fd(),
            })
            .collect();
        self.front_end.set_mem_table(&regions).unwrap();
    }

    /// Sets the rings up and starts them.
    pub fn start_rings(&mut self, guest: &Guest) {
        for (index, queue) in guest.queues().iter().enumerate().take(self.queues) {
            let hva = |address: BusAddr| {
                let gpa = guest.space().translate(address).unwrap();
                guest.memory().hva(gpa, 1).unwrap()
            };
            self.front_end.set_vring_num(index, queue.size).unwrap();
            let config = VringConfigData {
                queue_max_size: queue.size,
                queue_size: queue.size,
                flags: 0,
                desc_table_addr: hva(queue.addresses.desc),
                used_ring_addr: hva(queue.addresses.used),
                avail_ring_addr: hva(queue.addresses.avail),
                log_addr: None,
            };
            self.front_end.set_vring_addr(index, &config).unwrap();
            // Where the device has got to, whether or not the driver has seen it.
            let used_index = queue.addresses.used.at(2);
            let base = guest
                .space()
                .load_u16(used_index, Ordering::Acquire)
                .unwrap();
            self.front_end.set_vring_base(index, base).unwrap();
            self.front_end
                .set_vring_call(index, &event_fd(queue.call.as_fd()))
                .unwrap();
            self.front_end
                .set_vring_kick(index, &event_fd(queue.kick.as_fd()))
                .unwrap();
        }
        for index in 0..self.queues {
            self.front_end.set_vring_enable(index, true).unwrap();
        }
    }

    /// All of a boot.
    pub fn start(&mut self, guest: &Guest, config: &GuestConfig) {
        self.negotiate(guest, config);
        self.start_rings(guest);
    }

    /// Stops the rings; where each stood.
    pub fn stop(&mut self) -> Vec<u32> {
        (0..self.queues)
            .map(|index| self.front_end.get_vring_base(index).unwrap())
            .collect()
    }
}
