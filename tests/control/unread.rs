// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client that asks and never reads an answer. No library would, so it repeats what one
//! has said, which a relay has overheard.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crosvm_vsock::control::binder::VsockDeviceState;
use crosvm_vsock::control::client::Client;

use crate::harness::{wait_until, Vm, THREADS};
use crate::hostile::Traffic;

/// RpcConnectionHeader without a session's ID, and RpcOutgoingConnectionInit.
const GREETING_LEN: usize = 24;

/// RpcWireHeader: a command, the size of what follows, and 8 bytes more.
const HEADER_LEN: usize = 16;

/// What a client says until it has the root object.
fn overhear(vm: &Vm) -> Vec<u8> {
    let path = vm.daemon.dir.path().join("relay");
    let listener = UnixListener::bind(&path).unwrap();
    let mut daemon = UnixStream::connect(vm.daemon.control()).unwrap();
    let relay = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let (mut from, mut to) = (daemon.try_clone().unwrap(), client.try_clone().unwrap());
        let answers = std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let (mut heard, mut bytes) = (Vec::new(), [0; 4096]);
        while let Ok(len @ 1..) = client.read(&mut bytes) {
            heard.extend_from_slice(&bytes[..len]);
            daemon.write_all(&bytes[..len]).unwrap();
        }
        daemon.shutdown(Shutdown::Both).unwrap();
        // However it ends, it ends.
        let _ = answers.join().unwrap();
        heard
    });
    drop(Client::open(&path, false).unwrap());
    relay.join().unwrap()
}

/// The first call: for the root object.
fn first_call(heard: &[u8]) -> &[u8] {
    let rest = &heard[GREETING_LEN..];
    let size = u32::from_le_bytes(rest[4..8].try_into().unwrap());
    &rest[..HEADER_LEN + size as usize]
}

#[test]
fn a_client_that_asks_and_reads_no_answer() {
    let vm = Vm::start();
    let traffic = Traffic::start(&vm);
    let heard = overhear(&vm);
    let call = first_call(&heard);
    wait_until("earlier clients have left", || {
        vm.daemon.threads() == THREADS
    });
    let descriptors = vm.daemon.descriptors();

    let mut client = UnixStream::connect(vm.daemon.control()).unwrap();
    let timeout = Some(Duration::from_millis(200));
    client.set_write_timeout(timeout).unwrap();
    client.write_all(&heard[..GREETING_LEN]).unwrap();
    let mut calls = 0;
    let error = loop {
        match client.write_all(call) {
            Ok(()) => calls += 1,
            Err(error) => break error,
        }
    };
    // Its answers wait in one direction, so its calls in the other.
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "after {calls} calls");
    assert!(calls > 100, "{calls}");
    traffic.assert_flows();
    let state = vm.client().device(3).unwrap().getState().unwrap();
    assert_eq!(state, VsockDeviceState::RUNNING);
    wait_until("it is hung up on", || {
        (vm.daemon.threads(), vm.daemon.descriptors()) == (THREADS, descriptors)
    });
    traffic.assert_flows();
    traffic.end();
}
