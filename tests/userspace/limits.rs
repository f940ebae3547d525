// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Limits hold, are counted, and hurt only whoever hits them.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crosvm_vsock::userspace::packet::SocketType as HostType;
use crosvm_vsock::userspace::socket::Socket;
use guest_driver::packet::Op;
use guest_driver::SocketType;

use crate::harness::{accept, header, processor_time, wait_until, Device, Vm, PATIENCE};

#[test]
fn connections() {
    let vm = Vm::with(|c| c.limits.connections = 10, |_| {});
    let listener = vm.device.listen(70);
    let connect = || vm.guest.connect(2, 70, SocketType::STREAM);
    let mut open: Vec<_> = (0..10).map(|_| connect().unwrap()).collect();
    let hosts: Vec<_> = (0..10).map(|_| accept(&listener)).collect();
    let error = connect().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    vm.device
        .assert_counted(|stats| &stats.limit_connections, 1);
    let _port = vm.guest.listen(50, SocketType::STREAM).unwrap();
    assert!(vm.device.dial(50).is_err());
    for (guest, mut host) in open.iter_mut().zip(&hosts) {
        guest.write_all(b"x").unwrap();
        host.read_exact(&mut [0]).unwrap();
    }
    open.pop().unwrap().close().unwrap();
    connect().unwrap();
}

#[test]
fn silent_clients() {
    let vm = Vm::with(|c| c.limits.half_open = 5, |_| {});
    let mut first = vm.device.knock();
    let silent: Vec<_> = (0..4).map(|_| vm.device.knock()).collect();
    let port = vm.guest.listen(50, SocketType::STREAM).unwrap();
    // One more is heard, at the cost of the one that is there for longest; and the guest is
    // not kept from anything.
    let host = vm.device.dial(50).unwrap();
    port.accept().unwrap();
    assert_eq!(first.read(&mut [0]).unwrap(), 0);
    vm.device.assert_counted(|stats| &stats.limit_half_open, 1);
    let _pair = vm.guest_connects(70);
    drop((host, silent));
}

#[test]
fn requests_that_wait_for_the_host() {
    const MOST: u32 = 5;
    let vm = Vm::with(|c| c.limits.half_open = MOST as usize, |_| {});
    // Full: nobody gets into this backlog any more.
    let listener = vm.device.listen(72);
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let _first = UnixStream::connect(vm.device.port_path(72)).unwrap();
    let raw = vm.guest.raw();
    for port in 0..MOST + 3 {
        raw.send(&header(Op::REQUEST, 5000 + port, 72), &[])
            .unwrap();
    }
    for port in MOST..MOST + 3 {
        let reset = raw.expect(Op::RST, PATIENCE).unwrap().header;
        assert_eq!(reset.dst_port, 5000 + port);
    }
    vm.device.assert_counted(|stats| &stats.limit_half_open, 3);
    drop(raw);
    // While they wait, all others connect.
    vm.assert_alive();
}

#[test]
fn pending_bytes() {
    let vm = Vm::with(
        |c| c.limits.pending_bytes = 300 << 10,
        |g| g.timeout = Duration::from_secs(2),
    );
    let (mut other, mut other_host) = vm.guest_connects(71);
    let (mut guest, host) = vm.guest_connects(70);
    // The host does not read: beyond what its socket holds, bytes pend.
    assert!(guest.write_all(&vec![1; 4 << 20]).is_err());
    wait_until("the limit is hit", || {
        vm.device.stats.limit_pending_bytes.get() > 0
    });
    other.write_all(b"fine").unwrap();
    other_host.read_exact(&mut [0; 4]).unwrap();
    drop(host);
}

#[test]
fn pending_bytes_cost_whoever_has_most_of_them() {
    let vm = Vm::with(
        |c| c.limits.pending_bytes = 3 << 20,
        |g| g.timeout = Duration::from_secs(5),
    );
    let hoarders: Vec<_> = (100..103)
        .map(|port| {
            let (mut guest, host) = vm.guest_connects(port);
            guest.write_all(&vec![1; 1 << 20]).unwrap();
            (guest, host)
        })
        .collect();
    let (mut guest, mut host) = vm.guest_connects(70);
    let reader = std::thread::spawn(move || {
        // As slow as any reader may be.
        std::thread::sleep(Duration::from_millis(300));
        let mut all = Vec::new();
        host.read_to_end(&mut all).map(|_| all.len())
    });
    guest.write_all(&vec![2; 2 << 20]).unwrap();
    guest.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(reader.join().unwrap().unwrap(), 2 << 20);
    assert!(vm.device.stats.limit_pending_bytes.get() > 0);
    drop(hoarders);
}

/// Messages to a guest that takes no more of them are held, and not without bounds.
#[test]
fn messages_in_pieces() {
    let vm = Vm::with(|c| c.limits.pending_bytes = 400_000, |_| {});
    let path = vm.device.port_path(70);
    let listener = Socket::listen_unix(path.as_os_str(), HostType::SeqPacket).unwrap();
    let raw = vm.guest.raw();
    let mut hosts = Vec::new();
    for port in 3000..3010 {
        let request = guest_driver::packet::Header {
            socket_type: SocketType::SEQPACKET,
            buf_alloc: 200_000,
            ..header(Op::REQUEST, port, 70)
        };
        raw.send(&request, &[]).unwrap();
        raw.expect(Op::RESPONSE, PATIENCE).unwrap();
        wait_until("accepted", || {
            hosts.extend(listener.accept());
            hosts.len() as u32 == port - 2999
        });
    }
    // The guest's buffers are fewer than all the pieces: what is left stays with the device.
    let message = vec![7; 190_000];
    for host in &hosts {
        host.send_bytes(&[std::io::IoSlice::new(&message)]).unwrap();
    }
    let mut reset = 0;
    let mut whole = 0;
    while reset + whole < hosts.len() {
        let packet = raw.recv(PATIENCE).unwrap().header;
        reset += usize::from(packet.op == Op::RST);
        let ends = guest_driver::packet::seq_flags::EOM;
        whole += usize::from(packet.op == Op::RW && packet.flags == ends);
    }
    let hits = vm.device.stats.limit_pending_bytes.get();
    assert_eq!(hits, reset as u64);
    assert!(
        whole > 0 && reset > 0,
        "{whole} arrived, {reset} were reset"
    );
}

#[test]
fn pending_resets() {
    let vm = Vm::with(|c| c.limits.pending_resets = 50, |_| {});
    let stats = vm.device.stats.clone();
    let raw = vm.guest.raw();
    for port in 0..400 {
        raw.send(&header(Op::RW, 1000, port), &[]).unwrap();
    }
    wait_until("all packets are taken", || {
        stats.packets_from_guest.get() == 400
    });
    // The guest's 128 buffers are full, 50 answers wait, the rest was dropped.
    let dropped = stats.limit_pending_resets.get();
    assert_eq!(400 - dropped, 128 + 50);
    for _ in 0..400 - dropped {
        raw.expect(Op::RST, PATIENCE).unwrap();
    }
    drop(raw);
    vm.assert_alive();
}

#[test]
fn sibling_requests() {
    let street = std::sync::Arc::default();
    let a = Vm::among(&street, 3, |_| {}, |_| {});
    let b = Vm::among(&street, 4, |c| c.limits.half_open = 3, |_| {});
    // Nobody answers at the other end: the rings are in our hands.
    let raw = b.guest.raw();
    let requests = a.guest.raw();
    for port in 0..10 {
        let request = guest_driver::packet::Header {
            dst_cid: 4,
            ..header(Op::REQUEST, 1000 + port, 50)
        };
        requests.send(&request, &[]).unwrap();
    }
    for _ in 0..7 {
        requests.expect(Op::RST, PATIENCE).unwrap();
    }
    for _ in 0..3 {
        raw.expect(Op::REQUEST, PATIENCE).unwrap();
    }
    assert!(raw.recv(Duration::from_millis(100)).is_err());
}

#[test]
fn what_siblings_ask_for_leaves_room_for_the_host() {
    let street = std::sync::Arc::default();
    let a = Vm::among(&street, 3, |_| {}, |_| {});
    let b = Vm::among(
        &street,
        4,
        |c| {
            c.limits.half_open = 6;
            c.limits.sibling_requests = 3;
        },
        |_| {},
    );
    // Nobody answers at the other end: the rings are in our hands.
    let raw = b.guest.raw();
    let requests = a.guest.raw();
    for port in 0..10 {
        let request = guest_driver::packet::Header {
            dst_cid: 4,
            ..header(Op::REQUEST, 1000 + port, 50)
        };
        requests.send(&request, &[]).unwrap();
    }
    for _ in 0..7 {
        requests.expect(Op::RST, PATIENCE).unwrap();
    }
    for _ in 0..3 {
        raw.expect(Op::REQUEST, PATIENCE).unwrap();
    }
    b.device.knock().write_all(b"CONNECT 50\n").unwrap();
    let request = raw.expect(Op::REQUEST, PATIENCE).unwrap().header;
    assert_eq!(request.src_cid, 2, "the host's");
}

/// Messages without a byte cost no credit, and still not more than there is.
#[test]
fn empty_messages() {
    const LIMIT: usize = 64 << 10;
    let vm = Vm::with(|c| c.limits.pending_bytes = LIMIT, |_| {});
    let path = vm.device.port_path(70);
    let listener = Socket::listen_unix(path.as_os_str(), HostType::SeqPacket).unwrap();
    let guest = vm.guest.connect(2, 70, SocketType::SEQPACKET).unwrap();
    {
        let raw = vm.guest.raw();
        let empty = guest_driver::packet::Header {
            socket_type: SocketType::SEQPACKET,
            flags: guest_driver::packet::seq_flags::EOM,
            ..header(Op::RW, guest.local_port(), 70)
        };
        let mut sent = 0;
        while raw.recv(Duration::ZERO).is_err() {
            raw.send(&empty, &[]).unwrap();
            sent += 1;
            assert!(sent < 4 * LIMIT, "the device takes everything");
        }
    }
    vm.device
        .assert_counted(|stats| &stats.limit_pending_bytes, 1);
    drop(listener);
    vm.assert_alive();
}

/// Runs out of descriptors in a process of its own.
#[test]
fn descriptors() {
    const CHILD: &str = "VSOCK_TEST_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "limits::descriptors"])
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    assert!(
        !Device::is_foreign(),
        "not applicable: a program's descriptors are its own"
    );
    let vm = Vm::start();
    let (mut guest, mut host) = vm.guest_connects(70);
    let _listener = vm.guest.listen(50, SocketType::STREAM).unwrap();
    let many = vm.device.listen(80);
    // Clients made before the descriptors run out; none is left for the device's end.
    let mut filler = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        filler.push(file);
    }
    // Nor is one left for a front end that comes now: it waits, and costs no time.
    filler.truncate(filler.len() - 1);
    let waiting = std::os::unix::net::UnixStream::connect(vm.device.socket()).unwrap();
    let before = processor_time();
    std::thread::sleep(Duration::from_millis(500));
    let spent = processor_time() - before;
    assert!(spent < Duration::from_millis(100), "{spent:?}: it spins");
    drop(waiting);
    let mut client = vm.device.knock();
    assert_eq!(client.read(&mut [0]).unwrap_or(0), 0, "turned away");
    let error = vm.guest.connect(2, 80, SocketType::STREAM);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    guest.write_all(b"old").unwrap();
    host.read_exact(&mut [0; 3]).unwrap();
    assert!(vm.device.stats.out_of_descriptors.get() > 0);
    drop(filler);
    drop(many);
    drop(client);
    vm.assert_alive();
}
