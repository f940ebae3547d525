// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest behind a vIOMMU: addresses that lead nowhere but through the front end's IOTLB.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use guest_driver::bus::Addressing;
use guest_driver::check::{receive, send, Pieces};
use guest_driver::memory::PAGE_SIZE;
use guest_driver::viommu::Viommu;
use guest_driver::{Guest, GuestConfig};

use crate::harness::{wait_until, Device, Vm, ACCESS_PLATFORM};

/// A VM whose device sees I/O virtual addresses only.
struct Translated {
    viommu: Viommu,
    vm: Vm,
}

impl Translated {
    fn start(hold: bool) -> Self {
        let device = Device::start(&Arc::default(), 3, |_| {});
        let config = GuestConfig {
            addressing: Addressing::paged(7),
            ..GuestConfig::default()
        };
        let guest = Guest::new(config.clone()).unwrap();
        let mut vmm = device.connect();
        vmm.extra_features |= ACCESS_PLATFORM;
        vmm.behind_viommu = true;
        vmm.negotiate(&guest, &config).unwrap();
        let viommu = vmm.serve_iotlb(&guest).unwrap();
        if hold {
            viommu.hold();
        }
        vmm.start_rings(&guest).unwrap();
        let vm = Vm { guest, vmm, device };
        Self { viommu, vm }
    }

    fn assert_clean(&self) {
        self.vm.assert_clean();
        assert_eq!(self.viommu.failure(), None);
    }

    /// All that no ring lies in.
    fn invalidate_buffers(&self) {
        let queues = self.vm.guest.queues().map(|queue| queue.addresses);
        let rings = queues.map(|a| [a.desc.0, a.avail.0, a.used.0]).concat();
        // No part of a ring of 256 entries is longer than a page.
        let is_ring = |page: u64| {
            let near = |at: &u64| at.abs_diff(page) < 2 * PAGE_SIZE;
            rings.iter().any(near)
        };
        for (page, _) in self.vm.guest.space().mappings() {
            if !is_ring(page.0) {
                self.viommu.invalidate(page.0, PAGE_SIZE).unwrap();
            }
        }
    }

    fn invalidate_everything(&self) {
        self.viommu.invalidate(0, 0).unwrap();
    }
}

#[test]
fn data_goes_both_ways() {
    let translated = Translated::start(false);
    let vm = &translated.vm;
    let (mut guest, mut host) = vm.guest_connects(70);
    let (bytes, pieces) = (
        3 << 20,
        Pieces::Random {
            max: 70_000,
            seed: 5,
        },
    );
    std::thread::scope(|scope| {
        scope.spawn(|| send(&mut guest, 1, bytes, pieces).unwrap());
        receive(&mut host, 1, bytes, pieces).unwrap();
    });
    std::thread::scope(|scope| {
        scope.spawn(|| send(&mut host, 2, bytes, pieces).unwrap());
        receive(&mut guest, 2, bytes, pieces).unwrap();
    });
    assert!(!translated.viommu.misses().is_empty());
    vm.assert_alive();
    translated.assert_clean();
}

#[test]
fn the_device_starts_once_it_knows_where_its_rings_are() {
    let translated = Translated::start(true);
    let viommu = &translated.viommu;
    wait_until("the first miss", || !viommu.misses().is_empty());
    viommu.release().unwrap();
    translated.vm.assert_alive();
    translated.assert_clean();
}

#[test]
fn an_address_that_is_not_answered_for_is_waited_for_and_asked_once() {
    let translated = Translated::start(false);
    let (viommu, vm) = (&translated.viommu, &translated.vm);
    let (mut guest, mut host) = vm.guest_connects(70);
    viommu.hold();
    translated.invalidate_buffers();
    let before = viommu.misses().len();
    guest.write_all(b"held").unwrap();
    wait_until("a miss", || viommu.misses().len() > before);
    host.set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    for _ in 0..5 {
        vm.guest.kick_all().unwrap();
        host.read(&mut [0; 4]).unwrap_err();
    }
    let misses = viommu.misses();
    for (index, miss) in misses.iter().enumerate().skip(before) {
        assert!(!misses[index + 1..].contains(miss), "asked twice: {miss:?}");
    }
    host.set_read_timeout(Some(crate::harness::PATIENCE))
        .unwrap();
    viommu.release().unwrap();
    let mut got = [0; 4];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"held");
    translated.assert_clean();
}

#[test]
fn what_is_invalidated_is_asked_for_again() {
    let translated = Translated::start(false);
    let vm = &translated.vm;
    let (mut guest, mut host) = vm.guest_connects(70);
    for round in 0..20u8 {
        translated.invalidate_everything();
        guest.write_all(&[round; 5000]).unwrap();
        let mut got = [0; 5000];
        host.read_exact(&mut got).unwrap();
        assert_eq!(got, [round; 5000]);
        translated.invalidate_everything();
        host.write_all(&got).unwrap();
        guest.read_exact(&mut got).unwrap();
        assert_eq!(got, [round; 5000]);
    }
    translated.assert_clean();
}

/// The pages of rings and buffers move under the device while connections are open: who
/// went on with an old address would read and write what is somebody else's now.
#[test]
fn pages_may_move_while_connections_are_open() {
    let translated = Translated::start(false);
    let (viommu, vm) = (&translated.viommu, &translated.vm);
    let (mut guest, mut host) = vm.guest_connects(70);
    for round in 0..10u8 {
        guest.write_all(&[round; 3000]).unwrap();
        let mut got = [0; 3000];
        host.read_exact(&mut got).unwrap();
        assert_eq!(got, [round; 3000]);

        vm.guest.pause();
        viommu.hold();
        let pages = vm.guest.space().mappings();
        for (iova, _) in &pages {
            viommu.invalidate(iova.0, PAGE_SIZE).unwrap();
        }
        // An answered request means that all before it were handled.
        vm.vmm.features().unwrap();
        for (iova, _) in &pages {
            let (old, _) = vm.guest.space().move_page(*iova, None).unwrap();
            vm.guest
                .memory()
                .write(old, &[0xee; PAGE_SIZE as usize])
                .unwrap();
            vm.guest.space().free_page(old);
        }
        viommu.release().unwrap();
        vm.guest.resume();

        host.write_all(&got).unwrap();
        guest.read_exact(&mut got).unwrap();
        assert_eq!(got, [round; 3000]);
    }
    translated.assert_clean();
}
