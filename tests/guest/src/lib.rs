// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio-vsock guest driver that runs inside a test process.

pub mod bus;
pub mod eventfd;
pub mod memory;
pub mod packet;
pub mod ring;
pub mod rng;
