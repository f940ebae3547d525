// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two guests of one process write what they like into their memory and rings; around
//! them host programs come, talk and leave, and the clock jumps.
//!
//! Held against: nothing panics; a turn that leaves nothing to do says so; and as long as
//! a guest has kept to the rules of its rings, what it gets back is what it posted, no
//! longer than it was, and each packet in it is one that the specification knows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosvm_vsock::access::Access;
use crosvm_vsock::address::{Address, Gpa, GuestCid, Iova, Range};
use crosvm_vsock::bus::Iotlb;
use crosvm_vsock::epoll::{Epoll, Events};
use crosvm_vsock::event::EventFd;
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::path::{Activation, DataPath, Queue, EVENT, QUEUES, RX, TX};
use crosvm_vsock::userspace::listener::HostPlace;
use crosvm_vsock::userspace::packet::{Header, HEADER_LEN};
use crosvm_vsock::userspace::sibling::Neighbourhood;
use crosvm_vsock::userspace::{Config, UserspacePath};

use super::input::Input;
use super::memory::{Memory, END};
use super::programs::{Host, CIDS};

/// Steps of a story at most.
const STEPS: usize = 256;
/// Turns after which a device with guests and hosts at rest must be at rest, too. Not with
/// a guest whose rings lie over each other: what the device writes there is new work.
const MOST_TURNS: usize = 2000;
/// Where buffers begin: before them are the rings.
const BUFFERS: u64 = 0x3000;

/// Plays one story.
pub fn run(data: &[u8]) {
    HOST.with_borrow_mut(|host| {
        let mut input = Input::new(data);
        let street = Arc::new(Neighbourhood::default());
        let mut vms = CIDS.map(|cid| Vm::new(cid, host.base(cid), &street, &mut input));
        let mut now = Instant::now();
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            // It can be ahead of the real one, which the device looks at, too; never behind.
            now = now.max(Instant::now());
            let what = input.u8();
            let vm = &mut vms[usize::from(what >> 7)];
            match what % 16 {
                0 => vm.scribble(&mut input),
                1 => vm.activate(&mut input),
                2..=6 => vm.send(&mut input),
                7..=8 => vm.post(&mut input),
                9 => now += Duration::from_millis(input.pick(&[0, 1, 100, 2000, 10_000])),
                10..=12 => host.act(&mut input),
                13 => vm.stop(&mut input),
                14 => vm.translate(&mut input),
                _ => {
                    vm.turn(now);
                }
            }
            if what & 0x40 != 0 {
                for vm in &mut vms {
                    vm.turn(now);
                }
            }
        }
        for _ in 0..MOST_TURNS {
            // A device that looks again for a moment wants to see the moment pass.
            now = now.max(Instant::now()) + Duration::from_micros(1);
            let idle = vms
                .iter_mut()
                .map(|vm| vm.turn(now) != Some(Duration::ZERO) || !vm.honest);
            if idle.fold(true, |all, one| all & one) {
                host.peers.clear();
                return;
            }
        }
        panic!("the device spins");
    });
}

thread_local! {
    static HOST: RefCell<Host> = RefCell::new(Host::new());
}

/// A chain that the device has.
struct Posted {
    descriptors: usize,
    len: usize,
    buffer: u64,
}

/// The driver's side of a queue.
struct Ring {
    at: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
    posted: BTreeMap<u16, Posted>,
}

impl Ring {
    fn available_at(&self) -> u64 {
        self.at + 0x800
    }

    fn used_at(&self) -> u64 {
        self.at + 0xa00
    }
}

struct Vm {
    cid: u64,
    memory: Memory,
    path: UserspacePath,
    rings: [Ring; QUEUES],
    iotlb: Arc<Iotlb>,
    event: Arc<EventFd>,
    next_buffer: u64,
    indirect: bool,
    /// The guest has kept to the rules of its rings since they were set up.
    honest: bool,
}

impl Vm {
    fn new(cid: u64, base: PathBuf, street: &Arc<Neighbourhood>, input: &mut Input<'_>) -> Self {
        let guest = GuestCid::new(cid).expect("a guest's CID");
        let mut config = Config::new(guest, HostPlace::Unix(base));
        if input.once_in(2) {
            config.limits.connections = 4;
            config.limits.half_open = 3;
            config.limits.pending_bytes = 6000;
            config.limits.pending_resets = 3;
            config.limits.sibling_requests = 2;
            config.limits.buf_alloc = 4096;
        }
        let epoll = Arc::new(Epoll::new().expect("an event loop"));
        let path = UserspacePath::new(config, street, epoll).expect("a device");
        let ring = |index: u64| Ring {
            at: index * 0x1000,
            size: 1,
            next_descriptor: 0,
            available: 0,
            used: 0,
            posted: BTreeMap::new(),
        };
        let mut vm = Self {
            cid,
            memory: Memory::new(),
            path,
            rings: [ring(0), ring(1), ring(2)],
            iotlb: Arc::default(),
            event: Arc::new(EventFd::new().expect("an event")),
            next_buffer: BUFFERS,
            indirect: false,
            honest: true,
        };
        vm.activate(input);
        vm
    }

    /// The driver sets its queues up, anew or again.
    fn activate(&mut self, input: &mut Input<'_>) {
        let choices = input.u8();
        let mut features = Feature::VERSION_1.set() | Feature::SEQPACKET.set();
        for (bit, feature) in [Feature::EVENT_IDX, Feature::INDIRECT_DESC]
            .into_iter()
            .enumerate()
        {
            if choices >> bit & 1 != 0 {
                features |= FeatureSet::of(&[feature]);
            }
        }
        let astray = choices & 0xf0 == 0x10;
        self.path.stop();
        let mut queues = [None, None, None];
        for (index, ring) in self.rings.iter_mut().enumerate() {
            ring.size = 1 << (input.u8() % 7);
            ring.available = input.pick(&[0, 0, 0, u16::MAX, 0x7fff]);
            ring.used = ring.available;
            ring.next_descriptor = 0;
            ring.posted.clear();
            self.memory.write(ring.available_at(), &[0, 0]);
            self.memory
                .write(ring.available_at() + 2, &ring.available.to_le_bytes());
            self.memory.write(ring.used_at(), &[0, 0]);
            self.memory
                .write(ring.used_at() + 2, &ring.used.to_le_bytes());
            let stray = |part| if astray { u64::from(input.u32()) } else { part };
            let [descriptors, available, used] =
                [ring.at, ring.available_at(), ring.used_at()].map(stray);
            queues[index] = Some(Queue {
                size: ring.size,
                descriptors: Gpa(descriptors),
                available: Gpa(available),
                used: Gpa(used),
                base: ring.available,
                kick: Some(self.event.clone()),
                call: Some(self.event.clone()),
            });
        }
        // One event for all queues can be watched once only.
        for index in [TX, EVENT] {
            if let Some(queue) = &mut queues[index] {
                queue.kick = None;
            }
        }
        if choices & 0xf0 == 0x20 {
            queues[usize::from(choices & 3).min(EVENT)] = None;
        }
        // What a vIOMMU does not answer for waits.
        self.honest = !astray && choices & 0xf0 != 0x30;
        self.indirect = features.has(Feature::INDIRECT_DESC);
        let activation = Activation {
            memory: self.memory.guest.clone(),
            iotlb: (choices & 0xf0 == 0x30).then(|| self.iotlb.clone()),
            queues,
            features,
            resumed: choices & 4 != 0,
        };
        // A queue that cannot be is refused.
        let _ = self.path.activate(activation);
    }

    /// The vIOMMU answers, or takes something back.
    fn translate(&mut self, input: &mut Input<'_>) {
        self.iotlb.questions();
        let first = Iova(u64::from(input.u8()) << (input.u8() % 16));
        let size = input.pick(&[1, 0x1000, END, u64::MAX]);
        let last = Iova(first.raw().saturating_add(size - 1));
        let Some(range) = Range::inclusive(first, last) else {
            return;
        };
        if input.once_in(4) {
            return self.iotlb.invalidate(range);
        }
        let to = Gpa(input.pick(&[first.raw(), first.raw(), END - 1, u64::MAX]));
        let access = input.pick(&[Access::ReadWrite, Access::Read, Access::Write]);
        self.iotlb.update(range, to, access);
    }

    fn stop(&mut self, input: &mut Input<'_>) {
        match input.u8() % 4 {
            0 => self.path.forget_guest(),
            _ => drop(self.path.stop()),
        }
    }

    /// Anything anywhere.
    fn scribble(&mut self, input: &mut Input<'_>) {
        self.honest = false;
        let queue = &self.rings[usize::from(input.u8() % 3)];
        match input.u8() % 3 {
            0 => {
                let ahead = input.pick(&[0, 1, queue.size, queue.size + 1, 0x8000]);
                let index = queue.available.wrapping_add(ahead);
                self.memory
                    .write(queue.available_at() + 2, &index.to_le_bytes());
            }
            1 => {
                let slot = u64::from(input.u16() % queue.size);
                let at = queue.available_at() + 4 + 2 * slot;
                self.memory.write(at, input.bytes(2));
            }
            _ => {
                let at = input.u16();
                let len = usize::from(input.u8());
                self.memory.write(at.into(), input.bytes(len));
            }
        }
    }

    /// A place for `len` bytes, used again after a while.
    fn buffer(&mut self, len: usize) -> u64 {
        if self.next_buffer + len as u64 > END {
            self.next_buffer = BUFFERS;
            // What the device still has may be written over.
            self.honest &= self.rings.iter().all(|ring| ring.posted.is_empty());
        }
        let at = self.next_buffer;
        self.next_buffer += len as u64;
        at
    }

    /// Makes a chain available, cut as the story has it.
    fn make_available(&mut self, queue: usize, at: u64, len: usize, input: &mut Input<'_>) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        const INDIRECT: u16 = 4;
        let odd = input.u8();
        let pieces = 1 + usize::from(odd & 3).min(len.saturating_sub(1));
        let (mut cut, mut from) = (Vec::new(), at);
        for piece in (1..=pieces).rev() {
            let left = (at + len as u64 - from) as usize;
            let part = if piece == 1 {
                left
            } else {
                (usize::from(input.u8())).min(left)
            };
            cut.push((from, part as u32));
            from += part as u64;
        }
        let write = if queue == TX { 0 } else { WRITE };
        let bad = odd & 0xe0 == 0x20;
        let last = cut.len() - 1;
        let mut raw = Vec::new();
        let indirect = odd & 0x10 != 0;
        let size = self.rings[queue].size;
        let first = self.rings[queue].next_descriptor % size;
        for (number, (address, len)) in cut.into_iter().enumerate() {
            let (mut address, mut len, mut flags) = (address, len, write);
            let mut next = number as u16 + 1;
            if !indirect {
                next = first.wrapping_add(next) % size;
            }
            if number < last {
                flags |= NEXT;
            }
            if bad && input.once_in(2) {
                match input.u8() % 5 {
                    0 => flags ^= WRITE,
                    1 => flags ^= NEXT,
                    2 => next = input.u16(),
                    3 => address = input.pick(&[END - 1, 2 * END, 2 * END + 0xff0, u64::MAX]),
                    _ => len = input.u32(),
                }
            }
            raw.extend(address.to_le_bytes());
            raw.extend(len.to_le_bytes());
            raw.extend(flags.to_le_bytes());
            raw.extend(next.to_le_bytes());
        }
        if indirect {
            let table = self.buffer(raw.len());
            self.memory.write(table, &raw);
            let len = raw.len() as u32;
            raw.clear();
            raw.extend(table.to_le_bytes());
            raw.extend(len.to_le_bytes());
            raw.extend((if bad { INDIRECT | NEXT } else { INDIRECT }).to_le_bytes());
            raw.extend(first.to_le_bytes());
        }
        let ring = &mut self.rings[queue];
        for (number, descriptor) in raw.chunks(16).enumerate() {
            let slot = first.wrapping_add(number as u16) % size;
            self.memory
                .write(ring.at + 16 * u64::from(slot), descriptor);
        }
        ring.next_descriptor = first.wrapping_add(raw.len() as u16 / 16);
        // More than the table holds: descriptors are changed under the device.
        let held: usize = ring.posted.values().map(|posted| posted.descriptors).sum();
        self.honest &= !bad && held + raw.len() / 16 <= usize::from(size);
        // VIRTIO 1.2, 2.7.5.3.1: nor is a table longer than the queue.
        self.honest &= !indirect || self.indirect && pieces <= usize::from(size);
        let posted = Posted {
            descriptors: raw.len() / 16,
            len,
            buffer: at,
        };
        ring.posted.insert(first, posted);
        let slot = u64::from(ring.available % size);
        self.memory
            .write(ring.available_at() + 4 + 2 * slot, &first.to_le_bytes());
        ring.available = ring.available.wrapping_add(1);
        self.memory
            .write(ring.available_at() + 2, &ring.available.to_le_bytes());
    }

    /// A packet to the device.
    fn send(&mut self, input: &mut Input<'_>) {
        let payload = usize::from(input.u8()) << input.pick(&[0, 0, 0, 4]);
        let claimed = if input.once_in(16) {
            input.u32()
        } else {
            payload as u32
        };
        let odd = input.u8();
        let header = Header {
            src_cid: if odd == 1 { input.u64() } else { self.cid },
            dst_cid: match odd % 8 {
                2 => 3,
                3 => 4,
                4 if odd > 0x80 => input.u64(),
                _ => 2,
            },
            src_port: 1 + u32::from(input.u8() % 4),
            dst_port: match input.u8() {
                // The ports that host clients are seen on.
                high @ 0x80.. => (1 << 30) + u32::from(high % 4),
                low => 1 + u32::from(low % 4),
            },
            len: claimed,
            socket_type: input.pick(&[1, 1, 1, 2, 2, 0, 3]),
            op: input.pick(&[1, 1, 2, 3, 4, 5, 5, 5, 6, 7, 0, 8, 0xffff]),
            flags: u32::from(input.u8() % 5),
            buf_alloc: input.pick(&[0, 1, 4096, 1 << 18, u32::MAX]),
            fwd_cnt: input.pick(&[0, 0, 1, 4096, u32::MAX]),
        };
        let at = self.buffer(HEADER_LEN + payload);
        self.memory.write(at, &header.to_bytes());
        let cut = if input.once_in(32) {
            20
        } else {
            HEADER_LEN + payload
        };
        self.make_available(TX, at, cut, input);
    }

    /// Room for the device to write to.
    fn post(&mut self, input: &mut Input<'_>) {
        let queue = if input.once_in(8) { EVENT } else { RX };
        let len = input.pick(&[4, 43, 44, 45, 100, 1000, 4096]);
        let at = self.buffer(len);
        self.make_available(queue, at, len, input);
    }

    /// The device's events, a turn, and a look at what has come back.
    fn turn(&mut self, now: Instant) -> Option<Duration> {
        let mut events = Events::with_capacity(64);
        let epoll = self.path.epoll().clone();
        epoll
            .wait(&mut events, Some(Duration::ZERO))
            .expect("an event loop");
        for (token, interest) in events.iter() {
            self.path.event(token, interest);
        }
        let timeout = self.path.turn(now);
        for queue in 0..QUEUES {
            self.collect(queue);
        }
        timeout
    }

    fn collect(&mut self, queue: usize) {
        let ring = &mut self.rings[queue];
        let index = self.memory.u16(ring.used_at() + 2);
        if !self.honest {
            ring.used = index;
            ring.posted.clear();
            return;
        }
        while ring.used != index {
            let slot = u64::from(ring.used % ring.size);
            let at = ring.used_at() + 4 + 8 * slot;
            let (id, written) = (self.memory.u32(at), self.memory.u32(at + 4) as usize);
            let posted = u16::try_from(id)
                .ok()
                .and_then(|id| ring.posted.remove(&id));
            let posted = posted.unwrap_or_else(|| panic!("queue {queue}: {id} was not posted"));
            ring.used = ring.used.wrapping_add(1);
            match queue {
                TX => assert_eq!(written, 0, "bytes written to what is to be read"),
                EVENT => assert!([0, 4].contains(&written) && written <= posted.len),
                _ => {
                    assert!(written <= posted.len, "{written} bytes in {}", posted.len);
                    assert_eq!(written < HEADER_LEN, posted.len < HEADER_LEN);
                    if written >= HEADER_LEN {
                        let raw = self.memory.read(posted.buffer);
                        check(&Header::from_bytes(&raw), written, self.cid);
                    }
                }
            }
        }
    }
}

/// A packet that the device has given to the guest.
fn check(header: &Header, written: usize, cid: u64) {
    assert_eq!(header.dst_cid, cid, "{header:?}");
    assert_eq!(header.len as usize, written - HEADER_LEN, "{header:?}");
    assert!((1..=7).contains(&header.op), "{header:?}");
    // A packet of a type that does not exist is refused in kind, to wherever it was for.
    if header.op != 3 {
        assert!((1..=2).contains(&header.socket_type), "{header:?}");
        assert!((2..=4).contains(&header.src_cid), "{header:?}");
    }
    assert!(header.len == 0 || header.op == 5, "{header:?}");
}
