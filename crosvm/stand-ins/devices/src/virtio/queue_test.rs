// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queues against a driver that writes the rings by hand.

use std::io::{Read, Write};

use super::*;
use crate::virtio::descriptor_chain::{F_NEXT, F_WRITE};
use crate::IrqLevelEvent;

const DESC: u64 = 0x0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x3000;
const SIZE: u16 = 4;

/// A driver's side of one queue.
struct Driver {
    mem: GuestMemory,
    interrupt: Interrupt,
    avail: u16,
}

impl Driver {
    fn new() -> Self {
        Self {
            mem: GuestMemory::new(&[(GuestAddress(0), 0x4000)]).unwrap(),
            interrupt: Interrupt::new(
                IrqLevelEvent::new().unwrap(),
                None,
                VIRTIO_MSI_NO_VECTOR,
                #[cfg(target_arch = "x86_64")]
                None,
            ),
            avail: 0,
        }
    }

    fn config(&self, features: u64) -> QueueConfig {
        let mut config = QueueConfig::new(SIZE, features);
        config.ack_features(u64::MAX);
        config.set_desc_table(GuestAddress(DESC));
        config.set_avail_ring(GuestAddress(AVAIL));
        config.set_used_ring(GuestAddress(USED));
        config.set_ready(true);
        config
    }

    fn activate(&self, config: &mut QueueConfig) -> Result<Queue> {
        config.activate(&self.mem, Event::new().unwrap(), self.interrupt.clone())
    }

    fn put<T: zerocopy::IntoBytes + zerocopy::Immutable>(&self, value: T, at: u64) {
        self.mem.write_obj_at_addr(value, GuestAddress(at)).unwrap();
    }

    fn get<T: zerocopy::FromBytes>(&self, at: u64) -> T {
        self.mem.read_obj_from_addr(GuestAddress(at)).unwrap()
    }

    fn descriptor(&self, index: u64, addr: u64, len: u32, flags: u16, next: u16) {
        self.put(addr, DESC + 16 * index);
        self.put(len, DESC + 16 * index + 8);
        self.put([flags, next], DESC + 16 * index + 12);
    }

    fn offer(&mut self, head: u16) {
        self.put(head, AVAIL + 4 + 2 * u64::from(self.avail % SIZE));
        self.avail = self.avail.wrapping_add(1);
        self.put(self.avail, AVAIL + 2);
    }
}

#[test]
fn a_request_goes_round() {
    let mut driver = Driver::new();
    let mut queue = driver.activate(&mut driver.config(0)).unwrap();
    assert!(queue.pop().is_none());
    driver
        .mem
        .write_all_at_addr(b"question", GuestAddress(BUFFERS))
        .unwrap();
    driver.descriptor(1, BUFFERS, 8, F_NEXT, 3);
    driver.descriptor(3, BUFFERS + 0x100, 4, F_NEXT | F_WRITE, 0);
    driver.descriptor(0, BUFFERS + 0x200, 4, F_WRITE, 0);
    driver.offer(1);
    let mut chain = queue.pop().unwrap();
    assert!(queue.pop().is_none());
    assert_eq!((chain.index(), chain.count), (1, 3));
    assert_eq!(
        (
            chain.reader.available_bytes(),
            chain.writer.available_bytes()
        ),
        (8, 8)
    );
    let mut question = String::new();
    chain.reader.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    chain.writer.write_all(b"answer").unwrap();
    assert_eq!(
        (chain.writer.available_bytes(), chain.reader.bytes_read()),
        (2, 8)
    );
    assert!(chain.writer.write_all(b"too long").is_err());
    queue.add_used_with_bytes_written(chain, 6);
    assert_eq!(driver.get::<[u16; 2]>(USED), [0, 1]);
    assert_eq!(driver.get::<[u32; 2]>(USED + 4), [1, 6]);
    assert_eq!(&driver.get::<[u8; 4]>(BUFFERS + 0x100), b"answ");
    assert_eq!(&driver.get::<[u8; 2]>(BUFFERS + 0x200), b"er");
    assert!(queue.trigger_interrupt());
    assert_eq!(driver.interrupt.read_interrupt_status(), 1);
    driver.put(AVAIL_F_NO_INTERRUPT, AVAIL);
    assert!(!queue.trigger_interrupt());
}

#[test]
fn the_ring_wraps() {
    let mut driver = Driver::new();
    let mut queue = driver.activate(&mut driver.config(0)).unwrap();
    driver.descriptor(2, BUFFERS, 1, F_WRITE, 0);
    for round in 0..=u32::from(u16::MAX) + 5 {
        driver.offer(2);
        let mut chain = queue.pop().unwrap();
        chain.writer.write_obj(round as u8).unwrap();
        queue.add_used(chain);
        assert_eq!(driver.get::<u16>(USED + 2), (round + 1) as u16);
    }
    assert_eq!(queue.next_avail_to_process(), 5);
}

#[test]
fn interrupts_by_index() {
    let mut driver = Driver::new();
    let mut queue = driver
        .activate(&mut driver.config(1 << VIRTIO_RING_F_EVENT_IDX))
        .unwrap();
    let used_event = AVAIL + 4 + 2 * u64::from(SIZE);
    let avail_event = USED + 4 + 8 * u64::from(SIZE);
    driver.descriptor(0, BUFFERS, 1, F_WRITE, 0);
    driver.put(1u16, used_event);
    let mut wanted = Vec::new();
    for _ in 0..4 {
        driver.offer(0);
        let chain = queue.pop().unwrap();
        queue.add_used(chain);
        wanted.push(queue.trigger_interrupt());
    }
    assert_eq!(wanted, [false, true, false, false]);
    assert_eq!(driver.get::<u16>(avail_event), 4);
}

#[test]
fn a_bad_chain_is_not_taken() {
    for (what, descriptors, head) in [
        ("head outside", vec![], SIZE),
        ("loop", vec![(0, BUFFERS, 1, F_NEXT, 0)], 0),
        ("next outside", vec![(0, BUFFERS, 1, F_NEXT, SIZE)], 0),
        ("empty", vec![(0, BUFFERS, 0, F_WRITE, 0)], 0),
        ("buffer outside", vec![(0, 0x3fff, 2, F_WRITE, 0)], 0),
        ("indirect", vec![(0, BUFFERS, 16, 4, 0)], 0),
        (
            "readable after writable",
            vec![(0, BUFFERS, 1, F_WRITE | F_NEXT, 1), (1, BUFFERS, 1, 0, 0)],
            0,
        ),
    ] {
        let mut driver = Driver::new();
        let mut queue = driver.activate(&mut driver.config(0)).unwrap();
        for (index, addr, len, flags, next) in descriptors {
            driver.descriptor(index, addr, len, flags, next);
        }
        driver.offer(head);
        assert!(queue.pop().is_none(), "{what}");
        assert_eq!(queue.next_avail_to_process(), 0, "{what}");
    }
}

#[test]
fn settings_are_fixed_once_ready_and_used_once() {
    let driver = Driver::new();
    let mut config = driver.config(0);
    config.set_size(2);
    config.set_vector(1);
    assert_eq!(
        (config.size(), config.vector()),
        (SIZE, VIRTIO_MSI_NO_VECTOR)
    );
    driver.activate(&mut config).unwrap();
    assert!(driver.activate(&mut config).is_err());
    config.reset();
    config.set_size(SIZE + 1);
    assert_eq!(config.size(), SIZE);
    assert!(driver.activate(&mut config).is_err());
    config.set_size(3);
    config.set_ready(true);
    assert!(driver.activate(&mut config).is_err());
    config.set_ready(false);
    config.set_size(2);
    config.set_used_ring(GuestAddress(u64::MAX));
    config.set_ready(true);
    assert!(driver.activate(&mut config).is_err());
    let packed = &mut driver.config(1 << VIRTIO_F_RING_PACKED);
    assert!(driver.activate(packed).is_err());
}

#[test]
#[should_panic(expected = "lie in memory")]
fn rings_outside_memory_panic_as_crosvms_do() {
    let driver = Driver::new();
    let mut config = driver.config(0);
    config.set_ready(false);
    config.set_avail_ring(GuestAddress(0x10_0000));
    config.set_ready(true);
    driver.activate(&mut config).unwrap().pop();
}

#[test]
fn a_snapshot_goes_on() {
    let mut driver = Driver::new();
    let mut config = driver.config(0);
    let mut queue = driver.activate(&mut config).unwrap();
    driver.descriptor(0, BUFFERS, 1, F_WRITE, 0);
    driver.offer(0);
    driver.offer(0);
    let chain = queue.pop().unwrap();
    queue.add_used(chain);
    let mut config2 = QueueConfig::new(SIZE, 0);
    config2.restore(config.snapshot().unwrap()).unwrap();
    assert!(config2.ready() && driver.activate(&mut config2).is_err());
    let mut queue2 = Queue::restore(
        &config2,
        queue.snapshot().unwrap(),
        &driver.mem,
        Event::new().unwrap(),
        driver.interrupt.clone(),
    )
    .unwrap();
    let chain = queue2.pop().unwrap();
    queue2.add_used(chain);
    assert_eq!(driver.get::<u16>(USED + 2), 2);
    queue.vhost_user_reclaim(2);
    assert_eq!(queue.next_avail_to_process(), 2);
    assert!(queue.pop().is_none());
}
