// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rules of the kernel's IOTLB, one by one, on a model of the kernel.
//!
//! Each test is named after what goes wrong on a real kernel when the rule is
//! broken. `Bench` besides checks at the end of each test that nothing was done
//! which only some kernels forgive. The rules' numbers stand in the tests' names.

mod changes;
mod denials;
mod entries;
mod messages;
mod misses;
mod rings;
mod start;

use std::sync::Arc;
use std::time::Duration;

use crosvm_vsock::address::{Address, BusAddr, Gpa, Hva, Iova, Range};
use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::event::poll;
use crosvm_vsock::kernel::{Access, QueueIndex, Translation, Translator, Vhost};
use crosvm_vsock::memory::{MemoryMap, PAGE};
use model_kernel::bench::{LOW, REGION_SIZE};
use model_kernel::{Bench, ModelKernel, PageTable};

const QUEUES: [QueueIndex; 2] = QueueIndex::ALL;

fn overloaded() -> Bench {
    Bench::new(ModelKernel::new(KernelKind::Overloaded))
}

fn page_table(bench: &Bench) -> Arc<PageTable> {
    Arc::new(PageTable::scattered(&bench.memory))
}

fn everything() -> Range<Iova> {
    Range::inclusive(Iova(0), Iova(u64::MAX)).unwrap()
}

fn page(iova: u64) -> Range<Iova> {
    Range::new(Iova(iova), PAGE).unwrap()
}

/// The `n`-th page of the scattered I/O virtual space.
fn virtual_page(n: u64) -> BusAddr {
    BusAddr(PageTable::BASE.raw() + n * PAGE)
}

fn host_of(memory: &MemoryMap, gpa: Gpa) -> Hva {
    memory
        .host(&Range::new(gpa, PAGE).unwrap())
        .unwrap()
        .first()
}

fn readable(bench: &Bench) -> bool {
    poll([bench.kernel.descriptor()], Some(Duration::ZERO)).unwrap()[0]
}

/// All of the first region as one block of I/O virtual addresses.
struct Blocks;

impl Translator for Blocks {
    fn translate(&self, iova: Iova) -> Option<Translation> {
        let range = Range::new(PageTable::BASE, REGION_SIZE).unwrap();
        range.contains(iova).then_some(Translation {
            range,
            gpa: LOW,
            access: Access::ReadWrite,
        })
    }
}
