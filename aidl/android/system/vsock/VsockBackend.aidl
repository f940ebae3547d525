// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
package android.system.vsock;

/** What moves a device's data. */
@Backing(type="int")
enum VsockBackend {
    /** The process itself, between guest memory and Unix sockets. */
    USERSPACE = 0,
    /** The host kernel's vhost-vsock. */
    KERNEL = 1,
}
