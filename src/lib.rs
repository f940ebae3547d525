// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio-vsock device that is right on every kernel.

pub mod address;
#[cfg(feature = "userspace")]
pub mod epoll;
pub mod features;
#[cfg(feature = "userspace")]
pub mod memory;
#[cfg(feature = "userspace")]
pub mod path;
#[cfg(feature = "userspace")]
pub mod userspace;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;
