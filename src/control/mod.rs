// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control interface: what `aidl/android/system/vsock/` promises, for the devices of
//! this process.
//!
//! - [`binder`]: the interface's names, whichever binder there is, its server and client;
//! - [`socket`]: the socket in the file system; `service`, `device`: the objects behind it;
//! - `callbacks`: threads that tell clients what happens; `convert`: our types as theirs;
//! - [`client`]: the other side, for programs that ask.
//!
//! # Nothing here can hold up a guest
//!
//! A client's call runs on a thread of that client's. It asks the device through a bounded
//! [`Mailbox`](crate::mailbox::Mailbox); the device's thread answers between two turns of
//! the data path and never touches a client's socket. Callbacks go the other way through
//! bounded queues, each emptied by a thread of its own: what does not fit is dropped and
//! counted.

pub mod binder;
mod callbacks;
pub mod client;
mod convert;
mod device;
mod service;
pub mod socket;

pub use device::{Backend, Device};
pub use service::Service;
