// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio-vsock guest driver that runs inside a test process.

pub mod bus;
pub mod check;
pub mod config;
mod connection;
mod credit;
mod dispatch;
mod driver;
mod engine;
pub mod eventfd;
mod inbox;
pub mod memory;
pub mod packet;
pub mod queues;
pub mod raw;
pub mod ring;
pub mod rng;
mod stream;

pub use config::GuestConfig;
pub use driver::{Guest, QueueSetup};
pub use inbox::Message;
pub use packet::SocketType;
pub use raw::Raw;
pub use stream::{Listener, Stream};
