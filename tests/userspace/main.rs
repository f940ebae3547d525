// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The userspace device as a VMM, its guest and host programs see it: real vhost-user,
//! real rings in shared memory, real sockets; the guest is the driver of `guest_driver`.

mod besides_bytes;
mod conformance_chains;
mod conformance_credit;
mod conformance_handshake;
mod conformance_hybrid;
mod conformance_seqpacket;
mod conformance_shutdown;
mod conformance_siblings;
mod forwarding;
mod front_ends;
mod harness;
mod hostile;
mod kernel_path;
mod limits;
mod property;
mod spin;
mod viommu;
