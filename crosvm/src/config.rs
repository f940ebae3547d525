// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device is made to: its options, checked and in the kernel path's terms.

use crosvm_vsock::address::{Gpa, GuestCid, Range};
use crosvm_vsock::compat::{IotlbBit, Vm};
use crosvm_vsock::features::FeatureSet;

use crate::guest_memory::QUEUES;

/// A device's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The guest's CID.
    pub cid: GuestCid,
    /// What stands between the guest and its memory.
    pub vm: Vm,
    /// crosvm's base features for the VM.
    pub base_features: FeatureSet,
    /// The bit that stands for the IOTLB on a split kernel.
    pub iotlb_bit: IotlbBit,
    /// How the kernel is confined.
    pub confinement: Confinement,
    /// The most descriptors of each queue.
    pub queue_sizes: [u16; QUEUES],
}

/// What the kernel may reach of guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// All of it, without an IOTLB.
    None,
    /// All of it, through the IOTLB.
    Identity,
    /// The restricted-DMA pool that crosvm has laid out, and these ranges.
    Restricted(Vec<Range<Gpa>>),
}
