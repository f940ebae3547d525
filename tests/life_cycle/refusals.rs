// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernels that cannot do what is asked, numbers from outside that are refused, and what a
//! guest cannot widen.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use crosvm_vsock::address::{Address, BusAddr, Gpa, GuestCid, Hva, Range};
use crosvm_vsock::compat::{CompatError, IotlbBit, KernelKind, Mode};
use crosvm_vsock::event::EventFd;
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::{
    Access, Activation, Addressing, Error, QueueIndex, ShareError, VhostVsock, Window,
};
use crosvm_vsock::memory::{MemoryMap, Region, PAGE};
use model_kernel::bench::{pages, HIGH, LOW, REGION_SIZE};
use model_kernel::{name, Bench, ModelKernel, Outcome, Place};

use crate::{overloaded, QUEUES};

#[test]
fn without_an_iotlb_the_modes_that_want_one_end_before_anything_is_touched() {
    let mut bench = Bench::new(ModelKernel::new(KernelKind::NoIotlb));
    for addressing in bench.addressings() {
        let mode = addressing.mode();
        bench.kernel.forget_calls();
        match bench.activate(addressing) {
            Ok(mut monitor) => {
                assert_eq!(mode, Mode::Off);
                bench.assert_flows(&mut monitor, mode);
                bench.device.stop().unwrap();
            }
            Err(error) => {
                assert!(
                    matches!(error, Error::Compat(CompatError::IotlbUnavailable { .. })),
                    "{mode}: {error}"
                );
                let text = error.to_string();
                assert!(text.contains(&mode.to_string()), "{text}");
                assert!(text.contains("NoIotlb"), "{text}");
                assert_eq!(bench.kernel.calls(), [], "{mode}");
            }
        }
    }
}

#[test]
fn the_wrong_separate_bit_is_found_out_by_behaviour() {
    let mut bench = Bench::new(ModelKernel::new(KernelKind::Split));
    for addressing in bench.addressings() {
        let mode = addressing.mode();
        if !mode.wants_iotlb() {
            continue;
        }
        for wrong in [IotlbBit::new(50).unwrap(), IotlbBit::NONE] {
            let error = bench
                .activate_with(addressing.clone(), |activation| {
                    activation.iotlb_bit = wrong;
                })
                .unwrap_err();
            assert!(matches!(error, Error::IotlbOff { .. }), "{mode}: {error}");
            let text = error.to_string();
            assert!(text.contains("ACCESS_PLATFORM"), "{text}");
            assert!(text.contains("crosvm-vsock probe"), "{text}");
            assert!(bench.kernel.is_quiet());
        }
        let mut monitor = bench.activate(addressing).unwrap();
        bench.assert_flows(&mut monitor, mode);
        bench.device.stop().unwrap();
    }
}

/// Refused with a text that holds all of `named`, and before the kernel hears.
fn assert_refused(
    addressing: Addressing,
    named: &[&str],
    change: impl FnOnce(&mut Activation<'_>),
) {
    let mut bench = overloaded();
    bench.kernel.forget_calls();
    let text = bench
        .activate_with(addressing, change)
        .unwrap_err()
        .to_string();
    for part in named {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    assert_eq!(bench.kernel.calls(), [], "{text}");
    drop(bench.activate(Addressing::Off).unwrap());
}

#[test]
fn reserved_and_oversized_cids_are_refused() {
    for cid in [0, 1, 2, 0xffff_ffff, 0x1_0000_0000, u64::MAX] {
        let text = GuestCid::new(cid).unwrap_err().to_string();
        assert!(text.contains(&format!("CID {cid} ")), "{text}");
        assert!(text.contains("from 3 to 4294967294"), "{text}");
    }
}

#[test]
fn queue_sizes_that_cannot_be_are_refused() {
    for size in [0, 3, 255, 0x8001, u16::MAX] {
        for (i, queue) in QUEUES.into_iter().enumerate() {
            let named = [&*format!("queue {queue}"), &*format!("size {size} ")];
            assert_refused(Addressing::Off, &named, |activation| {
                activation.queues[i].size = size;
            });
        }
    }
}

#[test]
fn rings_outside_of_memory_wrapping_or_unaligned_are_refused() {
    let end = BusAddr(LOW.raw() + REGION_SIZE);
    // The last used ring that fits is 2056 bytes before the end.
    let bad = [
        ("descriptor table", BusAddr(0), "region"),
        ("descriptor table", BusAddr(end.raw() - 0xff0), "region"),
        ("descriptor table", BusAddr(LOW.raw() + 8), "16"),
        (
            "descriptor table",
            BusAddr(0u64.wrapping_sub(16)),
            "last 64-bit address",
        ),
        ("available ring", end, "region"),
        ("available ring", BusAddr(LOW.raw() + 1), "2 bytes"),
        (
            "available ring",
            BusAddr(u64::MAX - 1),
            "last 64-bit address",
        ),
        ("used ring", BusAddr(end.raw() - 2052), "region"),
        ("used ring", BusAddr(LOW.raw() + 2), "4 bytes"),
        (
            "used ring",
            BusAddr(0u64.wrapping_sub(4)),
            "last 64-bit address",
        ),
    ];
    for addressing in [Addressing::Off, Addressing::Identity] {
        for (ring, at, reason) in bad {
            let named = ["queue 1", ring, &at.to_string(), reason];
            assert_refused(addressing.clone(), &named, |activation| {
                let queue = &mut activation.queues[1];
                match ring {
                    "descriptor table" => queue.desc = at,
                    "available ring" => queue.avail = at,
                    _ => queue.used = at,
                }
            });
        }
    }
}

#[test]
fn the_largest_and_the_smallest_queue_run() {
    for size in [1, 32768] {
        for addressing in overloaded().addressings() {
            let mode = addressing.mode();
            let mut bench = overloaded();
            let addressing = match addressing {
                Addressing::Restricted(_) => {
                    let window = Window::new();
                    window.share(pages(HIGH, REGION_SIZE / PAGE)).unwrap();
                    window.share(pages(LOW, REGION_SIZE / PAGE)).unwrap();
                    Addressing::Restricted(Arc::new(window))
                }
                other => other,
            };
            let result = bench.activate_with(addressing, |activation| {
                for (queue, place) in activation.queues.iter_mut().zip(Place::of(mode)) {
                    queue.size = size;
                    let at = |page: u64| BusAddr(place.desc.raw() + page * PAGE);
                    if mode != Mode::Translated {
                        (queue.avail, queue.used) = (at(128), at(150));
                    } else {
                        // The places lie 64 pages apart, the rings across pages.
                        queue.size = size.min(1024);
                        (queue.avail, queue.used) = (at(8), at(16));
                    }
                }
            });
            let mut monitor = result.unwrap_or_else(|error| panic!("{mode} {size}: {error}"));
            let at = Place::of(mode)[0].buffer;
            let outcome = bench.transfer(&mut monitor, QueueIndex::Rx, at, PAGE);
            assert!(matches!(outcome, Outcome::Done(_)), "{mode} {size}");
        }
    }
}

#[test]
fn memory_that_overlaps_or_has_too_many_regions_is_refused() {
    let region = |gpa: u64, hva: u64| Region::new(Gpa(gpa), Hva(hva), PAGE).unwrap();
    let many = |count: u64| {
        (0..count)
            .map(|n| region(2 * n * PAGE, 2 * n * PAGE))
            .collect()
    };
    let text = |regions| MemoryMap::new(regions).unwrap_err().to_string();
    assert!(text(many(65)).contains("65 memory regions"));
    assert!(text(many(0)).contains("0 memory regions"));
    assert!(MemoryMap::new(many(64)).is_ok());
    let overlap = text(vec![region(0x5000, 0), region(0x5000, 0x9000)]);
    assert!(overlap.contains("0x5000"), "{overlap}");
    let size = Region::new(Gpa(0x5000), Hva(0), 0).unwrap_err().to_string();
    assert!(size.contains("size is 0"), "{size}");
}

#[test]
fn all_of_64_regions_are_mapped() {
    let mut bench = overloaded();
    let mut regions: Vec<_> = bench.memory.regions().to_vec();
    for n in 0..62u64 {
        let gpa = Gpa(0x1_0000_0000 + 2 * n * PAGE);
        regions.push(Region::new(gpa, Hva(0x7d00_0000_0000 - 2 * n * PAGE), PAGE).unwrap());
    }
    bench.memory = MemoryMap::new(regions).unwrap();
    let mut monitor = bench.activate(Addressing::Identity).unwrap();
    for region in bench.memory.regions() {
        let at = BusAddr(region.gpa().first().raw());
        let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
        let expected = Range::new(region.hva().first(), PAGE).unwrap();
        assert_eq!(outcome, Outcome::Done(vec![expected]));
    }
    assert_eq!(bench.device.iotlb().unwrap().stats().misses, 0);
}

#[test]
fn ranges_that_cannot_be_shared_are_refused_and_change_nothing() {
    let text = |first: u64, size| Range::new(Gpa(first), size).unwrap_err().to_string();
    assert!(text(0x5000, 0).contains("0x5000: its") || text(0x5000, 0).contains("size is 0"));
    assert!(text(u64::MAX, 2).contains("past the last 64-bit address"));

    let mut bench = overloaded();
    let window = bench.window();
    let mut monitor = bench
        .activate(Addressing::Restricted(window.clone()))
        .unwrap();
    let (shared, entries) = (window.shared(), bench.kernel.entries());
    let gap = pages(Gpa(LOW.raw() + REGION_SIZE - PAGE), 2);
    let crooked = Range::new(Gpa(LOW.raw() + 1), PAGE).unwrap();
    let outside = window.share(gap).unwrap_err();
    assert!(matches!(outside, ShareError::OutsideMemory(range) if range == gap));
    assert!(outside.to_string().contains(&gap.to_string()), "{outside}");
    for result in [window.share(crooked), window.unshare(crooked)] {
        let error = result.unwrap_err();
        assert!(matches!(error, ShareError::Alignment(_)), "{error}");
        assert!(error.to_string().contains(&crooked.to_string()), "{error}");
    }
    assert_eq!((window.shared(), bench.kernel.entries()), (shared, entries));
    bench.assert_flows(&mut monitor, Mode::Restricted);
}

#[test]
fn a_window_over_what_is_not_memory_is_refused_at_activation() {
    let mut bench = overloaded();
    let window = bench.window();
    let gap = pages(Gpa(0x10_0000_0000), 1);
    window.share(gap).unwrap();
    let addressing = Addressing::Restricted(window.clone());
    let error = bench.activate(addressing.clone()).unwrap_err().to_string();
    assert!(error.contains(&gap.to_string()), "{error}");
    assert!(bench.kernel.is_quiet());
    window.unshare(gap).unwrap();
    drop(bench.activate(addressing).unwrap());
}

#[test]
fn an_event_that_is_no_eventfd_is_refused_with_the_queue() {
    let mut bench = overloaded();
    let null = File::open("/dev/null").unwrap();
    let error = bench
        .activate_with(Addressing::Off, |activation| {
            activation.queues[1].kick = null.as_fd();
        })
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("VHOST_SET_VRING_KICK for queue 1"),
        "{error}"
    );
    assert!(bench.kernel.is_quiet());
}

#[test]
fn a_descriptor_that_is_no_vhost_vsock_is_refused() {
    let (socket, _peer) = UnixStream::pair().unwrap();
    let others: [OwnedFd; 4] = [
        File::open("/dev/null").unwrap().into(),
        File::open("/proc/self/exe").unwrap().into(),
        socket.into(),
        EventFd::new()
            .unwrap()
            .as_fd()
            .try_clone_to_owned()
            .unwrap(),
    ];
    for fd in others {
        let error = VhostVsock::adopt(fd).unwrap_err();
        assert!(matches!(error, Error::NotVhostVsock(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains("/dev/vhost-vsock"), "{text}");
    }
}

#[test]
fn a_vhost_device_of_another_type_is_refused() {
    let kernel = ModelKernel::new(KernelKind::Overloaded);
    kernel.fail(name::SET_GUEST_CID, 0, libc::ENOTTY);
    let error = VhostVsock::with_kernel(Arc::new(kernel)).unwrap_err();
    assert!(error.to_string().contains("another type"), "{error}");
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let missing = VhostVsock::open(Path::new("/dev/no-such-vhost-vsock")).unwrap_err();
    let text = missing.to_string();
    assert!(text.contains("/dev/no-such-vhost-vsock"), "{text}");
    assert!(
        text.contains("the kernel's device is /dev/vhost-vsock"),
        "{text}"
    );
    let other = VhostVsock::open(Path::new("/dev/null")).unwrap_err();
    assert!(matches!(other, Error::NotVhostVsock(_)), "{other}");
}

// What a guest cannot widen.

#[test]
fn a_guest_that_acknowledges_what_it_was_not_offered_changes_nothing() {
    let mut bench = overloaded();
    let all = FeatureSet::from_bits(u64::MAX);
    drop(
        bench
            .activate_with(Addressing::Off, |activation| activation.acked = all)
            .unwrap(),
    );
    let told = bench.kernel.acked();
    assert!(!told.has(Feature::ACCESS_PLATFORM), "{told}");
    assert!(bench.kernel.entries().is_none());
    // A buffer outside of memory is the queue's failure and nobody else's.
    let outcome = bench
        .kernel
        .access(QueueIndex::Tx, BusAddr(0), PAGE, Access::Read);
    assert_eq!(outcome, Outcome::Refused(libc::EFAULT));
}
