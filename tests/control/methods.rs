// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What each method does when nothing is in its way.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use crosvm_vsock::control::binder::{
    IotlbMode, KernelKind, VsockBackend, VsockConnectionState, VsockDeviceState,
};
use guest_driver::packet::Event;
use guest_driver::SocketType;

use crate::harness::{
    acceptor, arrival, assert_flows, wait_for_statistics, wait_until, Daemon, Vm, PATIENCE,
};

#[test]
fn a_device_says_what_it_is() {
    let vm = Vm::start();
    let client = vm.client();
    assert_eq!(client.guest_cids().unwrap(), [3]);
    let device = client.device(3).unwrap();
    assert_eq!(device.getCid().unwrap(), 3);
    assert_eq!(device.getBackend().unwrap(), VsockBackend::USERSPACE);
    assert_eq!(device.getBackendReason().unwrap(), "");
    assert_eq!(device.getKernelKind().unwrap(), KernelKind::NOT_APPLICABLE);
    assert_eq!(device.getIotlbMode().unwrap(), IotlbMode::OFF);
    assert_eq!(device.getState().unwrap(), VsockDeviceState::RUNNING);
    let features = device.getFeatures().unwrap();
    assert_eq!(features.offered & 1 << 33, 1 << 33);
    assert_eq!(features.acknowledged, 1 << 32 | 1 << 29 | 1 << 1);
    let names = features.acknowledgedNames.join(" ");
    assert!(names.contains("VERSION_1"), "{names}");
}

#[test]
fn the_reason_for_a_backend_is_told() {
    let daemon = Daemon::start(",backend=auto");
    let reason = daemon.client().device(3).unwrap().getBackendReason();
    assert!(reason.unwrap().contains("AF_VSOCK"));
}

#[test]
fn a_descriptor_is_a_connection_to_the_guest() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let (mut host, mut guest) = vm.connect(&device, 5000);
    assert_eq!(guest.peer().0, 2);

    let listed = device.getConnections(0).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].guestPort, listed[0].peerCid), (5000, 2));
    assert_eq!(listed[0].peerPort, i64::from(guest.peer().1));
    assert_eq!(listed[0].state, VsockConnectionState::ESTABLISHED);
    assert!(!listed[0].seqpacket);

    // All that either side sends arrives, and each direction ends by itself.
    let data: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let sent = data.clone();
    let sender = std::thread::spawn(move || {
        host.write_all(&sent).unwrap();
        host.shutdown(Shutdown::Write).unwrap();
        host
    });
    let mut got = Vec::new();
    guest.read_to_end(&mut got).unwrap();
    assert!(got == data, "other bytes, or {} of them", got.len());
    let mut host = sender.join().unwrap();
    guest.write_all(b"and the rest").unwrap();
    guest.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    host.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "and the rest");
    drop((host, guest));

    wait_for_statistics(&device, "no connection is left", |statistics| {
        statistics.connectionsOpen == 0
    });
    let statistics = device.getStatistics().unwrap();
    assert_eq!(statistics.connectionsTotal, 1);
    assert_eq!(statistics.bytesToGuest, 300_000);
    assert_eq!(statistics.bytesFromGuest, 12);
    assert!(statistics.packetsToGuest > 0 && statistics.packetsFromGuest > 0);
    assert!(statistics.sinceMillis > 0);
}

#[test]
fn no_more_connections_are_listed_than_asked_for() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let kept: Vec<_> = (0..3).map(|n| vm.connect(&device, 5000 + n)).collect();
    assert_eq!(device.getConnections(2).unwrap().len(), 2);
    assert_eq!(device.getConnections(-1).unwrap().len(), 3);
    drop(kept);
}

/// A host program that the guest would reach without a listener.
fn program(daemon: &Daemon, port: u32) -> UnixListener {
    UnixListener::bind(daemon.dir.path().join(format!("vm_{port}"))).unwrap()
}

#[test]
fn a_listener_gets_the_guests_connections_and_gives_the_port_back() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let program = program(&vm.daemon, 700);
    let (theirs, ours) = acceptor();
    device.listen(700, &theirs).unwrap();
    drop(theirs);
    for _ in 0..3 {
        let guest = vm.guest.connect(2, 700, SocketType::STREAM).unwrap();
        let (cid, port, host) = arrival(&ours);
        assert_eq!((cid, port), (3, guest.local_port().into()));
        assert_flows(host, guest);
    }
    device.unlisten(700).unwrap();
    device.unlisten(700).unwrap();
    // The daemon's end was the last one.
    assert_eq!((&ours).read(&mut [0; 16]).unwrap(), 0);
    let guest = vm.guest.connect(2, 700, SocketType::STREAM).unwrap();
    let (host, _) = program.accept().unwrap();
    assert_flows(host, guest);
}

#[test]
fn a_listener_that_dies_gives_the_port_back() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let program = program(&vm.daemon, 700);
    let (theirs, ours) = acceptor();
    device.listen(700, &theirs).unwrap();
    drop(ours);
    let guest = vm.guest.connect(2, 700, SocketType::STREAM).unwrap();
    let (host, _) = program.accept().unwrap();
    assert_flows(host, guest);
    // And to another listener.
    let (theirs, ours) = acceptor();
    device.listen(700, &theirs).unwrap();
    let guest = vm.guest.connect(2, 700, SocketType::STREAM).unwrap();
    let (_, _, host) = arrival(&ours);
    assert_flows(host, guest);
}

#[test]
fn a_listener_gets_sequenced_packets_as_such() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let (theirs, ours) = acceptor();
    device.listen(701, &theirs).unwrap();
    let guest = vm.guest.connect(2, 701, SocketType::SEQPACKET).unwrap();
    let (_, _, host) = arrival(&ours);
    guest.send_msg(b"one", true).unwrap();
    guest.send_msg(b"another", true).unwrap();
    let mut got = [0; 64];
    assert_eq!((&host).read(&mut got).unwrap(), 3);
    assert_eq!((&host).read(&mut got).unwrap(), 7);
    assert!(device.getConnections(0).unwrap()[0].seqpacket);
}

#[test]
fn a_reset_ends_all_connections_and_the_guest_hears_of_it() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let (mut host, _guest) = vm.connect(&device, 5000);
    device.reset().unwrap();
    assert_eq!(
        vm.guest.wait_event(PATIENCE).unwrap(),
        Event::TRANSPORT_RESET
    );
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    let statistics = device.getStatistics().unwrap();
    assert_eq!((statistics.connectionsOpen, statistics.resets), (0, 1));
    assert_eq!(device.getState().unwrap(), VsockDeviceState::RUNNING);
    vm.assert_alive();
}

#[test]
fn a_client_of_the_hybrid_socket_is_listed_while_it_waits() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    // Nobody takes packets off the ring: the guest does not answer.
    vm.guest.pause();
    let mut client = UnixStream::connect(vm.daemon.dir.path().join("vm")).unwrap();
    client.write_all(b"CONNECT 9\n").unwrap();
    wait_until("the connection is listed", || {
        let listed = device.getConnections(0).unwrap();
        let opening = |c: &_| {
            let c: &crosvm_vsock::control::binder::VsockConnection = c;
            c.guestPort == 9 && c.state == VsockConnectionState::OPENING
        };
        listed.iter().any(opening)
    });
    vm.guest.resume();
}
