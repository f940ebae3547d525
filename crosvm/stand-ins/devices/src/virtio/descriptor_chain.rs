// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`DescriptorChain`]: a request of the driver, walked and checked. VIRTIO 1.2,
//! 2.7.4 and 2.7.5.

use anyhow::{bail, ensure, Context, Result};
use vm_memory::{GuestAddress, GuestMemory};

use crate::virtio::{Reader, Writer};

pub(super) const F_NEXT: u16 = 1;
pub(super) const F_WRITE: u16 = 2;
/// The size of a descriptor in bytes.
pub(super) const DESCRIPTOR_SIZE: u64 = 16;

/// A chain of buffers.
pub struct DescriptorChain {
    index: u16,
    /// The buffers that the driver wrote.
    pub reader: Reader,
    /// The buffers that the device writes.
    pub writer: Writer,
    /// The buffer's number in a packed ring.
    pub id: Option<u16>,
    /// The number of descriptors.
    pub count: u16,
}

impl DescriptorChain {
    /// Walks the chain that starts at descriptor `head` of a split ring.
    pub(super) fn walk(
        mem: &GuestMemory,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<Self> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut total = 0u32;
        let mut count = 0;
        let mut next = Some(head);
        while let Some(index) = next {
            ensure!(
                index < size,
                "out of bounds descriptor index {index} for queue size {size}"
            );
            ensure!(count < size, "descriptor chain loop detected");
            count += 1;
            let at = table.checked_add(u64::from(index) * DESCRIPTOR_SIZE);
            let bytes: [u8; 16] = mem
                .read_obj_from_addr(at.context("descriptor table wraps")?)
                .with_context(|| format!("failed to read descriptor {index}"))?;
            let descriptor = u128::from_le_bytes(bytes);
            let address = GuestAddress(descriptor as u64);
            let length = (descriptor >> 64) as u32;
            let flags = (descriptor >> 96) as u16;
            next = (flags & F_NEXT != 0).then_some((descriptor >> 112) as u16);
            if flags & !(F_NEXT | F_WRITE) != 0 {
                bail!("unexpected flags in descriptor {index}: {flags:#x}");
            }
            if length == 0 {
                continue;
            }
            ensure!(
                mem.is_valid_range(address, length.into()),
                "descriptor address range out of bounds: {address}+{length:#x}"
            );
            total = total
                .checked_add(length)
                .context("descriptor chain length overflow")?;
            if flags & F_WRITE != 0 {
                writable.push((address, length as usize));
            } else if writable.is_empty() {
                readable.push((address, length as usize));
            } else {
                bail!("device-readable descriptor {index} follows a writable one");
            }
        }
        ensure!(total > 0, "zero-length descriptor chain");
        Ok(Self {
            index: head,
            reader: Reader::new(mem, readable),
            writer: Writer::new(mem, writable),
            id: None,
            count,
        })
    }

    /// The number of the first descriptor.
    pub fn index(&self) -> u16 {
        self.index
    }
}
