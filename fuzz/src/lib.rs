// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What strangers can say to the device, as functions of bytes: each target reads its
//! bytes as a story, plays it against the real code and panics where the device breaks
//! a promise.
//!
//! Two drivers share them: `cargo fuzz run NAME` (libFuzzer, nightly) looks for stories
//! that lead to new code, and the test `fuzz` of the main crate plays seeded random ones
//! wherever `cargo test` runs. So nothing here names the crate it is compiled into.
//!
//! | target | who talks | held against |
//! |---|---|---|
//! | [`packets`] | two guests of one process, and host programs around them | the rings' and the protocol's rules |
//! | [`iotlb`] | the kernel, and whoever changes translations | a list of entries that behaves as vhost's |
//! | [`vhost_user`] | a front end, with descriptors of any sort | that the thread ends when told to |
//! | [`handshake`] | a host client, in pieces | a naive reader of the line |

mod input;
mod memory;
mod programs;

pub mod handshake;
pub mod iotlb;
pub mod packets;
pub mod vhost_user;
