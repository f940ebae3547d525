// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

import android.system.vsock.IVsockDevice;

/**
 * The virtio-vsock devices that one process serves: the root object of its control socket.
 *
 * Permissions: whoever reaches this object may do everything in this package, which includes to
 * talk to every port of every guest and to end its connections. The way to it is a Unix socket of
 * mode 0600; a process that registers it with a service manager leaves it to SELinux who may find
 * it. Hand out an IVsockDevice, or what its connect() returns, to those who need no more than that.
 *
 * Threats: a client is trusted with the guests and not with the host's data path. One that stops
 * reading, says nonsense or dies delays only itself; what it holds is bounded and counted.
 */
interface IVsockService {
    /** The CIDs of all guests that the process serves, in ascending order. */
    long[] getGuestCids();

    /**
     * The device of a guest.
     *
     * @param cid The guest's CID.
     * @throws ServiceSpecificException with IVsockDevice.ERROR_NO_SUCH_DEVICE.
     */
    IVsockDevice getDevice(long cid);
}
