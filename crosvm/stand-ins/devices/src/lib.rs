// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for crosvm's `devices`: what a virtio device of its own crate sees
//! of crosvm. Host tests only; never built by Soong.
//!
//! Paths and signatures are crosvm's; the code is this project's and holds only
//! what the plugin uses. Queues really work, on split rings; interrupts are
//! eventfds.
//!
//! Limits: no packed rings, no MMIO transport, none of the methods of
//! [`VirtioDevice`](virtio::VirtioDevice) for BARs, ACPI, shared memory and boot
//! order.
//!
//! [`harness`] is this stand-in's own. crosvm has no such module, so only tests may
//! use it.

pub mod acpi;
pub mod device_module;
pub mod harness;
mod irq_event;
mod pci;
pub mod virtio;

pub use crate::device_module::{VirtioDeviceArgs, VirtioDeviceModule};
pub use crate::irq_event::{IrqEdgeEvent, IrqLevelEvent};
#[cfg(feature = "msix-status")]
pub use crate::pci::MsixStatus;
