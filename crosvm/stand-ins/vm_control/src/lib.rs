// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for crosvm's `vm_control`: the tubes that a device may hand to the
//! VM's control loop. Host tests only; never built by Soong.

use base::Tube;

/// A tube, by what is sent over it.
pub enum AnyControlTube {
    /// Commands to the balloon.
    Balloon(Tube),
    /// Commands to a disk.
    Disk(Tube),
    /// Mapping requests of a file system.
    Fs(Tube),
    /// Commands to the GPU.
    Gpu(Tube),
    /// Requests of the interrupt handler.
    IrqTube(Tube),
    /// Commands to the clock.
    PvClock(Tube),
    /// Commands to the sound device.
    Snd(Tube),
    /// Requests of the VM's user.
    Vm(Tube),
    /// Requests to map memory.
    VmMemoryTube {
        /// The tube.
        tube: Tube,
        /// Whether a virtual IOMMU sees the memory.
        expose_with_viommu: bool,
        /// Whether the other end is in another process.
        remote_peer: bool,
    },
    /// Requests to write mappings back.
    VmMsync(Tube),
}
