// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control: the guest's bits passed straight down, and no IOTLB service. The
//! failure of 2022. A lab in which it does not fail where it must cannot see the
//! bug that this device is about.

use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use crosvm_vsock::address::{Address, BusAddr, Gpa, Range};
use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::kernel::ioctl::VringAddresses;
use crosvm_vsock::kernel::{QueueIndex, Vhost};

use super::{Cell, Host, WORKS};
use crate::conversation;
use crate::rig::{queue_setup, Rig, Spec};

/// `VHOST_SET_FEATURES` does not know bit 33.
pub const REFUSED: &str = "EOPNOTSUPP";
/// `VHOST_VSOCK_SET_RUNNING` looks the used ring up in an empty IOTLB.
pub const FAULT: &str = "EFAULT";

pub(super) fn cells(host: &Host) -> Vec<Cell> {
    vec![Cell {
        name: "raw",
        mode: None,
        expected: expected(host.kind),
        run: |_| run(),
    }]
}

/// What passing bit 33 down comes to.
pub fn expected(kind: KernelKind) -> &'static str {
    match kind {
        KernelKind::NoIotlb => REFUSED,
        KernelKind::Overloaded | KernelKind::SplitCompat => FAULT,
        KernelKind::Split => WORKS,
    }
}

/// Programs vhost as a device without a shim would.
pub fn run() -> Result<&'static str> {
    let rig = Rig::new(Spec::protected())?;
    let kernel = &*rig.kernel;
    let memory = rig.memory()?;
    if let Err(error) = kernel.set_features(rig.acked) {
        return named(error, libc::EOPNOTSUPP, REFUSED).context("VHOST_SET_FEATURES");
    }
    kernel.set_mem_table(&memory)?;
    let queues = rig.guest.queues();
    for (index, queue) in QueueIndex::ALL.into_iter().zip(&queues) {
        let rings = queue_setup(queue, 0).rings()?;
        let host = |ring: Range<BusAddr>| {
            let guest = ring.at(Gpa(ring.first().raw())).context("a ring")?;
            let mapped = memory.host(&guest).context("a ring in memory")?;
            anyhow::Ok(mapped.first().raw())
        };
        kernel.set_vring_num(index, queue.size)?;
        kernel.set_vring_base(index, 0)?;
        kernel.set_vring_addr(
            index,
            VringAddresses {
                desc: host(rings.desc)?,
                avail: host(rings.avail)?,
                used: host(rings.used)?,
            },
        )?;
        kernel.set_vring_kick(index, Some(queue.kick.as_fd()))?;
        kernel.set_vring_call(index, Some(queue.call.as_fd()))?;
    }
    kernel.set_guest_cid(rig.cid.raw())?;
    if let Err(error) = kernel.set_running(true) {
        return named(error, libc::EFAULT, FAULT).context("VHOST_VSOCK_SET_RUNNING");
    }
    let carried = conversation::brief(&rig.guest, 1);
    kernel.set_running(false)?;
    carried?;
    Ok(WORKS)
}

fn named(error: io::Error, errno: i32, name: &'static str) -> Result<&'static str> {
    match error.raw_os_error() {
        Some(raw) if raw == errno => Ok(name),
        _ => Err(error.into()),
    }
}
