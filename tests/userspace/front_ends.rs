// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! VMMs come, go, pause, misbehave.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use guest_driver::eventfd::EventFd;
use guest_driver::queues::Queue;
use guest_driver::rng::Rng;
use guest_driver::{Guest, GuestConfig, SocketType};

use crate::harness::{
    accept, wait_until, Device, Vm, ACCESS_PLATFORM, PATIENCE, SEQPACKET, VERSION_1,
};

#[test]
fn offered_features() {
    let device = Device::start(&Arc::default(), 3, |_| {});
    let vmm = device.connect();
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
    let mut vmm = device.connect();
    vmm.extra_features |= ACCESS_PLATFORM;
    vmm.start(&guest, &config).unwrap();
    Vm { guest, vmm, device }.assert_alive();
}

#[test]
fn two_queues_are_enough() {
    let device = Device::start(&Arc::default(), 3, |_| {});
    let config = GuestConfig::default();
    let guest = Guest::new(config.clone()).unwrap();
    let mut vmm = device.connect();
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
fn a_client_that_asks_while_the_vm_is_paused_waits_for_it() {
    let mut vm = Vm::start();
    let listener = vm.guest.listen(50, SocketType::STREAM).unwrap();
    vm.guest.pause();
    vm.vmm.stop().unwrap();
    let mut client = vm.device.knock();
    client.write_all(b"CONNECT 50\n").unwrap();
    // Long enough to be refused.
    std::thread::sleep(Duration::from_millis(100));
    vm.vmm.start_rings(&vm.guest).unwrap();
    vm.guest.resume();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK 50\n");
    listener.accept().unwrap();
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
        vm.vmm = vm.device.connect();
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
        vm.vmm = vm.device.connect();
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
    let mut vmm = device.connect();
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
    // The front end itself leaves in the middle of a request.
    let mut leaves = UnixStream::connect(device.socket()).unwrap();
    leaves.write_all(&message(1)).unwrap();
    leaves.read_exact(&mut [0; 20]).unwrap();
    leaves.write_all(&[1, 0, 0, 0, 1]).unwrap();
    drop(leaves);
    let config = GuestConfig::default();
    let guest = Guest::new(config.clone()).unwrap();
    let mut vmm = device.connect();
    vmm.start(&guest, &config).unwrap();
    Vm { guest, vmm, device }.assert_alive();
}

/// Requests that exist and do not, with bodies of any size and content.
#[test]
fn random_requests_do_no_harm() {
    let device = Device::start(&Arc::default(), 3, |_| {});
    for seed in 0..100 {
        let mut rng = Rng::new(seed);
        let mut socket = UnixStream::connect(device.socket()).unwrap();
        for _ in 0..rng.up_to(20) {
            let mut body = vec![0; rng.up_to(200) - 1];
            for byte in &mut body {
                *byte = match rng.up_to(3) {
                    1 => rng.next_u64() as u8,
                    _ => rng.up_to(4) as u8 - 1,
                };
            }
            let size = match rng.up_to(5) {
                1 => rng.up_to(5000),
                _ => body.len(),
            };
            // Version 1, sometimes with the wish for a reply.
            let flags = 1 | (rng.up_to(2) as u32 - 1) << 3;
            let header = [rng.up_to(45) as u32, flags, size as u32];
            let mut message = header.map(u32::to_ne_bytes).concat();
            message.extend(body);
            if socket.write_all(&message).is_err() {
                break;
            }
        }
    }
    let config = GuestConfig::default();
    let guest = Guest::new(config.clone()).unwrap();
    let mut vmm = device.connect();
    vmm.start(&guest, &config).unwrap();
    Vm { guest, vmm, device }.assert_alive();
}

#[test]
fn those_who_wait_in_silence_keep_no_front_end_out() {
    let device = Device::start(&Arc::default(), 3, |_| {});
    let held: Vec<_> = (0..50)
        .map(|_| UnixStream::connect(device.socket()).unwrap())
        .collect();
    let config = GuestConfig::default();
    let guest = Guest::new(config.clone()).unwrap();
    let mut vmm = device.connect();
    vmm.start(&guest, &config).unwrap();
    let vm = Vm { guest, vmm, device };
    vm.assert_alive();
    drop(held);
}

#[test]
fn a_front_end_that_reads_no_replies_delays_only_itself() {
    let deafen = |device: &Device| {
        let mut deaf = UnixStream::connect(device.socket()).unwrap();
        let get_features = [1u32, 1, 0].map(u32::to_ne_bytes).concat();
        let wait = std::time::Duration::from_millis(200);
        deaf.set_write_timeout(Some(wait)).unwrap();
        while deaf.write_all(&get_features).is_ok() {}
        deaf
    };
    let mut device = Device::start(&Arc::default(), 3, |_| {});
    let deaf = deafen(&device);
    // The device's thread still hears that it is to end.
    device.end();
    drop(deaf);
    let device = Device::start(&Arc::default(), 3, |_| {});
    drop(deafen(&device));
    let config = GuestConfig::default();
    let guest = Guest::new(config.clone()).unwrap();
    let mut vmm = device.connect();
    vmm.start(&guest, &config).unwrap();
    Vm { guest, vmm, device }.assert_alive();
}

#[test]
fn a_call_event_is_swapped_while_the_device_runs() {
    let vm = Vm::start();
    let (mut guest, mut host) = vm.guest_connects(70);
    let masked = EventFd::new().unwrap();
    vm.vmm.set_call(Queue::Rx, &masked).unwrap();
    assert_eq!(
        masked.take().unwrap(),
        1,
        "what the old one said is not lost"
    );
    host.write_all(b"while masked").unwrap();
    wait_until("the new event", || masked.take().unwrap() > 0);
    let own = &vm.guest.queues()[Queue::Rx as usize].call;
    vm.vmm.set_call(Queue::Rx, own).unwrap();
    // The driver hears of what came meanwhile, and the connection has not noticed.
    let mut got = [0; 12];
    guest.read_exact(&mut got).unwrap();
    guest.write_all(&got).unwrap();
    host.read_exact(&mut got).unwrap();
    assert_eq!(masked.take().unwrap(), 0);
    vm.assert_clean();
}

/// What was last used in the receive queue: it shows that a device was there.
pub fn leave_traces(guest: &Guest) {
    let queue = &guest.queues()[Queue::Rx as usize];
    let last = queue.addresses.used.at(4 + 8 * (u64::from(queue.size) - 1));
    guest
        .space()
        .write(last, &[5, 0, 0, 0, 44, 0, 0, 0])
        .unwrap();
}

#[test]
fn a_guest_whose_indices_have_wrapped_to_0_is_told_of_the_reset() {
    let mut vm = Vm::start();
    vm.vmm.stop().unwrap();
    drop(vm.vmm);
    vm.guest.reset(0).unwrap();
    leave_traces(&vm.guest);
    vm.vmm = vm.device.connect();
    vm.vmm.start(&vm.guest, &GuestConfig::default()).unwrap();
    vm.guest.wait_event(PATIENCE).unwrap();
    vm.assert_alive();
}

#[test]
fn a_guest_that_has_just_booted_is_not_told_of_a_reset() {
    let vm = Vm::start();
    vm.assert_alive();
    let used = vm.guest.queues()[Queue::Event as usize]
        .addresses
        .used
        .at(2);
    let order = std::sync::atomic::Ordering::Acquire;
    assert_eq!(vm.guest.space().load_u16(used, order).unwrap(), 0);
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
    let count = || device.open_descriptors();
    let mut before = 0;
    for round in 0..200 {
        let guest = Guest::new(config.clone()).unwrap();
        let mut vmm = device.connect();
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
