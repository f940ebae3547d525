// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest may write where: never a panic, a reason for every refusal, and a
//! device that works afterwards.

use std::collections::BTreeMap;
use std::num::Wrapping;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::Arc;

use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::kernel::QueueIndex;
use devices::virtio::{Queue, QueueConfig, VirtioDevice};
use model_kernel::ModelKernel;
use serde::Serialize;
use snapshot::AnySnapshot;
use vm_memory::GuestAddress;

use crate::board::{config, device, eventually, Board};
use crate::restore::restored;
use crate::rings::{rings, EVENT, MEMORY_SIZE, SIZE, WRITABLE};
use crate::vm::{TestVm, PATIENCE};

/// Activation with these queues is refused for a reason that holds `words`, the
/// kernel is left alone, and then it works with good ones.
fn refused(words: &[&str], queues: impl FnOnce(&Board) -> BTreeMap<usize, Queue>) {
    let kernel = Arc::new(ModelKernel::new(KernelKind::Overloaded));
    let mut device = device(&kernel, config());
    let board = Board::new();
    kernel.forget_calls();
    let error = board.activate(&mut device, queues(&board)).unwrap_err();
    let text = format!("{error:#}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert_eq!(kernel.calls(), [], "{text}");
    board.assert_activates(&kernel, &mut device);
}

#[test]
fn missing_queues() {
    for missing in 0..3 {
        refused(&["needs its 3 queues"], |board| {
            let mut queues = board.queues();
            queues.remove(&missing);
            queues
        });
    }
    refused(&["needs its 3 queues", "[]"], |_| BTreeMap::new());
}

#[test]
fn a_queue_too_many() {
    refused(&["needs its 3 queues", "[0, 1, 2, 3]"], |board| {
        let mut queues = board.queues();
        queues.insert(3, board.queue(EVENT, |_| {}));
        queues
    });
}

/// A queue as another transport might hand it over: crosvm's refuses these sizes
/// before the device is asked.
#[derive(Serialize)]
struct RawQueue {
    size: u16,
    vector: u16,
    desc_table: GuestAddress,
    avail_ring: GuestAddress,
    used_ring: GuestAddress,
    features: u64,
    next_avail: Wrapping<u16>,
    next_used: Wrapping<u16>,
    last_used: Wrapping<u16>,
}

fn queue_of_size(board: &Board, index: usize, size: u16) -> Queue {
    let rings = rings(index);
    let raw = RawQueue {
        size,
        vector: 0,
        desc_table: GuestAddress(rings.desc),
        avail_ring: GuestAddress(rings.avail),
        used_ring: GuestAddress(rings.used),
        features: 0,
        next_avail: Wrapping(0),
        next_used: Wrapping(0),
        last_used: Wrapping(0),
    };
    Queue::restore(
        &QueueConfig::new(SIZE, 0),
        AnySnapshot::to_any(raw).unwrap(),
        &board.memory,
        board.kicks[index].try_clone().unwrap(),
        board.interrupt.clone(),
    )
    .unwrap()
}

#[test]
fn sizes_that_no_queue_has() {
    for index in 0..3 {
        for size in [0, 3, 15] {
            let words = [format!("queue {index}"), format!("its size {size} is not")];
            refused(&words.each_ref().map(String::as_str), |board| {
                let mut queues = board.queues();
                queues.insert(index, queue_of_size(board, index, size));
                queues
            });
        }
    }
}

#[test]
fn crosvm_refuses_a_queue_of_size_0_itself_and_never_asks_the_device() {
    let mut vm = TestVm::new(ModelKernel::new(KernelKind::Overloaded), config());
    for index in 0..3 {
        crate::rings::set_up(vm.transport.queue(index), index);
        vm.transport.queue(index).set_size(0);
        vm.transport.queue(index).set_ready(true);
    }
    vm.kernel.forget_calls();
    vm.transport.write_status(devices::harness::status::READY);
    assert_eq!(vm.kernel.calls(), []);
}

type SetRing = fn(&mut QueueConfig, GuestAddress);

const PARTS: [(&str, u64, SetRing); 3] = [
    ("descriptor table", 16, QueueConfig::set_desc_table),
    ("available ring", 2, QueueConfig::set_avail_ring),
    ("used ring", 4, QueueConfig::set_used_ring),
];

fn refused_ring(index: usize, part: &str, words: &str, set: SetRing, at: u64) {
    let queue = format!("queue {index}");
    refused(&[&queue, part, words], |board| {
        let mut queues = board.queues();
        let queue = board.queue(index, |config| set(config, GuestAddress(at)));
        queues.insert(index, queue);
        queues
    });
}

#[test]
fn rings_outside_of_memory() {
    for index in 0..3 {
        let words = match index {
            EVENT => "is not guest memory",
            _ => "does not lie inside one region of guest memory",
        };
        for (part, _, set) in PARTS {
            // Beyond; at the end of address space; inside but for the last entry.
            for at in [MEMORY_SIZE, 1 << 40, !0xfff, MEMORY_SIZE - 32] {
                refused_ring(index, part, words, set, at);
            }
        }
    }
}

#[test]
fn rings_that_are_not_aligned() {
    for index in 0..3 {
        for (part, alignment, set) in PARTS {
            refused_ring(index, part, "is not aligned", set, 0x4_0000 + alignment / 2);
        }
    }
}

#[test]
fn vectors_beyond_the_table_interrupt_nobody() {
    for vector in [4, 0x7fff, 0xfffe, 0xffff] {
        let mut vm = TestVm::new(ModelKernel::new(KernelKind::Overloaded), config());
        vm.boot_with_vectors([vector, 1, vector]);
        assert!(vm.kernel.notify(QueueIndex::Rx));
        vm.assert_called(QueueIndex::Tx, 1);
        // The event queue's as well.
        vm.kernel.break_queue(QueueIndex::Tx);
        vm.post_event_buffer();
        eventually("a transport reset", || vm.events.used() == 1);
        assert!(vm.kernel.notify(QueueIndex::Rx));
        // Ending the worker would bring its panic here.
        vm.transport.sleep().unwrap();
        vm.transport.wake().unwrap();
        vm.assert_called(QueueIndex::Tx, 1);
    }
}

#[test]
fn event_buffers_that_are_too_short_come_back_empty_until_a_good_one_comes() {
    let mut vm = restored(TestVm::running());
    for length in 1..=3 {
        vm.events.post(length, WRITABLE);
    }
    // Long enough, but not for the device to write: 0 bytes.
    vm.events.post(16, 0);
    vm.transport.wake().unwrap();
    eventually("the short buffers", || vm.events.used() == 4);
    for n in 0..4 {
        assert_eq!(vm.events.event(n), (0, None), "buffer {n}");
    }
    vm.post_event_buffer();
    vm.assert_told_of_reset(4);
    assert_eq!(vm.events.used(), 5);
}

#[test]
fn a_long_event_buffer_gets_four_bytes() {
    let mut vm = restored(TestVm::running());
    vm.events.post(8, WRITABLE);
    vm.transport.wake().unwrap();
    vm.assert_told_of_reset(0);
}

#[test]
fn event_buffers_that_are_no_chains_stop_the_event_queue_alone() {
    type Post = fn(&mut TestVm);
    let posts: [Post; 3] = [
        // No such descriptor; a buffer of no bytes; a buffer beyond memory.
        |vm| vm.events.post_head(SIZE),
        |vm| vm.events.post(0, WRITABLE),
        |vm| vm.events.post(u32::MAX, WRITABLE),
    ];
    for post in posts {
        let mut vm = restored(TestVm::running());
        post(&mut vm);
        vm.transport.wake().unwrap();
        vm.kick();
        vm.assert_works();
        vm.transport.sleep().unwrap();
        assert_eq!(vm.events.used(), 0);
        vm.transport.wake().unwrap();
        vm.reset();
        vm.boot();
        vm.assert_works();
    }
}

#[test]
fn short_event_buffers_without_end_do_not_keep_the_device_awake() {
    let mut vm = restored(TestVm::running());
    // Every entry of the available ring names descriptor 0.
    vm.events.post(1, WRITABLE);
    let over = Arc::new(AtomicBool::new(false));
    let (memory, stop) = (vm.memory.clone(), over.clone());
    let kick = vm.transport.kick(EVENT).try_clone().unwrap();
    let guest = std::thread::spawn(move || {
        let (avail, used) = (rings(EVENT).avail + 2, rings(EVENT).used + 2);
        while !stop.load(Ordering::Relaxed) {
            // As far ahead of the device as can be.
            let used: u16 = memory.read_obj_from_addr(GuestAddress(used)).unwrap();
            let ahead = used.wrapping_sub(1);
            memory
                .write_obj_at_addr_volatile(ahead, GuestAddress(avail))
                .unwrap();
            kick.signal().unwrap();
        }
    });
    vm.transport.wake().unwrap();
    eventually("the event queue's worker", || vm.events.used() > 2 * SIZE);
    let (done, asleep) = channel();
    std::thread::spawn(move || done.send(vm.transport.sleep().is_ok()));
    let asleep = asleep.recv_timeout(PATIENCE);
    over.store(true, Ordering::Relaxed);
    guest.join().unwrap();
    assert_eq!(asleep, Ok(true));
}

#[test]
fn a_kick_of_the_event_queue_when_nothing_is_owed_takes_no_buffer() {
    let mut vm = TestVm::running();
    vm.post_event_buffer();
    vm.assert_works();
    vm.transport.sleep().unwrap();
    assert_eq!(vm.events.used(), 0);
}

#[test]
fn writes_to_the_configuration_space_are_ignored_and_reads_go_anywhere() {
    let kernel = Arc::new(ModelKernel::new(KernelKind::Overloaded));
    let config = config();
    let cid = config.cid.raw().to_le_bytes();
    let mut device = device(&kernel, config);
    for at in [0, 4, 7, 8, u64::MAX] {
        device.write_config(at, &[0xff; 8]);
        device.write_config(at, &[]);
    }
    for offset in (0..=9).chain([64, u64::from(u32::MAX), u64::MAX - 7, u64::MAX]) {
        for width in 0..=16 {
            let mut data = vec![0xaa; width];
            device.read_config(offset, &mut data);
            let expected: Vec<u8> = (0..width as u64)
                .map(|i| {
                    let at = offset
                        .checked_add(i)
                        .and_then(|at| usize::try_from(at).ok());
                    at.and_then(|at| cid.get(at)).copied().unwrap_or(0xaa)
                })
                .collect();
            assert_eq!(data, expected, "{width} bytes at {offset}");
        }
    }
}
