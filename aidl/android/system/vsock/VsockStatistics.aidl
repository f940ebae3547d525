// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

/**
 * What has happened on a device since the process began to serve it. UNKNOWN stands for what the
 * backend does not tell: the host kernel counts no packets.
 */
@RustDerive(Clone=true, PartialEq=true)
parcelable VsockStatistics {
    /** Stands for a number that the backend does not tell. */
    const long UNKNOWN = -1;

    /** When the process began to serve the device, in milliseconds since 1970 (UTC). */
    long sinceMillis;

    /** Packets taken from the guest. */
    long packetsFromGuest = UNKNOWN;

    /** Payload bytes taken from the guest. */
    long bytesFromGuest = UNKNOWN;

    /** Packets given to the guest. */
    long packetsToGuest = UNKNOWN;

    /** Payload bytes given to the guest. */
    long bytesToGuest = UNKNOWN;

    /** Connections at present. */
    long connectionsOpen = UNKNOWN;

    /** Connections that were established. */
    long connectionsTotal = UNKNOWN;

    /** Requests refused: nobody listens, or nobody answered in time. */
    long refused = UNKNOWN;

    /** Refused by the limit on connections. */
    long refusedConnections = UNKNOWN;

    /** Refused by the limit on half-open connections. */
    long refusedHalfOpen = UNKNOWN;

    /** Connections reset by the limit on bytes that host programs do not read. */
    long refusedPendingBytes = UNKNOWN;

    /** Answers dropped by the limit on those that wait for the guest. */
    long refusedPendingResets = UNKNOWN;

    /** Connections that could not be made for want of descriptors. */
    long refusedDescriptors = UNKNOWN;

    /** Answers to packets that belong to no connection. */
    long strayPackets = UNKNOWN;

    /** Packets that name another guest as their source. */
    long wrongSource = UNKNOWN;

    /** Chains and headers that made no sense. */
    long malformed = UNKNOWN;

    /** Connections ended because the guest broke the protocol. */
    long violations = UNKNOWN;

    /** How often connections were ended all at once: by reset(), or since their guest was gone. */
    long resets;

    /** Accesses to memory that the guest had not shared, all denied. */
    long accessesDenied;

    /** Misses of the kernel's IOTLB since the queues were last set up. */
    long iotlbMisses = UNKNOWN;

    /** Mappings in the kernel's IOTLB at present. */
    long iotlbEntries = UNKNOWN;

    /** Callbacks that hear of this device. */
    long callbacks;

    /** Events that callbacks missed because they did not keep up, or were hung up on. */
    long callbacksDropped;
}
