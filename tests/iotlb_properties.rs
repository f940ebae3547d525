// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random histories of shares, remaps, misses and evictions against a reference
//! that is nothing but a map from pages to host addresses.
//!
//! After every step, what the kernel's IOTLB resolves is a subset of what the
//! reference allows; and whatever it allows, a queue reaches once it is served.
//! The histories come from a seeded generator: a failure names its seed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crosvm_vsock::address::{Address, BusAddr, Gpa, Hva, Iova, Range};
use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::kernel::{Access, Addressing, Monitor, QueueIndex, Window};
use crosvm_vsock::memory::{MemoryMap, PAGE};
use model_kernel::bench::{pages, HIGH, LOW};
use model_kernel::{Bench, ModelKernel, Outcome, PageTable};

/// Pages of each region that the histories play with, behind the rings' own.
const FIRST: u64 = 16;
const PAGES: u64 = 48;
const STEPS: usize = 300;
const SEEDS: u64 = 12;

/// xorshift64*: enough to scatter steps.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// What a page of I/O virtual addresses may lead to.
type Reference = BTreeMap<u64, (Hva, Access)>;

fn host(memory: &MemoryMap, gpa: Gpa) -> Hva {
    memory.host(&pages(gpa, 1)).unwrap().first()
}

/// Every page of every entry leads where the reference says, with no more access.
fn assert_subset(bench: &Bench, reference: &Reference, when: &str) {
    for entry in bench.kernel.entries().unwrap() {
        let (first, last) = (entry.range.first().raw(), entry.range.last().raw());
        for iova in (first..=last).step_by(PAGE as usize) {
            let (host, access) = reference
                .get(&(iova / PAGE))
                .unwrap_or_else(|| panic!("{when}: the kernel reaches {iova:#x}"));
            assert_eq!(entry.host_of(Iova(iova)), host.raw(), "{when}: {iova:#x}");
            assert_eq!(entry.perm & !(*access as u8), 0, "{when}: {iova:#x}");
        }
    }
}

/// A queue reaches for a page: allowed, it gets it from the right place; else it
/// is denied, and nothing is mapped. Tells whether the device goes on: a queue whose
/// miss was denied has halted it.
fn assert_reach(
    bench: &Bench,
    monitor: &mut Monitor,
    reference: &Reference,
    queue: QueueIndex,
    iova: u64,
    when: &str,
) -> bool {
    let wanted = match queue {
        QueueIndex::Rx => Access::Write,
        QueueIndex::Tx => Access::Read,
    };
    let outcome = bench.transfer(monitor, queue, BusAddr(iova), PAGE);
    match reference.get(&(iova / PAGE)) {
        Some((host, access)) if access.allows(wanted) => {
            let expected = vec![Range::new(*host, PAGE).unwrap()];
            assert_eq!(outcome, Outcome::Done(expected), "{when}: {iova:#x}");
            true
        }
        _ => {
            let refused = outcome == Outcome::Refused(libc::EPERM);
            assert!(
                refused || outcome == Outcome::Missed,
                "{when}: {iova:#x} gave {outcome:?}"
            );
            assert_eq!(bench.kernel.is_running(), refused, "{when}: {iova:#x}");
            let again = bench.kernel.access(queue, BusAddr(iova), PAGE, wanted);
            assert_eq!(again == Outcome::Stopped, !refused, "{when}: {again:?}");
            refused
        }
    }
}

/// Starts a halted device anew, one way or the other.
fn restart(bench: &mut Bench, random: &mut Random, addressing: Addressing) -> Monitor {
    match random.below(2) {
        0 => drop(bench.device.stop().unwrap()),
        _ => bench.device.reset().unwrap(),
    }
    bench.activate(addressing).unwrap()
}

fn queue(random: &mut Random) -> QueueIndex {
    QueueIndex::ALL[random.below(2) as usize]
}

/// Every third of the default size, the rest so small that the kernel evicts.
fn model(seed: u64) -> ModelKernel {
    let model = ModelKernel::new(KernelKind::Overloaded);
    match seed % 3 {
        0 => model,
        1 => model.iotlb_limit(12),
        _ => model.iotlb_limit(24).sticky(),
    }
}

#[test]
fn a_window_gives_what_is_shared_and_nothing_else() {
    for seed in 1..=SEEDS {
        let mut random = Random::new(seed);
        let mut bench = Bench::new(model(seed));
        let window: Arc<Window> = bench.window();
        let mut reference = Reference::new();
        let change = |reference: &mut Reference, memory: &MemoryMap, gpa: Gpa, n, shared| {
            for page in 0..n {
                let gpa = Gpa(gpa.raw() + page * PAGE);
                match shared {
                    true => {
                        reference.insert(gpa.raw() / PAGE, (host(memory, gpa), Access::ReadWrite))
                    }
                    false => reference.remove(&(gpa.raw() / PAGE)),
                };
            }
        };
        for first in [LOW, HIGH] {
            change(&mut reference, &bench.memory, first, FIRST, true);
        }
        let mut monitor = bench
            .activate(Addressing::Restricted(window.clone()))
            .unwrap();
        for step in 0..STEPS {
            let when = format!("seed {seed}, step {step}");
            let region = [LOW, HIGH][random.below(2) as usize];
            let n = random.below(PAGES);
            let gpa = Gpa(region.raw() + (FIRST + n) * PAGE);
            match random.below(8) {
                0..=1 => {
                    let count = 1 + random.below(8.min(PAGES - n));
                    window.share(pages(gpa, count)).unwrap();
                    change(&mut reference, &bench.memory, gpa, count, true);
                }
                2..=3 => {
                    let count = 1 + random.below(8.min(PAGES - n));
                    window.unshare(pages(gpa, count)).unwrap();
                    change(&mut reference, &bench.memory, gpa, count, false);
                }
                // All of the window fits a kernel of the default size alone.
                4 if seed % 3 == 0 => {
                    bench.device.stop().unwrap();
                    monitor = bench
                        .activate(Addressing::Restricted(window.clone()))
                        .unwrap();
                }
                _ => {
                    let queue = queue(&mut random);
                    let iova = gpa.raw();
                    if !assert_reach(&bench, &mut monitor, &reference, queue, iova, &when) {
                        // All of the window might not fit the kernel at once.
                        for first in [LOW, HIGH] {
                            let first = Gpa(first.raw() + FIRST * PAGE);
                            window.unshare(pages(first, PAGES)).unwrap();
                        }
                        let addressing = Addressing::Restricted(window.clone());
                        monitor = restart(&mut bench, &mut random, addressing);
                        for page in reference.keys() {
                            window.share(pages(Gpa(page * PAGE), 1)).unwrap();
                        }
                    }
                }
            }
            assert_subset(&bench, &reference, &when);
        }
    }
}

#[test]
fn a_viommu_is_followed_through_every_remap() {
    for seed in 1..=SEEDS {
        let mut random = Random::new(seed);
        let mut bench = Bench::new(model(seed));
        let table = Arc::new(PageTable::scattered(&bench.memory));
        let mut reference = Reference::new();
        let first = PageTable::BASE.raw() / PAGE;
        let all = 2 * model_kernel::bench::REGION_SIZE / PAGE;
        for page in first..first + all {
            let gpa = table.gpa(Iova(page * PAGE)).unwrap();
            reference.insert(page, (host(&bench.memory, gpa), Access::ReadWrite));
        }
        let mut monitor = bench
            .activate(Addressing::Translated(table.clone()))
            .unwrap();
        for step in 0..STEPS {
            let when = format!("seed {seed}, step {step}");
            // Behind the rings, which a driver does not remap while they are in use.
            let page = first + 128 + random.below(PAGES);
            let iova = Iova(page * PAGE);
            match random.below(8) {
                0..=2 => {
                    // Runs of pages that continue each other, so that they merge.
                    let count = 1 + random.below(4);
                    let gpa = LOW.raw() + random.below(200) * PAGE;
                    let access =
                        [Access::Read, Access::Write, Access::ReadWrite][random.below(3) as usize];
                    for n in 0..count {
                        let gpa = Gpa(gpa + n * PAGE);
                        table.map(Iova(iova.raw() + n * PAGE), gpa, access);
                        reference.insert(page + n, (host(&bench.memory, gpa), access));
                    }
                    let range = Range::new(iova, count * PAGE).unwrap();
                    bench.device.iotlb().unwrap().changed(range).unwrap();
                }
                3 => {
                    table.unmap(iova);
                    reference.remove(&page);
                    let range = Range::new(iova, PAGE).unwrap();
                    bench.device.iotlb().unwrap().changed(range).unwrap();
                }
                _ => {
                    let queue = queue(&mut random);
                    let iova = iova.raw();
                    if !assert_reach(&bench, &mut monitor, &reference, queue, iova, &when) {
                        let addressing = Addressing::Translated(table.clone());
                        monitor = restart(&mut bench, &mut random, addressing);
                    }
                }
            }
            assert_subset(&bench, &reference, &when);
        }
    }
}
