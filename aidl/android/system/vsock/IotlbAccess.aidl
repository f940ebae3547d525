// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

/** What the device wants to do with memory. */
@Backing(type="int")
enum IotlbAccess {
    READ = 1,
    WRITE = 2,
    READ_WRITE = 3,
}
