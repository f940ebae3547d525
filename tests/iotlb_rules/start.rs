// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rules 1 to 3 and 13: what an activation tells the kernel, and in which order.

use crosvm_vsock::address::{Address, BusAddr, Gpa, Range};
use crosvm_vsock::compat::Mode;
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::ioctl::VringAddresses;
use crosvm_vsock::kernel::{Addressing, MessageFormat, QueueIndex};
use crosvm_vsock::memory::PAGE;
use model_kernel::bench::{iovas, pages, HIGH, LOW, REGION_SIZE};
use model_kernel::{name, Bench, Call, Outcome, Place};

use crate::{host_of, overloaded, page_table, QUEUES};

// Rule 1: SET_FEATURES.

#[test]
fn rule_1_the_calls_come_in_the_order_the_kernel_needs() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        for addressing in bench.addressings() {
            let mode = addressing.mode();
            bench.kernel.forget_calls();
            bench
                .activate_with(addressing, |activation| {
                    activation.messages = MessageFormat::V2
                })
                .unwrap();
            let calls = bench.kernel.calls();
            let first = |name| calls.iter().position(|call| call.name() == name);
            let last = |name| calls.iter().rposition(|call| call.name() == name);
            let running = first(name::SET_RUNNING).unwrap();
            let vrings = [
                name::SET_VRING_NUM,
                name::SET_VRING_BASE,
                name::SET_VRING_ADDR,
                name::SET_VRING_KICK,
                name::SET_VRING_CALL,
                name::SET_VRING_ERR,
            ];
            for vring in vrings {
                let each = calls.iter().filter(|call| call.name() == vring).count();
                assert_eq!(each, 2, "{kernel} {mode}: {vring}");
                assert!(last(name::SET_FEATURES) < first(vring), "{kernel} {mode}");
                assert!(first(name::SET_MEM_TABLE) < first(vring), "{kernel} {mode}");
                assert!(last(vring).unwrap() < running, "{kernel} {mode}");
            }
            assert!(first(name::SET_FEATURES) < first(name::SET_MEM_TABLE));
            assert!(last(name::SET_GUEST_CID).unwrap() < running);
            if mode.wants_iotlb() {
                let negotiated = first(name::SET_BACKEND_FEATURES);
                assert!(first(name::SET_FEATURES) < negotiated, "{kernel} {mode}");
                assert!(negotiated < first(name::WRITE), "{kernel} {mode}");
                assert!(
                    last(name::SET_FEATURES) < first(name::WRITE),
                    "every SET_FEATURES empties the IOTLB again: {kernel} {mode}"
                );
                assert!(last(name::WRITE).unwrap() < running, "{kernel} {mode}");
            }
            bench.device.reset().unwrap();
        }
    }
}

#[test]
fn rule_1_data_flows_in_every_mode_on_every_kernel_in_every_order() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let addressings = bench.addressings();
        for first in &addressings {
            for second in &addressings {
                for addressing in [first, second] {
                    let mode = addressing.mode();
                    let mut monitor = bench
                        .activate(addressing.clone())
                        .unwrap_or_else(|error| panic!("{kernel} {mode}: {error}"));
                    bench.assert_flows(&mut monitor, mode);
                    bench.device.stop().unwrap();
                }
            }
        }
    }
}

#[test]
fn rule_1_off_after_on_reaches_all_memory_and_nothing_that_was_mapped_before() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let table = page_table(&bench);
        drop(bench.activate(Addressing::Translated(table)).unwrap());
        bench.device.stop().unwrap();

        let mut monitor = bench.activate(Addressing::Off).unwrap();
        bench.assert_flows(&mut monitor, Mode::Off);
        for first in [LOW, HIGH] {
            let last_page = BusAddr(first.raw() + REGION_SIZE - PAGE);
            let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, last_page, PAGE);
            assert!(matches!(outcome, Outcome::Done(_)), "{kernel}: {outcome:?}");
        }
        // Where the IOTLB stays on, it holds the two regions and nothing else.
        match bench.kernel.entries() {
            None => assert!(!kernel.starts_with("6.1 ") && kernel != "6.1", "{kernel}"),
            Some(entries) => {
                let mut held: Vec<_> = entries.iter().map(|entry| entry.range).collect();
                held.sort_by_key(Range::first);
                let regions = [LOW, HIGH].map(|first| iovas(pages(first, REGION_SIZE / PAGE)));
                assert_eq!(held, regions, "{kernel}");
            }
        }
    }
}

#[test]
fn rule_1_restricted_after_off_on_a_sticky_descriptor_reaches_only_the_window() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        for addressing in [Addressing::Identity, Addressing::Off] {
            drop(bench.activate(addressing).unwrap());
            bench.device.stop().unwrap();
        }
        let window = bench.window();
        let mut monitor = bench
            .activate(Addressing::Restricted(window.clone()))
            .unwrap();
        bench.assert_flows(&mut monitor, Mode::Restricted);
        for entry in bench.kernel.entries().expect(kernel) {
            let inside = window
                .shared()
                .iter()
                .any(|shared| iovas(*shared).covers(&entry.range));
            assert!(inside, "{kernel}: {entry:?}");
        }
    }
}

#[test]
fn rules_1_and_13_unknown_bits_and_dirty_logging_are_never_passed() {
    let all = FeatureSet::from_bits(u64::MAX);
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model.offering(all));
        for addressing in bench.addressings() {
            let mode = addressing.mode();
            let acked = match mode {
                // Behind no DMA API the guest acknowledges neither bit.
                Mode::Off | Mode::Identity => all - Feature::ACCESS_PLATFORM.set(),
                _ => all,
            };
            drop(
                bench
                    .activate_with(addressing, |activation| activation.acked = acked)
                    .unwrap(),
            );
            let told = bench.kernel.acked();
            assert!(!told.has(Feature::LOG_ALL), "{kernel} {mode}: {told}");
            assert!(!told.has(Feature::from_number(50).unwrap()), "{told}");
            assert!(told.has(Feature::VERSION_1) && told.has(Feature::SEQPACKET));
            bench.device.stop().unwrap();
        }
    }
}

// Rule 2: the memory table.

#[test]
fn rule_2_the_memory_table_is_set_in_every_mode_and_every_time() {
    let mut bench = overloaded();
    for addressing in bench.addressings() {
        for _ in 0..2 {
            bench.kernel.forget_calls();
            drop(bench.activate(addressing.clone()).unwrap());
            let table = Call::SetMemTable(bench.memory.clone());
            assert!(bench.kernel.calls().contains(&table), "{addressing:?}");
            bench.device.reset().unwrap();
        }
    }
}

// Rule 3: in which sense ring addresses are given.

#[test]
fn rule_3_ring_addresses_are_host_virtual_without_the_iotlb_and_io_virtual_with_it() {
    let mut bench = overloaded();
    for addressing in bench.addressings() {
        let mode = addressing.mode();
        bench.kernel.forget_calls();
        drop(bench.activate(addressing).unwrap());
        let calls = bench.kernel.calls();
        for (queue, place) in QUEUES.into_iter().zip(Place::of(mode)) {
            let sense = |address: BusAddr| match mode {
                Mode::Off => host_of(&bench.memory, Gpa(address.raw())).raw(),
                _ => address.raw(),
            };
            let addresses = VringAddresses {
                desc: sense(place.desc),
                avail: sense(place.avail),
                used: sense(place.used),
            };
            let call = Call::SetVringAddr(queue, addresses);
            assert!(calls.contains(&call), "{mode}: {call:?} not in {calls:?}");
        }
        bench.device.stop().unwrap();
    }
}
