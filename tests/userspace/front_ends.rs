// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! VMMs come, go, pause, misbehave.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use guest_driver::queues::Queue;
use guest_driver::{Guest, GuestConfig, SocketType};

use crate::harness::{
    accept, wait_until, Device, Vm, Vmm, ACCESS_PLATFORM, PATIENCE, SEQPACKET, VERSION_1,
};

#[test]
fn offered_features() {
    let device = Device::start(&Arc::default(), 3, |_| {});
    let vmm = Vmm::connect(device.socket()).unwrap();
    let offered = vmm.features().unwrap();
    // STREAM, INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES beside those with names.
    let expected = VERSION_1 | ACCESS_PLATFORM | SEQPACKET | 1 | 1 << 28 | 1 << 29 | 1 << 30;
    assert_eq!(offered, expected);
}

#[test]
fn bit_33_without_an_iotlb_means_guest_physical_addresses() {
    let device = Device::start(&Arc::default(), 3, |_| {});
    let config = GuestConfig::default();
    let guest = Guest::new(config.clone()).unwrap();
    let mut vmm = Vmm::connect(device.socket()).unwrap();
    vmm.extra_features |= ACCESS_PLATFORM;
    vmm.start(&guest, &config).unwrap();
    Vm { guest, vmm, device }.assert_alive();
}

#[test]
fn two_queues_are_enough() {
    let device = Device::start(&Arc::default(), 3, |_| {});
    let config = GuestConfig::default();
    let guest = Guest::new(config.clone()).unwrap();
    let mut vmm = Vmm::connect(device.socket()).unwrap();
    vmm.queues = 2;
    vmm.start(&guest, &config).unwrap();
    Vm { guest, vmm, device }.assert_alive();
}

#[test]
fn a_vm_that_pauses_keeps_its_connections() {
    let mut vm = Vm::start();
    let (mut guest, mut host) = vm.guest_connects(70);
    for round in 0..5u8 {
        guest.write_all(&[round; 1000]).unwrap();
        let mut got = [0; 1000];
        host.read_exact(&mut got).unwrap();
        vm.guest.pause();
        let sent = vm.guest.ring_state(Queue::Tx).next_avail;
        assert_eq!(
            vm.vmm.stop().unwrap()[1],
            u32::from(sent),
            "all packets were taken"
        );
        host.write_all(&[round; 1000]).unwrap();
        vm.vmm.start_rings(&vm.guest).unwrap();
        vm.guest.resume();
        guest.read_exact(&mut got).unwrap();
        assert_eq!(got, [round; 1000]);
    }
    vm.assert_clean();
}

#[test]
fn memory_may_be_shared_again_while_the_device_runs() {
    let vm = Vm::start();
    let (mut guest, mut host) = vm.guest_connects(70);
    for _ in 0..5 {
        vm.vmm.share_memory(&vm.guest).unwrap();
        guest.write_all(b"ping").unwrap();
        host.read_exact(&mut [0; 4]).unwrap();
        host.write_all(b"pong").unwrap();
        guest.read_exact(&mut [0; 4]).unwrap();
    }
    vm.assert_clean();
}

#[test]
fn a_guest_that_reboots_finds_no_old_connections() {
    let mut vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    vm.vmm.stop().unwrap();
    drop(guest);
    vm.guest.reset(0).unwrap();
    vm.vmm.start_rings(&vm.guest).unwrap();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    vm.assert_alive();
    vm.assert_clean();
}

#[test]
fn a_guest_that_outlives_the_device_is_told_of_the_reset() {
    let mut vm = Vm::start();
    for round in 0..3 {
        let (mut guest, mut host) = vm.guest_connects(70);
        guest.write_all(b"x").unwrap();
        host.read_exact(&mut [0]).unwrap();
        vm.guest.pause();
        let events = vm.vmm.stop().unwrap()[2];
        assert_eq!(events, round, "the event queue goes on where it was, too");
        drop(vm.vmm);
        // Another front end, the same guest: its rings go on where they were.
        vm.vmm = Vmm::connect(vm.device.socket()).unwrap();
        let config = GuestConfig::default();
        vm.vmm.start(&vm.guest, &config).unwrap();
        vm.guest.resume();
        vm.guest.wait_event(PATIENCE).unwrap();
        assert!(guest.write_all(b"y").is_err());
        vm.assert_alive();
    }
}

#[test]
fn a_front_end_that_leaves_ends_connections_and_the_next_one_is_served() {
    let mut vm = Vm::start();
    let listener = vm.device.listen(70);
    for _ in 0..3 {
        let guest = vm.guest.connect(2, 70, SocketType::STREAM).unwrap();
        let mut host = accept(&listener);
        drop(vm.vmm);
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
        drop(guest);
        let config = GuestConfig::default();
        vm.guest = Guest::new(config.clone()).unwrap();
        vm.vmm = Vmm::connect(vm.device.socket()).unwrap();
        vm.vmm.start(&vm.guest, &config).unwrap();
        vm.assert_alive();
    }
}

#[test]
fn probes_neither_take_the_place_of_the_front_end_nor_disturb_it() {
    let device = Device::start(&Arc::default(), 3, |_| {});
    let held: Vec<_> = (0..3)
        .map(|_| UnixStream::connect(device.socket()).unwrap())
        .collect();
    drop(UnixStream::connect(device.socket()).unwrap());
    let config = GuestConfig::default();
    let guest = Guest::new(config.clone()).unwrap();
    let mut vmm = Vmm::connect(device.socket()).unwrap();
    vmm.start(&guest, &config).unwrap();
    drop(UnixStream::connect(device.socket()).unwrap());
    let vm = Vm { guest, vmm, device };
    vm.assert_alive();
    drop(held);
    vm.assert_alive();
}

#[test]
fn half_a_request_and_nonsense_are_survived() {
    let device = Device::start(&Arc::default(), 3, |_| {});
    let mut half = UnixStream::connect(device.socket()).unwrap();
    half.write_all(&[1, 0, 0, 0, 1]).unwrap();
    // GET_FEATURES and then a request that does not exist.
    let mut wrong = UnixStream::connect(device.socket()).unwrap();
    let message = |code: u32| [code, 1, 0].map(u32::to_ne_bytes).concat();
    wrong.write_all(&message(1)).unwrap();
    wrong.read_exact(&mut [0; 20]).unwrap();
    wrong.write_all(&message(9999)).unwrap();
    assert_eq!(wrong.read(&mut [0]).unwrap_or(0), 0);
    drop(half);
    let config = GuestConfig::default();
    let guest = Guest::new(config.clone()).unwrap();
    let mut vmm = Vmm::connect(device.socket()).unwrap();
    vmm.start(&guest, &config).unwrap();
    Vm { guest, vmm, device }.assert_alive();
}

/// Open descriptors of this process that are connected to, or are, the device's: sockets
/// and eventfds. Other tests run in this process, so this one runs in another.
#[test]
fn two_hundred_front_ends_leak_no_descriptor() {
    const CHILD: &str = "VSOCK_TEST_RECONNECTS";
    if std::env::var_os(CHILD).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "front_ends::two_hundred_front_ends_leak_no_descriptor",
            ])
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let device = Device::start(&Arc::default(), 3, |_| {});
    let listener = device.listen(70);
    let config = GuestConfig::default();
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = 0;
    for round in 0..200 {
        let guest = Guest::new(config.clone()).unwrap();
        let mut vmm = Vmm::connect(device.socket()).unwrap();
        vmm.start(&guest, &config).unwrap();
        let mut stream = guest.connect(2, 70, SocketType::STREAM).unwrap();
        let mut host = accept(&listener);
        stream.write_all(b"x").unwrap();
        host.read_exact(&mut [0]).unwrap();
        drop(vmm);
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
        drop((stream, host, guest));
        if round == 0 {
            before = count();
        }
    }
    wait_until("as many descriptors as after the first", || {
        count() <= before
    });
}
