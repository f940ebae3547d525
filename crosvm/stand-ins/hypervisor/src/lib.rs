// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for crosvm's `hypervisor`: how far a VM is protected, and what a
//! device module may ask of it. Host tests only; never built by Soong.

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

/// A virtual machine; crosvm's trait has more methods, which no device calls.
pub trait Vm: Send + Sync {
    /// The width of a guest physical address in bits.
    fn get_guest_phys_addr_bits(&self) -> u8;

    /// The guest's memory.
    fn get_memory(&self) -> &GuestMemory;
}

/// Whether, and how, the guest's memory is kept from the host.
#[derive(Copy, Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ProtectionType {
    /// Not at all.
    Unprotected,
    /// By the hypervisor, and the guest boots through the protected VM firmware.
    Protected,
    /// By the hypervisor, and the guest boots through a firmware of the user's.
    ProtectedWithCustomFirmware,
    /// By the hypervisor, and the guest boots without a firmware.
    ProtectedWithoutFirmware,
    /// Not at all, but the guest boots through the protected VM firmware.
    UnprotectedWithFirmware,
}

impl ProtectionType {
    /// Whether the host cannot access the guest's memory.
    pub fn isolates_memory(&self) -> bool {
        use ProtectionType::*;
        match self {
            Protected | ProtectedWithCustomFirmware | ProtectedWithoutFirmware => true,
            Unprotected | UnprotectedWithFirmware => false,
        }
    }

    /// Whether the VMM loads the firmware.
    pub fn needs_firmware_loaded(&self) -> bool {
        use ProtectionType::*;
        match self {
            UnprotectedWithFirmware | ProtectedWithCustomFirmware => true,
            Unprotected | Protected | ProtectedWithoutFirmware => false,
        }
    }

    /// Whether the guest boots through a firmware.
    pub fn runs_firmware(&self) -> bool {
        self.needs_firmware_loaded() || *self == ProtectionType::Protected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolation_and_firmware_are_apart() {
        use ProtectionType::*;
        for (protection, isolates, loads, runs) in [
            (Unprotected, false, false, false),
            (Protected, true, false, true),
            (ProtectedWithCustomFirmware, true, true, true),
            (ProtectedWithoutFirmware, true, false, false),
            (UnprotectedWithFirmware, false, true, true),
        ] {
            assert_eq!(protection.isolates_memory(), isolates, "{protection:?}");
            assert_eq!(protection.needs_firmware_loaded(), loads, "{protection:?}");
            assert_eq!(protection.runs_firmware(), runs, "{protection:?}");
        }
    }
}
