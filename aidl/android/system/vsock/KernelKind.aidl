// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

/** How a kernel's vhost-vsock reads VIRTIO_F_ACCESS_PLATFORM and a separate IOTLB bit. */
@Backing(type="int")
enum KernelKind {
    /** The kernel's vhost-vsock is not in use. */
    NOT_APPLICABLE = 0,
    /** It was not found out. */
    UNKNOWN = 1,
    /** It has no IOTLB. */
    NO_IOTLB = 2,
    /** VIRTIO_F_ACCESS_PLATFORM turns the IOTLB on. */
    OVERLOADED = 3,
    /** The separate bit turns the IOTLB on, VIRTIO_F_ACCESS_PLATFORM does not. */
    SPLIT = 4,
    /** VIRTIO_F_ACCESS_PLATFORM turns the IOTLB on, and the separate bit is known. */
    SPLIT_COMPAT = 5,
}
