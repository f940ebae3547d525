// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio-vsock device that is right on every kernel.

pub mod address;
pub mod compat;
pub mod event;
pub mod features;
pub mod kernel;
pub mod memory;
pub mod rate_limit;
