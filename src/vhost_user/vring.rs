// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a front end has said about a ring, and what of it is known well enough to serve it.

use std::sync::Arc;

use crate::access::Access;
use crate::address::{Iova, Range};
use crate::event::EventFd;
use crate::path::Queue;

/// What a front end has said about one ring.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: u16,
    /// Descriptor table, available ring, used ring: in the front end's address space.
    pub(super) addresses: Option<[u64; 3]>,
    pub(super) base: u16,
    pub(super) kick: Option<Arc<EventFd>>,
    pub(super) call: Option<Arc<EventFd>>,
    pub(super) enabled: bool,
    pub(super) started: bool,
}

/// A part of a ring (VIRTIO 1.2, 2.7).
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) address: u64,
    pub(super) len: u64,
    pub(super) access: Access,
}

impl Vring {
    /// Whether a part of it lies in `range`.
    pub(super) fn lies_in(&self, range: Range<Iova>) -> bool {
        let parts = self.parts().into_iter().flatten();
        parts
            .filter_map(|part| Range::new(Iova(part.address), part.len).ok())
            .any(|part| part.overlaps(&range))
    }

    /// Descriptor table, available ring, used ring, with their event fields.
    pub(super) fn parts(&self) -> Option<[Part; 3]> {
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
pub(super) enum Setup {
    /// It is not to be served.
    Absent,
    /// It will be, once it is known where it is.
    Waiting,
    Ready(Queue),
}

impl Setup {
    pub(super) fn ready(self) -> Option<Queue> {
        match self {
            Self::Ready(queue) => Some(queue),
            Self::Absent | Self::Waiting => None,
        }
    }
}
