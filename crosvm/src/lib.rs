// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio-vsock device for crosvm, over the host kernel's vhost-vsock.
//!
//! [`VirtioVsockModule`] is what crosvm's command line becomes and what its config
//! holds: a `VirtioDeviceModule`, so that the device lives outside of crosvm's
//! `devices` crate. It creates a [`Vsock`], the `VirtioDevice`.
//!
//! What the guest and the kernel are told of the platform-access and IOTLB bits
//! is `crosvm_vsock::compat`'s to decide; the kernel itself is
//! `crosvm_vsock::kernel`'s to program. This crate is the part that knows crosvm:
//!
//! | module | what it holds |
//! |---|---|
//! | [`module`] | the options and the device module |
//! | [`config`] | the options in the kernel path's terms |
//! | [`device`] | crosvm's life cycle: new, active, inactive, asleep |
//! | `features` | what the guest was offered and acknowledged |
//! | `worker` | the thread of an active device: interrupts, the event queue, the monitor |
//! | `interrupts` | how the kernel's calls reach the guest |
//! | [`mod@snapshot`] | the snapshot's format and its checks |
//! | `guest_memory` | crosvm's memory and queues as the kernel path takes them |
//!
//! It builds against crosvm's crates inside a crosvm tree (`overlay/`), and against
//! stand-ins of the same names on a host; no line here knows which.

pub mod config;
pub mod device;
mod features;
mod guest_memory;
mod interrupts;
pub mod module;
pub mod snapshot;
mod worker;

pub use config::{Config, Confinement};
pub use device::Vsock;
pub use module::VirtioVsockModule;
