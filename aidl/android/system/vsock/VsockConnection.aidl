// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

import android.system.vsock.VsockConnectionState;

/** A connection of a guest. */
@RustDerive(Clone=true, PartialEq=true)
parcelable VsockConnection {
    /** The guest's port. */
    long guestPort;

    /** Who is at the other end: 2 for the host, else another guest. */
    long peerCid;

    /** The port at the other end. */
    long peerPort;

    /** Whether messages keep their boundaries (SOCK_SEQPACKET). */
    boolean seqpacket;

    /** How far it has got. */
    VsockConnectionState state = VsockConnectionState.OPENING;

    /** Bytes from the guest that the other end has not taken yet. */
    long pendingBytes;
}
