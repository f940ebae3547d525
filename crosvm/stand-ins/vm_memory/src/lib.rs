// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for crosvm's `vm_memory`: guest memory in memfds. Host tests only;
//! never built by Soong.
//!
//! Not to be confused with rust-vmm's `vm-memory`, whose library has the same
//! name: no crate may depend on both.

mod guest_address;
pub mod guest_memory;
mod mapping;

pub use crate::guest_address::GuestAddress;
pub use crate::guest_memory::{
    BackingObject, Error as GuestMemoryError, FileBackedMappingParameters, GuestMemory,
    MemoryRegionInformation, MemoryRegionOptions, MemoryRegionPurpose, Result,
};
