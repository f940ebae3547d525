// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that want the device's thread for themselves: what a turn takes is bounded
//! whatever the rings hold, and however fast they are filled again.
//!
//! `unsafe` here: telling `GuestMemory` where the guest's memory lies.

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{mpsc, Arc};
use std::time::Instant;

use crosvm_vsock::address::{Gpa, GuestCid, Hva};
use crosvm_vsock::epoll::Epoll;
use crosvm_vsock::features::Feature;
use crosvm_vsock::guest_memory::GuestMemory;
use crosvm_vsock::memory::{MemoryMap, Region};
use crosvm_vsock::path::{Activation, DataPath, Queue, EVENT, QUEUES, RX, TX};
use crosvm_vsock::userspace::listener::HostPlace;
use crosvm_vsock::userspace::{Config, UserspacePath};
use guest_driver::packet::Op;
use tempfile::TempDir;

use crate::harness::{header, PATIENCE};

/// Descriptors that a turn may look at in one queue, and one chain of the largest beyond.
const MOST_DESCRIPTORS: usize = 2 << 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The largest queue that there is.
const SIZE: u16 = 1 << 15;
/// A queue's place: a descriptor table of 512 KiB, then the rings.
const PLACE: u64 = 1 << 20;
const AVAILABLE: u64 = 512 << 10;
const USED: u64 = 640 << 10;
/// Where a packet lies.
const PACKET: u64 = QUEUES as u64 * PLACE;

/// A page of guest memory.
#[repr(align(4096))]
struct Page([AtomicU16; 2048]);

/// A guest that writes its rings by hand, in this process and on this thread.
struct Guest {
    pages: Arc<Vec<Page>>,
    path: UserspacePath,
    _dir: TempDir,
    _host: UnixListener,
}

impl Guest {
    /// With its queues standing at `base`.
    fn start(base: u16) -> Self {
        let dir = TempDir::new().unwrap();
        let uds = dir.path().join("vm");
        let host = UnixListener::bind(dir.path().join("vm_70")).unwrap();
        let config = Config::new(GuestCid::new(3).unwrap(), HostPlace::Unix(uds));
        let epoll = Arc::new(Epoll::new().unwrap());
        let path = UserspacePath::new(config, &Arc::default(), epoll).unwrap();
        let page = || Page([const { AtomicU16::new(0) }; 2048]);
        let pages: Arc<Vec<Page>> = Arc::new((0..PACKET / 4096 + 1).map(|_| page()).collect());
        let mut guest = Self {
            pages,
            path,
            _dir: dir,
            _host: host,
        };
        for queue in [RX, TX, EVENT] {
            guest
                .word(queue, AVAILABLE + 2)
                .store(base, Ordering::Release);
            guest.word(queue, USED + 2).store(base, Ordering::Release);
        }
        let size = guest.pages.len() as u64 * 4096;
        let host = Hva(guest.pages.as_ptr() as u64);
        let map = MemoryMap::new(vec![Region::new(Gpa(0), host, size).unwrap()]).unwrap();
        // SAFETY: the pages live as long as the handle, and are reached as atomics only.
        let memory = unsafe { GuestMemory::new(map, guest.pages.clone()) };
        let queue = |index| {
            let at = index as u64 * PLACE;
            Some(Queue {
                size: SIZE,
                descriptors: Gpa(at),
                available: Gpa(at + AVAILABLE),
                used: Gpa(at + USED),
                base,
                kick: None,
                call: None,
            })
        };
        let activation = Activation {
            memory: Arc::new(memory),
            iotlb: None,
            queues: [queue(RX), queue(TX), queue(EVENT)],
            features: Feature::VERSION_1.set(),
            resumed: false,
        };
        guest.path.activate(activation).unwrap();
        guest
    }

    fn word(&self, queue: usize, at: u64) -> &AtomicU16 {
        word(&self.pages, queue as u64 * PLACE + at)
    }

    fn descriptor(&self, queue: usize, index: u16, address: u64, len: u16, flags: u16, next: u16) {
        let at = u64::from(index) * 16;
        let words = [
            address as u16,
            (address >> 16) as u16,
            0,
            0,
            len,
            0,
            flags,
            next,
        ];
        for (place, value) in (at..).step_by(2).zip(words) {
            self.word(queue, place).store(value, Ordering::Relaxed);
        }
    }

    /// One chain through all of a queue's descriptors, none of which holds a byte.
    fn endless_chain(&self, queue: usize, flags: u16) {
        for index in 0..SIZE {
            let next = index.wrapping_add(1) % SIZE;
            self.descriptor(queue, index, PACKET, 0, flags | NEXT, next);
        }
    }

    /// Makes descriptor 0 available in every entry from here on.
    fn offer(&self, queue: usize, index: u16) {
        self.word(queue, AVAILABLE + 2)
            .store(index, Ordering::Release);
    }

    fn used(&self, queue: usize) -> u16 {
        self.word(queue, USED + 2).load(Ordering::Acquire)
    }

    /// A packet that the device has something to answer to.
    fn send_stray_packet(&self) {
        let raw = header(Op::RW, 1000, 1000).to_bytes();
        for (at, pair) in (PACKET..).step_by(2).zip(raw.chunks(2)) {
            let value = u16::from_le_bytes([pair[0], pair[1]]);
            word(&self.pages, at).store(value, Ordering::Relaxed);
        }
        self.descriptor(TX, 0, PACKET, raw.len() as u16, 0, 0);
        self.offer(TX, 1);
    }
}

fn word(pages: &[Page], at: u64) -> &AtomicU16 {
    &pages[at as usize / 4096].0[at as usize % 4096 / 2]
}

#[test]
fn chains_that_are_long_wait_for_the_next_turn() {
    for (queue, flags) in [(TX, 0), (EVENT, WRITE)] {
        // A driver that is past its first entries is told of a reset.
        let mut guest = Guest::start(if queue == EVENT { 1 } else { 0 });
        let before = guest.used(queue);
        guest.endless_chain(queue, flags);
        guest.offer(queue, before.wrapping_add(200));
        guest.path.turn(Instant::now());
        let taken = usize::from(guest.used(queue).wrapping_sub(before));
        assert!(
            (1..=MOST_DESCRIPTORS / usize::from(SIZE)).contains(&taken),
            "queue {queue}: {taken} chains of {SIZE} descriptors in a turn"
        );
        while guest.used(queue) != before.wrapping_add(200) {
            let used = guest.used(queue);
            guest.path.turn(Instant::now());
            assert_ne!(guest.used(queue), used, "queue {queue}: no progress");
        }
    }
}

#[test]
fn buffers_that_are_of_no_use_end_a_turn_however_many_come() {
    let mut guest = Guest::start(0);
    guest.endless_chain(RX, WRITE);
    guest.send_stray_packet();
    guest.offer(RX, SIZE);
    // Used elements are seen before they are published: the guest keeps pace with them.
    let over = Arc::new(AtomicBool::new(false));
    let (stop, pages) = (over.clone(), guest.pages.clone());
    let refill = std::thread::spawn(move || {
        let (mut posted, mut slot) = (SIZE, 0);
        let length = |slot: u16| word(&pages, USED + 4 + 8 * u64::from(slot) + 4);
        (0..SIZE).for_each(|slot| length(slot).store(1, Ordering::Relaxed));
        while !stop.load(Ordering::Relaxed) {
            // The device writes that nothing was written.
            if length(slot).swap(1, Ordering::Relaxed) == 0 {
                slot = (slot + 1) % SIZE;
                posted = posted.wrapping_add(1);
                word(&pages, AVAILABLE + 2).store(posted, Ordering::Release);
            }
        }
    });
    let (done, wait) = mpsc::channel();
    let device = std::thread::spawn(move || {
        guest.path.turn(Instant::now());
        done.send(()).unwrap();
    });
    let ended = wait.recv_timeout(PATIENCE);
    over.store(true, Ordering::Relaxed);
    refill.join().unwrap();
    assert!(ended.is_ok(), "a turn without end");
    device.join().unwrap();
}
