// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fuzz targets of `fuzz/` on seeded random stories: what can be said with a stable
//! compiler and in seconds. A failure names its seed and its story's length:
//! `VSOCK_FUZZ_SEED` plays that one again, `VSOCK_FUZZ_STORIES` asks for more of them.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::panic::{catch_unwind, resume_unwind};

use guest_driver::rng::Rng;

fn asked(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().expect("a number"))
}

fn play(target: fn(&[u8]), seed: u64) {
    let mut rng = Rng::new(seed);
    let len = rng.up_to(1500);
    let story: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
    if let Err(panic) = catch_unwind(|| target(&story)) {
        eprintln!("the story of seed {seed} ({len} bytes) ends badly");
        resume_unwind(panic);
    }
}

fn stories(target: fn(&[u8]), usual: u64) {
    if let Some(seed) = asked("VSOCK_FUZZ_SEED") {
        return play(target, seed);
    }
    for seed in 0..asked("VSOCK_FUZZ_STORIES").unwrap_or(usual) {
        play(target, seed);
    }
}

#[test]
fn packets() {
    stories(targets::packets::run, 1500);
}

#[test]
fn iotlb() {
    stories(targets::iotlb::run, 500);
}

#[test]
fn vhost_user() {
    stories(targets::vhost_user::run, 400);
}

#[test]
fn handshake() {
    stories(targets::handshake::run, 5000);
}
