// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sequenced packets (VIRTIO 1.2, 5.10.6.6.1): messages keep their boundaries.

use std::ffi::OsStr;
use std::io::{ErrorKind, IoSlice};
use std::time::Duration;

use crosvm_vsock::userspace::packet::SocketType as HostType;
use crosvm_vsock::userspace::socket::{Direction, Socket};
use guest_driver::packet::{seq_flags, Header, Op};
use guest_driver::queues::{Chunking, RxConfig, Split};
use guest_driver::rng::Rng;
use guest_driver::{GuestConfig, SocketType, Stream};

use crate::harness::{header, wait_until, Vm, PATIENCE, SEQPACKET};

fn retry<T>(mut what: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    for _ in 0..10_000 {
        match what() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done,
        }
    }
    Err(ErrorKind::TimedOut.into())
}

fn send(socket: &Socket, message: &[u8]) {
    retry(|| socket.send_bytes(&[IoSlice::new(message)])).unwrap();
}

fn receive(socket: &Socket) -> Vec<u8> {
    let mut message = vec![0; 1 << 20];
    let len = retry(|| socket.receive_bytes(&mut message)).unwrap();
    message.truncate(len);
    message
}

fn path(vm: &Vm, suffix: &str) -> std::ffi::OsString {
    let mut path = vm.device.uds().into_os_string();
    path.push(OsStr::new(suffix));
    path
}

/// A VM whose device has sequenced packets.
fn start(guest: impl FnOnce(&mut GuestConfig)) -> Vm {
    let vm = Vm::with(|_| {}, guest);
    let offered = vm.vmm.features().unwrap();
    assert_ne!(offered & SEQPACKET, 0, "not offered: sequenced packets");
    vm
}

fn guest_connects(vm: &Vm) -> (Stream, Socket) {
    let listener = Socket::listen_unix(&path(vm, "_70"), HostType::SeqPacket).unwrap();
    let guest = vm.guest.connect(2, 70, SocketType::SEQPACKET).unwrap();
    (guest, retry(|| listener.accept()).unwrap())
}

/// A header on the connection of [`guest_connects`], for packets made by hand.
fn by_hand(guest: &Stream, op: Op, buf_alloc: u32) -> Header {
    Header {
        socket_type: SocketType::SEQPACKET,
        buf_alloc,
        ..header(op, guest.local_port(), 70)
    }
}

/// The same for `len` bytes of a message.
fn data(guest: &Stream, flags: u32, len: u32) -> Header {
    Header {
        flags,
        len,
        ..by_hand(guest, Op::RW, 65536)
    }
}

fn messages(guest: &Stream, host: &Socket, sizes: &[usize]) {
    let message = |index: usize, size: usize| {
        let mut rng = Rng::new(index as u64);
        (0..size).map(|_| rng.next_u64() as u8).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (index, size) in sizes.iter().enumerate() {
                guest.send_msg(&message(index, *size), false).unwrap();
            }
        });
        for (index, size) in sizes.iter().enumerate() {
            assert!(
                receive(host) == message(index, *size),
                "message {index} to the host"
            );
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (index, size) in sizes.iter().enumerate() {
                send(host, &message(index, *size));
            }
        });
        let mut got = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            guest.recv_msg(&mut got).unwrap().expect("a message");
            assert!(got == message(index, *size), "message {index} to the guest");
        }
    });
}

const SIZES: [usize; 9] = [1, 10, 4052, 4053, 100, 65_536, 150_000, 2, 70_000];

#[test]
fn messages_keep_their_boundaries_both_ways() {
    let vm = start(|_| {});
    let (guest, host) = guest_connects(&vm);
    messages(&guest, &host, &SIZES);
    drop(host);
    assert_eq!(guest.recv_msg(&mut Vec::new()).unwrap(), None);
    vm.assert_clean();
}

#[test]
fn messages_in_small_pieces_keep_their_boundaries() {
    let vm = start(|g| {
        g.tx.chunking = Chunking::Random(700);
        g.tx.split = Split::Random(300);
        g.rx = RxConfig {
            buffers: 20,
            size: 600,
            split: Split::Every(77),
        };
    });
    let (guest, host) = guest_connects(&vm);
    messages(&guest, &host, &[1, 5000, 599, 600, 20_000, 3]);
    vm.assert_clean();
}

#[test]
fn hosts_connect_at_a_name_of_their_own() {
    let vm = start(|_| {});
    let listener = vm.guest.listen(50, SocketType::SEQPACKET).unwrap();
    let host = Socket::connect_unix(&path(&vm, "_seqpacket"), HostType::SeqPacket).unwrap();
    send(&host, b"CONNECT 50\n");
    assert_eq!(receive(&host), b"OK 50\n");
    let guest = listener.accept().unwrap();
    messages(&guest, &host, &SIZES);
    guest.close().unwrap();
    assert_eq!(receive(&host), b"");
    vm.assert_clean();
}

#[test]
fn a_host_that_does_not_read_loses_no_message() {
    let vm = start(|_| {});
    let (guest, host) = guest_connects(&vm);
    for number in 0..100u32 {
        let mut message = vec![0; 4000];
        message[..4].copy_from_slice(&number.to_le_bytes());
        guest.send_msg(&message, false).unwrap();
    }
    guest.close().unwrap();
    for number in 0..100u32 {
        let message = receive(&host);
        assert_eq!(
            (message.len(), &message[..4]),
            (4000, &number.to_le_bytes()[..])
        );
    }
    assert_eq!(receive(&host), b"");
}

#[test]
fn a_message_larger_than_the_guests_buffer_ends_the_connection() {
    let vm = start(|g| g.buf_alloc = 10_000);
    let (guest, host) = guest_connects(&vm);
    send(&host, &[1; 10_001]);
    assert!(guest.recv_msg(&mut Vec::new()).is_err());
    vm.assert_alive();
}

#[test]
fn a_message_too_large_for_the_hosts_socket_ends_the_connection() {
    let vm = start(|_| {});
    let (guest, host) = guest_connects(&vm);
    guest.send_msg(&vec![1; 900_000], false).unwrap();
    assert!(guest.recv_msg(&mut Vec::new()).is_err());
    drop(host);
    vm.assert_alive();
}

#[test]
fn a_stream_does_not_reach_a_listener_for_messages() {
    let vm = start(|_| {});
    let listener = Socket::listen_unix(&path(&vm, "_70"), HostType::SeqPacket).unwrap();
    let error = vm.guest.connect(2, 70, SocketType::STREAM).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    drop(listener);
    wait_until("gone", || vm.guest.open_connections() == 0);
}

#[test]
fn messages_of_a_host_that_leaves_without_reading_arrive() {
    let vm = start(|_| {});
    let (guest, host) = guest_connects(&vm);
    let raw = vm.guest.raw();
    // No room yet, so that the host's messages are still there when it leaves.
    let no_room = Header {
        buf_alloc: 0,
        ..data(&guest, seq_flags::EOM, 6)
    };
    raw.send(&no_room, b"unread").unwrap();
    wait_until("the host has it", || host.peek(&mut [0]).is_ok());
    for message in [&b"reply"[..], b"", b"more", b""] {
        send(&host, message);
    }
    drop(host);
    let room = by_hand(&guest, Op::CREDIT_UPDATE, 65536);
    raw.send(&room, &[]).unwrap();
    let mut got = Vec::new();
    loop {
        let packet = raw.recv(PATIENCE).unwrap();
        match packet.header.op {
            Op::RW => got.push(packet.payload),
            Op::SHUTDOWN | Op::RST => break,
            _ => {}
        }
    }
    assert_eq!(got, [&b"reply"[..], b"", b"more", b""]);
}

#[test]
fn pieces_for_a_reader_that_has_left_are_credited_once() {
    let vm = start(|_| {});
    let (guest, host) = guest_connects(&vm);
    let raw = vm.guest.raw();
    raw.send(&data(&guest, 0, 1000), &[1; 1000]).unwrap();
    raw.send(&by_hand(&guest, Op::CREDIT_REQUEST, 65536), &[])
        .unwrap();
    raw.expect(Op::CREDIT_UPDATE, PATIENCE).unwrap();
    host.shutdown(Direction::Read);
    raw.send(&data(&guest, seq_flags::EOM, 500), &[1; 500])
        .unwrap();
    let told = raw.expect(Op::SHUTDOWN, PATIENCE).unwrap().header;
    assert_eq!(told.fwd_cnt, 1500);
    // What was under way already is taken and forgotten; the other half goes on.
    raw.send(&data(&guest, seq_flags::EOM, 10), &[1; 10])
        .unwrap();
    send(&host, b"still there");
    let packet = raw.expect(Op::RW, PATIENCE).unwrap();
    assert_eq!(packet.payload, b"still there");
    assert_eq!(packet.header.fwd_cnt, 1510);
}

/// A guest whose kernel bounds packets by number resets a connection that has more.
#[test]
fn empty_messages_are_bounded_until_the_guest_says_something() {
    const BUF_ALLOC: u32 = 64 << 10;
    let vm = start(|g| g.buf_alloc = BUF_ALLOC);
    let (_guest, host) = guest_connects(&vm);
    let raw = vm.guest.raw();
    let mut got = 0;
    for _ in 0..1000 {
        // Once the device takes no more, the socket is full.
        let _ = host.send_bytes(&[IoSlice::new(b"")]);
        while let Ok(packet) = raw.recv(Duration::ZERO) {
            got += u32::from(packet.header.op == Op::RW);
        }
    }
    while let Ok(packet) = raw.recv(Duration::from_millis(100)) {
        got += u32::from(packet.header.op == Op::RW);
    }
    // SKB_TRUESIZE(0), 576 bytes, is what Linux counts for one.
    assert!((got + 1) * 576 <= BUF_ALLOC, "{got} messages");
}

#[test]
fn a_message_of_more_packets_than_the_guest_may_have_ends_the_connection() {
    let vm = start(|g| {
        g.buf_alloc = 64 << 10;
        g.rx.size = 300;
    });
    let (guest, host) = guest_connects(&vm);
    send(&host, &[7; 40_000]);
    let error = guest.recv_msg(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    vm.assert_alive();
}

#[test]
fn a_buffer_that_shrinks_below_a_waiting_message_ends_the_connection() {
    let vm = start(|_| {});
    let (guest, host) = guest_connects(&vm);
    let raw = vm.guest.raw();
    let says = |buf_alloc, fwd_cnt| Header {
        fwd_cnt,
        ..by_hand(&guest, Op::CREDIT_UPDATE, buf_alloc)
    };
    raw.send(&says(50_000, 0), &[]).unwrap();
    send(&host, &[1; 20_000]);
    while raw.expect(Op::RW, PATIENCE).unwrap().header.flags != seq_flags::EOM {}
    send(&host, &[1; 40_000]);
    // It waits for room, and is asked for that.
    raw.expect(Op::CREDIT_REQUEST, PATIENCE).unwrap();
    raw.send(&says(32_000, 20_000), &[]).unwrap();
    raw.expect(Op::RST, PATIENCE).unwrap();
}
