// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors: any split and size is taken in both queues, and what makes no sense
//! harms nobody else (VIRTIO 1.2, 2.7.5).

use std::io::{Read, Write};
use std::time::Duration;

use guest_driver::bus::BusAddr;
use guest_driver::check::{receive, send, Pieces};
use guest_driver::packet::{Header, Op};
use guest_driver::queues::{Chunking, Queue, RxConfig, Split};
use guest_driver::ring::{descriptor_flags, Descriptor};

use crate::harness::{header, wait_until, Vm, PATIENCE};

/// 200 KB each way over one connection, checked.
fn echo(vm: &Vm) {
    let (guest, host) = vm.guest_connects(70);
    const TOTAL: u64 = 200_000;
    let pieces = Pieces::Random {
        max: 9000,
        seed: 11,
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send(&guest, 1, TOTAL, pieces).unwrap());
        scope.spawn(|| send(&host, 2, TOTAL, pieces).unwrap());
        scope.spawn(|| receive(&guest, 2, TOTAL, pieces).unwrap());
        receive(&host, 1, TOTAL, pieces).unwrap();
    });
    drop(host);
    guest.close().unwrap();
    vm.assert_clean();
}

#[test]
fn packets_cut_anywhere_are_sent() {
    for split in [
        Split::header_apart(),
        Split::At(vec![1, 43, 44, 45]),
        Split::At(vec![20]),
        Split::Every(100),
        Split::Random(900),
    ] {
        let vm = Vm::with(
            |_| {},
            |g| {
                g.tx.split = split.clone();
                g.tx.chunking = Chunking::Random(3000);
            },
        );
        echo(&vm);
    }
}

#[test]
fn buffers_cut_anywhere_are_filled() {
    for (size, split) in [
        (4096, Split::header_apart()),
        (4096, Split::At(vec![1, 43, 44, 45])),
        (4096, Split::Every(100)),
        (3000, Split::Random(500)),
        (45, Split::Whole),
        (45, Split::At(vec![20])),
        (64 << 10, Split::Whole),
        (64 << 10, Split::Random(10_000)),
    ] {
        let vm = Vm::with(
            |_| {},
            |g| {
                g.rx = RxConfig {
                    buffers: 100,
                    size,
                    split: split.clone(),
                };
            },
        );
        let (guest, host) = vm.guest_connects(70);
        let total = if size < 100 { 5000 } else { 200_000 };
        let pieces = Pieces::Of(7000);
        std::thread::scope(|scope| {
            scope.spawn(|| send(&host, 2, total, pieces).unwrap());
            receive(&guest, 2, total, pieces).unwrap();
        });
        vm.assert_clean();
    }
}

#[test]
fn indirect_tables_work() {
    let vm = Vm::with(
        |_| {},
        |g| {
            g.indirect = true;
            g.tx.split = Split::Every(200);
            g.rx.split = Split::Every(300);
        },
    );
    echo(&vm);
}

#[test]
fn event_indices_are_optional() {
    echo(&Vm::with(|_| {}, |g| g.event_idx = false));
}

#[test]
fn the_smallest_rings_work() {
    echo(&Vm::with(|_| {}, |g| g.ring_sizes = [2, 2, 2]));
}

#[test]
fn the_largest_rings_work() {
    let largest = [32768, 32768, 32768];
    echo(&Vm::with(|_| {}, |g| g.ring_sizes = largest));
}

#[test]
fn all_descriptors_come_back() {
    let vm = Vm::with(|_| {}, |g| g.tx.split = Split::Every(50));
    let (guest, host) = vm.guest_connects(70);
    std::thread::scope(|scope| {
        scope.spawn(|| send(&guest, 1, 100_000, Pieces::Of(5000)).unwrap());
        receive(&host, 1, 100_000, Pieces::Of(5000)).unwrap();
    });
    let used = vm.guest.queues()[Queue::Tx as usize].addresses.used;
    wait_until("every chain is used", || {
        let order = std::sync::atomic::Ordering::Acquire;
        let index = vm.guest.space().load_u16(used.at(2), order).unwrap();
        index == vm.guest.ring_state(Queue::Tx).next_avail
    });
}

#[test]
fn buffers_for_a_header_alone_carry_no_data_and_stop_nothing() {
    let vm = Vm::with(
        |_| {},
        |g| {
            g.rx = RxConfig {
                buffers: 8,
                size: 44,
                split: Split::Whole,
            };
        },
    );
    let (guest, mut host) = vm.guest_connects(70);
    host.write_all(b"needs room").unwrap();
    assert!(!guest.wait_data(Duration::from_millis(50)).unwrap());
    vm.guest
        .configure_rx(RxConfig {
            buffers: 16,
            ..RxConfig::default()
        })
        .unwrap();
    let mut got = [0; 10];
    (&guest).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"needs room");
    vm.assert_clean();
}

#[test]
fn buffers_too_small_for_a_header_come_back_unused() {
    let vm = Vm::start();
    let raw = vm.guest.raw();
    // Use up the good buffers' turn: the small ones are behind them.
    let small = raw.alloc(43, None).unwrap();
    let mut segment = small.segments()[0];
    segment.len = 43;
    let head = raw.post(Queue::Rx, &[], &[segment]).unwrap();
    for port in 0..200 {
        raw.send(&header(Op::CREDIT_REQUEST, 1000, port), &[])
            .unwrap();
        if port < 128 {
            raw.expect(Op::RST, PATIENCE).unwrap();
        }
    }
    let _ = head;
    drop(raw);
    vm.assert_alive();
}

/// A malformed packet for a live connection: that one ends, its neighbour does not.
fn spoils_only_its_own(post: impl FnOnce(&guest_driver::Raw, &Header, BusAddr)) {
    let vm = Vm::start();
    let (victim, mut victim_host) = vm.guest_connects(70);
    let (mut other, mut other_host) = vm.guest_connects(71);
    {
        let raw = vm.guest.raw();
        let data = Header {
            len: 100,
            ..header(Op::RW, victim.local_port(), 70)
        };
        let buffer = raw.alloc(4096, None).unwrap();
        raw.space().write(buffer.addr(), &data.to_bytes()).unwrap();
        post(&raw, &data, buffer.addr());
        let reset = raw.expect(Op::RST, PATIENCE).unwrap().header;
        assert_eq!(reset.dst_port, victim.local_port());
    }
    assert_eq!(victim_host.read(&mut [0]).unwrap(), 0);
    other.write_all(b"fine").unwrap();
    other_host.read_exact(&mut [0; 4]).unwrap();
    vm.assert_alive();
}

fn descriptor(addr: BusAddr, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr,
        len,
        flags,
        next,
    }
}

#[test]
fn a_packet_shorter_than_its_length_field() {
    spoils_only_its_own(|raw, _, addr| {
        let chain = [descriptor(addr, 44 + 99, 0, 0)];
        raw.post_descriptors(Queue::Tx, &chain).unwrap();
    });
}

#[test]
fn a_chain_that_loops() {
    spoils_only_its_own(|raw, _, addr| {
        let chain = [
            descriptor(addr, 44, descriptor_flags::NEXT, 1),
            descriptor(addr, 50, descriptor_flags::NEXT, 0),
        ];
        raw.post_descriptors(Queue::Tx, &chain).unwrap();
    });
}

#[test]
fn a_chain_that_leads_out_of_the_table() {
    spoils_only_its_own(|raw, _, addr| {
        let chain = [descriptor(addr, 44, descriptor_flags::NEXT, 0x7fff)];
        raw.post_descriptors(Queue::Tx, &chain).unwrap();
    });
}

#[test]
fn payload_that_is_not_guest_memory() {
    for (address, len) in [
        (0, 100),
        (u64::MAX - 50, 100),
        (0x1000_0000 + (32 << 20) - 10, 100),
    ] {
        spoils_only_its_own(|raw, _, addr| {
            let chain = [
                descriptor(addr, 44, descriptor_flags::NEXT, 1),
                descriptor(BusAddr(address), len, 0, 0),
            ];
            raw.post_descriptors(Queue::Tx, &chain).unwrap();
        });
    }
}

#[test]
fn payload_for_the_device_to_write() {
    spoils_only_its_own(|raw, _, addr| {
        let chain = [
            descriptor(addr, 44, descriptor_flags::NEXT, 1),
            descriptor(addr, 100, descriptor_flags::WRITE, 0),
        ];
        raw.post_descriptors(Queue::Tx, &chain).unwrap();
    });
}

#[test]
fn an_indirect_table_that_was_not_negotiated() {
    spoils_only_its_own(|raw, _, addr| {
        let chain = [
            descriptor(addr, 44, descriptor_flags::NEXT, 1),
            descriptor(addr, 16, descriptor_flags::INDIRECT, 0),
        ];
        raw.post_descriptors(Queue::Tx, &chain).unwrap();
    });
}

#[test]
fn chains_that_say_nothing_of_whose_they_are() {
    let vm = Vm::start();
    let (mut guest, mut host) = vm.guest_connects(70);
    {
        let raw = vm.guest.raw();
        let buffer = raw.alloc(4096, None).unwrap();
        for chain in [
            descriptor(buffer.addr(), 43, 0, 0),
            descriptor(buffer.addr(), 0, 0, 0),
            descriptor(BusAddr(0), 44, 0, 0),
            descriptor(buffer.addr(), 4096, descriptor_flags::WRITE, 0),
        ] {
            let places = raw.post_descriptors(Queue::Tx, &[chain]).unwrap();
            // Those of the packets before come first.
            while raw.wait_used(Queue::Tx, PATIENCE).unwrap().head != places[0] {}
            raw.with_ring(Queue::Tx, |ring| {
                ring.release(&places);
                Ok(())
            })
            .unwrap();
        }
    }
    vm.device.assert_counted(|stats| &stats.malformed, 4);
    guest.write_all(b"fine").unwrap();
    host.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn malformed_buffers_in_the_receive_queue_come_back_unused() {
    let vm = Vm::with(|_| {}, |g| g.rx.buffers = 2);
    let (guest, mut host) = vm.guest_connects(70);
    {
        let raw = vm.guest.raw();
        let bad = [descriptor(BusAddr(0), 4096, descriptor_flags::WRITE, 0)];
        raw.post_descriptors(Queue::Rx, &bad).unwrap();
        let readable = raw.alloc(4096, None).unwrap();
        let wrong = [descriptor(readable.addr(), 4096, 0, 0)];
        raw.post_descriptors(Queue::Rx, &wrong).unwrap();
        std::mem::forget(readable);
    }
    host.write_all(&[1; 50_000]).unwrap();
    (&guest).read_exact(&mut [0; 50_000]).unwrap();
    vm.assert_clean();
}

#[test]
fn good_and_bad_buffers_in_turn_come_back_once_each() {
    let vm = Vm::with(|_| {}, |g| g.rx.buffers = 1);
    let (_guest, mut host) = vm.guest_connects(70);
    let raw = vm.guest.raw();
    let mut good = Vec::new();
    let mut posted = Vec::new();
    for _ in 0..20 {
        let buffer = raw.alloc(4096, None).unwrap();
        posted.push(raw.post(Queue::Rx, &[], buffer.segments()).unwrap());
        let bad = [descriptor(BusAddr(0), 4096, descriptor_flags::WRITE, 0)];
        posted.extend(raw.post_descriptors(Queue::Rx, &bad).unwrap());
        good.push(buffer);
    }
    // More than there is room for: the device has to look behind the last good one.
    host.write_all(&[1; 21 * 4052]).unwrap();
    let mut used = Vec::new();
    while used.len() < posted.len() + 1 {
        used.push(raw.wait_used(Queue::Rx, PATIENCE).unwrap().head);
    }
    // The first is the driver's own buffer.
    assert_eq!(used[1..], posted);
}

#[test]
fn an_available_index_that_cannot_be_stops_the_device_until_it_is_reset() {
    let vm = Vm::start();
    let (_guest, mut host) = vm.guest_connects(70);
    {
        let raw = vm.guest.raw();
        let avail = vm.guest.queues()[Queue::Tx as usize].addresses.avail;
        let order = std::sync::atomic::Ordering::Release;
        raw.space().store_u16(avail.at(2), 40_000, order).unwrap();
        raw.kick(Queue::Tx).unwrap();
        // Its connections end for the host.
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }
    let mut vm = vm;
    vm.vmm.stop().unwrap();
    vm.guest.reset(0).unwrap();
    vm.vmm.start_rings(&vm.guest).unwrap();
    vm.assert_alive();
}

#[test]
fn a_starved_receive_queue_delays_only_what_needs_it() {
    let vm = Vm::with(|_| {}, |g| g.buf_alloc = 1 << 20);
    let (mut guest, mut host) = vm.guest_connects(70);
    let mut written = 0;
    {
        // As long as the rings are in our hands, nobody posts buffers again.
        let _raw = vm.guest.raw();
        host.set_nonblocking(true).unwrap();
        while let Ok(len) = host.write(&[1; 4096]) {
            written += len;
        }
        host.set_nonblocking(false).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut got = vec![0; written];
    guest.read_exact(&mut got).unwrap();
    guest.write_all(b"other way").unwrap();
    host.read_exact(&mut [0; 9]).unwrap();
    vm.assert_clean();
}

#[test]
fn a_guest_that_posts_no_buffers_can_still_send() {
    let vm = Vm::start();
    let (guest, mut host) = vm.guest_connects(70);
    let raw = vm.guest.raw();
    // Use up all 128 buffers without giving them back.
    for port in 0..400 {
        raw.send(&header(Op::CREDIT_REQUEST, 1000, port), &[])
            .unwrap();
    }
    let data = Header {
        len: 5,
        ..header(Op::RW, guest.local_port(), 70)
    };
    raw.send(&data, b"still").unwrap();
    let mut got = [0; 5];
    host.read_exact(&mut got).unwrap();
    // And what was owed comes when there are buffers again.
    for _ in 0..400 {
        raw.expect(Op::RST, PATIENCE).unwrap();
    }
}
