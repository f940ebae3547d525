// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two VMs of one process talk to each other, if they share a group.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use guest_driver::check::{receive, send, Pieces};
use guest_driver::packet::{shutdown_flags, Header, Op};
use guest_driver::SocketType;

use crate::harness::{header, wait_until, Vm};

fn pair(a: &[&str], b: &[&str]) -> (Vm, Vm) {
    let street = Arc::default();
    let groups = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let vm = |cid, names| Vm::among(&street, cid, |c| c.groups = groups(names), |_| {});
    (vm(3, a), vm(4, b))
}

#[test]
fn siblings_connect_and_hear_each_others_names() {
    let (a, b) = pair(&["x", "y"], &["y"]);
    let listener = b.guest.listen(50, SocketType::STREAM).unwrap();
    let from_a = a.guest.connect(4, 50, SocketType::STREAM).unwrap();
    let at_b = listener.accept().unwrap();
    assert_eq!(at_b.peer(), (3, from_a.local_port()));
    const TOTAL: u64 = 3 << 20;
    let pieces = Pieces::Of(30_000);
    std::thread::scope(|scope| {
        scope.spawn(|| send(&from_a, 1, TOTAL, pieces).unwrap());
        scope.spawn(|| send(&at_b, 2, TOTAL, pieces).unwrap());
        scope.spawn(|| receive(&from_a, 2, TOTAL, pieces).unwrap());
        receive(&at_b, 1, TOTAL, pieces).unwrap();
    });
    from_a.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&at_b).read(&mut [0]).unwrap(), 0);
    (&at_b).write_all(b"half").unwrap();
    (&from_a).read_exact(&mut [0; 4]).unwrap();
    at_b.close().unwrap();
    a.assert_clean();
    b.assert_clean();
}

#[test]
fn messages_pass_between_siblings() {
    let (a, b) = pair(&["x"], &["x"]);
    let listener = b.guest.listen(50, SocketType::SEQPACKET).unwrap();
    let from_a = a.guest.connect(4, 50, SocketType::SEQPACKET).unwrap();
    let at_b = listener.accept().unwrap();
    let mut got = Vec::new();
    for size in [1, 5000, 100_000] {
        from_a.send_msg(&vec![9; size], false).unwrap();
        at_b.recv_msg(&mut got).unwrap().unwrap();
        assert_eq!(got.len(), size);
    }
    a.assert_clean();
    b.assert_clean();
}

#[test]
fn a_sibling_without_a_listener_refuses() {
    let (a, _b) = pair(&["x"], &["x"]);
    let error = a.guest.connect(4, 50, SocketType::STREAM).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

#[test]
fn strangers_are_not_reached() {
    let (a, b) = pair(&["x"], &["y"]);
    let _listener = b.guest.listen(50, SocketType::STREAM).unwrap();
    let error = a.guest.connect(4, 50, SocketType::STREAM).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

#[test]
fn a_sibling_that_does_not_read_holds_up_nobody() {
    let (a, b) = pair(&["x"], &["x"]);
    let listener = b.guest.listen(50, SocketType::STREAM).unwrap();
    let from_a = a.guest.connect(4, 50, SocketType::STREAM).unwrap();
    let at_b = listener.accept().unwrap();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(&from_a, 1, 8 << 20, Pieces::Of(60_000)));
        a.assert_alive();
        b.assert_alive();
        receive(&at_b, 1, 8 << 20, Pieces::Of(60_000)).unwrap();
        sending.join().unwrap().unwrap();
    });
}

#[test]
fn a_sibling_that_ends_ends_its_connections() {
    let (a, b) = pair(&["x"], &["x"]);
    let listener = b.guest.listen(50, SocketType::STREAM).unwrap();
    let mut from_a = a.guest.connect(4, 50, SocketType::STREAM).unwrap();
    let at_b = listener.accept().unwrap();
    drop((at_b, listener));
    drop(b);
    let mut rest = Vec::new();
    let _ = from_a.read_to_end(&mut rest);
    drop(from_a);
    wait_until("gone", || a.guest.open_connections() == 0);
    let error = a.guest.connect(4, 50, SocketType::STREAM).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    a.assert_alive();
}

#[test]
fn a_sibling_that_never_stops_asking_holds_up_nobody() {
    let street = Arc::default();
    let a = Vm::among(&street, 3, |_| {}, |_| {});
    let b = Vm::among(&street, 4, |c| c.limits.sibling_requests = 4, |_| {});
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let raw = a.guest.raw();
            let mut asked = 0u32;
            while !over.load(Ordering::Relaxed) {
                let request = Header {
                    dst_cid: 4,
                    ..header(Op::REQUEST, asked % 50_000, 50)
                };
                raw.send(&request, &[]).unwrap();
                while raw.recv(Duration::ZERO).is_ok() {}
                asked += 1;
            }
            asked
        });
        for _ in 0..20 {
            b.assert_alive();
        }
        over.store(true, Ordering::Relaxed);
        assert!(asking.join().unwrap() > 20, "nothing is tested");
    });
    a.assert_alive();
    b.assert_clean();
}

#[test]
fn a_sibling_that_accepts_and_leaves_at_once_is_noticed() {
    let (a, b) = pair(&["x"], &["x"]);
    let (asks, answers) = (a.guest.raw(), b.guest.raw());
    for port in 2000..2050 {
        let to_b = |op| Header {
            dst_cid: 4,
            ..header(op, port, 50)
        };
        asks.send(&to_b(Op::REQUEST), &[]).unwrap();
        answers.expect(Op::REQUEST, Duration::from_secs(5)).unwrap();
        let to_a = |op| Header {
            src_cid: 4,
            dst_cid: 3,
            ..header(op, 50, port)
        };
        answers
            .send_all(&[to_a(Op::RESPONSE), to_a(Op::RST)])
            .unwrap();
        asks.expect(Op::RESPONSE, Duration::from_secs(5)).unwrap();
        // The end of its data may be seen before the end of all.
        loop {
            let end = asks.recv(Duration::from_secs(5)).unwrap().header;
            if end.op == Op::RST || end.flags == shutdown_flags::BOTH {
                break;
            }
            assert_eq!(end.op, Op::SHUTDOWN, "{port}: {end:?}");
        }
        asks.send(&to_b(Op::RST), &[]).unwrap();
    }
}
