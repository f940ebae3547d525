// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device side of vhost-user: any VMM with a vhost-user socket device can be the
//! front end of a [`DataPath`](crate::path::DataPath).
//!
//! The protocol is rust-vmm's `vhost` crate. Its companion `vhost-user-backend` is left
//! out: it owns the event loop and the vrings, hands a back end one kick at a time and
//! processes rings through a lock, which stands in the way of all that makes the data
//! path fast: one loop for queues and sockets alike, and one publication a batch.
//!
//! - `requests`: what a front end may ask; [`front`]: what it adds up to; `vring`: of one
//!   ring; `shared_memory`: guest memory;
//! - `iotlb`: the messages of a VMM with a vIOMMU;
//! - [`kernel_path`]: `/dev/vhost-vsock` as such a data path; `event_queue`: the queue that
//!   vhost-vsock leaves to others;
//! - [`worker`]: a VM's thread: the socket, the event loop, the data path's turns.

mod event_queue;
pub mod front;
mod iotlb;
pub mod kernel_path;
mod requests;
mod shared_memory;
mod vring;
pub mod worker;
