// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rules 8, 9 and 15: how large an entry is, and how many there are.

use std::sync::Arc;

use crosvm_vsock::address::{Address, BusAddr, Gpa, Hva, Iova, Range};
use crosvm_vsock::compat::{KernelKind, Mode};
use crosvm_vsock::kernel::{
    Access, Addressing, Failure, QueueIndex, Translation, Translator, Window,
};
use crosvm_vsock::memory::{MemoryMap, Region, PAGE};
use model_kernel::bench::{pages, HIGH, LOW, REGION_SIZE};
use model_kernel::{Bench, Message, ModelKernel, Outcome, PageTable, Place};

use crate::{everything, host_of, overloaded, page, page_table, virtual_page, Blocks, QUEUES};

// Rule 8: sizes that mean different things on different kernels.

#[test]
fn rule_8_neither_size_zero_nor_the_full_range_goes_out() {
    let mut bench = overloaded();
    for addressing in bench.addressings() {
        let mode = addressing.mode();
        let mut monitor = bench.activate(addressing).unwrap();
        if let Some(iotlb) = bench.device.iotlb() {
            bench.kernel.forget_calls();
            iotlb.changed(everything()).unwrap();
            let messages = bench.kernel.messages();
            let invalidated: Vec<_> = messages
                .iter()
                .filter(|message| message.kind == Message::INVALIDATE)
                .map(|message| (message.iova, message.size))
                .collect();
            assert_eq!(invalidated, [(0, 1 << 63), (1 << 63, 1 << 63)]);
        }
        bench.assert_flows(&mut monitor, mode);
        bench.device.stop().unwrap();
    }
}

/// A translator that answers with the whole address space, holes and all.
struct Boundless;

impl Translator for Boundless {
    fn translate(&self, _: Iova) -> Option<Translation> {
        Some(Translation {
            range: everything(),
            gpa: Gpa(0),
            access: Access::ReadWrite,
        })
    }

    fn preload(&self, _: Range<Iova>) -> Vec<Translation> {
        self.translate(Iova(0)).into_iter().collect()
    }
}

#[test]
fn rule_8_a_translation_is_clipped_to_guest_memory() {
    let mut bench = overloaded();
    let mut monitor = bench
        .activate_with(Addressing::Translated(Arc::new(Boundless)), |activation| {
            for (queue, place) in activation.queues.iter_mut().zip(Place::PHYSICAL) {
                (queue.desc, queue.avail, queue.used) = (place.desc, place.avail, place.used);
            }
        })
        .unwrap();
    bench.assert_flows(&mut monitor, Mode::Identity);
    let total: u64 = bench
        .kernel
        .entries()
        .unwrap()
        .iter()
        .map(|entry| entry.range.size().unwrap().get())
        .sum();
    assert_eq!(total, 2 * REGION_SIZE);
    // Between the regions there is nothing to give.
    let gap = BusAddr(LOW.raw() + REGION_SIZE);
    bench.kernel.access(QueueIndex::Tx, gap, PAGE, Access::Read);
    assert!(matches!(monitor.handle()[..], [Failure::Denied(_)]));
    bench.assert_halted(Mode::Identity);
}

// Rule 9: eviction.

/// More pages than the kernel holds entries.
fn large_memory() -> MemoryMap {
    let region = |gpa, hva| Region::new(gpa, Hva(hva), 16 << 20).unwrap();
    MemoryMap::new(vec![
        region(LOW, 0x7f00_0000_0000),
        region(HIGH, 0x7e00_0000_0000),
    ])
    .unwrap()
}

#[test]
fn rule_9_what_the_kernel_evicted_is_mapped_again() {
    let mut bench = overloaded();
    bench.memory = large_memory();
    let table = page_table(&bench);
    let mut monitor = bench
        .activate(Addressing::Translated(table.clone()))
        .unwrap();
    for round in 0..2 {
        for n in 100..2500 {
            let at = virtual_page(n);
            let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
            let gpa = table.gpa(Iova(at.raw())).unwrap();
            let host = Range::new(host_of(&bench.memory, gpa), PAGE).unwrap();
            assert_eq!(outcome, Outcome::Done(vec![host]), "round {round}, {n}");
        }
    }
    assert_eq!(bench.kernel.entries().unwrap().len(), 2048);
    let stats = bench.device.iotlb().unwrap().stats();
    assert!(stats.evictions > 2000, "{stats:?}");
    assert_eq!(stats.entries, 2048);
    assert_eq!(stats.denials, 0);
}

/// The limit is a module parameter, which the service does not know.
#[test]
fn rule_9_a_kernel_that_evicts_sooner_or_later_than_expected_is_survived() {
    for limit in [16, 4096] {
        let model = ModelKernel::new(KernelKind::Overloaded).iotlb_limit(limit);
        let mut bench = Bench::new(model);
        bench.memory = large_memory();
        let table = page_table(&bench);
        let mut monitor = bench
            .activate(Addressing::Translated(table.clone()))
            .unwrap();
        for n in (100..2400).chain(100..2400) {
            let at = virtual_page(n);
            let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
            let gpa = table.gpa(Iova(at.raw())).unwrap();
            let host = Range::new(host_of(&bench.memory, gpa), PAGE).unwrap();
            assert_eq!(outcome, Outcome::Done(vec![host]), "limit {limit}, {n}");
        }
        // A remap reaches what only the kernel remembers.
        let at = virtual_page(100);
        table.map(Iova(at.raw()), LOW, Access::ReadWrite);
        let iotlb = bench.device.iotlb().unwrap();
        iotlb.changed(page(at.raw())).unwrap();
        let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
        let host = Range::new(host_of(&bench.memory, LOW), PAGE).unwrap();
        assert_eq!(outcome, Outcome::Done(vec![host]), "limit {limit}");
    }
}

/// Preloading the window must not push out the rings.
#[test]
fn rule_9_a_window_of_more_ranges_than_the_kernel_holds_starts_and_flows() {
    let mut bench = overloaded();
    bench.memory = large_memory();
    let window = Arc::new(Window::new());
    // Every other page, so that nothing merges; the queues lie at either end.
    for first in [LOW, HIGH] {
        for n in 0..1500 {
            let gpa = Gpa(first.raw() + 2 * n * PAGE);
            window.share(pages(gpa, 1)).unwrap();
        }
    }
    assert_eq!(window.shared().len(), 3000);
    let place = |(first, n): (Gpa, u64)| {
        let at = |n: u64| BusAddr(first.raw() + 2 * n * PAGE);
        (at(n), at(n + 1), at(n + 2))
    };
    // 3000 - 2048 = 952: the oldest range that a table filled in order still holds.
    for (rx, tx) in [
        ((LOW, 0), (HIGH, 0)),
        ((LOW, 952), (LOW, 0)),
        ((LOW, 10), (LOW, 950)),
        ((LOW, 1490), (HIGH, 1490)),
    ] {
        let mut monitor = bench
            .activate_with(Addressing::Restricted(window.clone()), |activation| {
                let [rx_queue, tx_queue] = &mut activation.queues;
                (rx_queue.desc, rx_queue.avail, rx_queue.used) = place(rx);
                (tx_queue.desc, tx_queue.avail, tx_queue.used) = place(tx);
            })
            .unwrap_or_else(|error| panic!("rings at {rx:?} and {tx:?}: {error}"));
        for first in [LOW, HIGH] {
            for n in (0..1500).step_by(100) {
                let at = BusAddr(first.raw() + 2 * n * PAGE);
                let outcome = bench.transfer(&mut monitor, QueueIndex::Rx, at, PAGE);
                assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
            }
        }
        bench.device.stop().unwrap();
    }
}

// Rule 15: one entry a region, page-wise ends.

#[test]
fn rule_15_identity_is_one_entry_a_region_and_never_misses() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let mut monitor = bench.activate(Addressing::Identity).unwrap();
        assert_eq!(bench.kernel.entries().unwrap().len(), 2, "{kernel}");
        for queue in QUEUES {
            assert!(bench.kernel.caches_rings(queue), "{kernel}");
        }
        bench.assert_flows(&mut monitor, Mode::Identity);
        assert_eq!(bench.device.iotlb().unwrap().stats().misses, 0);
    }
}

#[test]
fn rule_15_neighbours_become_one_entry() {
    let mut bench = overloaded();
    let window = Arc::new(Window::new());
    for first in [LOW, HIGH] {
        for n in 0..16 {
            window.share(pages(Gpa(first.raw() + n * PAGE), 1)).unwrap();
        }
    }
    drop(
        bench
            .activate(Addressing::Restricted(window.clone()))
            .unwrap(),
    );
    assert_eq!(bench.kernel.entries().unwrap().len(), 2);
    // Also while running.
    window.share(pages(Gpa(LOW.raw() + 16 * PAGE), 1)).unwrap();
    assert_eq!(bench.kernel.entries().unwrap().len(), 2);
    // Regions that continue each other on both sides are one entry too.
    bench.device.stop().unwrap();
    let half = REGION_SIZE / 2;
    let hva = 0x7f00_0000_0000;
    bench.memory = MemoryMap::new(vec![
        Region::new(LOW, Hva(hva), half).unwrap(),
        Region::new(Gpa(LOW.raw() + half), Hva(hva + half), half).unwrap(),
        Region::new(HIGH, Hva(hva + 8 * REGION_SIZE), REGION_SIZE).unwrap(),
    ])
    .unwrap();
    drop(bench.activate(Addressing::Identity).unwrap());
    assert_eq!(bench.kernel.entries().unwrap().len(), 2);
}

/// A translator that could split a ring's field.
struct Crooked;

impl Translator for Crooked {
    fn translate(&self, iova: Iova) -> Option<Translation> {
        let block = Blocks.translate(iova)?;
        let range = match iova.raw() < PageTable::BASE.raw() + 32 * PAGE {
            true => block.range,
            false => Range::inclusive(block.range.first(), iova).unwrap(),
        };
        Some(Translation { range, ..block })
    }
}

#[test]
fn rule_15_a_translation_with_crooked_ends_gives_nothing() {
    let mut bench = overloaded();
    let mut monitor = bench
        .activate_with(Addressing::Translated(Arc::new(Crooked)), |activation| {
            let tx = &mut activation.queues[1];
            (tx.desc, tx.avail, tx.used) = (virtual_page(4), virtual_page(5), virtual_page(6));
        })
        .unwrap();
    bench.device.iotlb().unwrap().changed(everything()).unwrap();
    let at = BusAddr(virtual_page(40).raw() + 7);
    // The rings miss first, and are answered whole.
    let outcome = bench.transfer(&mut monitor, QueueIndex::Rx, virtual_page(8), PAGE);
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    bench
        .device
        .iotlb()
        .unwrap()
        .changed(page(virtual_page(40).raw()))
        .unwrap();
    let outcome = bench.kernel.access(QueueIndex::Rx, at, 8, Access::Write);
    assert_eq!(outcome, Outcome::Missed);
    assert!(matches!(monitor.handle()[..], [Failure::Denied(_)]));
    bench.assert_halted(Mode::Translated);
}
