// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a device of its own crate is made and jailed.

use anyhow::Result;
use hypervisor::{ProtectionType, Vm};
use jail::JailConfig;
use minijail::Minijail;
use resources::SystemAllocator;
use serde::{de::DeserializeOwned, Serialize};
use vm_control::AnyControlTube;

use crate::virtio::VirtioDevice;

/// What a module may use to make its device.
pub struct VirtioDeviceArgs<'a> {
    /// The VM.
    pub vm: &'a dyn Vm,
    /// Addresses and interrupts to be had.
    pub resources: &'a mut SystemAllocator,
    /// Hands a tube to the VM's control loop.
    pub add_control_tube: &'a mut dyn FnMut(AnyControlTube),
    /// How far the guest's memory is kept from the host.
    pub protection_type: ProtectionType,
}

/// The options of a device, which make the device.
pub trait VirtioDeviceModule: Serialize + DeserializeOwned {
    /// The device's place in crosvm's order of PCI devices.
    fn sort_name(&self) -> &'static str;

    /// Makes the device.
    fn create(&self, cx: &mut VirtioDeviceArgs<'_>) -> Result<Box<dyn VirtioDevice>>;

    /// Makes the jail for the device's process; none to run in crosvm's own.
    fn create_jail(&self, jail_config: &JailConfig) -> Result<Option<Minijail>>;
}
