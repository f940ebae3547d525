// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An IOTLB message as the kernel sees it: `struct vhost_msg` and
//! `struct vhost_msg_v2` around a `struct vhost_iotlb_msg`.

/// Size of both versions, in bytes.
pub const MESSAGE_SIZE: usize = 72;

/// A message, field by field, nothing checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// `VHOST_IOTLB_MSG` (1) or `VHOST_IOTLB_MSG_V2` (2).
    pub version: u32,
    /// The I/O virtual address.
    pub iova: u64,
    /// Bytes; 0 in a miss.
    pub size: u64,
    /// The host address; 0 in a miss.
    pub uaddr: u64,
    /// `VHOST_ACCESS_*`: 1 read, 2 write.
    pub perm: u8,
    /// `VHOST_IOTLB_*`: one of the constants below.
    pub kind: u8,
}

impl Message {
    /// `VHOST_IOTLB_MISS`.
    pub const MISS: u8 = 1;
    /// `VHOST_IOTLB_UPDATE`.
    pub const UPDATE: u8 = 2;
    /// `VHOST_IOTLB_INVALIDATE`.
    pub const INVALIDATE: u8 = 3;

    /// The fields of the bytes that write(2) brought.
    pub fn decode(bytes: &[u8; MESSAGE_SIZE]) -> Self {
        let at = |offset: usize| {
            let mut field = [0; 8];
            field.copy_from_slice(&bytes[offset..offset + 8]);
            u64::from_ne_bytes(field)
        };
        Self {
            version: u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            iova: at(8),
            size: at(16),
            uaddr: at(24),
            perm: bytes[32],
            kind: bytes[33],
        }
    }

    /// The bytes that read(2) brings.
    pub fn encode(&self) -> [u8; MESSAGE_SIZE] {
        let mut bytes = [0; MESSAGE_SIZE];
        bytes[0..4].copy_from_slice(&self.version.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.iova.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.size.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.uaddr.to_ne_bytes());
        bytes[32] = self.perm;
        bytes[33] = self.kind;
        bytes
    }

    /// The last address; `None` for size 0 and for a range that wraps.
    pub fn last(&self) -> Option<u64> {
        self.iova.checked_add(self.size.checked_sub(1)?)
    }
}
