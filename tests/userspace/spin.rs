// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What waits costs no processor time, in whatever state. Each test looks at the time that
//! its whole process has had, so each runs in one of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guest_driver::packet::Op;

use crate::harness::{header, processor_time, wait_until, Device, Vm};

/// Runs `test` in a process of its own.
fn apart(name: &str, test: impl FnOnce()) {
    const CHILD: &str = "VSOCK_TEST_SPIN";
    assert!(
        !Device::is_foreign(),
        "not applicable: a program's time is its own"
    );
    if std::env::var_os(CHILD).is_some() {
        return test();
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("spin::{name}")])
        .env(CHILD, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

/// Fails if the next half second is spent on anything.
fn assert_idle() {
    // What was under way comes to rest.
    std::thread::sleep(Duration::from_millis(100));
    let before = processor_time();
    std::thread::sleep(Duration::from_millis(500));
    let spent = processor_time() - before;
    assert!(spent < Duration::from_millis(100), "{spent:?}: it spins");
}

/// As much as goes into a socket that nobody reads.
fn fill(socket: &mut UnixStream) {
    socket.set_nonblocking(true).unwrap();
    loop {
        match socket.write(&[7; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    socket.set_nonblocking(false).unwrap();
}

#[test]
fn a_host_that_does_not_read() {
    apart("a_host_that_does_not_read", || {
        let vm = Vm::with(|_| {}, |g| g.timeout = Duration::from_millis(200));
        let (mut guest, _host) = vm.guest_connects(70);
        assert!(guest.write_all(&vec![1; 8 << 20]).is_err());
        assert_idle();
    });
}

#[test]
fn a_guest_without_room() {
    apart("a_guest_without_room", || {
        let vm = Vm::start();
        let (guest, mut host) = vm.guest_connects(70);
        fill(&mut host);
        wait_until("the guest's buffer is full", || {
            guest.unread().unwrap() > 60_000
        });
        assert_idle();
    });
}

#[test]
fn a_guest_without_buffers() {
    apart("a_guest_without_buffers", || {
        let vm = Vm::with(|_| {}, |g| g.buf_alloc = 16 << 20);
        let (_guest, mut host) = vm.guest_connects(70);
        let raw = vm.guest.raw();
        fill(&mut host);
        // Answers wait, too.
        for port in 0..300 {
            raw.send(&header(Op::CREDIT_REQUEST, 1000, port), &[])
                .unwrap();
        }
        assert_idle();
    });
}

#[test]
fn connections_that_have_ended_in_one_direction() {
    apart("connections_that_have_ended_in_one_direction", || {
        let vm = Vm::start();
        let (_guest, host) = vm.guest_connects(70);
        host.shutdown(Shutdown::Write).unwrap();
        let (guest, mut other) = vm.guest_connects(71);
        guest.shutdown(Shutdown::Write).unwrap();
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
        let (guest, _third) = vm.guest_connects(72);
        guest.shutdown(Shutdown::Read).unwrap();
        assert_idle();
    });
}

#[test]
fn a_client_that_has_said_half_a_line() {
    apart("a_client_that_has_said_half_a_line", || {
        let vm = Vm::start();
        let mut client = vm.device.knock();
        client.write_all(b"CONN").unwrap();
        assert_idle();
    });
}
