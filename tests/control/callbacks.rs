// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What clients hear, in which order, and until when.

use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Mutex;

use crosvm_vsock::control::binder::{
    self, IVsockDevice as Errors, Interface, IotlbAccess, Strong, VsockConnection,
    VsockDeviceCallback, VsockDeviceState,
};
use crosvm_vsock::control::client::Client;
use guest_driver::vhost_user::Vmm;
use guest_driver::{Guest, GuestConfig};

use crate::harness::{refused, wait_for_statistics, Daemon, Vm, PATIENCE};

/// Something that a callback was told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    State(VsockDeviceState),
    Fault(i64, IotlbAccess),
    Connected(VsockConnection),
    Disconnected(VsockConnection),
}

struct Listener(Mutex<Sender<Told>>);

impl Listener {
    fn hear(&self, cid: i64, told: Told) -> binder::Result<()> {
        assert_eq!(cid, 3);
        // The test may have ended.
        let _ = self.0.lock().unwrap().send(told);
        Ok(())
    }
}

impl Interface for Listener {}

impl VsockDeviceCallback for Listener {
    fn onStateChanged(&self, cid: i64, state: VsockDeviceState) -> binder::Result<()> {
        self.hear(cid, Told::State(state))
    }

    fn onIotlbFault(&self, cid: i64, iova: i64, access: IotlbAccess) -> binder::Result<()> {
        self.hear(cid, Told::Fault(iova, access))
    }

    fn onConnected(&self, cid: i64, connection: &VsockConnection) -> binder::Result<()> {
        self.hear(cid, Told::Connected(connection.clone()))
    }

    fn onDisconnected(&self, cid: i64, connection: &VsockConnection) -> binder::Result<()> {
        self.hear(cid, Told::Disconnected(connection.clone()))
    }
}

/// A callback, and what it is told.
pub fn listener() -> (Strong<dyn VsockDeviceCallback>, Receiver<Told>) {
    let (sender, told) = channel();
    (binder::callback(Listener(Mutex::new(sender))), told)
}

fn watch(daemon: &Daemon) -> (Client, Strong<dyn VsockDeviceCallback>, Receiver<Told>) {
    let client = Client::open(&daemon.control(), true).unwrap();
    let (callback, told) = listener();
    client
        .device(3)
        .unwrap()
        .registerCallback(&callback)
        .unwrap();
    (client, callback, told)
}

fn next(told: &Receiver<Told>) -> Told {
    told.recv_timeout(PATIENCE).expect("a callback")
}

#[test]
fn each_state_is_told_once_in_order() {
    let daemon = Daemon::start("");
    let (_client, _callback, told) = watch(&daemon);
    let config = GuestConfig::default();
    let guest = Guest::new(config.clone()).unwrap();
    let mut vmm = Vmm::connect(daemon.dir.path().join("vhost.socket")).unwrap();
    vmm.start(&guest, &config).unwrap();
    assert_eq!(next(&told), Told::State(VsockDeviceState::NO_DRIVER));
    assert_eq!(next(&told), Told::State(VsockDeviceState::RUNNING));
    vmm.stop().unwrap();
    assert_eq!(next(&told), Told::State(VsockDeviceState::NO_DRIVER));
    vmm.start_rings(&guest).unwrap();
    assert_eq!(next(&told), Told::State(VsockDeviceState::RUNNING));
    drop(vmm);
    assert_eq!(next(&told), Told::State(VsockDeviceState::NO_VMM));
    assert!(told.try_recv().is_err());
}

#[test]
fn connections_are_told_from_both_sides_and_half_open_ones_are_not() {
    let vm = Vm::start();
    let (client, _callback, told) = watch(&vm.daemon);
    let device = client.device(3).unwrap();
    // Refused: no news.
    refused(device.connect(4000));
    let (host, guest) = vm.connect(&device, 5000);
    let Told::Connected(made) = next(&told) else {
        panic!("no connection");
    };
    assert_eq!((made.guestPort, made.peerCid), (5000, 2));
    drop(host);
    drop(guest);
    let Told::Disconnected(over) = next(&told) else {
        panic!("no end");
    };
    assert_eq!((over.guestPort, over.peerPort), (5000, made.peerPort));
    // Of the guest's making.
    let (theirs, ours) = crate::harness::acceptor();
    device.listen(70, &theirs).unwrap();
    let guest = vm
        .guest
        .connect(2, 70, guest_driver::SocketType::STREAM)
        .unwrap();
    let arrived = crate::harness::arrival(&ours);
    assert!(matches!(next(&told), Told::Connected(c) if c.peerPort == 70));
    drop((guest, arrived));
    assert!(matches!(next(&told), Told::Disconnected(c) if c.peerPort == 70));
}

#[test]
fn whoever_unregisters_hears_no_more() {
    let vm = Vm::start();
    let (client, callback, told) = watch(&vm.daemon);
    let (_other, _kept, others) = watch(&vm.daemon);
    let device = client.device(3).unwrap();
    // Twice is once.
    device.registerCallback(&callback).unwrap();
    assert_eq!(device.getStatistics().unwrap().callbacks, 2);
    device.unregisterCallback(&callback).unwrap();
    device.unregisterCallback(&callback).unwrap();
    wait_for_statistics(&device, "one is left", |s| s.callbacks == 1);
    let _connection = vm.connect(&device, 5000);
    assert!(matches!(next(&others), Told::Connected(_)));
    assert!(told.try_recv().is_err());
}

#[test]
fn whoever_registers_again_at_once_is_told() {
    let vm = Vm::start();
    let (client, callback, told) = watch(&vm.daemon);
    let device = client.device(3).unwrap();
    for round in 0..200 {
        device.unregisterCallback(&callback).unwrap();
        device.registerCallback(&callback).unwrap();
        let callbacks = device.getStatistics().unwrap().callbacks;
        assert_eq!(callbacks, 1, "round {round}");
    }
    let _connection = vm.connect(&device, 5000);
    assert!(matches!(next(&told), Told::Connected(_)));
}

#[test]
fn a_client_that_dies_is_forgotten() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    for _ in 0..3 {
        let watching: Vec<_> = (0..5).map(|_| watch(&vm.daemon)).collect();
        wait_for_statistics(&device, "all watch", |s| s.callbacks == 5);
        drop(watching);
        wait_for_statistics(&device, "all are forgotten", |s| s.callbacks == 0);
    }
}

#[test]
fn there_is_a_limit() {
    let vm = Vm::start();
    let client = Client::open(&vm.daemon.control(), true).unwrap();
    let device = client.device(3).unwrap();
    let callbacks: Vec<_> = (0..65).map(|_| listener()).collect();
    for (callback, _) in &callbacks[..64] {
        device.registerCallback(callback).unwrap();
    }
    let (code, message) = refused(device.registerCallback(&callbacks[64].0));
    assert_eq!(code, Errors::ERROR_TOO_MANY);
    assert!(message.contains("64"), "{message}");
    device.unregisterCallback(&callbacks[0].0).unwrap();
    wait_for_statistics(&device, "one is gone", |s| s.callbacks == 63);
    device.registerCallback(&callbacks[64].0).unwrap();
}
