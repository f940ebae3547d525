// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

/** What the device wants to do with memory. */
@Backing(type="int")
enum IotlbAccess {
    /** Read it. */
    READ = 1,
    /** Write it. */
    WRITE = 2,
    /** Both. */
    READ_WRITE = 3,
}
