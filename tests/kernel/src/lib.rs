// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A model of the kernel's vhost-vsock, to run the kernel path on without one.
//!
//! [`ModelKernel`] answers every call of [`Vhost`](crosvm_vsock::kernel::Vhost)
//! as `drivers/vhost/vhost.c`, `vsock.c` and `iotlb.c` do, from 5.10 to 7.x, as
//! far as a caller can tell:
//!
//! - the four kinds of kernel, the IOTLB that stays on (6.1) or goes off with its
//!   bit (6.12, which then also forgets the ring addresses), the queue that asks
//!   for one address at a time (7.x);
//! - owner, feature, memory table and vring checks with the kernel's own errors;
//! - `VHOST_VSOCK_SET_RUNNING`'s synchronous look at both used rings;
//! - the IOTLB's table with its overlaps, whole-entry invalidation and silent
//!   eviction, and the two lists that a miss wanders through;
//! - the data path as far as addresses go: [`ModelKernel::access`] looks up what a
//!   queue handler would, with the same misses, error events and silences.
//!
//! On top it records every [`Call`], can make any of them fail, and keeps a list
//! of [violations](ModelKernel::violations): things that some kernel forgives and
//! the rules of the kernel path forbid.
//!
//! [`Bench`] is the set-up that tests share: guest memory, queues, a device.
//!
//! Limits: no packet moves, no memory is touched (host addresses are numbers),
//! and one thread at a time is inside a call. Whether the model is right about
//! real kernels is for the kernel lab to say, which runs the device on them.

mod answers;
pub mod bench;
mod call;
mod data_path;
mod fault;
mod iotlb;
mod kernel;
mod message;
mod page_table;
mod state;
mod vring;

pub use bench::{Bench, Place};
pub use call::{name, Call};
pub use data_path::Outcome;
pub use iotlb::Entry;
pub use kernel::{Host, ModelKernel};
pub use message::{Message, MESSAGE_SIZE};
pub use page_table::PageTable;
