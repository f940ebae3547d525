// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections come about, in both directions, or are refused at once (VIRTIO 1.2, 5.10.6.4).

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest_driver::packet::{Header, Op};
use guest_driver::SocketType;

use crate::harness::{accept, header, wait_until, Vm, PATIENCE};

/// Long enough for a wrong packet to come, short enough to wait for nothing.
const QUIET: Duration = Duration::from_millis(100);

#[test]
fn both_directions_connect() {
    let vm = Vm::start();
    vm.assert_alive();
    vm.assert_clean();
}

#[test]
fn a_request_for_a_port_nobody_listens_on_is_refused() {
    let vm = Vm::start();
    let before = Instant::now();
    let error = vm.guest.connect(2, 999, SocketType::STREAM).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    assert!(before.elapsed() < PATIENCE, "refused, not timed out");
    vm.assert_clean();
}

#[test]
fn a_request_for_a_cid_nobody_has_is_refused() {
    let vm = Vm::start();
    for cid in [0, 1, 3, 4, 77, u64::from(u32::MAX)] {
        let error = vm.guest.connect(cid, 999, SocketType::STREAM).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionRefused,
            "cid {cid}: {error}"
        );
    }
    vm.assert_clean();
}

#[test]
fn a_cid_of_64_bits_is_nobody() {
    let vm = Vm::start();
    let _listener = vm.device.listen(70);
    let raw = vm.guest.raw();
    let request = Header {
        dst_cid: 1 << 32 | 2,
        ..header(Op::REQUEST, 1000, 70)
    };
    raw.send(&request, &[]).unwrap();
    let reset = raw.expect(Op::RST, PATIENCE).unwrap().header;
    assert_eq!(reset.src_cid, 1 << 32 | 2);
    assert_eq!((reset.src_port, reset.dst_port), (70, 1000));
}

#[test]
fn a_packet_with_a_wrong_source_is_dropped() {
    let vm = Vm::start();
    let _listener = vm.device.listen(70);
    let raw = vm.guest.raw();
    for src_cid in [4, 2, 1 << 32 | 3] {
        let request = Header {
            src_cid,
            ..header(Op::REQUEST, 1000, 70)
        };
        raw.send(&request, &[]).unwrap();
    }
    assert!(raw.recv(QUIET).is_err());
    drop(raw);
    vm.device.assert_counted(|stats| &stats.wrong_source, 3);
    vm.assert_alive();
}

#[test]
fn a_packet_for_no_connection_gets_a_reset_unless_it_is_one() {
    let vm = Vm::start();
    let raw = vm.guest.raw();
    for op in [
        Op::RESPONSE,
        Op::SHUTDOWN,
        Op::RW,
        Op::CREDIT_UPDATE,
        Op::CREDIT_REQUEST,
    ] {
        raw.send(&header(op, 1000, 70), &[]).unwrap();
        let reset = raw.expect(Op::RST, PATIENCE).unwrap();
        assert_eq!((reset.header.src_cid, reset.header.dst_cid), (2, 3));
        assert_eq!((reset.header.src_port, reset.header.dst_port), (70, 1000));
        assert_eq!((reset.header.len, reset.used_len), (0, 44));
    }
    raw.send(&header(Op::RST, 1000, 70), &[]).unwrap();
    assert!(raw.recv(QUIET).is_err());
}

#[test]
fn an_unknown_type_gets_a_reset_of_that_type() {
    let vm = Vm::start();
    let raw = vm.guest.raw();
    for socket_type in [0, 3, 0xffff].map(SocketType) {
        let request = Header {
            socket_type,
            ..header(Op::REQUEST, 1000, 70)
        };
        raw.send(&request, &[]).unwrap();
        let reset = raw.expect(Op::RST, PATIENCE).unwrap();
        assert_eq!(reset.header.socket_type, socket_type);
    }
}

#[test]
fn a_packet_of_the_other_type_does_not_reach_a_connection() {
    let vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    let raw = vm.guest.raw();
    let data = Header {
        socket_type: SocketType::SEQPACKET,
        len: 3,
        ..header(Op::RW, guest.local_port(), 70)
    };
    raw.send(&data, b"bad").unwrap();
    let reset = raw.expect(Op::RST, PATIENCE).unwrap();
    assert_eq!(reset.header.socket_type, SocketType::SEQPACKET);
    let data = Header {
        len: 4,
        ..header(Op::RW, guest.local_port(), 70)
    };
    raw.send(&data, b"good").unwrap();
    let mut got = [0; 4];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"good");
}

#[test]
fn an_unknown_operation_ends_its_connection_and_no_other() {
    let vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    let (mut other, mut other_host) = vm.guest_connects(71);
    {
        let raw = vm.guest.raw();
        for op in [0, 8, 0xffff].map(Op) {
            raw.send(&header(op, guest.local_port(), 70), &[]).unwrap();
            let reset = raw.expect(Op::RST, PATIENCE).unwrap();
            assert_eq!(reset.header.dst_port, guest.local_port());
        }
    }
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    other.write_all(b"x").unwrap();
    other_host.read_exact(&mut [0]).unwrap();
}

#[test]
fn after_a_reset_a_connection_is_unknown() {
    let vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    let raw = vm.guest.raw();
    raw.send(&header(Op::RST, guest.local_port(), 70), &[])
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
fn a_second_response_puts_nothing_into_the_stream() {
    let vm = Vm::start();
    let (mut host, guest) = vm.host_connects(50);
    let (_, host_port) = guest.peer();
    let raw = vm.guest.raw();
    raw.send(&header(Op::RESPONSE, 50, host_port), &[]).unwrap();
    let data = Header {
        len: 2,
        ..header(Op::RW, 50, host_port)
    };
    raw.send(&data, b"ok").unwrap();
    let mut got = [0; 2];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ok");
}

#[test]
fn a_request_for_a_live_connection_replaces_it() {
    let vm = Vm::start();
    let listener = vm.device.listen(70);
    let old = vm
        .guest
        .connect_from(Some(1000), 2, 70, SocketType::STREAM, PATIENCE);
    let _old = old.unwrap();
    let mut old_host = accept(&listener);
    let raw = vm.guest.raw();
    raw.send(&header(Op::REQUEST, 1000, 70), &[]).unwrap();
    raw.expect(Op::RESPONSE, PATIENCE).unwrap();
    let mut new_host = accept(&listener);
    assert_eq!(old_host.read(&mut [0]).unwrap(), 0);
    let data = Header {
        len: 3,
        ..header(Op::RW, 1000, 70)
    };
    raw.send(&data, b"new").unwrap();
    let mut got = [0; 3];
    new_host.read_exact(&mut got).unwrap();
}

#[test]
fn the_same_guest_port_connects_again_and_again() {
    let vm = Vm::start();
    let listener = vm.device.listen(70);
    for round in 0..50u32 {
        let stream = vm
            .guest
            .connect_from(Some(1000), 2, 70, SocketType::STREAM, PATIENCE);
        let mut stream = stream.unwrap();
        let mut host = accept(&listener);
        stream.write_all(&round.to_le_bytes()).unwrap();
        stream.close().unwrap();
        let mut got = Vec::new();
        host.read_to_end(&mut got).unwrap();
        assert_eq!(got, round.to_le_bytes());
    }
    vm.assert_clean();
}

#[test]
fn data_before_the_response_ends_the_connection() {
    let vm = Vm::start();
    let raw = vm.guest.raw();
    let mut client = vm.device.knock();
    client.write_all(b"CONNECT 50\n").unwrap();
    let request = raw.expect(Op::REQUEST, PATIENCE).unwrap().header;
    assert_eq!((request.src_cid, request.dst_cid), (2, 3));
    assert_eq!(request.dst_port, 50);
    let data = Header {
        len: 1,
        ..header(Op::RW, 50, request.src_port)
    };
    raw.send(&data, b"x").unwrap();
    raw.expect(Op::RST, PATIENCE).unwrap();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_guest_that_never_answers_costs_the_client_a_deadline() {
    let vm = Vm::with(|c| c.limits.handshake = Duration::from_millis(50), |_| {});
    let raw = vm.guest.raw();
    let mut client = vm.device.knock();
    client.write_all(b"CONNECT 50\n").unwrap();
    raw.expect(Op::REQUEST, PATIENCE).unwrap();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    raw.expect(Op::RST, PATIENCE).unwrap();
}

#[test]
fn a_full_backlog_delays_nobody_else() {
    let vm = Vm::start();
    let full = vm.device.listen(70);
    // SAFETY: no pointers; listening again only shortens the backlog.
    assert_eq!(unsafe { libc::listen(full.as_raw_fd(), 0) }, 0);
    // A backlog of 0 holds one connection.
    let _held = UnixStream::connect(vm.device.port_path(70)).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| vm.guest.connect(2, 70, SocketType::STREAM));
        vm.assert_alive();
        let error = waiting.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    });
    // With room in time, the request goes through.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| vm.guest.connect(2, 70, SocketType::STREAM));
        accept(&full);
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn many_connections_at_once() {
    let vm = Vm::start();
    let listener = vm.device.listen(70);
    let pairs: Vec<_> = (0..300u32)
        .map(|_| {
            let guest = vm.guest.connect(2, 70, SocketType::STREAM).unwrap();
            (guest, accept(&listener))
        })
        .collect();
    let mut pairs = pairs;
    for (number, (guest, _)) in pairs.iter_mut().enumerate() {
        guest.write_all(&number.to_le_bytes()).unwrap();
    }
    for (number, (guest, host)) in pairs.iter_mut().enumerate() {
        let mut got = [0; 8];
        host.read_exact(&mut got).unwrap();
        assert_eq!(usize::from_le_bytes(got), number);
        host.write_all(&got).unwrap();
        guest.read_exact(&mut got).unwrap();
        assert_eq!(usize::from_le_bytes(got), number);
    }
    drop(pairs);
    wait_until("all connections end", || vm.guest.open_connections() == 0);
    vm.assert_clean();
}

#[test]
fn nothing_is_sent_that_has_no_meaning() {
    let vm = Vm::start();
    let (_guest, mut host) = vm.guest_connects(70);
    let _listener = vm.device.listen(71);
    let raw = vm.guest.raw();
    // Data, an end, a client, a request that succeeds, one that does not, nonsense.
    host.write_all(&[1; 10_000]).unwrap();
    drop(host);
    vm.device.knock().write_all(b"CONNECT 50\n").unwrap();
    raw.send(&header(Op::REQUEST, 1000, 71), &[]).unwrap();
    raw.send(&header(Op::REQUEST, 1001, 72), &[]).unwrap();
    raw.send(&header(Op(0), 1002, 71), &[]).unwrap();
    let expected = [Op::REQUEST, Op::RESPONSE, Op::RST, Op::SHUTDOWN, Op::RW];
    let mut seen = [0; 8];
    while expected.iter().any(|op| seen[usize::from(op.0)] == 0) {
        let packet = raw.recv(PATIENCE).unwrap();
        let op = usize::from(packet.header.op.0);
        assert!((1..=7).contains(&op), "{:?}", packet.header);
        assert_eq!((packet.header.src_cid, packet.header.dst_cid), (2, 3));
        assert_eq!(packet.header.socket_type, SocketType::STREAM);
        seen[op] += 1;
    }
}
