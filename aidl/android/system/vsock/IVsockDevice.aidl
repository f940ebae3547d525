// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

import android.system.vsock.IVsockDeviceCallback;
import android.system.vsock.IotlbMode;
import android.system.vsock.KernelKind;
import android.system.vsock.VsockBackend;
import android.system.vsock.VsockConnection;
import android.system.vsock.VsockDeviceState;
import android.system.vsock.VsockFeatures;
import android.system.vsock.VsockStatistics;

/**
 * The virtio-vsock device of one guest.
 *
 * A call fails with a ServiceSpecificException that holds one of the ERROR constants and a message
 * that says what was wrong and what to do. The first four have the numbers and the sense of those
 * of IVirtualMachine.
 *
 * Ports are unsigned 32-bit numbers in a long: 0 to 4294967294.
 */
interface IVsockDevice {
    /** Something failed that has no constant of its own; the message says what. */
    const int ERROR_UNEXPECTED = 0;

    /** No driver in the guest has set the device up. */
    const int ERROR_NOT_RUNNING = 1;

    /** The number is not a port that can be had. */
    const int ERROR_PORT_NUMBER_DENIED = 2;

    /** The guest refused the connection, or did not answer in time. */
    const int ERROR_FAILED_TO_CONNECT = 3;

    /** The backend or the IOTLB mode of this device cannot do that. */
    const int ERROR_UNSUPPORTED = 4;

    /** The process serves no guest with this CID. */
    const int ERROR_NO_SUCH_DEVICE = 5;

    /** Somebody listens on the port already. */
    const int ERROR_PORT_IN_USE = 6;

    /** The descriptor is not a connected Unix socket of type SOCK_SEQPACKET. */
    const int ERROR_BAD_DESCRIPTOR = 7;

    /** The range is not made of whole pages, or not all of it is guest memory. */
    const int ERROR_BAD_RANGE = 8;

    /** As many as possible are there already: callbacks, listeners, connections or ranges. */
    const int ERROR_TOO_MANY = 9;

    /**
     * The device's thread has too much to do, or has ended; the message says which. If it did not
     * answer in time, what was asked for may still happen.
     */
    const int ERROR_BUSY = 10;

    /** The guest's CID. */
    long getCid();

    /** What moves the data. */
    VsockBackend getBackend();

    /** Why it is that backend, if the choice was left to the process; else empty. */
    @utf8InCpp String getBackendReason();

    /**
     * The feature bits that are offered, and those that the driver has acknowledged.
     *
     * @throws ServiceSpecificException with ERROR_BUSY.
     */
    VsockFeatures getFeatures();

    /**
     * How the host kernel's vhost-vsock reads the two bits that ask for its IOTLB.
     * NOT_APPLICABLE where no vhost-vsock is in use.
     */
    KernelKind getKernelKind();

    /**
     * Which part of guest memory the data path can reach.
     *
     * @throws ServiceSpecificException with ERROR_BUSY.
     */
    IotlbMode getIotlbMode();

    /** Where the device stands. */
    VsockDeviceState getState();

    /**
     * What has happened on the device since the process began to serve it.
     *
     * @throws ServiceSpecificException with ERROR_BUSY.
     */
    VsockStatistics getStatistics();

    /**
     * The connections of the guest, half-open ones included.
     *
     * @param limit No more than this many are returned; 0 or less: as many as fit a reply.
     *     getStatistics() tells how many there are.
     * @throws ServiceSpecificException with ERROR_BUSY, and ERROR_UNSUPPORTED where the host kernel
     *     keeps them.
     */
    VsockConnection[] getConnections(int limit);

    /**
     * Connects to a port of the guest as the host, CID 2. Waits until the guest has answered.
     *
     * @param port A port of the guest.
     * @return A connected stream socket, blocking, with nothing of the handshake left to read.
     * @throws ServiceSpecificException with ERROR_NOT_RUNNING, ERROR_PORT_NUMBER_DENIED,
     *     ERROR_FAILED_TO_CONNECT, ERROR_TOO_MANY, ERROR_BUSY.
     */
    ParcelFileDescriptor connect(long port);

    /**
     * Takes the guest's connections to a port of the host, CID 2, away from whatever program
     * would get them otherwise. No path and no name is involved: it works across mount
     * namespaces, and needs no right but that to the descriptor.
     *
     * For each connection a message of 16 bytes arrives at the other end of the descriptor: the
     * guest's CID and its port, both little-endian and of 64 bits, and with it (SCM_RIGHTS) one
     * connected socket of the type that the guest has asked for. A listener that does not keep up
     * has connections refused. Closing the other end gives the port back.
     *
     * @param port A port of the host.
     * @param acceptor One end of a socketpair(AF_UNIX, SOCK_SEQPACKET).
     * @throws ServiceSpecificException with ERROR_PORT_NUMBER_DENIED, ERROR_PORT_IN_USE,
     *     ERROR_BAD_DESCRIPTOR, ERROR_TOO_MANY, ERROR_UNSUPPORTED, ERROR_BUSY.
     */
    void listen(long port, in ParcelFileDescriptor acceptor);

    /**
     * Gives a port back; connections that were made stay. Nothing happens if nobody listens.
     *
     * @throws ServiceSpecificException with ERROR_PORT_NUMBER_DENIED, ERROR_UNSUPPORTED,
     *     ERROR_BUSY.
     */
    void unlisten(long port);

    /**
     * Opens a range of guest memory to the data path, in mode RESTRICTED. What is shared already
     * stays shared.
     *
     * A range that is shared can be written by the host's data path at the guest's command: it
     * should be what the guest itself has given up, such as its restricted-DMA pool.
     *
     * @param address Guest physical address of the first byte, a multiple of 4096.
     * @param size Size in bytes, a multiple of 4096.
     * @throws ServiceSpecificException with ERROR_UNSUPPORTED in any other mode, ERROR_BAD_RANGE,
     *     ERROR_TOO_MANY, ERROR_BUSY.
     */
    void share(long address, long size);

    /**
     * Closes a range again. When this returns no access to it is under way and none will come.
     *
     * @throws ServiceSpecificException as share() does. After ERROR_UNEXPECTED or ERROR_BUSY the
     *     host may still reach the range: reset() the device.
     */
    void unshare(long address, long size);

    /**
     * Ends all connections and tells the guest so (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET). A device
     * that needs a reset because of a denied access runs again afterwards.
     *
     * @throws ServiceSpecificException with ERROR_NOT_RUNNING, ERROR_BUSY.
     */
    void reset();

    /**
     * Tells a client what happens from now on, until it dies or unregisters. A client that cannot
     * keep up misses events: VsockStatistics.callbacksDropped counts them.
     *
     * @throws ServiceSpecificException with ERROR_TOO_MANY.
     */
    void registerCallback(IVsockDeviceCallback callback);

    /**
     * Ends what registerCallback() began. Nothing happens if it had not. Events that wait are
     * dropped; calls that were made before this returned may still arrive after it.
     */
    void unregisterCallback(IVsockDeviceCallback callback);
}
