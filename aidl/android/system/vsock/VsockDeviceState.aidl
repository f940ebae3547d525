// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

/** Where a device stands. */
@Backing(type="int")
enum VsockDeviceState {
    /** No VMM is connected. */
    NO_VMM = 0,
    /** A VMM is connected; no driver has set the queues up, or they are stopped. */
    NO_DRIVER = 1,
    /** The queues are being served. */
    RUNNING = 2,
    /** The queues were given up: they cannot be used, or an access was denied. */
    NEEDS_RESET = 3,
}
