// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

/** Which part of guest memory a data path can reach, and who sees to it. */
@Backing(type="int")
enum IotlbMode {
    /** All of it; no IOTLB. */
    OFF = 0,
    /** All of it, through the kernel's IOTLB. */
    IDENTITY = 1,
    /** What the guest has shared, enforced by the kernel's IOTLB. */
    RESTRICTED = 2,
    /** What a virtual IOMMU maps. */
    TRANSLATED = 3,
}
