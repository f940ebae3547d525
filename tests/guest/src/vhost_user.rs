// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's side of vhost-user, for a guest whose device is in another process or
//! behind a socket of this one: memory table, vrings, kicks and calls.
//!
//! A guest whose addresses are paged needs [`Vmm::behind_viommu`] and
//! [`Vmm::serve_iotlb`].
//!
//! `unsafe` here: duplicated descriptors become the `EventFd` that `vhost` asks for, and a
//! second handle of the front end's socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusAddr;
use crate::queues::Queue;
use crate::viommu::Viommu;
use crate::{Guest, GuestConfig};

/// VIRTIO_F_VERSION_1 (VIRTIO 1.2, 6).
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_ACCESS_PLATFORM (6).
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// VIRTIO_VSOCK_F_SEQPACKET (5.10.3).
pub const SEQPACKET: u64 = 1 << 1;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
/// VHOST_USER_F_PROTOCOL_FEATURES.
const PROTOCOL: u64 = 1 << 30;

/// The queues of a socket device.
const QUEUES: usize = 3;

/// A front end.
pub struct Vmm {
    front_end: Frontend,
    /// Features that must be offered and are acknowledged, beside those that the
    /// guest's configuration says.
    pub extra_features: u64,
    /// Features that are acknowledged where they are offered.
    pub optional_features: u64,
    /// Queues to set up: QEMU keeps the event queue to itself.
    pub queues: usize,
    /// Whether the rings' addresses are handed over as the guest has them, as QEMU does
    /// behind a vIOMMU, and not as this process has them.
    pub behind_viommu: bool,
}

fn event_fd(fd: impl AsFd) -> io::Result<EventFd> {
    let fd = fd.as_fd().try_clone_to_owned()?;
    // SAFETY: the descriptor was just duplicated and is given away.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

/// Names the request that failed.
fn request<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> io::Result<T> {
    result.map_err(|error| io::Error::other(format!("{what}: {error}")))
}

fn expect(holds: bool, what: impl FnOnce() -> String) -> io::Result<()> {
    match holds {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, what())),
    }
}

impl Vmm {
    /// Connects to the device's socket.
    pub fn connect(socket: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self {
            front_end: request("connecting", Frontend::connect(socket, QUEUES as u64))?,
            extra_features: 0,
            optional_features: SEQPACKET,
            queues: QUEUES,
            behind_viommu: false,
        })
    }

    /// What the device offers.
    pub fn features(&self) -> io::Result<u64> {
        request("GET_FEATURES", self.front_end.get_features())
    }

    /// Features and memory, as at the boot of a guest. From here on every request is
    /// answered, so an error is seen where it happens.
    ///
    /// # Errors
    /// A request that fails; a feature, a protocol feature or a queue that is missing; a
    /// CID in the configuration space that is not the guest's.
    pub fn negotiate(&mut self, guest: &Guest, config: &GuestConfig) -> io::Result<()> {
        let front_end = &mut self.front_end;
        request("SET_OWNER", front_end.set_owner())?;
        let offered = request("GET_FEATURES", front_end.get_features())?;
        let mut features = VERSION_1 | PROTOCOL | self.extra_features;
        if config.event_idx {
            features |= EVENT_IDX;
        }
        if config.indirect {
            features |= INDIRECT;
        }
        expect(features & !offered == 0, || {
            format!("not offered: features {features:#x} wanted, {offered:#x} there")
        })?;
        features |= self.optional_features & offered;
        let protocol = request("GET_PROTOCOL_FEATURES", front_end.get_protocol_features())?;
        let mut wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK;
        if self.behind_viommu {
            wanted |= VhostUserProtocolFeatures::BACKEND_REQ;
        }
        expect(protocol.contains(wanted), || {
            format!("protocol features {wanted:?} wanted, {protocol:?} offered")
        })?;
        request(
            "SET_PROTOCOL_FEATURES",
            front_end.set_protocol_features(wanted),
        )?;
        let queues = request("GET_QUEUE_NUM", front_end.get_queue_num())?;
        expect(queues == QUEUES as u64, || format!("{queues} queues"))?;
        let flags = VhostUserConfigFlags::empty();
        let (_, cid) = request("GET_CONFIG", front_end.get_config(0, 8, flags, &[0; 8]))?;
        expect(cid == config.cid.to_le_bytes(), || {
            format!("the configuration space holds {cid:?}, not {}", config.cid)
        })?;
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        request("SET_FEATURES", front_end.set_features(features))?;
        self.share_memory(guest)
    }

    /// Shares all of the guest's memory.
    pub fn share_memory(&self, guest: &Guest) -> io::Result<()> {
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
        request("SET_MEM_TABLE", self.front_end.set_mem_table(&regions)).map(drop)
    }

    /// Opens a channel for misses and answers them from the guest's page table.
    pub fn serve_iotlb(&mut self, guest: &Guest) -> io::Result<Viommu> {
        let (ours, theirs) = UnixStream::pair()?;
        let front_end = &mut self.front_end;
        request(
            "SET_BACKEND_REQ_FD",
            front_end.set_backend_request_fd(&theirs),
        )?;
        // SAFETY: the socket is open as long as the front end is.
        let socket = unsafe { BorrowedFd::borrow_raw(front_end.as_raw_fd()) };
        let socket = UnixStream::from(socket.try_clone_to_owned()?);
        Viommu::new(ours, socket, guest.space().clone())
    }

    /// Sets the rings up and starts them, each where the device has got to.
    pub fn start_rings(&mut self, guest: &Guest) -> io::Result<()> {
        let front_end = &mut self.front_end;
        let space = guest.space();
        for (index, queue) in guest.queues().iter().enumerate().take(self.queues) {
            let hva = |address: BusAddr| {
                if self.behind_viommu {
                    return Ok(address.0);
                }
                let gpa = space.translate(address).map_err(io::Error::other)?;
                guest.memory().hva(gpa, 1).map_err(io::Error::other)
            };
            let config = VringConfigData {
                queue_max_size: queue.size,
                queue_size: queue.size,
                flags: 0,
                desc_table_addr: hva(queue.addresses.desc)?,
                used_ring_addr: hva(queue.addresses.used)?,
                avail_ring_addr: hva(queue.addresses.avail)?,
                log_addr: None,
            };
            // Where the device has got to, whether or not the driver has seen it.
            let used_index = queue.addresses.used.at(2);
            let base = space
                .load_u16(used_index, Ordering::Acquire)
                .map_err(io::Error::other)?;
            let (kick, call) = (event_fd(queue.kick.as_fd())?, event_fd(queue.call.as_fd())?);
            request("SET_VRING_NUM", front_end.set_vring_num(index, queue.size))?;
            request("SET_VRING_ADDR", front_end.set_vring_addr(index, &config))?;
            request("SET_VRING_BASE", front_end.set_vring_base(index, base))?;
            request("SET_VRING_CALL", front_end.set_vring_call(index, &call))?;
            request("SET_VRING_KICK", front_end.set_vring_kick(index, &kick))?;
        }
        for index in 0..self.queues {
            request("SET_VRING_ENABLE", front_end.set_vring_enable(index, true))?;
        }
        Ok(())
    }

    /// Has another event signalled for what is used in a queue, as a VMM does that masks
    /// an interrupt.
    pub fn set_call(&self, queue: Queue, call: impl AsFd) -> io::Result<()> {
        let call = event_fd(call)?;
        request(
            "SET_VRING_CALL",
            self.front_end.set_vring_call(queue as usize, &call),
        )
    }

    /// All of a boot.
    pub fn start(&mut self, guest: &Guest, config: &GuestConfig) -> io::Result<()> {
        self.negotiate(guest, config)?;
        self.start_rings(guest)
    }

    /// Stops the rings; where each stood.
    pub fn stop(&mut self) -> io::Result<Vec<u32>> {
        (0..self.queues)
            .map(|index| request("GET_VRING_BASE", self.front_end.get_vring_base(index)))
            .collect()
    }
}
