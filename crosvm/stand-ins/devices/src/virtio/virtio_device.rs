// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`VirtioDevice`]: what a transport asks of a device.

use std::collections::BTreeMap;

use anyhow::{anyhow, bail, Result};
use base::RawDescriptor;
use snapshot::AnySnapshot;
use vm_memory::GuestMemory;

use crate::pci::MsixStatus;
use crate::virtio::{DeviceType, Interrupt, Queue};

/// A virtio device, driven by a transport.
///
/// ```text
///              sleep                    activate
///   asleep <----------> new or inactive ---------> active <----------> asleep
///  (inactive)  wake            ^         reset        |       sleep   (active)
///      |                       +----------------------+       wake        ^
///      +-------------------- restore of an active snapshot ---------------+
/// ```
///
/// A snapshot is taken asleep, and restored into a device that is asleep and has
/// never been activated.
pub trait VirtioDevice: Send {
    /// The name in logs.
    fn debug_label(&self) -> String {
        format!("virtio-{}", self.device_type())
    }

    /// The descriptors that the device's process must inherit.
    fn keep_rds(&self) -> Vec<RawDescriptor>;

    /// The kind of device.
    fn device_type(&self) -> DeviceType;

    /// The largest size of each queue.
    fn queue_max_sizes(&self) -> &[u16];

    /// The number of interrupts.
    fn num_interrupts(&self) -> usize {
        self.queue_max_sizes().len()
    }

    /// All features offered.
    fn features(&self) -> u64 {
        0
    }

    /// The driver accepts these features. Called once for each half of them.
    fn ack_features(&mut self, value: u64) {
        let _ = value;
    }

    /// The driver reads the configuration space.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = (offset, data);
    }

    /// The driver writes the configuration space.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready. `queues` are those that it made ready, by number.
    fn activate(
        &mut self,
        mem: GuestMemory,
        interrupt: Interrupt,
        queues: BTreeMap<usize, Queue>,
    ) -> Result<()>;

    /// The driver resets the device.
    fn reset(&mut self) -> Result<()> {
        Err(anyhow!("reset not implemented for {}", self.debug_label()))
    }

    /// The device's process is in its jail, or there is none.
    fn on_device_sandboxed(&mut self) {}

    /// The guest changed a mask of MSI-X.
    fn control_notify(&self, _behavior: MsixStatus) {}

    /// Stops everything and gives the queues up, if there are any.
    fn virtio_sleep(&mut self) -> Result<Option<BTreeMap<usize, Queue>>> {
        bail!("virtio_sleep not implemented for {}", self.debug_label());
    }

    /// Goes on, with the queues that the sleep gave up.
    fn virtio_wake(
        &mut self,
        _queues_state: Option<(GuestMemory, Interrupt, BTreeMap<usize, Queue>)>,
    ) -> Result<()> {
        bail!("virtio_wake not implemented for {}", self.debug_label());
    }

    /// The state of the sleeping device, without that of its queues.
    fn virtio_snapshot(&mut self) -> Result<AnySnapshot> {
        bail!("virtio_snapshot not implemented for {}", self.debug_label());
    }

    /// Takes over a state; the queues come with the wake-up.
    fn virtio_restore(&mut self, _data: AnySnapshot) -> Result<()> {
        bail!("virtio_restore not implemented for {}", self.debug_label());
    }
}
