// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue as vhost keeps it (`struct vhost_virtqueue`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crosvm_vsock::address::{Address, Iova, Range};
use crosvm_vsock::event::EventFd;
use crosvm_vsock::kernel::ioctl::VringAddresses;

/// `VHOST_ACCESS_RO`.
pub(crate) const READ: u8 = 1;
/// `VHOST_ACCESS_WO`.
pub(crate) const WRITE: u8 = 2;

/// What `SET_VRING_ADDR` never was called with, and what kernels that turn the
/// IOTLB off put back (`vhost_vq_invalidate_access`).
pub(crate) const NOWHERE: VringAddresses = VringAddresses {
    desc: 0,
    avail: 0,
    used: 0,
};

#[derive(Debug)]
pub(crate) struct Vring {
    pub(crate) num: u16,
    pub(crate) next_avail: u16,
    pub(crate) addresses: VringAddresses,
    pub(crate) kick: Option<EventFd>,
    pub(crate) call: Option<EventFd>,
    pub(crate) error: Option<EventFd>,
    /// Started: `private_data` is set.
    pub(crate) backend: bool,
}

impl Default for Vring {
    fn default() -> Self {
        Self {
            num: 1,
            next_avail: 0,
            addresses: NOWHERE,
            kick: None,
            call: None,
            error: None,
            backend: false,
        }
    }
}

impl Vring {
    /// The rings as `vhost_get_{desc,avail,used}_size` has them, each with the
    /// access that a prefetch asks for. A ring that wraps ends with the last address.
    pub(crate) fn rings(&self, event_idx: bool) -> [(Range<Iova>, u8); 3] {
        let event = if event_idx { 2 } else { 0 };
        let num = u64::from(self.num);
        let ring = |first: u64, size: u64| {
            let last = first.saturating_add(size - 1);
            Range::inclusive(Iova(first), Iova(last)).expect("sizes are not 0")
        };
        let VringAddresses { desc, avail, used } = self.addresses;
        [
            (ring(desc, 16 * num), READ),
            (ring(avail, 4 + 2 * num + event), READ),
            (ring(used, 4 + 8 * num + event), WRITE),
        ]
    }

    /// `used->flags` and `used->idx`, each two bytes.
    pub(crate) fn used_head(&self) -> [Option<Range<Iova>>; 2] {
        let used = Iova(self.addresses.used);
        [0, 2].map(|offset| Range::new(used.checked_add(offset)?, 2).ok())
    }

    /// `vq_err`.
    pub(crate) fn signal_error(&self) {
        if let Some(error) = &self.error {
            error.signal().expect("an eventfd can be signalled");
        }
    }
}

/// `eventfd_ctx_fdget`: takes eventfds and nothing else.
pub(crate) fn eventfd(fd: Option<BorrowedFd<'_>>) -> io::Result<Option<EventFd>> {
    let Some(fd) = fd else { return Ok(None) };
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    if !link.to_string_lossy().contains("eventfd") {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(Some(fd.try_clone_to_owned()?.into()))
}
