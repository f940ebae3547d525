// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Flow control in both directions (VIRTIO 1.2, 5.10.6.3), from wrapping counters to
//! guests that withhold, shrink or ignore it.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guest_driver::check::{receive, send, Pieces};
use guest_driver::packet::{Header, Op};
use guest_driver::queues::Chunking;

use crate::harness::{header, wait_until, Device, Vm, PATIENCE};

/// Long enough for a packet that must not come.
const QUIET: Duration = Duration::from_millis(150);

/// As much as fits into a socket nobody reads.
fn fill(socket: &mut UnixStream) -> usize {
    socket.set_nonblocking(true).unwrap();
    let mut total = 0;
    loop {
        match socket.write(&[7; 4096]) {
            Ok(len) => total += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    socket.set_nonblocking(false).unwrap();
    total
}

#[test]
fn megabytes_pass_both_ways_at_once() {
    let vm = Vm::start();
    let (guest, host) = vm.guest_connects(70);
    const TOTAL: u64 = 8 << 20;
    let pieces = Pieces::Random {
        max: 100_000,
        seed: 5,
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send(&guest, 1, TOTAL, pieces).unwrap());
        scope.spawn(|| send(&host, 2, TOTAL, pieces).unwrap());
        scope.spawn(|| receive(&guest, 2, TOTAL, pieces).unwrap());
        receive(&host, 1, TOTAL, pieces).unwrap();
    });
    vm.assert_clean();
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_at_its_credit() {
    let vm = Vm::with(
        |c| c.limits.buf_alloc = 64 << 10,
        |g| g.timeout = Duration::from_secs(2),
    );
    let (mut guest, host) = vm.guest_connects(70);
    let (mut other, mut other_host) = vm.guest_connects(71);
    let error = guest.write_all(&vec![1; 4 << 20]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    // The neighbour does not notice.
    other.write_all(b"through").unwrap();
    other_host.read_exact(&mut [0; 7]).unwrap();
    // And the first one goes on when its reader does.
    let sent = vm.guest.stats().sent_bytes - 7;
    let mut got = vec![0; sent as usize];
    (&host).read_exact(&mut got).unwrap();
    guest.write_all(b"again").unwrap();
    (&host).read_exact(&mut [0; 5]).unwrap();
    vm.assert_clean();
}

#[test]
fn the_device_sends_no_more_than_the_guest_has_room_for() {
    let vm = Vm::with(|_| {}, |g| g.buf_alloc = 10_000);
    let (guest, mut host) = vm.guest_connects(70);
    fill(&mut host);
    wait_until("the guest's buffer is full", || {
        guest.unread().unwrap() == 10_000
    });
    let mut got = vec![0; 100_000];
    (&guest).read_exact(&mut got).unwrap();
    assert!(got.iter().all(|byte| *byte == 7));
    vm.assert_clean();
}

#[test]
fn a_buffer_that_shrinks_is_not_overrun() {
    let vm = Vm::with(|_| {}, |g| g.buf_alloc = 64 << 10);
    let (guest, mut host) = vm.guest_connects(70);
    fill(&mut host);
    wait_until("the guest's buffer is full", || {
        guest.unread().unwrap() == 64 << 10
    });
    guest.set_buf_alloc(4096).unwrap();
    let mut got = vec![0; 80 << 10];
    (&guest).read_exact(&mut got).unwrap();
    guest.set_buf_alloc(64 << 10).unwrap();
    (&guest).read_exact(&mut got).unwrap();
    vm.assert_clean();
}

#[test]
fn credit_in_the_header_of_data_alone_restarts_a_stalled_stream() {
    let vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    let port = guest.local_port();
    let raw = vm.guest.raw();
    // Room for ten bytes, of which none has been taken.
    let mut small = Header {
        buf_alloc: 10,
        ..header(Op::CREDIT_UPDATE, port, 70)
    };
    raw.send(&small, &[]).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    host.write_all(&[5; 100]).unwrap();
    let mut got = 0;
    while got < 10 {
        got += raw.expect(Op::RW, PATIENCE).unwrap().payload.len();
    }
    assert_eq!(got, 10);
    small.op = Op::RW;
    small.len = 1;
    small.fwd_cnt = 10;
    raw.send(&small, b"x").unwrap();
    loop {
        let packet = raw.recv(PATIENCE).unwrap();
        match packet.header.op {
            Op::RW => break assert_eq!(packet.payload.len(), 10),
            // Asked meanwhile, for want of room.
            Op::CREDIT_REQUEST => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn more_data_than_credit_ends_the_connection_and_no_other() {
    let vm = Vm::with(|c| c.limits.buf_alloc = 64 << 10, |_| {});
    let (guest, mut host) = vm.guest_connects(70);
    {
        let raw = vm.guest.raw();
        let data = Header {
            len: 32 << 10,
            ..header(Op::RW, guest.local_port(), 70)
        };
        // The host reads nothing: its socket takes some, the device 64 KiB, then it is
        // the guest's fault.
        let mut sent = 0;
        loop {
            raw.send(&data, &vec![1; 32 << 10]).unwrap();
            sent += 1;
            match raw.recv(Duration::from_millis(20)) {
                Ok(packet) if packet.header.op == Op::RST => break,
                Ok(packet) => assert_eq!(packet.header.op, Op::CREDIT_UPDATE),
                Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}"),
            }
            assert!(sent < 100, "the device takes everything");
        }
    }
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).unwrap();
    vm.device.assert_counted(|stats| &stats.violations, 1);
    vm.assert_alive();
}

#[test]
fn counters_wrap_at_32_bits() {
    let vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    let port = guest.local_port();
    let raw = vm.guest.raw();
    // Take what comes and say that it was taken: the count of bytes sent follows, and
    // nothing stops at any multiple of anything.
    let mut taken = 0u32;
    for _ in 0..50 {
        host.write_all(&[3; 1000]).unwrap();
        let mut got = 0;
        while got < 1000 {
            let packet = raw.recv(PATIENCE).unwrap();
            got += packet.payload.len();
        }
        taken = taken.wrapping_add(1000);
        let update = Header {
            buf_alloc: 1000,
            fwd_cnt: taken,
            ..header(Op::CREDIT_UPDATE, port, 70)
        };
        raw.send(&update, &[]).unwrap();
    }
}

#[test]
fn a_request_for_credit_is_answered_once_and_starts_no_storm() {
    let vm = Vm::start();
    let (guest, _host) = vm.guest_connects(70);
    guest.request_credit().unwrap();
    let updates = || vm.guest.stats().received[usize::from(Op::CREDIT_UPDATE.0)];
    wait_until("an update", || updates() == 1);
    std::thread::sleep(QUIET);
    assert_eq!(updates(), 1);
    assert_eq!(
        vm.guest.stats().received[usize::from(Op::CREDIT_REQUEST.0)],
        0
    );
}

#[test]
fn a_stalled_stream_starts_no_storm() {
    let vm = Vm::with(|_| {}, |g| g.buf_alloc = 4096);
    let (guest, mut host) = vm.guest_connects(70);
    fill(&mut host);
    wait_until("the guest's buffer is full", || {
        guest.unread().unwrap() == 4096
    });
    std::thread::sleep(Duration::from_millis(500));
    let stats = vm.guest.stats();
    let control: u64 = stats.received[6] + stats.received[7];
    assert!(control < 20, "{control} credit packets while nothing moves");
}

#[test]
fn updates_are_lazy() {
    assert!(
        !Device::is_foreign(),
        "not applicable: how lazy is a matter of the window"
    );
    // A guest whose own buffer does not bound what it sends before it must hear.
    let vm = Vm::with(
        |_| {},
        |g| {
            g.tx.chunking = Chunking::Fixed(100);
            g.buf_alloc = 1 << 20;
        },
    );
    let (guest, host) = vm.guest_connects(70);
    let pieces = Pieces::Of(4096);
    std::thread::scope(|scope| {
        scope.spawn(|| send(&guest, 1, 1 << 20, pieces).unwrap());
        receive(&host, 1, 1 << 20, pieces).unwrap();
    });
    let stats = vm.guest.stats();
    assert!(stats.sent[5] >= 10_000);
    assert!(
        stats.received[6] <= 4,
        "{} updates for 1 MiB",
        stats.received[6]
    );
    vm.assert_clean();
}

#[test]
fn packets_are_bounded_in_number_as_linux_6_12_92_counts_them() {
    const BUF_ALLOC: u32 = 64 << 10;
    // `SKB_TRUESIZE(0)` with 64-byte cache lines.
    const SKB_TRUESIZE_0: u32 = 576;
    let vm = Vm::with(|_| {}, |g| g.buf_alloc = BUF_ALLOC);
    let (guest, mut host) = vm.guest_connects(70);
    let packets = || vm.guest.stats().received[usize::from(Op::RW.0)] as u32;
    // One packet a write, as far as the device sees them one by one.
    for _ in 0..300 {
        let before = packets();
        host.write_all(b"s").unwrap();
        for _ in 0..50 {
            if packets() > before {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    let queued = packets();
    assert!(queued > 50, "{queued}: nothing is tested");
    assert!(
        (queued + 1) * SKB_TRUESIZE_0 <= BUF_ALLOC,
        "{queued} packets at once"
    );
    // All of it arrives once the guest reads.
    let mut got = [0; 300];
    (&guest).read_exact(&mut got).unwrap();
    vm.assert_clean();
}

#[test]
fn a_guest_that_tells_of_room_only_when_asked_is_asked() {
    let vm = Vm::with(|_| {}, |g| g.buf_alloc = 8192);
    let (guest, mut host) = vm.guest_connects(70);
    let port = guest.local_port();
    let raw = vm.guest.raw();
    host.write_all(&[1; 100_000]).unwrap();
    let mut got = 0u32;
    while got < 100_000 {
        let packet = raw.recv(PATIENCE).unwrap();
        match packet.header.op {
            Op::RW => got += packet.header.len,
            Op::CREDIT_REQUEST => {
                let update = Header {
                    buf_alloc: 8192,
                    fwd_cnt: got,
                    ..header(Op::CREDIT_UPDATE, port, 70)
                };
                raw.send(&update, &[]).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_count_of_bytes_never_sent_stops_that_connection_alone() {
    let vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    {
        let raw = vm.guest.raw();
        let update = Header {
            fwd_cnt: 1 << 31,
            ..header(Op::CREDIT_UPDATE, guest.local_port(), 70)
        };
        raw.send(&update, &[]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        host.write_all(b"x").unwrap();
        while let Ok(packet) = raw.recv(QUIET) {
            assert_ne!(packet.header.op, Op::RW);
        }
    }
    vm.assert_alive();
}

#[test]
fn a_flood_on_one_connection_starves_no_other() {
    let vm = Vm::start();
    let (flood, flood_host) = vm.guest_connects(70);
    let (mut guest, mut host) = vm.guest_connects(71);
    let over = AtomicBool::new(false);
    let pour = |to: &mut dyn Write| {
        while !over.load(Ordering::Relaxed) {
            to.write_all(&[1; 64 << 10]).unwrap();
        }
    };
    let drain = |from: &mut dyn Read| {
        let mut buffer = vec![0; 64 << 10];
        let mut total = 0;
        loop {
            match from.read(&mut buffer).unwrap() {
                0 => return total,
                len => total += len,
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pour(&mut &flood);
            flood.shutdown(Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            pour(&mut &flood_host);
            flood_host.shutdown(Shutdown::Write).unwrap();
        });
        let totals = [
            scope.spawn(|| drain(&mut &flood)),
            scope.spawn(|| drain(&mut &flood_host)),
        ];
        for round in 0..100u8 {
            let mut got = [0];
            guest.write_all(&[round]).unwrap();
            host.read_exact(&mut got).unwrap();
            host.write_all(&got).unwrap();
            guest.read_exact(&mut got).unwrap();
            assert_eq!(got, [round]);
        }
        over.store(true, Ordering::Relaxed);
        for total in totals {
            assert!(total.join().unwrap() > 1 << 20, "nothing is tested");
        }
    });
    vm.assert_clean();
}
