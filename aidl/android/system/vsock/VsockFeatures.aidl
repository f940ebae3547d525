// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

/** Feature bits of a device (VIRTIO 1.2, 2.2). */
@RustDerive(Clone=true, PartialEq=true)
parcelable VsockFeatures {
    /** Offered to the driver. */
    long offered;

    /** Acknowledged by the driver; 0 while there is none. */
    long acknowledged;

    /** The names of those acknowledged, for people. */
    @utf8InCpp String[] acknowledgedNames;
}
