// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random chunks, descriptor splits, ring sizes, features, credit and endings; every byte
//! is checked. A failure names its seed: put it into `SEEDS`' place to see it again.
//!
//! `VSOCK_TEST_ROUNDS` asks for more rounds, `VSOCK_TEST_PACKETS` for another soak.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guest_driver::check::{receive, send, Pieces};
use guest_driver::packet::Op;
use guest_driver::queues::{Chunking, RxConfig, Split};
use guest_driver::rng::Rng;
use guest_driver::{GuestConfig, SocketType, Stream};

use crate::harness::{accept, wait_until, Vm};

fn asked(variable: &str, otherwise: u64) -> u64 {
    let value = std::env::var(variable).ok();
    value.map_or(otherwise, |text| text.parse().expect("a number"))
}

/// One of several, by the seed.
fn pick<T: Clone>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.up_to(choices.len()) - 1].clone()
}

fn random_split(rng: &mut Rng) -> Split {
    let every = 1 + rng.up_to(2000);
    let random = 1 + rng.up_to(3000);
    let cut = rng.up_to(60);
    pick(
        rng,
        &[
            Split::Whole,
            Split::header_apart(),
            Split::At(vec![cut]),
            Split::Every(every.max(40)),
            Split::Random(random.max(60)),
        ],
    )
}

fn random_guest(rng: &mut Rng, config: &mut GuestConfig) {
    config.seed = rng.next_u64();
    config.event_idx = pick(rng, &[true, false]);
    config.indirect = pick(rng, &[true, false]);
    let sizes = [4u16, 16, 64, 256, 1024];
    config.ring_sizes = [pick(rng, &sizes), pick(rng, &sizes), 16];
    config.rx = RxConfig {
        buffers: rng.up_to(200),
        size: pick(rng, &[100, 1500, 4096, 4096, 20_000, 64 << 10]),
        split: random_split(rng),
    };
    config.tx.split = random_split(rng);
    config.tx.chunking = match rng.up_to(3) {
        1 => Chunking::Max,
        2 => Chunking::Random(rng.up_to(5000)),
        _ => Chunking::Fixed(rng.up_to(3000)),
    };
    config.buf_alloc = pick(rng, &[1000, 8192, 64 << 10, 256 << 10]);
}

/// Both directions at once, each with its own pieces and seed, and then the end.
fn talk(guest: &Stream, host: &UnixStream, total: u64, rng: &mut Rng) {
    let mut pieces = || Pieces::Random {
        max: 1 + rng.up_to(30_000),
        seed: rng.next_u64(),
    };
    let (a, b, c, d) = (pieces(), pieces(), pieces(), pieces());
    let hold = rng.up_to(4) == 1;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send(guest, 1, total, a).unwrap();
            guest.shutdown(Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            send(host, 2, total, b).unwrap();
            host.shutdown(Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            if hold {
                guest.hold_credit(true).unwrap();
                std::thread::sleep(Duration::from_millis(30));
                guest.hold_credit(false).unwrap();
            }
            receive(guest, 2, total, c).unwrap();
            assert_eq!((&*guest).read(&mut [0]).unwrap(), 0);
        });
        receive(host, 1, total, d).unwrap();
        assert_eq!((&*host).read(&mut [0]).unwrap(), 0);
    });
}

fn round(seed: u64) {
    let mut rng = Rng::new(seed);
    let buf_alloc = pick(&mut rng, &[4096, 64 << 10, 1 << 20]);
    let mut guest_rng = Rng::new(rng.next_u64());
    let vm = Vm::with(
        |c| c.limits.buf_alloc = buf_alloc,
        |g| random_guest(&mut guest_rng, g),
    );
    let listener = vm.device.listen(70);
    let guest_listener = vm.guest.listen(50, SocketType::STREAM).unwrap();
    let pairs: Vec<_> = (0..rng.up_to(4))
        .map(|_| {
            if rng.up_to(2) == 1 {
                let guest = vm.guest.connect(2, 70, SocketType::STREAM).unwrap();
                (guest, accept(&listener))
            } else {
                let host = vm.device.dial(50).unwrap();
                (guest_listener.accept().unwrap(), host)
            }
        })
        .collect();
    let total = 1 + rng.up_to(150_000) as u64;
    let rngs: Vec<_> = pairs.iter().map(|_| Rng::new(rng.next_u64())).collect();
    std::thread::scope(|scope| {
        for ((guest, host), mut rng) in pairs.iter().zip(rngs) {
            scope.spawn(move || talk(guest, host, total, &mut rng));
        }
    });
    drop(pairs);
    wait_until("all connections end", || vm.guest.open_connections() == 0);
    vm.assert_clean();
}

#[test]
fn every_byte_arrives_whatever_the_shape_of_things() {
    let rounds = asked("VSOCK_TEST_ROUNDS", 25);
    let first = asked("VSOCK_TEST_SEED", 1);
    for seed in first..first + rounds {
        let result = std::panic::catch_unwind(|| round(seed));
        if let Err(panic) = result {
            eprintln!("seed {seed}: VSOCK_TEST_SEED={seed} VSOCK_TEST_ROUNDS=1 shows it again");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Random packets, well-formed and not, on random connections: the device answers for
/// itself, and lives.
#[test]
fn random_packets_do_no_harm() {
    let rounds = asked("VSOCK_TEST_ROUNDS", 25);
    for seed in 1..=rounds {
        let mut rng = Rng::new(seed);
        let vm = Vm::start();
        let _listeners = [vm.device.listen(70), vm.device.listen(71)];
        {
            let raw = vm.guest.raw();
            for _ in 0..300 {
                let mut header = crate::harness::header(
                    Op(rng.up_to(9) as u16 - 1),
                    rng.up_to(3) as u32,
                    69 + rng.up_to(3) as u32,
                );
                let payload = vec![0xee; rng.up_to(3000) - 1];
                header.len = payload.len() as u32;
                header.flags = rng.up_to(4) as u32 - 1;
                header.buf_alloc = pick(&mut rng, &[0, 100, 65536, u32::MAX]);
                header.fwd_cnt = pick(&mut rng, &[0, 100, u32::MAX, 1 << 31]);
                match rng.up_to(10) {
                    1 => header.len = pick(&mut rng, &[0, u32::MAX, 1 << 31, 5000]),
                    2 => header.dst_cid = rng.next_u64(),
                    3 => header.src_cid = rng.next_u64(),
                    4 => header.socket_type = SocketType(rng.up_to(4) as u16 - 1),
                    _ => {}
                }
                raw.send(&header, &payload).unwrap();
                while raw.recv(Duration::ZERO).is_ok() {}
            }
        }
        vm.assert_alive();
    }
}

/// A million packets.
#[test]
fn soak() {
    let packets = asked("VSOCK_TEST_PACKETS", 1_000_000);
    let vm = Vm::with(|_| {}, |g| g.tx.chunking = Chunking::Random(64));
    let (guest, mut host) = vm.guest_connects(70);
    let echo = std::thread::spawn({
        let mut copy = host.try_clone().unwrap();
        move || {
            let mut buffer = [0; 8192];
            loop {
                match copy.read(&mut buffer).unwrap() {
                    0 => return copy.shutdown(Shutdown::Write).unwrap(),
                    len => host.write_all(&buffer[..len]).unwrap(),
                }
            }
        }
    });
    // About 32 bytes a packet there, and more on the way back.
    let total = packets * 32;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send(&guest, 1, total, Pieces::Of(16 << 10)).unwrap();
            guest.shutdown(Shutdown::Write).unwrap();
        });
        receive(&guest, 1, total, Pieces::Of(16 << 10)).unwrap();
    });
    echo.join().unwrap();
    assert!(vm.guest.stats().sent[usize::from(Op::RW.0)] >= packets * 9 / 10);
    vm.assert_clean();
}
