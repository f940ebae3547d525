// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio-vsock device that is right on every kernel.
//!
//! # What a vsock is
//!
//! `AF_VSOCK` connects a guest and its host without a network. An address is a
//! [`Cid`](address::Cid) (the host is 2, a guest 3 or above) and a
//! [`Port`](address::Port). The device (VIRTIO 1.2, 5.10) has a receive queue, a
//! transmit queue and an event queue; packets carry a 44-byte header with an
//! operation: REQUEST and RESPONSE open a connection, RW carries data,
//! CREDIT_UPDATE and CREDIT_REQUEST keep the sender inside the receiver's buffer,
//! SHUTDOWN closes either direction, RST ends it or refuses it.
//!
//! # Why this device exists
//!
//! Feature bit 33 has two meanings. `VIRTIO_F_ACCESS_PLATFORM` tells a *guest* to
//! use the platform's DMA API; since Linux 5.12 the *host kernel's* vhost-vsock
//! takes the same bit as "translate every address through the device IOTLB". A
//! device that hands the guest's acknowledgement down fails to start, as Android
//! found in 2022; one that always masks the bit can never confine the kernel to
//! what the guest shared. This one knows both readings and a separate IOTLB bit,
//! and serves the IOTLB.
//!
//! # Where everything is
//!
//! Imports point one way, from the top of this list to the bottom:
//!
//! | module | what it holds |
//! |---|---|
//! | `control` | the control interface: the AIDL service, its socket, a client |
//! | `vhost_user` | the device side of vhost-user: front ends, one thread a VM |
//! | `mailbox` | the way from any thread to the thread of a device |
//! | `path` | what a front end and a data path ask of each other |
//! | `management`, `watchers` | what an operator asks of a device, and is told by it |
//! | `userspace` | the data path in this process: Unix sockets, siblings, AF_VSOCK |
//! | [`kernel`] | the data path through `/dev/vhost-vsock`: life cycle, IOTLB service, probe |
//! | [`compat`] | the shim: which bits go where, and in which sense addresses are read |
//! | [`memory`] | where guest memory lies |
//! | `guest_memory`, `epoll` | guest memory mapped here; the event loop |
//! | [`event`], [`rate_limit`] | eventfd and poll; a limit for guest-driven log lines |
//! | [`features`] | feature bits, named, with the specification's sentence |
//! | [`address`] | `BusAddr`, `Gpa`, `Iova`, `Hva`, `Cid`, `Port`: numbers with a sense |
//!
//! # Running a device
//!
//! ```no_run
//! use std::path::Path;
//! use crosvm_vsock::compat::{offer, IotlbBit, Vm};
//! use crosvm_vsock::features::FeatureSet;
//! use crosvm_vsock::kernel::{Activation, VhostVsock};
//!
//! # fn from_the_vmm(offered: FeatureSet) -> Activation<'static> { unimplemented!() }
//! # fn main() -> Result<(), crosvm_vsock::kernel::Error> {
//! let mut device = VhostVsock::open(Path::new(VhostVsock::PATH))?;
//! device.own()?;
//! let offered = offer(Vm::Protected, IotlbBit::default(), device.features(), FeatureSet::EMPTY);
//! // ... the guest acknowledges, the VMM says where memory and queues are ...
//! let monitor = device.activate(&from_the_vmm(offered))?;
//! let stop = crosvm_vsock::event::EventFd::new().expect("a free descriptor");
//! std::thread::spawn(move || {
//!     use std::os::fd::AsFd;
//!     monitor.run(stop.as_fd(), |failure| eprintln!("the device needs a reset: {failure}"))
//! });
//! let bases = device.stop()?;
//! # Ok(())
//! # }
//! ```

pub mod access;
pub mod address;
#[cfg(feature = "userspace")]
pub mod bus;
pub mod compat;
#[cfg(feature = "control")]
pub mod control;
#[cfg(feature = "userspace")]
pub mod epoll;
pub mod event;
pub mod features;
#[cfg(feature = "userspace")]
pub mod guest_memory;
pub mod kernel;
#[cfg(feature = "userspace")]
pub mod mailbox;
#[cfg(feature = "userspace")]
pub mod management;
pub mod memory;
#[cfg(feature = "userspace")]
pub mod path;
pub mod rate_limit;
#[cfg(feature = "userspace")]
pub mod userspace;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;
#[cfg(feature = "userspace")]
pub mod watchers;
