// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`Transport`]: drives a device as crosvm's virtio-pci transport does, so that a
//! test sees what a guest would see: the device status, the interrupts, the
//! quirks.
//!
//! This is the stand-in's own. crosvm's `VirtioPciDevice` cannot be made outside
//! of a VM.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use base::{error, Event, EventWaitResult, Tube};
use serde::{Deserialize, Serialize};
use snapshot::AnySnapshot;
use sync::Mutex;
use vm_memory::GuestMemory;

pub use crate::pci::{MsixConfig, MsixStatus};
use crate::virtio::{Interrupt, InterruptSnapshot, Queue, QueueConfig, VirtioDevice};
use crate::IrqLevelEvent;

/// The bits of the device status. VIRTIO 1.2, 2.1.
pub mod status {
    /// The guest found the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest has a driver for it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The driver accepted its features.
    pub const FEATURES_OK: u8 = 8;
    /// The driver suspended the device; after VIRTIO 1.3.
    pub const SUSPEND: u8 = 16;
    /// The device failed.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver failed.
    pub const FAILED: u8 = 128;
    /// What a driver has written when all is well.
    pub const READY: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
}

/// What a sleeping device gave up.
enum Asleep {
    Inactive,
    Active(BTreeMap<usize, Queue>),
}

#[derive(Serialize, Deserialize)]
struct TransportSnapshot {
    device: AnySnapshot,
    activated: bool,
    status: u8,
    config_vector: u16,
    interrupt: Option<InterruptSnapshot>,
    msix: AnySnapshot,
    configs: Vec<AnySnapshot>,
    queues: Option<Vec<(usize, AnySnapshot)>>,
}

/// A device and the registers through which a guest drives it.
pub struct Transport {
    mem: GuestMemory,
    device: Box<dyn VirtioDevice>,
    activated: bool,
    status: u8,
    configs: Vec<QueueConfig>,
    kicks: Vec<Event>,
    line: IrqLevelEvent,
    msix: Arc<Mutex<MsixConfig>>,
    config_vector: u16,
    interrupt: Option<Interrupt>,
    asleep: Option<Asleep>,
}

impl Transport {
    /// The registers of `device`, as after power-on. It has a vector for each queue
    /// and one more.
    pub fn new(mem: GuestMemory, device: Box<dyn VirtioDevice>) -> Result<Self> {
        let features = device.features();
        let sizes = device.queue_max_sizes().iter();
        let configs: Vec<_> = sizes
            .map(|&size| QueueConfig::new(size, features))
            .collect();
        let kicks = configs.iter().map(|_| Event::new());
        let vectors = u16::try_from(device.num_interrupts() + 1)?;
        let (_, tube) = Tube::pair()?;
        let msix = MsixConfig::new(vectors, tube, 0, device.debug_label());
        Ok(Self {
            mem,
            activated: false,
            status: 0,
            kicks: kicks.collect::<base::Result<_>>()?,
            configs,
            line: IrqLevelEvent::new()?,
            msix: Arc::new(Mutex::new(msix)),
            config_vector: 0xffff,
            interrupt: None,
            asleep: None,
            device,
        })
    }

    /// The device.
    pub fn device(&mut self) -> &mut dyn VirtioDevice {
        self.device.as_mut()
    }

    /// The device status: where `NEEDS_RESET` is to be seen.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// The settings of a queue.
    pub fn queue(&mut self, index: usize) -> &mut QueueConfig {
        &mut self.configs[index]
    }

    /// What the guest signals when it made buffers available.
    pub fn kick(&self, index: usize) -> &Event {
        &self.kicks[index]
    }

    /// The interrupts of the activated device.
    pub fn interrupt(&self) -> Option<&Interrupt> {
        self.interrupt.as_ref()
    }

    /// The guest accepts features: two writes, of the low half and the high.
    pub fn ack_features(&mut self, features: u64) {
        for half in [features & 0xffff_ffff, features & !0xffff_ffff] {
            self.device.ack_features(half);
            for config in &mut self.configs {
                config.ack_features(half);
            }
        }
    }

    /// The guest chooses the vector of configuration changes.
    pub fn set_config_vector(&mut self, vector: u16) {
        self.config_vector = vector;
    }

    /// The guest writes the device status; what follows from it follows at once.
    pub fn write_status(&mut self, status: u8) {
        let was_suspended = self.status & status::SUSPEND != 0;
        self.status = status;
        self.after_write();
        let suspended = self.status & status::SUSPEND != 0;
        if let (true, Some(interrupt)) = (suspended != was_suspended, &self.interrupt) {
            interrupt.set_suspended(suspended);
        }
    }

    /// The guest enables MSI-X and unmasks all vectors, as Linux does it.
    pub fn enable_msix(&mut self) {
        self.write_msix_control(true, true);
        let vectors = self.msix.lock().num_vectors();
        for vector in 0..vectors {
            self.mask_vector(vector, false);
        }
        self.write_msix_control(true, false);
    }

    /// The guest masks or unmasks a vector.
    pub fn mask_vector(&mut self, vector: u16, masked: bool) {
        let at = u64::from(vector) * 16 + 12;
        let control = u32::from(masked).to_le_bytes();
        let changed = self.msix.lock().write_msix_table(at, &control);
        self.device.control_notify(changed);
        self.after_write();
    }

    /// The guest enables MSI-X or not, and masks all vectors or not.
    pub fn write_msix_control(&mut self, enable: bool, mask: bool) {
        let control = u16::from(enable) << 15 | u16::from(mask) << 14;
        let bytes = control.to_le_bytes();
        let changed = self.msix.lock().write_msix_capability(2, &bytes);
        self.device.control_notify(changed);
    }

    /// Whether the vector was signalled since the last call, or is within
    /// `timeout`.
    pub fn interrupted(&self, vector: u16, timeout: Duration) -> bool {
        let msix = self.msix.lock();
        let irqfd = msix.get_irqfd(vector.into()).map(Event::try_clone);
        drop(msix);
        let Some(Ok(irqfd)) = irqfd else {
            return false;
        };
        irqfd.wait_timeout(timeout) == Ok(EventWaitResult::Signaled)
    }

    /// Whether a masked vector waits to be unmasked.
    pub fn pending(&self, vector: u16) -> bool {
        self.msix.lock().pending(vector)
    }

    /// The VM stops. Nothing happens when it is stopped.
    pub fn sleep(&mut self) -> Result<()> {
        if self.asleep.is_some() {
            return Ok(());
        }
        self.asleep = Some(match self.device.virtio_sleep()? {
            Some(queues) => {
                ensure!(
                    self.activated,
                    "unactivated device returned queues on sleep"
                );
                Asleep::Active(queues)
            }
            None => {
                ensure!(
                    !self.activated,
                    "activated device didn't return queues on sleep"
                );
                Asleep::Inactive
            }
        });
        Ok(())
    }

    /// The VM goes on. Nothing happens when it runs.
    pub fn wake(&mut self) -> Result<()> {
        let state = match self.asleep.take() {
            None => return Ok(()),
            Some(Asleep::Inactive) => None,
            Some(Asleep::Active(queues)) => {
                let interrupt = self.interrupt.clone();
                let interrupt = interrupt.context("an active device has an interrupt")?;
                Some((self.mem.clone(), interrupt, queues))
            }
        };
        self.device.virtio_wake(state)
    }

    /// The state of the stopped device.
    pub fn snapshot(&mut self) -> Result<AnySnapshot> {
        let device = self.device.virtio_snapshot()?;
        let queues = match &self.asleep {
            None => bail!("tried snapshotting while awake"),
            Some(Asleep::Inactive) => None,
            Some(Asleep::Active(queues)) => {
                let queues = queues.iter().map(|(i, queue)| Ok((*i, queue.snapshot()?)));
                Some(queues.collect::<Result<_>>()?)
            }
        };
        let configs = self.configs.iter().map(QueueConfig::snapshot);
        AnySnapshot::to_any(TransportSnapshot {
            device,
            activated: self.activated,
            status: self.status,
            config_vector: self.config_vector,
            interrupt: self.interrupt.as_ref().map(Interrupt::snapshot),
            msix: self.msix.lock().snapshot()?,
            configs: configs.collect::<Result<_>>()?,
            queues,
        })
    }

    /// Takes over a state. The VM must be stopped and the device never activated.
    pub fn restore(&mut self, snapshot: AnySnapshot) -> Result<()> {
        ensure!(!self.activated, "tried to restore after activation");
        ensure!(
            matches!(self.asleep, Some(Asleep::Inactive)),
            "tried restoring while awake"
        );
        let state: TransportSnapshot = AnySnapshot::from_any(snapshot)?;
        self.activated = state.activated;
        self.status = state.status;
        self.config_vector = state.config_vector;
        self.msix.lock().restore(state.msix)?;
        if let Some(interrupt) = state.interrupt {
            self.interrupt = Some(Interrupt::new_from_snapshot(
                self.line.try_clone()?,
                Some(self.msix.clone()),
                self.config_vector,
                interrupt,
                #[cfg(target_arch = "x86_64")]
                None,
            ));
        }
        for (config, snapshot) in self.configs.iter_mut().zip(state.configs) {
            config.restore(snapshot)?;
        }
        if let Some(snapshots) = state.queues {
            let interrupt = self.interrupt.as_ref();
            let interrupt = interrupt.context("active queues without an interrupt")?;
            let mut queues = BTreeMap::new();
            for (index, snapshot) in snapshots {
                let kick = self.kicks[index].try_clone()?;
                let config = &self.configs[index];
                let queue = Queue::restore(config, snapshot, &self.mem, kick, interrupt.clone())?;
                queues.insert(index, queue);
            }
            self.asleep = Some(Asleep::Active(queues));
        }
        // A kick may have been lost with the old VM.
        for kick in &self.kicks {
            kick.signal()?;
        }
        self.device.virtio_restore(state.device)
    }

    /// What crosvm does after each write to a register.
    fn after_write(&mut self) {
        let ready = self.status & status::READY == status::READY;
        if !self.activated && ready && self.status & status::FAILED == 0 {
            if let Err(e) = self.activate() {
                error!("failed to activate device: {e:#}");
            }
        }
        // A device that failed to activate is not reset, and its queues stay as they
        // are: it cannot be activated again.
        if self.activated && self.status == 0 {
            match self.device.reset() {
                Err(e) => error!("failed to reset {}: {e:#}", self.device.debug_label()),
                Ok(()) => {
                    self.activated = false;
                    self.configs.iter_mut().for_each(QueueConfig::reset);
                }
            }
        }
    }

    fn activate(&mut self) -> Result<()> {
        let interrupt = Interrupt::new(
            self.line.try_clone()?,
            Some(self.msix.clone()),
            self.config_vector,
            #[cfg(target_arch = "x86_64")]
            None,
        );
        self.interrupt = Some(interrupt.clone());
        let mut queues = BTreeMap::new();
        let configs = self.configs.iter_mut().zip(&self.kicks).enumerate();
        for (index, (config, kick)) in configs.filter(|(_, (config, _))| config.ready()) {
            let queue = config.activate(&self.mem, kick.try_clone()?, interrupt.clone());
            queues.insert(index, queue.context("failed to activate queue")?);
        }
        let activated = self.device.activate(self.mem.clone(), interrupt, queues);
        self.activated = activated.is_ok();
        if let Err(e) = activated {
            error!("{} activate failed: {e:#}", self.device.debug_label());
            self.status |= status::NEEDS_RESET;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "harness_test.rs"]
mod tests;
