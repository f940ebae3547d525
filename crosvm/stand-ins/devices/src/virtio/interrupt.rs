// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`Interrupt`]: how a device reaches the driver.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use base::Event;
use serde::{Deserialize, Serialize};
use sync::Mutex;

#[cfg(target_arch = "x86_64")]
use crate::acpi::{MetricEventType, PmWakeupEvent};
use crate::pci::MsixConfig;
use crate::virtio::VIRTIO_MSI_NO_VECTOR;
use crate::IrqLevelEvent;

/// VIRTIO 1.2, 4.1.4.5: a queue has used buffers.
const STATUS_USED_RING: u32 = 1;
/// VIRTIO 1.2, 4.1.4.5: the configuration changed.
const STATUS_CONFIG_CHANGED: u32 = 2;

#[derive(Default)]
struct Suspension {
    suspended: bool,
    /// Vectors and status bits that wait for the end of the suspension.
    waiting: Vec<(u16, u32)>,
}

struct Inner {
    status: AtomicUsize,
    line: IrqLevelEvent,
    msix_config: Option<Arc<Mutex<MsixConfig>>>,
    config_vector: u16,
    suspension: Mutex<Suspension>,
}

/// The interrupts of a device; clones share them.
#[derive(Clone)]
pub struct Interrupt(Arc<Inner>);

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupt")
    }
}

/// The state of an [`Interrupt`].
#[derive(Serialize, Deserialize)]
pub struct InterruptSnapshot {
    interrupt_status: usize,
}

impl Interrupt {
    /// The interrupts of a PCI device: MSI-X when the guest enables it, else the
    /// line.
    pub fn new(
        irq_evt_lvl: IrqLevelEvent,
        msix_config: Option<Arc<Mutex<MsixConfig>>>,
        config_msix_vector: u16,
        #[cfg(target_arch = "x86_64")] wakeup_event: Option<(PmWakeupEvent, MetricEventType)>,
    ) -> Interrupt {
        Self::new_from_snapshot(
            irq_evt_lvl,
            msix_config,
            config_msix_vector,
            InterruptSnapshot {
                interrupt_status: 0,
            },
            #[cfg(target_arch = "x86_64")]
            wakeup_event,
        )
    }

    /// The same, in the state of `snapshot`.
    pub fn new_from_snapshot(
        irq_evt_lvl: IrqLevelEvent,
        msix_config: Option<Arc<Mutex<MsixConfig>>>,
        config_msix_vector: u16,
        snapshot: InterruptSnapshot,
        #[cfg(target_arch = "x86_64")] _wakeup_event: Option<(PmWakeupEvent, MetricEventType)>,
    ) -> Interrupt {
        Interrupt(Arc::new(Inner {
            status: AtomicUsize::new(snapshot.interrupt_status),
            line: irq_evt_lvl,
            msix_config,
            config_vector: config_msix_vector,
            suspension: Mutex::default(),
        }))
    }

    /// Signals a vector, or the line with these status bits.
    ///
    /// # Panics
    /// When MSI-X is enabled and has no such vector; see `MsixConfig::trigger`.
    pub fn signal(&self, vector: u16, interrupt_status_mask: u32) {
        {
            let mut suspension = self.0.suspension.lock();
            if suspension.suspended {
                suspension.waiting.push((vector, interrupt_status_mask));
                return;
            }
        }
        if let Some(msix_config) = &self.0.msix_config {
            let mut msix_config = msix_config.lock();
            if msix_config.enabled() {
                if vector != VIRTIO_MSI_NO_VECTOR {
                    msix_config.trigger(vector);
                }
                return;
            }
        }
        let mask = interrupt_status_mask as usize;
        if self.0.status.fetch_or(mask, Ordering::SeqCst) == 0 {
            let raised = self.0.line.trigger();
            raised.expect("an eventfd takes one more count");
        }
    }

    /// A queue with this vector has used buffers.
    pub fn signal_used_queue(&self, vector: u16) {
        self.signal(vector, STATUS_USED_RING);
    }

    /// The configuration changed.
    pub fn signal_config_changed(&self) {
        self.signal(self.0.config_vector, STATUS_CONFIG_CHANGED);
    }

    /// What the raised line signals.
    pub fn get_interrupt_evt(&self) -> &Event {
        self.0.line.get_trigger()
    }

    /// The state of MSI-X, if the transport has it.
    pub fn get_msix_config(&self) -> &Option<Arc<Mutex<MsixConfig>>> {
        &self.0.msix_config
    }

    /// The status bits.
    pub fn read_interrupt_status(&self) -> u8 {
        self.0.status.load(Ordering::SeqCst) as u8
    }

    /// The status bits, which are then cleared.
    pub fn read_and_reset_interrupt_status(&self) -> u8 {
        self.0.status.swap(0, Ordering::SeqCst) as u8
    }

    /// Clears the status bits of `mask`.
    pub fn clear_interrupt_status_bits(&self, mask: u8) {
        let keep = !usize::from(mask);
        self.0.status.fetch_and(keep, Ordering::SeqCst);
    }

    /// The state.
    pub fn snapshot(&self) -> InterruptSnapshot {
        InterruptSnapshot {
            interrupt_status: self.0.status.load(Ordering::SeqCst),
        }
    }

    /// Holds interrupts back, or delivers those held back and all that follow.
    pub fn set_suspended(&self, suspended: bool) {
        let waiting = {
            let mut suspension = self.0.suspension.lock();
            suspension.suspended = suspended;
            std::mem::take(&mut suspension.waiting)
        };
        for (vector, mask) in waiting {
            self.signal(vector, mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use base::EventExt;

    use super::*;

    fn line_only() -> Interrupt {
        Interrupt::new(
            IrqLevelEvent::new().unwrap(),
            None,
            VIRTIO_MSI_NO_VECTOR,
            #[cfg(target_arch = "x86_64")]
            None,
        )
    }

    #[test]
    fn the_line_is_raised_once_until_read() {
        let interrupt = line_only();
        interrupt.signal_used_queue(5);
        interrupt.clone().signal_config_changed();
        assert_eq!(interrupt.get_interrupt_evt().read_count(), Ok(1));
        assert_eq!(interrupt.snapshot().interrupt_status, 3);
        assert_eq!(interrupt.read_and_reset_interrupt_status(), 3);
        interrupt.signal_config_changed();
        assert_eq!(interrupt.get_interrupt_evt().read_count(), Ok(1));
        interrupt.clear_interrupt_status_bits(2);
        assert_eq!(interrupt.read_interrupt_status(), 0);
    }

    #[test]
    fn a_suspended_device_is_silent() {
        let interrupt = line_only();
        interrupt.set_suspended(true);
        interrupt.signal_used_queue(0);
        assert_eq!(interrupt.read_interrupt_status(), 0);
        interrupt.set_suspended(false);
        assert_eq!(interrupt.read_interrupt_status(), 1);
    }
}
