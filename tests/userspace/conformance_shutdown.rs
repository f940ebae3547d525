// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How connections end (VIRTIO 1.2, 5.10.6.5): each direction by itself, in both orders,
//! with data on its way.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guest_driver::check::{receive, send, Pieces};
use guest_driver::packet::{shutdown_flags, Header, Op};

use crate::harness::{header, wait_until, Vm, PATIENCE};

/// The flags of the next SHUTDOWN that the guest receives.
fn next_shutdown(raw: &guest_driver::Raw) -> u32 {
    raw.expect(Op::SHUTDOWN, PATIENCE).unwrap().header.flags
}

fn shutdown(port: u32, flags: u32) -> Header {
    Header {
        flags,
        ..header(Op::SHUTDOWN, port, 70)
    }
}

#[test]
fn the_guest_stops_sending_and_still_receives() {
    let vm = Vm::start();
    let (mut guest, mut host) = vm.guest_connects(70);
    guest.write_all(b"last words").unwrap();
    guest.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    host.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last words");
    host.write_all(b"answer").unwrap();
    let mut got = [0; 6];
    guest.read_exact(&mut got).unwrap();
    drop(host);
    guest.read_to_end(&mut Vec::new()).unwrap();
    guest.close().unwrap();
    vm.assert_clean();
}

#[test]
fn the_host_stops_sending_and_still_receives() {
    let vm = Vm::start();
    let (mut guest, mut host) = vm.guest_connects(70);
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    guest.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last words");
    guest.write_all(b"answer").unwrap();
    let mut got = [0; 6];
    host.read_exact(&mut got).unwrap();
    guest.close().unwrap();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    vm.assert_clean();
}

#[test]
fn a_host_that_stops_sending_is_reported_as_just_that() {
    let vm = Vm::start();
    let (_guest, host) = vm.guest_connects(70);
    let raw = vm.guest.raw();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(next_shutdown(&raw), shutdown_flags::SEND);
    drop(host);
    assert_eq!(next_shutdown(&raw), shutdown_flags::BOTH);
}

#[test]
fn a_host_that_leaves_is_reported_as_both() {
    let vm = Vm::start();
    let (_guest, host) = vm.guest_connects(70);
    let raw = vm.guest.raw();
    drop(host);
    assert_eq!(next_shutdown(&raw), shutdown_flags::BOTH);
}

#[test]
fn a_host_that_stops_reading_is_reported_as_just_that() {
    let vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    host.shutdown(Shutdown::Read).unwrap();
    let raw = vm.guest.raw();
    let data = Header {
        len: 1,
        ..header(Op::RW, guest.local_port(), 70)
    };
    raw.send(&data, b"x").unwrap();
    assert_eq!(next_shutdown(&raw), shutdown_flags::RECEIVE);
    host.write_all(b"still").unwrap();
    assert_eq!(raw.expect(Op::RW, PATIENCE).unwrap().payload, b"still");
}

#[test]
fn the_guest_stops_receiving_and_still_sends() {
    let vm = Vm::start();
    let (mut guest, mut host) = vm.guest_connects(70);
    guest.shutdown(Shutdown::Read).unwrap();
    wait_until("the host may not send", || match host.write(b"x") {
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::BrokenPipe,
    });
    guest.write_all(b"still here").unwrap();
    let mut got = [0; 10];
    host.read_exact(&mut got).unwrap();
    guest.close().unwrap();
}

fn two_steps(first: u32, second: u32) {
    let vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    let raw = vm.guest.raw();
    raw.send(&shutdown(guest.local_port(), first), &[]).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    raw.send(&shutdown(guest.local_port(), second), &[])
        .unwrap();
    loop {
        let header = raw.recv(PATIENCE).unwrap().header;
        if header.op == Op::RST {
            break;
        }
        assert_eq!(header.op, Op::SHUTDOWN);
    }
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    drop(raw);
    vm.assert_alive();
}

#[test]
fn two_steps_send_first() {
    two_steps(shutdown_flags::SEND, shutdown_flags::RECEIVE);
}

#[test]
fn two_steps_receive_first() {
    two_steps(shutdown_flags::RECEIVE, shutdown_flags::SEND);
}

#[test]
fn a_clean_disconnect_is_answered_with_a_reset() {
    let vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    guest.close().unwrap();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    let (mut host, guest) = vm.host_connects(50);
    guest.close().unwrap();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    vm.assert_clean();
}

#[test]
fn all_data_before_a_disconnect_reaches_a_slow_reader() {
    let vm = Vm::start();
    let (guest, host) = vm.guest_connects(70);
    // More than the host's socket holds: the rest waits in the device.
    const TOTAL: u64 = 900_000;
    send(&guest, 1, TOTAL, Pieces::Of(50_000)).unwrap();
    guest.close().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    receive(&host, 1, TOTAL, Pieces::Of(10_000)).unwrap();
    assert_eq!((&host).read(&mut [0]).unwrap(), 0);
    vm.assert_clean();
}

#[test]
fn all_data_before_a_disconnect_of_a_guest_that_did_not_read_reaches_a_slow_reader() {
    let vm = Vm::with(|_| {}, |g| g.buf_alloc = 4096);
    let (guest, mut host) = vm.guest_connects(70);
    host.write_all(&[1; 100_000]).unwrap();
    wait_until("the guest's buffer is full", || {
        guest.unread().unwrap() == 4096
    });
    const TOTAL: u64 = 900_000;
    send(&guest, 1, TOTAL, Pieces::Of(50_000)).unwrap();
    guest.close().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    receive(&host, 1, TOTAL, Pieces::Of(10_000)).unwrap();
}

#[test]
fn all_data_before_half_a_disconnect_reaches_a_slow_reader() {
    let vm = Vm::start();
    let (mut guest, mut host) = vm.guest_connects(70);
    const TOTAL: u64 = 900_000;
    send(&guest, 1, TOTAL, Pieces::Of(50_000)).unwrap();
    guest.shutdown(Shutdown::Write).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    receive(&host, 1, TOTAL, Pieces::Of(10_000)).unwrap();
    assert_eq!((&host).read(&mut [0]).unwrap(), 0);
    host.write_all(b"got it").unwrap();
    guest.read_exact(&mut [0; 6]).unwrap();
}

#[test]
fn all_data_of_a_host_that_left_reaches_a_slow_guest() {
    let vm = Vm::with(|_| {}, |g| g.buf_alloc = 8192);
    let (guest, host) = vm.guest_connects(70);
    const TOTAL: u64 = 150_000;
    send(&host, 1, TOTAL, Pieces::Of(50_000)).unwrap();
    drop(host);
    std::thread::sleep(Duration::from_millis(50));
    receive(&guest, 1, TOTAL, Pieces::Of(10_000)).unwrap();
    assert_eq!((&guest).read(&mut [0]).unwrap(), 0);
    vm.assert_clean();
}

#[test]
fn a_disconnect_with_a_reader_that_never_reads_ends() {
    let vm = Vm::with(|c| c.limits.close = Duration::from_millis(100), |_| {});
    let (guest, host) = vm.guest_connects(70);
    send(&guest, 1, 900_000, Pieces::Of(50_000)).unwrap();
    guest.close().unwrap();
    wait_until("the device gives up", || hung_up(&host));
    // What the socket held is still there; then the end.
    let mut got = Vec::new();
    (&host).read_to_end(&mut got).unwrap();
    assert!(got.len() < 900_000, "the deadline did not come");
    vm.assert_alive();
}

#[test]
fn a_guest_that_does_not_confirm_the_end_is_told_once_more() {
    let vm = Vm::with(|c| c.limits.close = Duration::from_millis(100), |_| {});
    let (_guest, host) = vm.guest_connects(70);
    let raw = vm.guest.raw();
    drop(host);
    assert_eq!(next_shutdown(&raw), shutdown_flags::BOTH);
    raw.expect(Op::RST, PATIENCE).unwrap();
}

#[test]
fn data_after_the_end_of_data_ends_the_connection() {
    let vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    let raw = vm.guest.raw();
    raw.send(&shutdown(guest.local_port(), shutdown_flags::SEND), &[])
        .unwrap();
    let data = Header {
        len: 1,
        ..header(Op::RW, guest.local_port(), 70)
    };
    raw.send(&data, b"x").unwrap();
    raw.expect(Op::RST, PATIENCE).unwrap();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_host_that_dies_with_unread_data_ends_the_connection() {
    let vm = Vm::start();
    let (mut guest, host) = vm.guest_connects(70);
    guest.write_all(&[1; 1000]).unwrap();
    wait_until("data at the host", || {
        let mut byte = [0];
        host.set_nonblocking(true).unwrap();
        peek(&host, &mut byte) > 0
    });
    drop(host);
    // An end in both directions, or a reset: either is an end.
    match guest.read(&mut [0]) {
        Ok(len) => assert_eq!(len, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    wait_until("writing fails", || guest.write(&[1]).is_err());
    vm.assert_clean();
}

/// Whether the device has closed its end.
fn hung_up(socket: &UnixStream) -> bool {
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: `poll` is one valid entry; the timeout is 0.
    unsafe { libc::poll(&mut poll, 1, 0) };
    poll.revents & libc::POLLHUP != 0
}

fn peek(socket: &UnixStream, out: &mut [u8]) -> isize {
    use std::os::fd::AsRawFd;
    // SAFETY: `out` is valid for its length.
    unsafe {
        libc::recv(
            socket.as_raw_fd(),
            out.as_mut_ptr().cast(),
            out.len(),
            libc::MSG_PEEK,
        )
    }
}

#[test]
fn nothing_is_received_before_something_was_sent() {
    let vm = Vm::start();
    let (guest, host) = vm.guest_connects(70);
    assert!(
        !guest.wait_data(Duration::from_millis(100)).unwrap(),
        "an empty receive"
    );
    let empty = vm.guest.stats().received[usize::from(Op::RW.0)];
    assert_eq!(empty, 0);
    drop(host);
}
