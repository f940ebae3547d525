// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The protocol on the Unix socket, byte for byte, and clients of all kinds.

use std::io::{Read, Write};
use std::time::Duration;

use crosvm_vsock::userspace::hybrid::Reply;
use guest_driver::SocketType;

use crate::harness::{wait_until, Device, Vm};

/// What a client hears until the end.
fn answer(vm: &Vm, says: &[u8]) -> Vec<u8> {
    let mut client = vm.device.knock();
    client.write_all(says).unwrap();
    let mut got = Vec::new();
    // A reset is an end, too: the device may hang up with our bytes unread.
    let _ = client.read_to_end(&mut got);
    got
}

#[test]
fn connect_in_any_case_names_the_guest_port() {
    let vm = Vm::start();
    let listener = vm.guest.listen(5555, SocketType::STREAM).unwrap();
    for line in ["CONNECT 5555\n", "connect 5555\n", "Connect 5555\r\n"] {
        let mut client = vm.device.knock();
        client.write_all(line.as_bytes()).unwrap();
        let mut got = [0; 8];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"OK 5555\n");
        listener.accept().unwrap();
    }
}

#[test]
fn firecrackers_dialect_names_the_host_port() {
    let vm = Vm::with(|c| c.reply = Reply::HostPort, |_| {});
    let listener = vm.guest.listen(50, SocketType::STREAM).unwrap();
    let mut client = vm.device.knock();
    client.write_all(b"CONNECT 50\n").unwrap();
    let stream = listener.accept().unwrap();
    let expected = format!("OK {}\n", stream.peer().1);
    let mut got = vec![0; expected.len()];
    client.read_exact(&mut got).unwrap();
    assert_eq!(got, expected.as_bytes());
}

#[test]
fn a_client_that_asks_sends_and_leaves_is_heard() {
    let vm = Vm::start();
    let listener = vm.guest.listen(50, SocketType::STREAM).unwrap();
    for _ in 0..20 {
        let mut client = vm.device.knock();
        client.write_all(b"CONNECT 50\nbye").unwrap();
        drop(client);
    }
    for _ in 0..20 {
        let mut got = Vec::new();
        listener.accept().unwrap().read_to_end(&mut got).unwrap();
        assert_eq!(got, b"bye");
    }
    wait_until("nothing is left", || vm.guest.open_connections() == 0);
    vm.assert_clean();
}

#[test]
fn bytes_after_the_line_belong_to_the_guest() {
    let vm = Vm::start();
    let listener = vm.guest.listen(50, SocketType::STREAM).unwrap();
    let mut client = vm.device.knock();
    client.write_all(b"CONNECT 50\nand more\nand more").unwrap();
    let mut stream = listener.accept().unwrap();
    let mut got = [0; 17];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"and more\nand more");
    vm.assert_clean();
}

#[test]
fn a_line_may_come_in_pieces() {
    let vm = Vm::start();
    let listener = vm.guest.listen(50, SocketType::STREAM).unwrap();
    let mut client = vm.device.knock();
    for byte in b"CONNECT 50\n" {
        client.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut stream = listener.accept().unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    client.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_client_that_asks_and_sends_and_leaves_is_heard() {
    let vm = Vm::start();
    let listener = vm.guest.listen(50, SocketType::STREAM).unwrap();
    let mut client = vm.device.knock();
    client.write_all(b"CONNECT 50\nbye").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = Vec::new();
    listener.accept().unwrap().read_to_end(&mut got).unwrap();
    assert_eq!(got, b"bye");
}

#[test]
fn nonsense_is_hung_up_on() {
    let vm = Vm::start();
    for line in [
        &b"HELLO\n"[..],
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        &[b'C'; 100],
    ] {
        assert_eq!(answer(&vm, line), b"");
    }
    assert_eq!(answer(&vm, b"CONNECT 50\n"), b"", "nobody listens");
    vm.assert_alive();
    vm.assert_clean();
}

#[test]
fn clients_that_connect_and_leave_cost_nothing() {
    let vm = Vm::start();
    let before = vm.device.open_descriptors();
    for round in 0..500 {
        let mut client = vm.device.knock();
        if round % 2 == 0 {
            let _ = client.write_all(b"CONNECT");
        }
    }
    // Other tests run in this process: a bound only.
    wait_until("their sockets are closed", || {
        vm.device.open_descriptors() <= before + 2
    });
    vm.assert_alive();
}

#[test]
fn a_client_that_leaves_before_the_guest_accepts_harms_nobody() {
    let vm = Vm::start();
    let listener = vm.guest.listen(50, SocketType::STREAM).unwrap();
    for _ in 0..50 {
        let mut client = vm.device.knock();
        client.write_all(b"CONNECT 50\n").unwrap();
        drop(client);
    }
    vm.assert_alive();
    drop(listener);
    wait_until("all connections end", || vm.guest.open_connections() == 0);
    vm.assert_clean();
}

#[test]
fn a_client_that_says_nothing_has_a_deadline() {
    let vm = Vm::with(|c| c.limits.handshake = Duration::from_millis(50), |_| {});
    let mut client = vm.device.knock();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_client_before_the_guest_is_hung_up_on_and_breaks_nothing() {
    let device = Device::start(&std::sync::Arc::default(), 3, |_| {});
    for _ in 0..3 {
        let mut client = device.knock();
        client.write_all(b"CONNECT 50\n").unwrap();
        assert_eq!(client.read(&mut [0; 16]).unwrap(), 0);
        // Cuttlefish's wait for the device: connects and leaves.
        drop(device.knock());
    }
    let config = guest_driver::GuestConfig::default();
    let guest = guest_driver::Guest::new(config.clone()).unwrap();
    let mut vmm = device.connect();
    vmm.start(&guest, &config).unwrap();
    let vm = Vm { guest, vmm, device };
    vm.assert_alive();
}
