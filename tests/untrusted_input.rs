// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes that a guest or a client chooses, at random and made to be close to sense: what
//! reads them comes to an end, stays within guest memory, and never panics.
//!
//! `VSOCK_TEST_ROUNDS` asks for more.
//!
//! `unsafe` here: memory of this process stands for the guest's.

use std::io::IoSlice;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

use crosvm_vsock::address::{Gpa, Hva};
use crosvm_vsock::bus::Bus;
use crosvm_vsock::guest_memory::{GuestMemory, Segment};
use crosvm_vsock::memory::{MemoryMap, Region};
use crosvm_vsock::path::Queue;
use crosvm_vsock::userspace::hybrid::{read_line, Line};
use crosvm_vsock::userspace::packet::{Header, SocketType, HEADER_LEN};
use crosvm_vsock::userspace::ring::{Direction, SplitRing};
use crosvm_vsock::userspace::socket::Socket;
use guest_driver::rng::Rng;

const PAGE: usize = 4096;
/// Two regions that touch in guest addresses.
const PAGES: usize = 4;
const FIRST: u64 = 0x1_0000;
const SIZE: u16 = 16;

#[repr(align(4096))]
struct Backing([AtomicU8; PAGES * PAGE]);

fn rounds(otherwise: u64) -> u64 {
    let value = std::env::var("VSOCK_TEST_ROUNDS").ok();
    value.map_or(otherwise, |text| text.parse().expect("a number"))
}

fn memory() -> (Arc<Backing>, Arc<GuestMemory>) {
    let backing = Arc::new(Backing([const { AtomicU8::new(0) }; PAGES * PAGE]));
    let half = (PAGES / 2 * PAGE) as u64;
    let host = backing.0.as_ptr() as u64;
    let region = |at| Region::new(Gpa(FIRST + at), Hva(host + at), half).unwrap();
    let map = MemoryMap::new(vec![region(0), region(half)]).unwrap();
    // SAFETY: `backing` lives as long as the memory, and is made of atomics: nothing here
    // holds a reference that excludes writes.
    let memory = unsafe { GuestMemory::new(map, backing.clone()) };
    (backing, Arc::new(memory))
}

fn put(backing: &Backing, at: usize, bytes: &[u8]) {
    for (place, byte) in backing.0[at..].iter().zip(bytes) {
        place.store(*byte, Ordering::Relaxed);
    }
}

/// A descriptor as a guest might write it that means harm: often close to a good one.
fn descriptor(rng: &mut Rng) -> [u8; 16] {
    let end = FIRST + (PAGES * PAGE) as u64;
    let address = match rng.up_to(8) {
        1 => rng.next_u64(),
        2 => end - rng.up_to(64) as u64,
        3 => u64::MAX - rng.up_to(64) as u64,
        // The table itself: an indirect one, too.
        4 => FIRST + 16 * (rng.up_to(32) as u64 - 1),
        _ => FIRST + rng.up_to(PAGES * PAGE) as u64,
    };
    let len = match rng.up_to(6) {
        1 => rng.next_u64() as u32,
        2 => 0,
        3 => 16 * rng.up_to(40) as u32,
        _ => rng.up_to(5000) as u32,
    };
    let flags = rng.up_to(8) as u16 - 1;
    let next = match rng.up_to(4) {
        1 => rng.next_u64() as u16,
        _ => rng.up_to(usize::from(SIZE) + 2) as u16 - 1,
    };
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&address.to_le_bytes());
    raw[8..12].copy_from_slice(&len.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    raw
}

#[test]
fn chains_of_any_shape_are_walked_to_an_end() {
    let (backing, memory) = memory();
    let host = backing.0.as_ptr() as usize;
    let bus = Bus::new(memory.clone(), None);
    let (mut good, mut bad) = (0, 0);
    for seed in 0..rounds(3000) {
        let mut rng = Rng::new(seed);
        for place in 0..usize::from(SIZE) * 2 {
            put(&backing, 16 * place, &descriptor(&mut rng));
        }
        let (available, used) = (2 * PAGE, 3 * PAGE);
        put(&backing, available, &[0, 0]);
        put(&backing, available + 2, &SIZE.to_le_bytes());
        for slot in 0..usize::from(SIZE) {
            let head = rng.up_to(usize::from(SIZE) + 2) as u16 - 1;
            put(&backing, available + 4 + 2 * slot, &head.to_le_bytes());
        }
        let queue = Queue {
            size: SIZE,
            descriptors: Gpa(FIRST),
            available: Gpa(FIRST + available as u64),
            used: Gpa(FIRST + used as u64),
            base: 0,
            kick: None,
            call: None,
        };
        let indirect = rng.up_to(2) == 1;
        let direction = match rng.up_to(2) {
            1 => Direction::Readable,
            _ => Direction::Writable,
        };
        let mut ring = SplitRing::new(memory.clone(), &queue, true, indirect).unwrap();
        let mut taken = 0;
        let mut segments: Vec<Segment<'_>> = Vec::new();
        while let Some(chain) = ring.pop(&bus, direction, &mut segments).unwrap() {
            for segment in &segments {
                let start = segment.as_ptr() as usize;
                let end = start + segment.len();
                assert!(start >= host && end <= host + PAGES * PAGE, "seed {seed}");
            }
            // A descriptor is at most two segments here, and a chain no longer than the queue.
            assert!(segments.len() <= 2 * usize::from(SIZE), "seed {seed}");
            let total: usize = segments.iter().map(Segment::len).sum();
            match chain.buffers {
                Ok(len) => {
                    assert_eq!(total, len as usize, "seed {seed}");
                    good += 1;
                }
                Err(_) => bad += 1,
            }
            segments.clear();
            ring.push_used(chain.head, 0);
            taken += 1;
        }
        assert_eq!(taken, SIZE, "seed {seed}");
        ring.publish();
    }
    assert!(
        good > 1000 && bad > 1000,
        "{good} good, {bad} bad: nothing is tested"
    );
}

#[test]
fn headers_of_any_bytes_are_judged_and_keep_their_bytes() {
    for seed in 0..rounds(20_000) {
        let mut rng = Rng::new(seed);
        let raw: [u8; HEADER_LEN] = std::array::from_fn(|_| match rng.up_to(3) {
            1 => rng.next_u64() as u8,
            _ => rng.up_to(8) as u8 - 1,
        });
        let header = Header::from_bytes(&raw);
        assert_eq!(header.to_bytes(), raw);
        let _ = header.parse();
        // An answer is never answered.
        if let Some(reset) = header.reset() {
            assert_eq!(reset.reset(), None);
        }
    }
}

/// What clients say, whole and in pieces: whoever asks for a port in 32 bytes gets it, and
/// not a byte behind the line is taken.
#[test]
fn lines_of_any_bytes_are_read_to_their_end_and_no_further() {
    let (mut asked, mut nonsense) = (0, 0);
    for seed in 0..rounds(3000) {
        let mut rng = Rng::new(seed);
        let port = rng.next_u64() as u32 >> rng.up_to(31);
        let command = ["CONNECT ", "connect ", "CONNECT", "CONECT ", "GET "][rng.up_to(5) - 1];
        let blanks = " ".repeat(rng.up_to(20) - 1);
        let mut said = format!("{command}{blanks}{port}\n").into_bytes();
        if rng.up_to(3) == 1 {
            let place = rng.up_to(said.len()) - 1;
            said[place] = rng.next_u64() as u8;
        }
        let line = said.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let rest = b"and what follows";
        said.extend(rest);
        let (client, socket) = Socket::pair(SocketType::Stream).unwrap();
        let mut outcome = Line::Partial;
        for piece in said.chunks(rng.up_to(said.len())) {
            client.send_bytes(&[IoSlice::new(piece)]).unwrap();
            if outcome == Line::Partial {
                outcome = read_line(&socket, SocketType::Stream).unwrap();
            }
        }
        match outcome {
            Line::Connect(_) => {
                asked += 1;
                let line = line.expect("a line");
                assert!(line <= 32, "seed {seed}");
                let mut left = [0; 128];
                let len = socket.receive_bytes(&mut left).unwrap();
                assert_eq!(&left[..len], &said[line..], "seed {seed}");
            }
            Line::Nonsense => nonsense += 1,
            Line::Partial => assert!(said.len() < 32 && line.is_none(), "seed {seed}"),
            Line::Gone => panic!("seed {seed}: nobody has left"),
        }
    }
    assert!(
        asked > 500 && nonsense > 500,
        "{asked} asked, {nonsense} did not"
    );
}
