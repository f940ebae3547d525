// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rules of the kernel's IOTLB, one by one, on a model of the kernel.
//!
//! Each test is named after what goes wrong on a real kernel when the rule is
//! broken. `Bench` besides checks at the end of each test that nothing was done
//! which only some kernels forgive.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosvm_vsock::address::{Address, BusAddr, Gpa, Hva, Iova, Range};
use crosvm_vsock::compat::{KernelKind, Mode};
use crosvm_vsock::event::{poll, EventFd};
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::ioctl::VringAddresses;
use crosvm_vsock::kernel::queue::QueueError;
use crosvm_vsock::kernel::{
    Access, Addressing, Error, Failure, MessageFormat, QueueIndex, ShareError, Translation,
    Translator, Vhost, Window,
};
use crosvm_vsock::memory::{MemoryMap, Region, PAGE};
use model_kernel::bench::{iovas, pages, HIGH, LOW, REGION_SIZE};
use model_kernel::{name, Bench, Call, Message, ModelKernel, Outcome, PageTable, Place};

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

/// All six rings as the kernel looks them up.
fn rings(mode: Mode) -> Vec<Range<Iova>> {
    let size = u64::from(model_kernel::bench::QUEUE_SIZE);
    let ring = |first: BusAddr, bytes| Range::new(Iova(first.raw()), bytes).unwrap();
    Place::of(mode)
        .iter()
        .flat_map(|place| {
            [
                ring(place.desc, 16 * size),
                ring(place.avail, 6 + 2 * size),
                ring(place.used, 6 + 8 * size),
            ]
        })
        .collect()
}

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

// Rules 4 and 5: the rings.

#[test]
fn rules_4_and_5_all_rings_are_mapped_read_write_before_the_start() {
    for addressing in overloaded().addressings() {
        let mode = addressing.mode();
        if !mode.wants_iotlb() {
            continue;
        }
        let mut bench = overloaded();
        let model = Arc::downgrade(&bench.kernel);
        let (started, seen) = std::sync::mpsc::channel();
        bench.kernel.before(name::SET_RUNNING, 0, move || {
            let entries = model.upgrade().unwrap().entries().unwrap();
            started.send(entries).unwrap();
        });
        drop(bench.activate(addressing).unwrap());
        let entries = seen.recv().unwrap();
        for ring in rings(mode) {
            let mapped = entries
                .iter()
                .any(|entry| entry.range.covers(&ring) && entry.perm == 3);
            assert!(mapped, "{mode}: {ring} is not in {entries:?}");
        }
    }
}

#[test]
fn rule_5_a_ring_that_may_not_be_read_and_written_is_refused_and_named() {
    for access in [Some(Access::Read), Some(Access::Write), None] {
        for (index, place) in Place::VIRTUAL.into_iter().enumerate() {
            let rings = [
                (place.desc, "descriptor table"),
                (place.avail, "available ring"),
                (place.used, "used ring"),
            ];
            for (ring, named) in rings {
                let mut bench = overloaded();
                let table = page_table(&bench);
                let iova = Iova(ring.raw());
                let gpa = table.gpa(iova).unwrap();
                match access {
                    Some(access) => table.map(iova, gpa, access),
                    None => table.unmap(iova),
                }
                let addressing = Addressing::Translated(table.clone());
                let error = bench.activate(addressing.clone()).unwrap_err();
                assert!(
                    matches!(
                        error,
                        Error::Queue {
                            source: QueueError::Inaccessible { .. },
                            ..
                        }
                    ),
                    "{error}"
                );
                let text = error.to_string();
                assert!(text.contains(named), "{text}");
                assert!(text.contains(&format!("queue {index} ")), "{text}");
                assert!(text.contains(&iova.to_string()), "{text}");
                assert!(bench.kernel.is_quiet());

                table.map(iova, gpa, Access::ReadWrite);
                let mut monitor = bench.activate(addressing).unwrap();
                bench.assert_flows(&mut monitor, Mode::Translated);
            }
        }
    }
}

#[test]
fn rule_5_a_ring_of_many_pages_is_mapped_and_checked_to_its_end() {
    // 1024 descriptors: 4 pages, then 1, then 3.
    let rings = [
        (0, 4, "descriptor table"),
        (4, 1, "available ring"),
        (5, 3, "used ring"),
    ];
    let last_pages = rings.map(|(first, count, named)| (first + count - 1, named));
    for (bad, named) in last_pages {
        let mut bench = overloaded();
        let table = page_table(&bench);
        let gpa = table.gpa(Iova(virtual_page(bad).raw())).unwrap();
        let bad = Iova(virtual_page(bad).raw());
        let mut activate = || {
            bench.activate_with(Addressing::Translated(table.clone()), |activation| {
                let rx = &mut activation.queues[0];
                rx.size = 1024;
                (rx.avail, rx.used) = (virtual_page(4), virtual_page(5));
            })
        };
        table.map(bad, gpa, Access::Read);
        let text = activate().unwrap_err().to_string();
        assert!(text.contains(named), "{text}");
        table.map(bad, gpa, Access::ReadWrite);
        drop(activate().unwrap());
        // Nothing of them is left to be missed.
        let buffer = virtual_page(10);
        bench
            .kernel
            .access(QueueIndex::Rx, buffer, PAGE, Access::Write);
        let iotlb = bench.device.iotlb().unwrap();
        assert_eq!(iotlb.serve().unwrap(), []);
        assert_eq!(iotlb.stats().misses, 1);
        assert!(bench.kernel.holds(page(buffer.raw())));
    }
}

#[test]
fn rule_5_a_ring_that_is_not_shared_is_refused() {
    let mut bench = overloaded();
    let window = bench.window();
    let used = Place::PHYSICAL[1].used;
    window.unshare(pages(Gpa(used.raw()), 1)).unwrap();
    let error = bench.activate(Addressing::Restricted(window)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("queue 1") && text.contains("used ring"),
        "{text}"
    );
    assert!(text.contains("restricted"), "{text}");
}

// Rule 6: misses.

#[test]
fn rule_6_a_miss_is_answered_and_wakes_its_queue() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let table = page_table(&bench);
        let mut monitor = bench
            .activate(Addressing::Translated(table.clone()))
            .unwrap();
        let at = virtual_page(100);
        assert!(!readable(&bench));
        let first = bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
        assert_eq!(first, Outcome::Missed);
        assert!(readable(&bench), "{kernel}");
        assert!(monitor.handle().is_empty());
        assert!(!readable(&bench), "{kernel}");
        assert_eq!(bench.kernel.wakeups(QueueIndex::Tx), 1, "{kernel}");
        assert_eq!(bench.kernel.wakeups(QueueIndex::Rx), 0, "{kernel}");
        let gpa = table.gpa(Iova(at.raw())).unwrap();
        let host = Range::new(host_of(&bench.memory, gpa), PAGE).unwrap();
        let again = bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
        assert_eq!(again, Outcome::Done(vec![host]), "{kernel}");
        assert_eq!(bench.device.iotlb().unwrap().stats().misses, 1);
    }
}

/// An update wakes only misses that were read before it: a queue that asked for a
/// page while it was being mapped for the other one sleeps until it is answered
/// itself.
#[test]
fn rule_6_a_miss_for_what_is_mapped_already_is_answered_again() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let mut monitor = bench.activate(Addressing::Translated(table)).unwrap();
    let at = virtual_page(100);
    for queue in QUEUES {
        let outcome = bench.kernel.access(queue, at, PAGE, Access::Read);
        assert_eq!(outcome, Outcome::Missed);
    }
    assert!(monitor.handle().is_empty());
    for queue in QUEUES {
        assert_eq!(bench.kernel.wakeups(queue), 1, "queue {queue} sleeps on");
    }
    let stats = bench.device.iotlb().unwrap().stats();
    assert_eq!((stats.misses, stats.repeats), (2, 1));
}

#[test]
fn rule_6_the_access_that_is_missing_is_the_one_that_is_checked() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let mut monitor = bench
        .activate(Addressing::Translated(table.clone()))
        .unwrap();
    let at = virtual_page(100);
    let gpa = table.gpa(Iova(at.raw())).unwrap();
    table.map(Iova(at.raw()), gpa, Access::Read);
    let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");

    let at = virtual_page(101);
    let gpa = table.gpa(Iova(at.raw())).unwrap();
    table.map(Iova(at.raw()), gpa, Access::Read);
    let outcome = bench.kernel.access(QueueIndex::Rx, at, PAGE, Access::Write);
    assert_eq!(outcome, Outcome::Missed);
    let failures = monitor.handle();
    let [Failure::Denied(denial)] = &failures[..] else {
        panic!("{failures:?}");
    };
    assert_eq!(
        (denial.iova, denial.access),
        (Iova(at.raw()), Access::Write)
    );
    assert!(!bench.kernel.holds(page(at.raw())));
}

#[test]
fn rule_6_the_loop_serves_misses_and_ends_when_told() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let monitor = bench.activate(Addressing::Translated(table)).unwrap();
    let stop = EventFd::new().unwrap();
    std::thread::scope(|scope| {
        let stopped = stop.try_clone().unwrap();
        let serving =
            scope.spawn(move || monitor.run(stopped.as_fd(), |failure| panic!("{failure}")));
        let deadline = Instant::now() + Duration::from_secs(20);
        let reach = |n| {
            let at = virtual_page(n);
            let access = || bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
            while access() == Outcome::Missed {
                if Instant::now() > deadline {
                    return false;
                }
                std::thread::yield_now();
            }
            true
        };
        let served = (100..400).all(reach);
        stop.signal().unwrap();
        serving.join().unwrap().unwrap();
        assert!(served);
    });
}

/// A miss that nobody read is still there after a reset, on kernels that keep
/// their lists. It is about a world that is gone.
#[test]
fn rule_6_a_miss_from_before_the_activation_fails_nothing() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let window = bench.window();
        drop(
            bench
                .activate(Addressing::Restricted(window.clone()))
                .unwrap(),
        );
        let outside = BusAddr(LOW.raw() + REGION_SIZE - PAGE);
        for queue in QUEUES {
            let outcome = bench.kernel.access(queue, outside, PAGE, Access::Read);
            assert_eq!(outcome, Outcome::Missed, "{kernel}");
        }
        bench.device.reset().unwrap();

        let mut monitor = bench.activate(Addressing::Restricted(window)).unwrap();
        let failures = monitor.handle();
        assert!(failures.is_empty(), "{kernel}: {failures:?}");
        bench.assert_flows(&mut monitor, Mode::Restricted);
    }
}

// Rule 7: updates add, invalidations take whole entries, both are barriers.

#[test]
fn rule_7_a_remap_invalidates_before_it_updates() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let mut monitor = bench
        .activate(Addressing::Translated(table.clone()))
        .unwrap();
    let at = virtual_page(100);
    let old = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
    let elsewhere = Gpa(HIGH.raw() + 200 * PAGE);
    table.map(Iova(at.raw()), elsewhere, Access::ReadWrite);
    bench
        .device
        .iotlb()
        .unwrap()
        .changed(page(at.raw()))
        .unwrap();
    let new = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
    let host = Range::new(host_of(&bench.memory, elsewhere), PAGE).unwrap();
    assert_eq!(new, Outcome::Done(vec![host]));
    assert_ne!(old, new);
}

/// Forgets to tell that a page has moved: its second answer differs.
struct Forgetful(Arc<PageTable>, AtomicBool);

impl Forgetful {
    const MOVED: u64 = 200;
    const TO: Gpa = Gpa(HIGH.0 + 250 * PAGE);
}

impl Translator for Forgetful {
    fn translate(&self, iova: Iova) -> Option<Translation> {
        let translation = self.0.translate(iova)?;
        let here = translation.range.first().raw() == virtual_page(Self::MOVED).raw();
        match here && self.1.swap(true, Ordering::Relaxed) {
            true => Some(Translation {
                gpa: Self::TO,
                ..translation
            }),
            false => Some(translation),
        }
    }
}

#[test]
fn rule_7_an_answer_that_differs_from_what_was_mapped_replaces_it() {
    let mut bench = overloaded();
    let translator = Forgetful(page_table(&bench), AtomicBool::new(false));
    let mut monitor = bench
        .activate(Addressing::Translated(Arc::new(translator)))
        .unwrap();
    let at = virtual_page(Forgetful::MOVED);
    for queue in QUEUES {
        let outcome = bench.kernel.access(queue, at, PAGE, Access::Read);
        assert_eq!(outcome, Outcome::Missed);
    }
    assert!(monitor.handle().is_empty());
    let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
    let host = Range::new(host_of(&bench.memory, Forgetful::TO), PAGE).unwrap();
    assert_eq!(outcome, Outcome::Done(vec![host]));
}

#[test]
fn rule_7_what_an_invalidation_takes_too_much_is_given_back() {
    let mut bench = overloaded();
    let window = bench.window();
    drop(
        bench
            .activate(Addressing::Restricted(window.clone()))
            .unwrap(),
    );
    let hole = pages(Gpa(LOW.raw() + 8 * PAGE), 1);
    window.unshare(hole).unwrap();
    let entries = bench.kernel.entries().unwrap();
    let held = |iova: u64| {
        entries
            .iter()
            .any(|entry| entry.range.contains(Iova(iova)) && entry.perm == 3)
    };
    for n in 0..16 {
        assert_eq!(held(LOW.raw() + n * PAGE), n != 8, "page {n}");
        assert!(held(HIGH.raw() + n * PAGE), "page {n} of the other region");
    }
    // Also when only a miss could bring it back.
    bench.device.stop().unwrap();
    let table = Arc::new(Blocks);
    let mut monitor = bench.activate(Addressing::Translated(table)).unwrap();
    bench.assert_flows(&mut monitor, Mode::Translated);
    let block = PageTable::BASE.raw();
    bench
        .device
        .iotlb()
        .unwrap()
        .changed(page(block + 20 * PAGE))
        .unwrap();
    assert!(!bench.kernel.holds(page(block + 20 * PAGE)));
    assert!(bench.kernel.holds(page(block + 19 * PAGE)));
    assert!(bench.kernel.holds(page(block + 21 * PAGE)));
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

#[test]
fn rule_7_unshared_memory_is_out_of_reach_when_unshare_returns() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let window = bench.window();
        let monitor = bench
            .activate(Addressing::Restricted(window.clone()))
            .unwrap();
        let (model, memory) = (&bench.kernel, &bench.memory);
        let done = AtomicBool::new(false);
        let stop = EventFd::new().unwrap();
        std::thread::scope(|scope| {
            let stopped = stop.try_clone().unwrap();
            // Denials are expected: queues reach for what is not shared.
            scope.spawn(move || monitor.run(stopped.as_fd(), |_| {}).unwrap());
            let done = &done;
            for (queue, access) in [
                (QueueIndex::Rx, Access::Write),
                (QueueIndex::Tx, Access::Read),
            ] {
                scope.spawn(move || {
                    for n in (0..32).cycle() {
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        let at = BusAddr(LOW.raw() + (32 + n) * PAGE);
                        let outcome = model.access(queue, at, PAGE, access);
                        if let Outcome::Done(pieces) = outcome {
                            let gpa = Gpa(at.raw());
                            assert_eq!(pieces[0].first(), host_of(memory, gpa));
                        }
                    }
                });
            }
            let turns: Vec<_> = (0..2u64)
                .map(|turn| {
                    let window = window.clone();
                    scope.spawn(move || {
                        // Each has pages of its own, among the other's.
                        for round in 0..300u64 {
                            let n = 32 + 2 * (round * 7 % 16) + turn;
                            let range = pages(Gpa(LOW.raw() + n * PAGE), 1);
                            window.share(range).unwrap();
                            window.unshare(range).unwrap();
                            assert!(
                                !model.holds(iovas(range)),
                                "{kernel}: the kernel still reaches {range}"
                            );
                        }
                    })
                })
                .collect();
            let results: Vec<_> = turns.into_iter().map(|turn| turn.join()).collect();
            done.store(true, Ordering::Relaxed);
            stop.signal().unwrap();
            assert!(results.iter().all(Result::is_ok));
        });
        for n in 32..64 {
            assert!(!bench.kernel.holds(page(LOW.raw() + n * PAGE)), "{kernel}");
        }
    }
}

/// A change that comes while the service preloads must not fall between reading
/// the window and hearing of its changes.
#[test]
fn rule_7_an_unshare_during_activation_is_not_lost() {
    let mut bench = overloaded();
    let window = bench.window();
    let extra = pages(Gpa(LOW.raw() + 100 * PAGE), 4);
    window.share(extra).unwrap();
    let unsharing = window.clone();
    let (started, start) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        start.recv().unwrap();
        unsharing.unshare(extra).unwrap();
    });
    let seen = window.clone();
    bench.kernel.before(name::WRITE, 0, move || {
        started.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while seen.shared().iter().any(|range| range.overlaps(&extra)) {
            assert!(Instant::now() < deadline, "the unshare does not begin");
            std::thread::yield_now();
        }
        // The set has changed; give the follow-up the time to overtake.
        std::thread::sleep(Duration::from_millis(20));
    });
    drop(bench.activate(Addressing::Restricted(window)).unwrap());
    thread.join().unwrap();
    assert!(!bench.kernel.holds(iovas(extra)));
}

#[test]
fn rule_7_a_refused_invalidation_is_an_error_and_can_be_repeated() {
    let mut bench = overloaded();
    let window = bench.window();
    drop(
        bench
            .activate(Addressing::Restricted(window.clone()))
            .unwrap(),
    );
    let hole = pages(Gpa(LOW.raw() + 8 * PAGE), 1);
    bench.kernel.fail(name::WRITE, 0, libc::EFAULT);
    let error = window.unshare(hole).unwrap_err();
    assert!(matches!(error, ShareError::Kernel { .. }), "{error}");
    assert!(error.to_string().contains("did not follow"), "{error}");
    assert!(bench.kernel.holds(iovas(hole)));
    window.unshare(hole).unwrap();
    assert!(!bench.kernel.holds(iovas(hole)));
}

/// A monitor may outlive its activation by a moment; a window outlives many.
#[test]
fn rule_7_the_service_of_an_ended_activation_leaves_the_next_one_alone() {
    let mut bench = overloaded();
    let old = bench.window();
    let mut old_monitor = bench.activate(Addressing::Restricted(old.clone())).unwrap();
    let old_service = bench.device.iotlb().unwrap().clone();
    bench.device.stop().unwrap();

    let new = bench.window();
    let mut monitor = bench.activate(Addressing::Restricted(new)).unwrap();
    let foreign = pages(Gpa(HIGH.raw() + 100 * PAGE), 1);
    old.share(foreign).unwrap();
    assert!(!bench.kernel.holds(iovas(foreign)));
    old.unshare(pages(LOW, 1)).unwrap();
    old_service.changed(everything()).unwrap();
    assert!(bench.kernel.holds(iovas(pages(LOW, 1))));

    // A miss of the new activation is not the old translator's to answer.
    old.share(pages(LOW, 256)).unwrap();
    let outside = BusAddr(LOW.raw() + 128 * PAGE);
    let outcome = bench
        .kernel
        .access(QueueIndex::Tx, outside, PAGE, Access::Read);
    assert_eq!(outcome, Outcome::Missed);
    assert!(old_monitor.handle().is_empty());
    assert!(!bench.kernel.holds(page(outside.raw())));
    assert_eq!(monitor.handle().len(), 1);
}

/// Else the first device would no longer hear of an unshare, and keep its access.
#[test]
fn rule_7_a_window_serves_one_running_device() {
    let (mut first, mut second) = (overloaded(), overloaded());
    let window = first.window();
    let addressing = Addressing::Restricted(window.clone());
    let monitor = first.activate(addressing.clone()).unwrap();
    let error = second.activate(addressing.clone()).unwrap_err();
    assert!(matches!(error, Error::Share(ShareError::InUse)), "{error}");
    let hole = pages(LOW, 1);
    window.unshare(hole).unwrap();
    assert!(!first.kernel.holds(iovas(hole)));
    // Once the first is reset it is free, though its monitor lingers.
    window.share(hole).unwrap();
    first.device.reset().unwrap();
    drop(second.activate(addressing).unwrap());
    drop(monitor);
}

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

// Rule 10: the two versions of messages.

#[test]
fn rule_10_messages_are_v1_unless_asked_for_and_then_the_kernel_is_told() {
    for (format, version) in [(MessageFormat::V1, 1), (MessageFormat::V2, 2)] {
        let mut bench = overloaded();
        let table = page_table(&bench);
        bench.kernel.forget_calls();
        let mut monitor = bench
            .activate_with(Addressing::Translated(table), |activation| {
                activation.messages = format;
            })
            .unwrap();
        // A miss comes in the same version, and is understood.
        bench.assert_flows(&mut monitor, Mode::Translated);
        let messages = bench.kernel.messages();
        assert!(messages.iter().all(|message| message.version == version));
        let told = bench
            .kernel
            .calls()
            .contains(&Call::SetBackendFeatures(1 << 1));
        assert_eq!(told, format == MessageFormat::V2);
    }
    assert_eq!(MessageFormat::default(), MessageFormat::V1);
}

#[test]
fn rule_10_in_a_jail_v1_needs_neither_backend_feature_call() {
    let mut bench = overloaded();
    for call in [name::GET_BACKEND_FEATURES, name::SET_BACKEND_FEATURES] {
        bench.kernel.fail_always(call, libc::EPERM);
    }
    for addressing in bench.addressings() {
        let mode = addressing.mode();
        let mut monitor = bench.activate(addressing).unwrap();
        bench.assert_flows(&mut monitor, mode);
        bench.device.stop().unwrap();
    }
    let table = Addressing::Translated(page_table(&bench));
    let refused = bench.activate_with(table, |activation| {
        activation.messages = MessageFormat::V2;
    });
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("VHOST_SET_BACKEND_FEATURES"), "{text}");
}

#[test]
fn rule_10_short_and_unknown_messages_are_counted_and_ignored() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let mut monitor = bench.activate(Addressing::Translated(table)).unwrap();
    let good = Message {
        version: 1,
        iova: virtual_page(100).raw(),
        size: 0,
        uaddr: 0,
        perm: 1,
        kind: Message::MISS,
    };
    let bad = [
        vec![],
        good.encode()[..71].to_vec(),
        Message { version: 3, ..good }.encode().to_vec(),
        Message { kind: 7, ..good }.encode().to_vec(),
        Message {
            kind: Message::UPDATE,
            ..good
        }
        .encode()
        .to_vec(),
        Message { perm: 0, ..good }.encode().to_vec(),
    ];
    bench.kernel.forget_calls();
    for message in &bad {
        bench.kernel.say(message);
    }
    assert!(monitor.handle().is_empty());
    let stats = bench.device.iotlb().unwrap().stats();
    assert_eq!(stats.malformed, bad.len() as u64);
    assert_eq!(stats.misses, 0);
    assert_eq!(bench.kernel.messages(), []);
    assert!(!readable(&bench));
    bench.assert_flows(&mut monitor, Mode::Translated);
}

#[test]
fn rule_10_a_broken_descriptor_is_reported_once_and_not_polled_busily() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let monitor = bench.activate(Addressing::Translated(table)).unwrap();
    bench.kernel.fail_always(name::READ, libc::EBADFD);
    bench
        .kernel
        .access(QueueIndex::Tx, virtual_page(100), PAGE, Access::Read);
    let stop = EventFd::new().unwrap();
    let stopped = stop.try_clone().unwrap();
    let (report, reports) = std::sync::mpsc::channel();
    let serving = std::thread::spawn(move || {
        monitor.run(stopped.as_fd(), |failure| report.send(failure).unwrap())
    });
    let first = reports.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(matches!(first, Failure::Service(_)), "{first}");
    // The miss is still there to be read: a loop that polls for it never sleeps.
    std::thread::sleep(Duration::from_millis(50));
    stop.signal().unwrap();
    serving.join().unwrap().unwrap();
    assert_eq!(reports.try_iter().count(), 0);
}

// Rule 11: denied misses.

#[test]
fn rule_11_a_denied_miss_is_counted_reported_and_not_answered() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let window = bench.window();
        let mut monitor = bench.activate(Addressing::Restricted(window)).unwrap();
        bench.kernel.forget_calls();
        let outside = BusAddr(HIGH.raw() + 16 * PAGE);
        let outcome = bench
            .kernel
            .access(QueueIndex::Tx, outside, PAGE, Access::Read);
        assert_eq!(outcome, Outcome::Missed, "{kernel}");
        let failures = monitor.handle();
        let [Failure::Denied(denial)] = &failures[..] else {
            panic!("{kernel}: {failures:?}");
        };
        assert_eq!(denial.iova, Iova(outside.raw()));
        let text = failures[0].to_string();
        assert!(text.contains(&outside.to_string()), "{text}");
        assert_eq!(bench.kernel.messages(), [], "{kernel}");
        assert_eq!(bench.kernel.wakeups(QueueIndex::Tx), 0);
        assert_eq!(bench.device.iotlb().unwrap().stats().denials, 1);
        // Nothing is left to do until the kernel asks again.
        assert!(!readable(&bench), "{kernel}");
        assert!(monitor.handle().is_empty());

        // After a reset the device works again.
        bench.device.reset().unwrap();
        let window = bench.window();
        let mut monitor = bench.activate(Addressing::Restricted(window)).unwrap();
        bench.assert_flows(&mut monitor, Mode::Restricted);
    }
}

/// Since 7.x a queue asks for nothing more before its last miss is answered, which
/// a denied one never is.
#[test]
fn rule_11_a_denied_queue_asks_again_after_a_reset() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let table = page_table(&bench);
        let addressing = Addressing::Translated(table);
        let mut monitor = bench.activate(addressing.clone()).unwrap();
        let nowhere = BusAddr(8 * PAGE);
        for queue in QUEUES {
            let outcome = bench.kernel.access(queue, nowhere, PAGE, Access::Read);
            assert_eq!(outcome, Outcome::Missed, "{kernel}");
        }
        assert_eq!(monitor.handle().len(), 2, "{kernel}");
        for stop in [false, true] {
            if stop {
                bench.device.stop().unwrap();
            }
            bench.device.reset().unwrap();
            let mut monitor = bench.activate(addressing.clone()).unwrap();
            bench.assert_flows(&mut monitor, Mode::Translated);
        }
    }
}

#[test]
fn rule_11_a_flood_of_denied_misses_yields_to_the_callers_loop() {
    let mut bench = overloaded();
    let window = bench.window();
    let mut monitor = bench.activate(Addressing::Restricted(window)).unwrap();
    for n in 0..200 {
        let at = BusAddr(HIGH.raw() + (16 + n) * PAGE);
        bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
    }
    let first = monitor.handle().len();
    assert!(first > 0 && first < 200, "{first} in one go");
    assert!(readable(&bench));
    while readable(&bench) {
        monitor.handle();
    }
    assert_eq!(bench.device.iotlb().unwrap().stats().denials, 200);
}

#[test]
fn rule_11_an_error_event_that_comes_with_a_miss_is_no_failure_and_one_without_is() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let mut monitor = bench.activate(Addressing::Translated(table)).unwrap();
    for kick in &bench.kicks {
        kick.take().unwrap();
    }
    bench
        .kernel
        .access(QueueIndex::Tx, virtual_page(100), PAGE, Access::Read);
    bench.kernel.break_queue(QueueIndex::Tx);
    assert!(monitor.handle().is_empty());
    // The queue is woken by us as well; if it is broken it says so again.
    assert!(bench.kicks[1].take().unwrap());
    assert!(!bench.kicks[0].take().unwrap());
    bench.kernel.break_queue(QueueIndex::Tx);
    let failures = monitor.handle();
    assert!(
        matches!(failures[..], [Failure::Queue(QueueIndex::Tx)]),
        "{failures:?}"
    );
    assert!(!bench.kicks[1].take().unwrap());
    assert!(monitor.handle().is_empty());
}

#[test]
fn rule_11_a_queue_that_the_kernel_gives_up_on_fails_visibly() {
    for addressing in overloaded().addressings() {
        let mode = addressing.mode();
        let mut bench = overloaded();
        let table = page_table(&bench);
        let addressing = match addressing {
            Addressing::Translated(_) => Addressing::Translated(table.clone()),
            other => other,
        };
        let mut monitor = bench.activate(addressing).unwrap();
        let (at, errno) = match mode {
            // Read-only, and told to the kernel as such.
            Mode::Translated => {
                let at = virtual_page(100);
                let gpa = table.gpa(Iova(at.raw())).unwrap();
                table.map(Iova(at.raw()), gpa, Access::Read);
                bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
                (at, libc::EPERM)
            }
            Mode::Off => (BusAddr(0), libc::EFAULT),
            Mode::Identity | Mode::Restricted => (BusAddr(u64::MAX), libc::EFAULT),
        };
        let mut outcome = bench.kernel.access(QueueIndex::Rx, at, PAGE, Access::Write);
        assert_eq!(outcome, Outcome::Refused(errno), "{mode}");
        let mut failures = monitor.handle();
        if failures.is_empty() {
            // A miss had come before it: the queue was kicked and says it again.
            assert!(bench.kicks[0].take().unwrap(), "{mode}");
            outcome = bench.kernel.access(QueueIndex::Rx, at, PAGE, Access::Write);
            failures = monitor.handle();
        }
        assert_eq!(outcome, Outcome::Refused(errno), "{mode}");
        assert!(
            matches!(failures[..], [Failure::Queue(QueueIndex::Rx)]),
            "{mode}: {failures:?}"
        );
    }
}

/// A queue that waits for what it is denied would be woken for nothing, over and over.
#[test]
fn rule_11_after_a_denial_no_queue_is_kicked() {
    let mut bench = overloaded();
    let window = bench.window();
    let mut monitor = bench.activate(Addressing::Restricted(window)).unwrap();
    for kick in &bench.kicks {
        kick.take().unwrap();
    }
    let outside = BusAddr(HIGH.raw() + 16 * PAGE);
    for _ in 0..3 {
        bench
            .kernel
            .access(QueueIndex::Tx, outside, PAGE, Access::Read);
        bench.kernel.break_queue(QueueIndex::Tx);
        let failures = monitor.handle();
        assert!(matches!(failures[..], [Failure::Denied(_)]), "{failures:?}");
        for kick in &bench.kicks {
            assert!(!kick.take().unwrap());
        }
    }
}

/// What an earlier activation left behind says nothing of this one.
#[test]
fn rule_11_an_error_event_from_before_the_activation_is_no_failure() {
    let mut bench = overloaded();
    let monitor = bench.activate(Addressing::Identity).unwrap();
    bench.kernel.break_queue(QueueIndex::Rx);
    drop(monitor);
    bench.device.stop().unwrap();
    let mut monitor = bench.activate(Addressing::Identity).unwrap();
    assert!(monitor.handle().is_empty());
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
}
