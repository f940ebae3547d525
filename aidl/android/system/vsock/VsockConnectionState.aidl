// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

/** How far a connection has got. */
@Backing(type="int")
enum VsockConnectionState {
    /** Asked for, not answered yet. */
    OPENING = 0,
    /** Both sides have said yes. */
    ESTABLISHED = 1,
    /** Over for one side, not for the other. */
    CLOSING = 2,
}
