// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of the driver's ring against a device side of a few lines.

use super::*;
use crate::bus::Addressing;
use crate::memory::{default_layout, GuestMemory};

fn ring(size: u16, event_idx: bool, indirect: bool, addressing: Addressing) -> Ring {
    let memory = Arc::new(GuestMemory::new(&default_layout()).unwrap());
    let config = RingConfig {
        size,
        event_idx,
        indirect,
        within: None,
    };
    Ring::new(Arc::new(AddressSpace::new(memory, &addressing)), config).unwrap()
}

fn segments(n: usize) -> Vec<Segment> {
    (0..n)
        .map(|i| Segment {
            addr: BusAddr(0x1000 * i as u64),
            len: 10 + i as u32,
        })
        .collect()
}

fn u16_at(ring: &Ring, addr: BusAddr) -> u16 {
    ring.space.load_u16(addr, Ordering::SeqCst).unwrap()
}

/// The device: returns the head that was made available as number `index`.
fn device_use(ring: &Ring, index: u16, len: u32) -> u16 {
    let (a, n) = (ring.addresses(), ring.config.size);
    let head = u16_at(ring, a.avail.at(4 + 2 * u64::from(index % n)));
    device_return(ring, index, u32::from(head), len);
    head
}

fn device_return(ring: &Ring, index: u16, id: u32, len: u32) {
    let (a, n) = (ring.addresses(), ring.config.size);
    let mut element = [0; 8];
    element[..4].copy_from_slice(&id.to_le_bytes());
    element[4..].copy_from_slice(&len.to_le_bytes());
    let at = a.used.at(4 + 8 * u64::from(index % n));
    ring.space.write(at, &element).unwrap();
    let next = index.wrapping_add(1);
    ring.space
        .store_u16(a.used.at(2), next, Ordering::SeqCst)
        .unwrap();
}

fn descriptor(ring: &Ring, table: BusAddr, index: u16) -> Descriptor {
    let mut b = [0; 16];
    let at = table.at(16 * u64::from(index));
    ring.space.read(at, &mut b).unwrap();
    Descriptor {
        addr: BusAddr(u64::from_le_bytes(b[..8].try_into().unwrap())),
        len: u32::from_le_bytes(b[8..12].try_into().unwrap()),
        flags: u16::from_le_bytes(b[12..14].try_into().unwrap()),
        next: u16::from_le_bytes(b[14..].try_into().unwrap()),
    }
}

#[test]
fn sizes_are_checked() {
    let memory = Arc::new(GuestMemory::new(&default_layout()).unwrap());
    let space = Arc::new(AddressSpace::new(memory, &Addressing::Physical));
    for size in [0u16, 1, 3, 100, 32769] {
        let config = RingConfig {
            size,
            event_idx: false,
            indirect: false,
            within: None,
        };
        assert!(matches!(
            Ring::new(space.clone(), config),
            Err(RingError::BadSize(s)) if s == size
        ));
    }
    for size in [2, MAX_SIZE] {
        ring(size, true, true, Addressing::paged(9));
    }
}

#[test]
fn indices_wrap_around_u16() {
    for addressing in [Addressing::Physical, Addressing::paged(1)] {
        let mut ring = ring(8, true, false, addressing);
        ring.reset(65_500).unwrap();
        for i in 0..200u16 {
            let index = 65_500u16.wrapping_add(i);
            assert_eq!(ring.state().next_avail, index);
            let head = ring.add(&segments(2), &segments(1)).unwrap();
            ring.publish_and_kick().unwrap();
            assert_eq!(
                u16_at(&ring, ring.addresses().avail.at(2)),
                index.wrapping_add(1)
            );
            assert_eq!(device_use(&ring, index, 5), head);
            assert_eq!(ring.pop_used().unwrap(), Some(Used { head, len: 5 }));
            assert_eq!(ring.pop_used().unwrap(), None);
        }
        assert_eq!(ring.state().free, 8);
    }
}

#[test]
fn a_chain_is_laid_out_as_the_standard_says() {
    use descriptor_flags::{INDIRECT, NEXT, WRITE};
    for indirect in [false, true] {
        let mut ring = ring(8, false, indirect, Addressing::Physical);
        let head = ring.add(&segments(2), &segments(1)).unwrap();
        let mut table = ring.addresses().desc;
        let mut index = head;
        if indirect {
            let outer = descriptor(&ring, table, head);
            assert_eq!((outer.flags, outer.len), (INDIRECT, 48));
            (table, index) = (outer.addr, 0);
            assert_eq!(ring.state().free, 7);
        } else {
            assert_eq!(ring.state().free, 5);
        }
        for (len, flags) in [(10, NEXT), (11, NEXT), (10, WRITE)] {
            let d = descriptor(&ring, table, index);
            assert_eq!((d.len, d.flags), (len, flags));
            index = d.next;
        }
    }
}

#[test]
fn a_full_ring_says_so_and_recovers_out_of_order() {
    let mut ring = ring(4, false, false, Addressing::Physical);
    let heads: Vec<_> = (0..2)
        .map(|_| ring.add(&segments(2), &[]).unwrap())
        .collect();
    assert!(matches!(ring.add(&segments(1), &[]), Err(RingError::Full)));
    assert!(matches!(
        ring.add(&segments(5), &[]),
        Err(RingError::BadChain { len: 5, size: 4 })
    ));
    ring.publish().unwrap();
    device_return(&ring, 0, u32::from(heads[1]), 0);
    assert_eq!(ring.pop_used().unwrap().unwrap().head, heads[1]);
    ring.add(&[], &segments(2)).unwrap();
    assert!(matches!(ring.add(&segments(1), &[]), Err(RingError::Full)));
}

#[test]
fn a_device_that_lies_is_caught() {
    let mut ring = ring(4, false, false, Addressing::Physical);
    ring.add(&segments(1), &[]).unwrap();
    ring.publish().unwrap();
    device_return(&ring, 0, 3, 0);
    assert!(matches!(ring.pop_used(), Err(RingError::BadUsedId(3))));
    device_return(&ring, 0, 70_000, 0);
    assert!(matches!(ring.pop_used(), Err(RingError::BadUsedId(70_000))));
    device_return(&ring, 1, 0, 0);
    assert!(matches!(
        ring.pop_used(),
        Err(RingError::BadUsedIndex { used: 2, .. })
    ));
}

#[test]
fn event_index_arithmetic() {
    assert!(need_event(0, 1, 0));
    assert!(!need_event(1, 1, 0));
    assert!(!need_event(5, 5, 0));
    assert!(need_event(4, 5, 0));
    assert!(!need_event(0, 5, 1));
    assert!(need_event(65_535, 0, 65_535));
    assert!(need_event(65_535, 3, 65_530));
    assert!(!need_event(65_529, 3, 65_530));
    assert!(!need_event(3, 3, 65_530));
}

#[test]
fn kicks_only_when_the_device_wants_them() {
    for event_idx in [false, true] {
        let mut ring = ring(8, event_idx, false, Addressing::Physical);
        let used = ring.addresses().used;
        let add = |ring: &mut Ring, flags: u16, event: u16| {
            ring.space.store_u16(used, flags, Ordering::SeqCst).unwrap();
            let at = used.at(4 + 8 * 8);
            ring.space.store_u16(at, event, Ordering::SeqCst).unwrap();
            ring.add(&segments(1), &[]).unwrap();
            let kicked = ring.publish_and_kick().unwrap();
            assert_eq!(ring.kick.take().unwrap() > 0, kicked);
            kicked
        };
        assert!(add(&mut ring, 0, 0));
        // Flags count only without EVENT_IDX, the event index only with it.
        assert_eq!(add(&mut ring, 1, 1), event_idx);
        assert_eq!(add(&mut ring, 0, 5), !event_idx);
        assert!(!ring.publish_and_kick().unwrap());
    }
}

#[test]
fn calls_are_asked_for_and_suppressed() {
    let mut ring = ring(8, true, false, Addressing::Physical);
    ring.reset(65_535).unwrap();
    let used_event = ring.addresses().avail.at(4 + 2 * 8);
    assert_eq!(u16_at(&ring, used_event), 65_535);
    ring.disable_call().unwrap();
    let suppressed = u16_at(&ring, used_event);
    assert!(!need_event(suppressed, 5, 65_535));
    ring.add(&[], &segments(1)).unwrap();
    ring.publish().unwrap();
    device_use(&ring, 65_535, 1);
    assert!(ring.enable_call().unwrap());
    ring.pop_used().unwrap().unwrap();
    assert!(!ring.enable_call().unwrap());
    assert_eq!(u16_at(&ring, used_event), 0);
}

#[test]
fn reserved_descriptors_come_back() {
    let mut ring = ring(4, false, false, Addressing::Physical);
    let mine = ring.reserve(3).unwrap();
    assert!(ring.reserve(2).is_err());
    ring.add_unchecked(mine[0]).unwrap();
    ring.publish().unwrap();
    device_return(&ring, 0, u32::from(mine[0]), 1);
    assert_eq!(ring.pop_used().unwrap().unwrap().head, mine[0]);
    ring.release(&mine);
    assert_eq!(ring.state().free, 4);
    ring.add(&segments(4), &[]).unwrap();
}
