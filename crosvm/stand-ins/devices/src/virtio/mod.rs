// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio side: the trait, the device types, the features every device
//! offers.

mod descriptor_chain;
mod descriptor_utils;
mod interrupt;
mod queue;
mod virtio_device;

use hypervisor::ProtectionType;
use serde::{Deserialize, Serialize};

pub use self::descriptor_chain::DescriptorChain;
pub use self::descriptor_utils::{Reader, Writer};
pub use self::interrupt::{Interrupt, InterruptSnapshot};
pub use self::queue::{Queue, QueueConfig};
pub use self::virtio_device::VirtioDevice;

/// VIRTIO 1.2, 6: notifications can be asked for by index.
const VIRTIO_RING_F_EVENT_IDX: u64 = 29;
/// VIRTIO 1.2, 6: the device follows this version.
const VIRTIO_F_VERSION_1: u64 = 32;
/// VIRTIO 1.2, 6: the device's memory accesses are as the platform says.
const VIRTIO_F_ACCESS_PLATFORM: u64 = 33;
/// VIRTIO 1.2, 6: packed rings.
const VIRTIO_F_RING_PACKED: u64 = 34;
/// The device can be suspended; after VIRTIO 1.3.
const VIRTIO_F_SUSPEND: u64 = 42;

/// VIRTIO 1.2, 4.1.5.1.2: no vector.
const VIRTIO_MSI_NO_VECTOR: u16 = 0xffff;

/// The kind of a device. VIRTIO 1.2, 5; from `Media` on, later or crosvm's own.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
#[allow(missing_docs)] // The names say it.
pub enum DeviceType {
    Net = 1,
    Block = 2,
    Console = 3,
    Rng = 4,
    Balloon = 5,
    Scsi = 8,
    #[serde(rename = "9p")]
    P9 = 9,
    Gpu = 16,
    Input = 18,
    Vsock = 19,
    Iommu = 23,
    Sound = 25,
    Fs = 26,
    Pmem = 27,
    #[serde(rename = "mac80211-hwsim")]
    Mac80211HwSim = 29,
    VideoEncoder = 30,
    VideoDecoder = 31,
    Scmi = 32,
    Media = 48,
    Pvclock = 61,
    Tpm = 62,
    Wl = 63,
}

impl std::fmt::Display for DeviceType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// Copies as much of `src` from `src_offset` on as `dst` takes from `dst_offset` on;
/// nothing when an offset lies outside.
pub fn copy_config(dst: &mut [u8], dst_offset: u64, src: &[u8], src_offset: u64) {
    let after = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    let target = dst.get_mut(after(dst_offset)..).unwrap_or_default();
    let source = src.get(after(src_offset)..).unwrap_or_default();
    for (to, from) in target.iter_mut().zip(source) {
        *to = *from;
    }
}

/// The features that every device offers to a VM of this protection.
pub fn base_features(protection_type: ProtectionType) -> u64 {
    let features = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_F_SUSPEND;
    match protection_type {
        ProtectionType::Unprotected => features,
        _ => features | 1 << VIRTIO_F_ACCESS_PLATFORM,
    }
}

/// Where a device runs, which decides its policy.
pub enum VirtioDeviceType {
    /// In the VMM.
    Regular,
    /// Behind a vhost-user socket.
    VhostUser,
}

impl VirtioDeviceType {
    /// The name of the policy for the device `base`.
    pub fn seccomp_policy_file(&self, base: &str) -> String {
        match self {
            VirtioDeviceType::Regular => format!("{base}_device"),
            VirtioDeviceType::VhostUser => format!("{base}_device_vhost_user"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(DeviceType::Vsock as u32, 19);
        assert_eq!(DeviceType::Vsock.to_string(), "vsock");
        assert_eq!(DeviceType::P9.to_string(), "9p");
        assert_eq!(DeviceType::VideoDecoder.to_string(), "video-decoder");
        assert_eq!(
            VirtioDeviceType::Regular.seccomp_policy_file("vhost_vsock"),
            "vhost_vsock_device"
        );
    }

    #[test]
    fn all_but_unprotected_vms_see_bit_33() {
        assert_eq!(base_features(ProtectionType::Unprotected), 0x401_2000_0000);
        for protection in [
            ProtectionType::Protected,
            ProtectionType::ProtectedWithCustomFirmware,
            ProtectionType::ProtectedWithoutFirmware,
            ProtectionType::UnprotectedWithFirmware,
        ] {
            assert_eq!(base_features(protection), 0x403_2000_0000);
        }
    }

    #[test]
    fn config_is_copied_as_far_as_it_goes() {
        let mut whole = [0xff; 4];
        copy_config(&mut whole, 0, &[1, 2, 3], 1);
        assert_eq!(whole, [2, 3, 0xff, 0xff]);
        copy_config(&mut whole, 3, &[1, 2, 3], 0);
        assert_eq!(whole, [2, 3, 0xff, 1]);
        copy_config(&mut whole, 0, &[9], u64::MAX);
        copy_config(&mut whole, 5, &[9], 0);
        assert_eq!(whole, [2, 3, 0xff, 1]);
    }
}
