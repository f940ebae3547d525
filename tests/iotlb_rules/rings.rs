// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rules 4 and 5: the rings, which are mapped before the start.

use std::sync::Arc;

use crosvm_vsock::address::{Address, BusAddr, Gpa, Iova, Range};
use crosvm_vsock::compat::Mode;
use crosvm_vsock::kernel::queue::QueueError;
use crosvm_vsock::kernel::{Access, Addressing, Error, QueueIndex};
use crosvm_vsock::memory::PAGE;
use model_kernel::bench::pages;
use model_kernel::{name, Place};

use crate::{overloaded, page, page_table, virtual_page};

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
