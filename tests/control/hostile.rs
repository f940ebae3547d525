// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clients that are many, die, stop reading or talk nonsense: none of them holds up the
//! guest's data, or another client.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crosvm_vsock::control::binder::{
    self, Interface, IotlbAccess, VsockConnection, VsockDeviceCallback, VsockDeviceState,
};
use crosvm_vsock::control::client::Client;
use guest_driver::rng::Rng;
use guest_driver::SocketType;

use crate::harness::{acceptor, wait_for_statistics, wait_until, Vm, PATIENCE, THREADS};

/// Bytes going round through the guest all the time.
pub struct Traffic {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    pub fn start(vm: &Vm) -> Self {
        let device = vm.client().device(3).unwrap();
        let (mut host, mut guest) = vm.connect(&device, 50_000);
        let echo = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = guest.read(&mut bytes) {
                guest.write_all(&bytes[..len]).unwrap();
            }
        });
        let (rounds, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, end) = (rounds.clone(), stop.clone());
        let ping = std::thread::spawn(move || {
            let mut bytes = [7; 1024];
            while !end.load(Ordering::Relaxed) {
                host.write_all(&bytes).unwrap();
                host.read_exact(&mut bytes).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            rounds,
            stop,
            threads: vec![ping, echo],
        }
    }

    /// Fails unless data goes round from now on.
    pub fn assert_flows(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        wait_until("data goes round", || {
            self.rounds.load(Ordering::Relaxed) > before + 20
        });
    }

    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn fifty_clients_at_once() {
    let vm = Vm::start();
    let listener = Arc::new(vm.guest.listen(5000, SocketType::STREAM).unwrap());
    let traffic = Traffic::start(&vm);
    let clients: Vec<_> = (0..50)
        .map(|number| {
            let (path, listener) = (vm.daemon.control(), listener.clone());
            std::thread::spawn(move || {
                let client = Client::open(&path, false).unwrap();
                let device = client.device(3).unwrap();
                for _ in 0..10 {
                    assert_eq!(client.guest_cids().unwrap(), [3]);
                    assert_eq!(device.getState().unwrap(), VsockDeviceState::RUNNING);
                    assert!(device.getStatistics().unwrap().connectionsOpen > 0);
                    device.getConnections(0).unwrap();
                }
                if number % 5 == 0 {
                    let _host = device.connect(5000).unwrap();
                    let _guest = listener.accept().unwrap();
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    traffic.assert_flows();
    traffic.end();
}

#[test]
fn clients_that_are_killed_in_the_middle() {
    let vm = Vm::start();
    let traffic = Traffic::start(&vm);
    wait_until("earlier clients have left", || {
        vm.daemon.threads() == THREADS
    });
    let descriptors = vm.daemon.descriptors();
    let listener = vm.guest.listen(5000, SocketType::STREAM).unwrap();
    for _ in 0..10 {
        // In the middle of a connection.
        let mut client = vm
            .daemon
            .command(&["connect", "3", "5000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut guest = listener.accept().unwrap();
        client.kill().unwrap();
        client.wait().unwrap();
        let mut rest = Vec::new();
        // However it ends, it ends.
        let _ = guest.read_to_end(&mut rest);
    }
    // In the middle of a call: the guest does not answer, and the client does not wait.
    vm.guest.pause();
    for _ in 0..10 {
        let mut client = vm
            .daemon
            .command(&["connect", "3", "5000"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(5));
        client.kill().unwrap();
        client.wait().unwrap();
    }
    vm.guest.resume();
    traffic.assert_flows();
    wait_until("nothing is left of them", || {
        (vm.daemon.threads(), vm.daemon.descriptors()) == (THREADS, descriptors)
    });
    traffic.end();
    let device = vm.client().device(3).unwrap();
    drop(listener);
    wait_for_statistics(&device, "nothing is left of them", |s| {
        s.connectionsOpen == 0
    });
}

/// A callback that does not return from what it is told, until it is released.
#[derive(Clone, Default)]
struct Stuck {
    released: Arc<AtomicBool>,
    told: Arc<AtomicU64>,
}

impl Stuck {
    fn wait(&self) -> binder::Result<()> {
        self.told.fetch_add(1, Ordering::Relaxed);
        while !self.released.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Lets a stuck callback go when dropped, so that its client can end.
struct Release(Arc<AtomicBool>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Interface for Stuck {}

impl VsockDeviceCallback for Stuck {
    fn onStateChanged(&self, _: i64, _: VsockDeviceState) -> binder::Result<()> {
        self.wait()
    }

    fn onIotlbFault(&self, _: i64, _: i64, _: IotlbAccess) -> binder::Result<()> {
        self.wait()
    }

    fn onConnected(&self, _: i64, _: &VsockConnection) -> binder::Result<()> {
        self.wait()
    }

    fn onDisconnected(&self, _: i64, _: &VsockConnection) -> binder::Result<()> {
        self.wait()
    }
}

#[test]
fn a_client_that_holds_a_callback_and_does_not_read() {
    let vm = Vm::start();
    let stuck = Client::open(&vm.daemon.control(), true).unwrap();
    let held = Stuck::default();
    let release = Release(held.released.clone());
    let callback = binder::callback(held);
    stuck
        .device(3)
        .unwrap()
        .registerCallback(&callback)
        .unwrap();
    let other = Client::open(&vm.daemon.control(), true).unwrap();
    let (callback, told) = crate::callbacks::listener();
    let device = other.device(3).unwrap();
    device.registerCallback(&callback).unwrap();
    let heard = std::thread::spawn(move || told.iter().count());

    let traffic = Traffic::start(&vm);
    let listener = vm.guest.listen(5000, SocketType::STREAM).unwrap();
    let done = Arc::<AtomicBool>::default();
    let last = done.clone();
    let accepting =
        std::thread::spawn(
            move || {
                while listener.accept().is_ok() && !last.load(Ordering::Relaxed) {}
            },
        );
    // Events until its socket is full, and its queue after that: it misses some, or is
    // hung up on. Each is a connection that works.
    let mut rounds = 0;
    let ignored = || {
        let statistics = device.getStatistics().unwrap();
        statistics.callbacksDropped > 0 || statistics.callbacks == 1
    };
    while !ignored() {
        for _ in 0..100 {
            drop(device.connect(5000).unwrap());
        }
        traffic.assert_flows();
        rounds += 1;
        assert!(rounds < 500, "it still takes all that it is told");
    }
    traffic.assert_flows();
    traffic.end();
    drop(release);
    done.store(true, Ordering::Relaxed);
    drop(device.connect(5000).unwrap());
    accepting.join().unwrap();
    drop((stuck, other, callback));
    drop(vm);
    assert!(heard.join().unwrap() > rounds);
}

/// Tells a client that reads nothing so many events at once, until it is hung up on. How
/// many of them were not counted as dropped: its socket took those.
fn taken(vm: &Vm, events: i64) -> i64 {
    let device = vm.client().device(3).unwrap();
    let listener = vm.guest.listen(5000, SocketType::STREAM).unwrap();
    let connect = |_| (device.connect(5000).unwrap(), listener.accept().unwrap());
    let _connections: Vec<_> = (0..events).map(connect).collect();
    let before = device.getStatistics().unwrap().callbacksDropped;
    let client = Client::open(&vm.daemon.control(), true).unwrap();
    let stuck = Stuck::default();
    let _release = Release(stuck.released.clone());
    let callback = binder::callback(stuck);
    let registered = client.device(3).unwrap().registerCallback(&callback);
    registered.unwrap();
    // All end at once: more than a socket and a queue have room for.
    device.reset().unwrap();
    vm.guest.wait_event(PATIENCE).unwrap();
    wait_for_statistics(&device, "it is hung up on", |s| s.callbacks == 0);
    let count = || device.getStatistics().unwrap().callbacksDropped - before;
    wait_until("what it misses is counted", || count() > 0);
    events - count()
}

#[test]
fn what_a_client_that_is_hung_up_on_misses_is_counted() {
    let vm = Vm::start();
    let room = taken(&vm, 500);
    assert!(room < 400, "{room}");
    // The socket has the same room each time, and one more if its reader was quick to begin;
    // all else is dropped, and counted.
    for events in [400, 600] {
        let again = taken(&vm, events);
        assert!(room.abs_diff(again) <= 1, "{room}, {again}");
    }
}

#[test]
fn whoever_unregisters_does_not_hear_what_waits() {
    const EVENTS: i64 = 500;
    let vm = Vm::start();
    let client = Client::open(&vm.daemon.control(), true).unwrap();
    let device = client.device(3).unwrap();
    let listener = vm.guest.listen(5000, SocketType::STREAM).unwrap();
    let connect = |_| (device.connect(5000).unwrap(), listener.accept().unwrap());
    let _connections: Vec<_> = (0..EVENTS).map(connect).collect();
    let stuck = Stuck::default();
    let release = Release(stuck.released.clone());
    let callback = binder::callback(stuck.clone());
    device.registerCallback(&callback).unwrap();
    device.reset().unwrap();
    vm.guest.wait_event(PATIENCE).unwrap();
    device.unregisterCallback(&callback).unwrap();
    drop(release);
    // What is told on the same way afterwards is the last.
    let (last, told) = crate::callbacks::listener();
    device.registerCallback(&last).unwrap();
    let _connection = connect(0);
    told.recv_timeout(PATIENCE).unwrap();
    let dropped = device.getStatistics().unwrap().callbacksDropped as u64;
    // Its socket had no room for all of them, and the queue had not been emptied.
    let heard = stuck.told.load(Ordering::Relaxed);
    assert!(heard + dropped < EVENTS as u64 - 50, "{heard}, {dropped}");
}

#[test]
fn a_listener_that_does_not_accept() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let traffic = Traffic::start(&vm);
    let (theirs, _ours) = acceptor();
    device.listen(700, &theirs).unwrap();
    // Its queue takes some hundreds of descriptors, and then no more: refused.
    let mut kept = Vec::new();
    let refused = (0..5000).any(|_| match vm.guest.connect(2, 700, SocketType::STREAM) {
        Ok(stream) => {
            kept.push(stream);
            false
        }
        Err(_) => true,
    });
    assert!(refused, "all of {} were taken", kept.len());
    traffic.assert_flows();
    traffic.end();
}

#[test]
fn garbage_on_the_socket() {
    let vm = Vm::start();
    let traffic = Traffic::start(&vm);
    let mut rng = Rng::new(1);
    let mut open = Vec::new();
    for round in 0..60 {
        let mut socket = UnixStream::connect(vm.daemon.control()).unwrap();
        let len = 1 + rng.up_to(4000);
        let bytes: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
        // It may have hung up before all of it was written.
        let _ = socket.write_all(&bytes);
        if round % 3 == 0 {
            open.push(socket);
        }
    }
    // A handshake that is right as far as it goes, and stops.
    let mut half = UnixStream::connect(vm.daemon.control()).unwrap();
    half.write_all(&[2, 0, 0, 0]).unwrap();
    traffic.assert_flows();
    let state = vm.client().device(3).unwrap().getState().unwrap();
    assert_eq!(state, VsockDeviceState::RUNNING);
    traffic.end();
    vm.assert_alive();
}
