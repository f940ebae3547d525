// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's connections forwarded to the host's own vsock and back.
//!
//! The whole way needs the host's loopback (`vsock_loopback`). Where it is missing, what is
//! left is that nothing hangs: the guest is refused.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::time::{Duration, Instant};

use crosvm_vsock::address::{Cid, Port};
use crosvm_vsock::userspace::listener::HostPlace;
use crosvm_vsock::userspace::packet::SocketType as HostType;
use crosvm_vsock::userspace::socket::Socket;
use guest_driver::SocketType;

use crate::harness::{Vm, PATIENCE};

/// A port that other runs of this test are unlikely to use.
fn port(offset: u32) -> u32 {
    20_000 + (std::process::id() % 10_000) * 4 + offset
}

fn retry<T>(limit: Duration, mut what: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match what() {
            Err(error)
                if error.kind() == ErrorKind::WouldBlock
                    || error.kind() == ErrorKind::NotConnected =>
            {
                if Instant::now() > deadline {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done,
        }
    }
}

/// Whether this host reaches itself by vsock.
fn loops_back() -> bool {
    let Ok(listener) = Socket::listen_vsock(Port(port(3)), HostType::Stream) else {
        return false;
    };
    let client = Socket::connect_vsock(Cid::LOCAL, Port(port(3)), HostType::Stream);
    client.is_ok() && retry(Duration::from_millis(300), || listener.accept()).is_ok()
}

fn forwarded(listen: Vec<Port>) -> Vm {
    Vm::with(
        |c| {
            c.host = HostPlace::Vsock {
                cid: Cid::LOCAL,
                listen,
            };
            c.limits.dial = Duration::from_millis(300);
        },
        |_| {},
    )
}

#[test]
fn a_guest_without_a_counterpart_is_refused() {
    let vm = forwarded(Vec::new());
    let error = vm
        .guest
        .connect(2, port(0), SocketType::STREAM)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    vm.assert_clean();
}

#[test]
fn connections_pass_both_ways() {
    if !loops_back() {
        eprintln!("this host has no vsock loopback: modprobe vsock_loopback to run this test");
        return;
    }
    let vm = forwarded(vec![Port(port(1))]);
    let listener = Socket::listen_vsock(Port(port(2)), HostType::Stream).unwrap();
    // Whichever CID the guest asks for: there are no other VMs here.
    let mut guest = vm.guest.connect(77, port(2), SocketType::STREAM).unwrap();
    let host = retry(PATIENCE, || listener.accept()).unwrap();
    guest.write_all(b"out").unwrap();
    let mut got = [0; 8];
    assert_eq!(retry(PATIENCE, || host.receive_bytes(&mut got)).unwrap(), 3);

    let listener = vm.guest.listen(port(1), SocketType::STREAM).unwrap();
    let host = Socket::connect_vsock(Cid::LOCAL, Port(port(1)), HostType::Stream).unwrap();
    let mut guest = listener.accept().unwrap();
    retry(PATIENCE, || host.send_bytes(&[IoSlice::new(b"in")])).unwrap();
    guest.read_exact(&mut got[..2]).unwrap();
    vm.assert_clean();
}
