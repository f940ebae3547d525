// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stopping a device without telling the kernel that it stopped.
//!
//! `VHOST_VSOCK_SET_RUNNING(0)` would do, were it not for the host's programs:
//! since 7.x the kernel answers a write to a stopped device's socket with
//! `EHOSTUNREACH`, so that a paused VM would break every connection it has. A
//! paused device therefore goes on running with nothing to run on:
//!
//! - with the IOTLB on, every mapping is invalidated and no miss is answered;
//! - without it, the rings are moved to addresses where nothing is mapped.
//!
//! Either way a handler finds no descriptor, puts its packet back
//! (`vhost_transport_do_send_pkt`) and waits; senders wait for credit. Both steps
//! take the queue's lock in the kernel: when they return, no handler uses a ring
//! or a buffer of the guest any more.
//!
//! A device that a denial or a failure of its IOTLB has halted is stopped already,
//! and stays so.
//!
//! `unsafe` is here to reserve those addresses.

use std::io;
use std::sync::OnceLock;

use super::error::{Error, SET_RUNNING};
use super::ioctl::{Vhost, VringAddresses};
use super::iotlb::Iotlb;
use super::queue::QueueIndex;
use super::setup::call;

/// As large as the largest ring: 32768 descriptors of 16 bytes.
const RESERVED: usize = 512 << 10;

/// Takes both queues off guest memory; returns their vring bases.
pub(super) fn pause(kernel: &dyn Vhost, iotlb: Option<&Iotlb>) -> Result<[u16; 2], Error> {
    match iotlb {
        Some(iotlb) => {
            let closed = iotlb.close();
            match iotlb.is_halted() {
                // Nothing depends on the mappings then.
                true => call(SET_RUNNING, None, kernel.set_running(false))?,
                false => closed?,
            }
        }
        None => {
            let nowhere = nowhere().map_err(Error::Reserve)?;
            for queue in QueueIndex::ALL {
                let moved = kernel.set_vring_addr(queue, nowhere);
                call("VHOST_SET_VRING_ADDR", Some(queue), moved)?;
            }
        }
    }
    let base = |queue| {
        call(
            "VHOST_GET_VRING_BASE",
            Some(queue),
            kernel.vring_base(queue),
        )
    };
    Ok([base(QueueIndex::Rx)?, base(QueueIndex::Tx)?])
}

/// Addresses of this process at which nothing is ever mapped, reserved once.
fn nowhere() -> io::Result<VringAddresses> {
    static ADDRESS: OnceLock<u64> = OnceLock::new();
    let address = match ADDRESS.get() {
        Some(address) => *address,
        None => *ADDRESS.get_or_init(|| reserve().unwrap_or(0)),
    };
    match address {
        0 => Err(io::ErrorKind::OutOfMemory.into()),
        same => Ok(VringAddresses {
            desc: same,
            avail: same,
            used: same,
        }),
    }
}

fn reserve() -> io::Result<u64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no
    // memory that exists; it is never unmapped and can never be accessed.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            RESERVED,
            libc::PROT_NONE,
            flags,
            -1,
            0,
        )
    };
    match address {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        address => Ok(address.addr() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nowhere_is_reserved_once_and_cannot_be_read() {
        let address = nowhere().unwrap();
        assert_eq!(nowhere().unwrap(), address);
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        // The kernel is asked to read there, as vhost would be: EFAULT.
        let pointer = std::ptr::without_provenance::<libc::c_void>(address.avail as usize);
        use std::os::fd::AsRawFd;
        // SAFETY: write(2) reads its buffer in the kernel, which checks it.
        let written = unsafe { libc::write(theirs.as_raw_fd(), pointer, 2) };
        assert_eq!(written, -1);
        let error = io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    }
}
