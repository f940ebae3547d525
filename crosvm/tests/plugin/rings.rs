// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory, where the three queues lie in it, and the driver's side of the
//! event queue.

use devices::virtio::QueueConfig;
use vm_memory::{GuestAddress, GuestMemory};

/// Descriptors in each queue.
pub const SIZE: u16 = 16;
/// Bytes of guest memory, in one region from 0 on.
pub const MEMORY_SIZE: u64 = 1 << 20;
/// The number of the event queue.
pub const EVENT: usize = 2;

/// `VIRTQ_DESC_F_WRITE`: the device writes the buffer.
pub const WRITABLE: u16 = 2;

/// The rings of one queue.
#[derive(Clone, Copy)]
pub struct Rings {
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

/// Where the driver puts queue `index`.
pub fn rings(index: usize) -> Rings {
    let page = 0x1_0000 + index as u64 * 0x4000;
    Rings {
        desc: page,
        avail: page + 0x1000,
        used: page + 0x2000,
    }
}

/// Guest memory with nothing in it.
pub fn memory() -> GuestMemory {
    GuestMemory::new(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap()
}

/// The driver sets up queue `index`, but does not make it ready.
pub fn set_up(config: &mut QueueConfig, index: usize) {
    let rings = rings(index);
    config.set_size(SIZE);
    config.set_vector(index as u16);
    config.set_desc_table(GuestAddress(rings.desc));
    config.set_avail_ring(GuestAddress(rings.avail));
    config.set_used_ring(GuestAddress(rings.used));
}

/// Posts buffers on the event queue and reads what comes back. The buffer of
/// descriptor `n` lies at `BUFFERS + 16 * n`.
pub struct EventDriver {
    memory: GuestMemory,
    posted: u16,
}

const BUFFERS: u64 = 0x8000;
/// What a buffer holds before the device writes it.
const UNTOUCHED: u32 = 0xdead_beef;

impl EventDriver {
    pub fn new(memory: &GuestMemory) -> Self {
        Self {
            memory: memory.clone(),
            posted: 0,
        }
    }

    /// Posts one buffer.
    pub fn post(&mut self, length: u32, flags: u16) {
        let n = self.posted % SIZE;
        let buffer = BUFFERS + 16 * u64::from(n);
        self.write(buffer, UNTOUCHED);
        let table = rings(EVENT).desc + 16 * u64::from(n);
        self.write(table, buffer);
        self.write(table + 8, length);
        self.write(table + 12, flags);
        self.write(table + 14, 0u16);
        self.post_head(n);
    }

    /// Makes a descriptor available, whether or not there is one.
    pub fn post_head(&mut self, head: u16) {
        let avail = rings(EVENT).avail;
        self.write(avail + 4 + 2 * u64::from(self.posted % SIZE), head);
        self.posted = self.posted.wrapping_add(1);
        self.write(avail + 2, self.posted);
    }

    /// How many buffers came back.
    pub fn used(&self) -> u16 {
        self.read(rings(EVENT).used + 2)
    }

    /// The bytes written to the `n`-th buffer that came back, as the used ring says,
    /// and the event in it; none when the buffer is as it was posted.
    pub fn event(&self, n: u16) -> (u32, Option<u32>) {
        let element = rings(EVENT).used + 4 + 8 * u64::from(n % SIZE);
        let head: u32 = self.read(element);
        let buffer: u32 = self.read(BUFFERS + 16 * u64::from(head));
        let event = (buffer != UNTOUCHED).then_some(buffer);
        (self.read(element + 4), event)
    }

    fn write<T: zerocopy::IntoBytes + zerocopy::Immutable>(&self, at: u64, value: T) {
        self.memory
            .write_obj_at_addr(value, GuestAddress(at))
            .unwrap();
    }

    fn read<T: zerocopy::FromBytes>(&self, at: u64) -> T {
        self.memory.read_obj_from_addr(GuestAddress(at)).unwrap()
    }
}
