// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's side of vhost-user, no more than a boot needs. Every device that is
//! measured is told the same.

use std::fmt::Display;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{anyhow, ensure, Context, Result};
use guest_driver::memory::{Gpa, GuestMemory};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::ring::Ring;

/// VIRTIO_F_VERSION_1 and VIRTIO_F_EVENT_IDX (VIRTIO 1.2, 6), and
/// VHOST_USER_F_PROTOCOL_FEATURES: what the driver knows, and both devices offer.
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 30;

fn request<T, E: Display>(what: &str, result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| anyhow!("{what}: {error}"))
}

/// Sets the device behind `socket` up and starts its rings, each with its kick and the
/// one `call` of all. It runs as long as the front end lives.
pub fn start(
    socket: &Path,
    memory: &GuestMemory,
    rings: &[(&Ring, &EventFd)],
    call: &EventFd,
) -> Result<Frontend> {
    let front_end = Frontend::connect(socket, rings.len() as u64);
    let mut front_end = request("connecting", front_end)
        .with_context(|| format!("no device at {}", socket.display()))?;
    request("SET_OWNER", front_end.set_owner())?;
    let offered = request("GET_FEATURES", front_end.get_features())?;
    ensure!(
        FEATURES & !offered == 0,
        "features {FEATURES:#x} wanted, {offered:#x} offered"
    );
    let protocol = request("GET_PROTOCOL_FEATURES", front_end.get_protocol_features())?;
    let protocol = protocol & VhostUserProtocolFeatures::REPLY_ACK;
    request(
        "SET_PROTOCOL_FEATURES",
        front_end.set_protocol_features(protocol),
    )?;
    front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    request("SET_FEATURES", front_end.set_features(FEATURES))?;
    let regions: Vec<_> = memory
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
    request("SET_MEM_TABLE", front_end.set_mem_table(&regions))?;
    for (index, (ring, kick)) in rings.iter().enumerate() {
        let place = ring.place();
        let hva = |gpa: Gpa| memory.hva(gpa, 1);
        let config = VringConfigData {
            queue_max_size: ring.size(),
            queue_size: ring.size(),
            flags: 0,
            desc_table_addr: hva(place.descriptors)?,
            used_ring_addr: hva(place.used)?,
            avail_ring_addr: hva(place.available)?,
            log_addr: None,
        };
        request("SET_VRING_NUM", front_end.set_vring_num(index, ring.size()))?;
        request("SET_VRING_ADDR", front_end.set_vring_addr(index, &config))?;
        request("SET_VRING_BASE", front_end.set_vring_base(index, 0))?;
        request("SET_VRING_CALL", front_end.set_vring_call(index, call))?;
        request("SET_VRING_KICK", front_end.set_vring_kick(index, kick))?;
    }
    for index in 0..rings.len() {
        request("SET_VRING_ENABLE", front_end.set_vring_enable(index, true))?;
    }
    Ok(front_end)
}
