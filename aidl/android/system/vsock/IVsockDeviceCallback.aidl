// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

import android.system.vsock.IotlbAccess;
import android.system.vsock.VsockConnection;
import android.system.vsock.VsockDeviceState;

/**
 * Hears what happens to a device. Calls come in order, from a thread that serves this client
 * alone, and never hold up the device.
 */
oneway interface IVsockDeviceCallback {
    /** The device has got into another state. */
    void onStateChanged(long cid, VsockDeviceState state);

    /**
     * The data path wanted to reach memory that the guest has not shared, and was stopped. The
     * device needs a reset.
     *
     * @param iova The I/O virtual address, in mode RESTRICTED the guest physical one.
     * @param access What it wanted to do there.
     */
    void onIotlbFault(long cid, long iova, IotlbAccess access);

    /** A connection was established. */
    void onConnected(long cid, in VsockConnection connection);

    /** A connection that had been established is over. */
    void onDisconnected(long cid, in VsockConnection connection);
}
