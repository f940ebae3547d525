// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver against the loopback device, without a kernel.

mod loopback;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use guest_driver::bus::{Addressing, BusAddr, Segment};
use guest_driver::check::{expect_end, receive, send, Pieces};
use guest_driver::config::Rule;
use guest_driver::memory::Gpa;
use guest_driver::packet::{shutdown_flags, Event, Header, Op, HEADER_SIZE, HOST_CID};
use guest_driver::queues::{Chunking, Queue, RxConfig, Split, TxConfig};
use guest_driver::ring::{descriptor_flags, Descriptor};
use guest_driver::{Guest, GuestConfig, SocketType, Stream};
use loopback::{Device, Options, DEAF, ECHO, SILENT, SINK, STUCK};

const SECOND: Duration = Duration::from_secs(1);

fn config() -> GuestConfig {
    GuestConfig {
        timeout: Duration::from_secs(10),
        ..GuestConfig::default()
    }
}

fn start(config: GuestConfig) -> (Guest, Device) {
    let options = Options {
        event_idx: config.event_idx,
        ..Options::default()
    };
    let guest = Guest::new(config).unwrap();
    let device = Device::start(&guest, options);
    (guest, device)
}

/// Both sides kept the rules, and the guest's own connections are gone.
fn clean(guest: &Guest, device: &Device) {
    assert_eq!(guest.failure(), None);
    assert_eq!(guest.take_violations(), []);
    assert_eq!(device.complaints(), Vec::<String>::new());
}

/// Sends a stream through the echo and checks it on both ways.
fn echo(stream: &Stream, total: u64, seed: u64) {
    let pieces = Pieces::Random { max: 50_000, seed };
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let sum = send(stream, seed, total, pieces).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            sum
        });
        let received = receive(stream, seed, total, pieces).unwrap();
        expect_end(stream).unwrap();
        assert_eq!(received, sender.join().unwrap());
    });
}

#[test]
fn streams_echo_in_every_shape() {
    let splits = [
        (Split::Whole, Split::Whole),
        (Split::header_apart(), Split::header_apart()),
        (Split::At(vec![20, 44]), Split::At(vec![1, 43, 300])),
        (Split::Random(900), Split::Random(900)),
    ];
    for (round, (tx, rx)) in splits.into_iter().enumerate() {
        for addressing in [Addressing::Physical, Addressing::paged(round as u64)] {
            let config = GuestConfig {
                addressing,
                event_idx: round % 2 == 0,
                indirect: round >= 2,
                ring_sizes: [[256, 256, 16], [64, 32, 2]][round % 2],
                rx: RxConfig {
                    buffers: 64,
                    size: [4096, 65536][round % 2],
                    split: rx.clone(),
                },
                tx: TxConfig {
                    split: tx.clone(),
                    chunking: [Chunking::Max, Chunking::Random(20_000)][round / 2],
                    ..TxConfig::default()
                },
                seed: round as u64,
                ..config()
            };
            let (guest, device) = start(config);
            let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
            echo(&stream, 600_000, round as u64);
            stream.close().unwrap();
            assert_eq!(guest.open_connections(), 0);
            clean(&guest, &device);
        }
    }
}

#[test]
fn many_streams_at_once_both_ways_round() {
    let (guest, device) = start(config());
    let listener = guest.listen(1024, SocketType::STREAM).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let guest = &guest;
            scope.spawn(move || {
                let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
                echo(&stream, 200_000, seed);
            });
            device.dial(1024, SocketType::STREAM);
            let stream = listener.accept().unwrap();
            assert_eq!(stream.local_port(), 1024);
            scope.spawn(move || echo(&stream, 200_000, seed));
        }
    });
    clean(&guest, &device);
}

#[test]
fn ring_indices_wrap_under_traffic() {
    for (size, base) in [(2, 65_500), (16, 65_000)] {
        let config = GuestConfig {
            ring_sizes: [size, size, 2],
            ..config()
        };
        let guest = Guest::new(config).unwrap();
        guest.reset(base).unwrap();
        let options = Options {
            bases: [base; 3],
            ..Options::default()
        };
        let device = Device::start(&guest, options);
        let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
        for i in 0..2000u32 {
            (&stream).write_all(&i.to_le_bytes()).unwrap();
            let mut back = [0; 4];
            (&stream).read_exact(&mut back).unwrap();
            assert_eq!(u32::from_le_bytes(back), i);
        }
        assert!(guest.ring_state(Queue::Rx).last_used < base);
        assert!(guest.ring_state(Queue::Tx).last_used < base);
        clean(&guest, &device);
    }
}

#[test]
fn messages_keep_boundaries_and_records() {
    let (guest, device) = start(config());
    let stream = guest
        .connect(HOST_CID, ECHO, SocketType::SEQPACKET)
        .unwrap();
    let mut back = Vec::new();
    for (len, eor) in [
        (1, false),
        (0, false),
        (60_000, true),
        (5000, false),
        (0, true),
    ] {
        let message: Vec<u8> = (0..len as u32).map(|i| i as u8).collect();
        stream.send_msg(&message, eor).unwrap();
        let got = stream.recv_msg(&mut back).unwrap().unwrap();
        assert_eq!((got.len, got.eor), (len, eor));
        assert_eq!(back, message);
    }
    let error = stream.send_msg(&vec![0; 70_000], false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.recv_msg(&mut back).unwrap(), None);
    stream.close().unwrap();
    clean(&guest, &device);
}

#[test]
fn refused_and_unanswered_connections_end() {
    let (guest, device) = start(config());
    let error = guest.connect(HOST_CID, 1, SocketType::STREAM).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let begun = Instant::now();
    let timeout = Duration::from_millis(50);
    let error = guest
        .connect_from(Some(77), HOST_CID, SILENT, SocketType::STREAM, timeout)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(begun.elapsed() < SECOND * 5);
    assert_eq!(guest.open_connections(), 0);
    clean(&guest, &device);
}

#[test]
fn ports_nobody_listens_on_get_rst() {
    let (guest, device) = start(config());
    let header = Header {
        src_cid: HOST_CID,
        dst_cid: guest.cid(),
        src_port: 5,
        dst_port: 6,
        socket_type: SocketType::STREAM,
        op: Op::REQUEST,
        ..Header::default()
    };
    device.inject(header, &[]);
    let unknown = Header {
        op: Op::RW,
        ..header
    };
    device.inject(unknown, b"data");
    let odd_type = Header {
        socket_type: SocketType(9),
        ..header
    };
    device.inject(odd_type, &[]);
    let rst = Header {
        op: Op::RST,
        ..header
    };
    device.inject(rst, &[]);
    until(|| guest.stats().received[3] == 1);
    assert_eq!(guest.stats().sent[Op::RST.0 as usize], 3);
    clean(&guest, &device);
}

fn until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SECOND * 10;
    while !done() {
        assert!(Instant::now() < deadline, "timed out");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn writers_stop_at_the_peers_credit() {
    let config = GuestConfig {
        timeout: Duration::from_millis(200),
        ..config()
    };
    let (guest, device) = start(config);
    let stream = guest.connect(HOST_CID, STUCK, SocketType::STREAM).unwrap();
    let mut sent = 0;
    let error = loop {
        match (&stream).write(&[7; 9000]) {
            Ok(n) => sent += n,
            Err(e) => break e,
        }
    };
    assert_eq!((error.kind(), sent), (ErrorKind::TimedOut, 64 << 10));
    assert_eq!(guest.stats().sent[Op::CREDIT_REQUEST.0 as usize], 1);
    clean(&guest, &device);
}

#[test]
fn held_credit_stops_the_device_and_released_lets_it_go_on() {
    let config = GuestConfig {
        buf_alloc: 10_000,
        ..config()
    };
    let (guest, device) = start(config);
    let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
    stream.hold_credit(true).unwrap();
    (&stream).write_all(&[1; 25_000]).unwrap();
    let mut seen = vec![0; 10_000];
    (&stream).read_exact(&mut seen).unwrap();
    assert!(!stream.wait_data(SECOND / 20).unwrap());
    stream.hold_credit(false).unwrap();
    (&stream).read_exact(&mut seen).unwrap();
    stream.set_buf_alloc(100).unwrap();
    (&stream).read_exact(&mut seen[..5000]).unwrap();
    clean(&guest, &device);
}

#[test]
fn half_closed_streams_still_carry_the_other_way() {
    let (guest, device) = start(config());
    let stream = guest.connect(HOST_CID, SINK, SocketType::STREAM).unwrap();
    let header = Header {
        src_cid: HOST_CID,
        dst_cid: guest.cid(),
        src_port: SINK,
        dst_port: stream.local_port(),
        socket_type: SocketType::STREAM,
        op: Op::SHUTDOWN,
        flags: shutdown_flags::SEND,
        buf_alloc: 64 << 10,
        ..Header::default()
    };
    device.inject(header, &[]);
    expect_end(&stream).unwrap();
    (&stream).write_all(&[1; 100_000]).unwrap();
    let header = Header {
        flags: shutdown_flags::RECEIVE,
        ..header
    };
    device.inject(header, &[]);
    stream.wait_ended().unwrap();
    let error = (&stream).write(&[1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    clean(&guest, &device);
}

#[test]
fn a_peer_that_never_answers_shutdown_is_reset() {
    let config = GuestConfig {
        close_timeout: Duration::from_millis(100),
        ..config()
    };
    let (guest, device) = start(config);
    let stream = guest.connect(HOST_CID, DEAF, SocketType::STREAM).unwrap();
    assert_eq!(stream.close().unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(guest.open_connections(), 0);
    assert_eq!(guest.stats().sent[Op::RST.0 as usize], 1);
    // The same without anybody waiting.
    drop(guest.connect(HOST_CID, DEAF, SocketType::STREAM).unwrap());
    until(|| guest.open_connections() == 0);
    clean(&guest, &device);
}

#[test]
fn broken_rules_are_recorded_and_reset_the_connection() {
    for (rule, op, flags, payload, len) in [
        (Rule::CreditOverrun, Op::RW, 0, 3000, 0),
        (Rule::DuplicateRequest, Op::REQUEST, 0, 0, 0),
        (Rule::StrayResponse, Op::RESPONSE, 0, 0, 0),
        (Rule::UnknownOp, Op(0), 0, 0, 0),
        (Rule::UnknownOp, Op(8), 0, 0, 0),
        (Rule::WrongLength, Op::RW, 0, 10, 11),
        (Rule::DataAfterShutdown, Op::RW, 0, 10, 10),
    ] {
        let config = GuestConfig {
            buf_alloc: 2000,
            ..config()
        };
        let (guest, device) = start(config);
        let stream = guest.connect(HOST_CID, SINK, SocketType::STREAM).unwrap();
        let header = Header {
            src_cid: HOST_CID,
            dst_cid: guest.cid(),
            src_port: SINK,
            dst_port: stream.local_port(),
            len,
            socket_type: SocketType::STREAM,
            op,
            flags,
            buf_alloc: 1000,
            fwd_cnt: 0,
        };
        if rule == Rule::DataAfterShutdown {
            let shutdown = Header {
                op: Op::SHUTDOWN,
                flags: shutdown_flags::SEND,
                len: 0,
                ..header
            };
            device.inject(shutdown, &[]);
        }
        device.inject(header, &vec![0; payload]);
        stream.wait_ended().unwrap();
        let error = (&stream).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        until(|| guest.stats().sent[Op::RST.0 as usize] == 1);
        let rules: Vec<_> = guest.take_violations().iter().map(|v| v.rule).collect();
        assert_eq!(rules, [rule]);
    }
}

#[test]
fn a_transport_reset_ends_connections_and_keeps_listeners() {
    let config = GuestConfig {
        fetch_cid: Some(std::sync::Arc::new(|| 99)),
        ..config()
    };
    let (guest, device) = start(config);
    let listener = guest.listen(3000, SocketType::STREAM).unwrap();
    let stream = guest.connect(HOST_CID, SINK, SocketType::STREAM).unwrap();
    device.event(0);
    assert_eq!(
        guest.wait_event(SECOND * 10).unwrap(),
        Event::TRANSPORT_RESET
    );
    let error = (&stream).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(guest.cid(), 99);
    assert_eq!(guest.open_connections(), 0);
    // More events than there are buffers: they are posted again.
    for _ in 0..40 {
        device.event(0);
        guest.wait_event(SECOND * 10).unwrap();
    }
    device.stop();
    guest.reset(0).unwrap();
    let device = Device::start(&guest, Options::default());
    device.dial(3000, SocketType::STREAM);
    let stream = listener.accept().unwrap();
    echo(&stream, 10_000, 1);
    clean(&guest, &device);
}

#[test]
fn pause_and_resume_lose_nothing() {
    let (guest, device) = start(config());
    let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| echo(&stream, 3_000_000, 5));
        for _ in 0..20 {
            guest.pause();
            let before = [Queue::Rx, Queue::Tx].map(|q| guest.ring_state(q));
            std::thread::sleep(Duration::from_millis(3));
            assert_eq!(before, [Queue::Rx, Queue::Tx].map(|q| guest.ring_state(q)));
            guest.resume();
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    clean(&guest, &device);
}

#[test]
fn pages_move_under_traffic() {
    let config = GuestConfig {
        addressing: Addressing::paged(3),
        ..config()
    };
    let (guest, device) = start(config);
    let mut device = Some(device);
    for seed in 0..3 {
        let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
        echo(&stream, 100_000, seed);
        stream.close().unwrap();
        guest.pause();
        let bases = device.take().unwrap().stop();
        assert_eq!(bases[1], guest.ring_state(Queue::Tx).next_avail);
        for (iova, old) in guest.space().mappings() {
            let (was, now) = guest.space().move_page(iova, None).unwrap();
            assert_eq!(was, old);
            assert_ne!(now, old);
            let page = was..Gpa(was.0 + 4096);
            guest.fill_pattern(page.clone(), 1).unwrap();
            guest.check_pattern(page, 1).unwrap();
            guest.space().free_page(was);
        }
        // A new device would go on at its indices; this one begins anew.
        guest.reset(0).unwrap();
        guest.resume();
        device = Some(Device::start(&guest, Options::default()));
    }
    clean(&guest, &device.unwrap());
}

#[test]
fn buffers_stay_in_the_window() {
    let window = Gpa(0x1000_0000)..Gpa(0x1040_0000);
    let outside = Gpa(0x1040_0000)..Gpa(0x1200_0000);
    let config = GuestConfig {
        rings_from: Some(window.clone()),
        buffers_from: Some(window.clone()),
        ..config()
    };
    let (guest, device) = start(config);
    guest.fill_pattern(outside.clone(), 4).unwrap();
    let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
    echo(&stream, 500_000, 1);
    guest.check_pattern(outside.clone(), 4).unwrap();
    guest.buffers_from(Some(outside.clone()));
    let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
    echo(&stream, 500_000, 1);
    assert!(guest.check_pattern(outside, 4).is_err());
    clean(&guest, &device);
}

#[test]
fn raw_access_sends_and_sees_anything() {
    let (guest, device) = start(config());
    let raw = guest.raw();
    let header = Header {
        src_cid: guest.cid(),
        dst_cid: HOST_CID,
        src_port: 1,
        dst_port: ECHO,
        socket_type: SocketType::STREAM,
        op: Op::REQUEST,
        buf_alloc: 1000,
        ..Header::default()
    };
    raw.send(&header, &[]).unwrap();
    raw.expect(Op::RESPONSE, SECOND * 10).unwrap();
    let data = Header {
        op: Op::RW,
        len: 5,
        ..header
    };
    raw.send_split(&data, b"hello", &Split::Every(3)).unwrap();
    let packet = raw.expect(Op::RW, SECOND * 10).unwrap();
    assert_eq!(packet.payload, b"hello");
    assert_eq!(packet.used_len as usize, HEADER_SIZE + 5);

    // The same, in a chain by hand.
    let buffer = raw.alloc(100, None).unwrap();
    let bytes = [&data.to_bytes()[..], b"again"].concat();
    raw.space().write(buffer.addr(), &bytes).unwrap();
    let segment = Segment {
        addr: buffer.addr(),
        len: bytes.len() as u32,
    };
    let head = raw.post(Queue::Tx, &[segment], &[]).unwrap();
    let packet = raw.expect(Op::RW, SECOND * 10).unwrap();
    assert_eq!(packet.payload, b"again");
    while raw.wait_used(Queue::Tx, SECOND * 10).unwrap().head != head {}

    // And in descriptors by hand, not in order.
    let descriptor = |offset: u64, len: u32, flags, next| Descriptor {
        addr: BusAddr(buffer.addr().0 + offset),
        len,
        flags,
        next,
    };
    let next = descriptor_flags::NEXT;
    let chain = [
        descriptor(0, 20, next, 2),
        descriptor(44, 5, 0, 0),
        descriptor(20, 24, next, 1),
    ];
    let places = raw.post_descriptors(Queue::Tx, &chain).unwrap();
    let packet = raw.expect(Op::RW, SECOND * 10).unwrap();
    assert_eq!(packet.payload, b"again");
    raw.wait_used(Queue::Tx, SECOND * 10).unwrap();
    raw.with_ring(Queue::Tx, |ring| {
        ring.release(&places);
        Ok(())
    })
    .unwrap();
    let error = raw.recv(SECOND / 50).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let end = Header {
        op: Op::RST,
        ..header
    };
    raw.send(&end, &[]).unwrap();
    drop(raw);
    let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
    echo(&stream, 10_000, 1);
    clean(&guest, &device);
}

#[test]
fn credit_is_told_when_asked_for() {
    let (guest, device) = start(config());
    let stream = guest.connect(HOST_CID, SINK, SocketType::STREAM).unwrap();
    let header = Header {
        src_cid: HOST_CID,
        dst_cid: guest.cid(),
        src_port: SINK,
        dst_port: stream.local_port(),
        socket_type: SocketType::STREAM,
        op: Op::CREDIT_REQUEST,
        ..Header::default()
    };
    device.inject(header, &[]);
    until(|| guest.stats().sent[Op::CREDIT_UPDATE.0 as usize] == 1);
    stream.set_buf_alloc(1 << 20).unwrap();
    assert_eq!(guest.stats().sent[Op::CREDIT_UPDATE.0 as usize], 2);
    clean(&guest, &device);
}

#[test]
fn a_stopped_device_goes_on_where_it_was() {
    let (guest, device) = start(config());
    let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
    echo(&stream, 100_000, 1);
    stream.close().unwrap();
    let bases = device.stop();
    // Written while no device is there: the next one finds it.
    let device = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| guest.connect(HOST_CID, ECHO, SocketType::STREAM));
        until(|| guest.ring_state(Queue::Tx).next_avail != bases[1]);
        let options = Options {
            bases,
            ..Options::default()
        };
        let device = Device::start(&guest, options);
        let stream = waiting.join().unwrap().unwrap();
        echo(&stream, 100_000, 2);
        device
    });
    clean(&guest, &device);
}

#[test]
fn nothing_waits_for_ever() {
    let config = GuestConfig {
        timeout: Duration::from_millis(20),
        ..config()
    };
    let guest = Guest::new(config).unwrap();
    let listener = guest.listen(5, SocketType::STREAM).unwrap();
    assert!(guest.listen(5, SocketType::STREAM).is_err());
    let timed_out = |e: std::io::Error| assert_eq!(e.kind(), ErrorKind::TimedOut);
    timed_out(listener.accept().err().unwrap());
    timed_out(guest.wait_event(SECOND / 50).unwrap_err());
    // No device: more connections than the transmit queue has room for.
    for _ in 0..20 {
        timed_out(
            guest
                .connect(HOST_CID, ECHO, SocketType::STREAM)
                .unwrap_err(),
        );
    }
    timed_out(guest.raw().recv(SECOND / 50).unwrap_err());
}

#[test]
fn shapes_change_while_data_flows() {
    let (guest, device) = start(config());
    let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| echo(&stream, 3_000_000, 5));
        for size in [45, 65_536, 4096, 100, 9000] {
            let split = Split::Random(size);
            guest.configure_tx(Chunking::Fixed(size), split.clone());
            let rx = RxConfig {
                buffers: size % 50 + 10,
                size,
                split,
            };
            guest.configure_rx(rx).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    clean(&guest, &device);
}

#[test]
fn a_large_ring_works() {
    let config = GuestConfig {
        ring_sizes: [32768, 32768, 32768],
        indirect: true,
        addressing: Addressing::paged(8),
        ..config()
    };
    let (guest, device) = start(config);
    let stream = guest.connect(HOST_CID, ECHO, SocketType::STREAM).unwrap();
    echo(&stream, 300_000, 1);
    clean(&guest, &device);
}
