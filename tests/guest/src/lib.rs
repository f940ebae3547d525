// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio-vsock guest driver that runs inside a test process.
//!
//! It plays the guest against any device that takes memory regions, ring
//! addresses and eventfds: the kernel's vhost-vsock, a vhost-user daemon, a
//! device in the same process. It is written from VIRTIO 1.2 (2.6, 2.7, 5.10)
//! alone and shares no code with the devices it tests.
//!
//! ```no_run
//! use std::io::{Read, Write};
//!
//! use guest_driver::bus::Addressing;
//! use guest_driver::{Guest, GuestConfig, SocketType};
//!
//! # fn start_device(_: &Guest) {}
//! # fn main() -> std::io::Result<()> {
//! let guest = Guest::new(GuestConfig {
//!     cid: 42,
//!     addressing: Addressing::paged(1), // IOVAs; Physical is the default
//!     ..GuestConfig::default()
//! })?;
//! for region in guest.memory().regions() {
//!     println!("{:?} + {:#x} at {:#x}", region.gpa, region.size, region.hva);
//! }
//! let [rx, tx, event] = guest.queues(); // sizes, bus addresses, eventfds
//! start_device(&guest);
//!
//! let mut stream = guest.connect(2, 1234, SocketType::STREAM)?;
//! stream.write_all(b"hello")?;
//! stream.shutdown(std::net::Shutdown::Write)?;
//! let mut answer = Vec::new();
//! stream.read_to_end(&mut answer)?;
//! stream.close()?;
//!
//! let listener = guest.listen(5000, SocketType::SEQPACKET)?;
//! let connection = listener.accept()?;
//! let mut message = Vec::new();
//! while let Some(info) = connection.recv_msg(&mut message)? {
//!     connection.send_msg(&message, info.eor)?;
//! }
//! assert!(guest.take_violations().is_empty(), "the device broke a rule");
//! # Ok(())
//! # }
//! ```
//!
//! Where things are, from the bottom up:
//! - [`memory`]: regions of guest memory, their pages, patterns in them;
//! - [`bus`]: bus addresses, which are guest-physical addresses or IOVAs
//!   scattered page by page; what a test's vIOMMU answers from;
//! - [`ring`]: split virtqueues; [`queues`]: the three of this device;
//! - [`packet`]: headers and their constants;
//! - [`Guest`], [`Listener`], [`Stream`]: sockets that block, but never longer
//!   than [`GuestConfig::timeout`];
//! - [`raw`]: the rings by hand, for tests that break the rules;
//! - [`config`]: what a guest is made of, what it reports;
//! - `vhost_user`: the VMM's side of vhost-user, `viommu`: its vIOMMU (feature
//!   `vhost-user-frontend`);
//! - [`check`]: data that can be verified wherever it arrives.
//!
//! GPA, HVA and bus address of a byte are three different numbers (in
//! physical mode two), so a device that confuses them fails at once.

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
mod split;
mod stream;
#[cfg(feature = "vhost-user-frontend")]
pub mod vhost_user;
#[cfg(feature = "vhost-user-frontend")]
pub mod viommu;

pub use config::GuestConfig;
pub use driver::{Guest, QueueSetup};
pub use inbox::Message;
pub use packet::SocketType;
pub use raw::Raw;
pub use stream::{Listener, Stream};
