// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! crosvm's memory, queues and events as the kernel path takes them.
//!
//! `unsafe` is here to lend a raw descriptor for the time of a call: crosvm's
//! events name theirs by number.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use anyhow::{ensure, Context, Result};
use base::{AsRawDescriptor, Event};
use crosvm_vsock::address::{Address, BusAddr, Gpa, Hva, Range};
use crosvm_vsock::kernel::QueueSetup;
use crosvm_vsock::memory::{MemoryMap, Region};
use devices::virtio::Queue;
use vm_memory::{GuestAddress, GuestMemory, MemoryRegionPurpose};

/// The number of the receive queue (VIRTIO 1.2, 5.10.2).
pub const RX: usize = 0;
/// The number of the transmit queue.
pub const TX: usize = 1;
/// The number of the event queue, which the kernel does not serve.
pub const EVENT: usize = 2;
/// How many queues there are.
pub const QUEUES: usize = 3;

/// Where guest memory lies.
pub fn memory_map(memory: &GuestMemory) -> Result<MemoryMap> {
    let regions = memory.regions().map(|region| {
        Region::new(
            Gpa(region.guest_addr.0),
            Hva(region.host_addr as u64),
            region.size as u64,
        )
    });
    Ok(MemoryMap::new(regions.collect::<Result<_, _>>()?)?)
}

/// The pool through which a protected guest shares memory, where crosvm lays it
/// out itself.
pub fn restricted_dma_pool(memory: &GuestMemory) -> Result<Vec<Range<Gpa>>> {
    memory
        .regions()
        .filter(|region| is_pool(region.options.purpose))
        .map(|region| Ok(Range::new(Gpa(region.guest_addr.0), region.size as u64)?))
        .collect()
}

#[cfg(target_arch = "aarch64")]
fn is_pool(purpose: MemoryRegionPurpose) -> bool {
    purpose == MemoryRegionPurpose::StaticSwiotlbRegion
}

/// Only on aarch64 does crosvm place the pool.
#[cfg(not(target_arch = "aarch64"))]
fn is_pool(_purpose: MemoryRegionPurpose) -> bool {
    false
}

/// Lends an event's descriptor.
pub fn borrow(event: &Event) -> BorrowedFd<'_> {
    // SAFETY: the event keeps its descriptor open, and the loan ends before it.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_descriptor()) }
}

/// Refuses queues that are not complete, and an event queue that crosvm's own
/// queue code would trip over: it takes ring addresses as they are. The kernel
/// path looks at the other two itself.
pub fn check_queues(memory: &GuestMemory, queues: &BTreeMap<usize, Queue>) -> Result<()> {
    ensure!(
        queues.keys().copied().eq(0..QUEUES),
        "vsock needs its {QUEUES} queues, and the driver made ready {:?}",
        queues.keys().collect::<Vec<_>>()
    );
    let queue = queues.get(&EVENT).context("vsock queue 2 is not ready")?;
    let setup = queue_setup(queues, EVENT, 0, queue.event())?;
    for (part, range) in setup.rings().context("vsock queue 2")?.parts() {
        let size = range.size().map_or(u64::MAX, |size| size.get());
        let inside = memory.is_valid_range(GuestAddress(range.first().raw()), size);
        ensure!(
            inside,
            "vsock queue 2: its {part} at {range} is not guest memory"
        );
    }
    Ok(())
}

/// One queue of the kernel's, kicked by the guest and calling `call`.
pub fn queue_setup<'a>(
    queues: &'a BTreeMap<usize, Queue>,
    index: usize,
    base: u16,
    call: &'a Event,
) -> Result<QueueSetup<'a>> {
    let queue = queues
        .get(&index)
        .with_context(|| format!("vsock queue {index} is not ready"))?;
    Ok(QueueSetup {
        size: queue.size(),
        desc: BusAddr::new(queue.desc_table().0),
        avail: BusAddr::new(queue.avail_ring().0),
        used: BusAddr::new(queue.used_ring().0),
        base,
        kick: borrow(queue.event()),
        call: borrow(call),
    })
}
