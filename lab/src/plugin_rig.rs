// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! crosvm's plugin with one guest, driven as crosvm's virtio transport drives a
//! device: through its traits alone.
//!
//! `unsafe` is here to give crosvm's events the descriptors of the guest driver's.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{anyhow, Result};
use base::{AsRawDescriptor, Event, EventWaitResult, FromRawDescriptor};
use crosvm_vsock::features::{Feature, FeatureSet};
use device_virtio_vsock::VirtioVsockModule;
use devices::virtio::{Interrupt, Queue, QueueConfig, VirtioDevice};
use devices::{IrqLevelEvent, VirtioDeviceArgs, VirtioDeviceModule};
use guest_driver::memory::{GuestMemory as DriverMemory, RegionLayout};
use guest_driver::{Guest, GuestConfig};
use hypervisor::{ProtectionType, Vm};
use resources::{AddressRange, SystemAllocator, SystemAllocatorConfig};
use vm_memory::{GuestAddress, GuestMemory};

/// A VM in name only.
struct PlainVm(GuestMemory);

impl Vm for PlainVm {
    fn get_guest_phys_addr_bits(&self) -> u8 {
        40
    }
    fn get_memory(&self) -> &GuestMemory {
        &self.0
    }
}

/// The guest driver and crosvm's side of its memory.
pub struct PluginRig {
    /// The guest driver.
    pub guest: Guest,
    memory: GuestMemory,
    interrupt: Interrupt,
    line: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl PluginRig {
    /// A guest in memory that crosvm has made. `config.memory` says where it lies.
    pub fn new(config: GuestConfig) -> Result<Self> {
        let ranges: Vec<_> = config
            .memory
            .iter()
            .map(|region| (GuestAddress(region.gpa.0), region.size))
            .collect();
        let memory = GuestMemory::new(&ranges)?;
        let shared = memory.regions().map(|region| {
            // SAFETY: the region keeps its file open, and the loan ends here.
            let file = unsafe { BorrowedFd::borrow_raw(region.shm.as_raw_descriptor()) };
            let layout = RegionLayout {
                gpa: guest_driver::memory::Gpa(region.guest_addr.0),
                size: region.size as u64,
                fd_offset: region.shm_offset,
            };
            Ok((layout, file.try_clone_to_owned()?))
        });
        let driver_memory = DriverMemory::shared(shared.collect::<Result<_>>()?)?;
        let guest = Guest::with_memory(config, Arc::new(driver_memory))?;

        let line = IrqLevelEvent::new()?;
        let raised = line.get_trigger().try_clone()?;
        let interrupt = Interrupt::new(line, None, 0xffff, None);
        let status = interrupt.clone();
        let calls = guest.queues().map(|queue| queue.call);
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let thread = std::thread::spawn(move || {
            // A guest's interrupt handler: reads the status, looks at all queues.
            while !end.load(Ordering::Relaxed) {
                match raised.wait_timeout(Duration::from_millis(20)) {
                    Ok(EventWaitResult::Signaled) => {
                        status.read_and_reset_interrupt_status();
                        for call in &calls {
                            // The guest's own descriptor: it cannot fail while it lives.
                            let _ = call.signal();
                        }
                    }
                    Ok(EventWaitResult::TimedOut) => {}
                    Err(_) => return,
                }
            }
        });
        Ok(Self {
            guest,
            memory,
            interrupt,
            line: Some((ended, thread)),
        })
    }

    /// A device as crosvm makes one of its command line's options.
    pub fn device(&self, options: &str) -> Result<Box<dyn VirtioDevice>> {
        let module: VirtioVsockModule =
            serde_keyvalue::from_key_values(options).map_err(|error| anyhow!("{error}"))?;
        let mut allocator = SystemAllocator::new(
            SystemAllocatorConfig {
                io: None,
                low_mmio: AddressRange { start: 0, end: 1 },
                high_mmio: AddressRange { start: 2, end: 3 },
                platform_mmio: None,
                first_irq: 5,
            },
            None,
            &[],
        )?;
        let mut device = module.create(&mut VirtioDeviceArgs {
            vm: &PlainVm(self.memory.clone()),
            resources: &mut allocator,
            add_control_tube: &mut |_| {},
            protection_type: ProtectionType::Unprotected,
        })?;
        device.on_device_sandboxed();
        Ok(device)
    }

    /// Acknowledges all that is offered, of the two platform bits `platform`. In
    /// halves, as crosvm's transport hands them over.
    pub fn ack(&self, device: &mut dyn VirtioDevice, platform: FeatureSet) {
        let both = FeatureSet::from_bits(1 << 63) | Feature::ACCESS_PLATFORM.set();
        let acked = FeatureSet::from_bits(device.features()) - (both - platform);
        device.ack_features(acked.bits() & 0xffff_ffff);
        device.ack_features(acked.bits() & !0xffff_ffff);
    }

    /// The queues as the guest has set them up.
    pub fn queues(&self) -> Result<BTreeMap<usize, Queue>> {
        let mut queues = BTreeMap::new();
        for (index, queue) in self.guest.queues().iter().enumerate() {
            let mut config = QueueConfig::new(queue.size, Feature::EVENT_IDX.set().bits());
            config.ack_features(Feature::EVENT_IDX.set().bits());
            config.set_size(queue.size);
            config.set_desc_table(GuestAddress(queue.addresses.desc.0));
            config.set_avail_ring(GuestAddress(queue.addresses.avail.0));
            config.set_used_ring(GuestAddress(queue.addresses.used.0));
            config.set_ready(true);
            let kick = queue.kick.as_fd().try_clone_to_owned()?;
            // SAFETY: the event becomes the only owner of the new descriptor.
            let event = unsafe { Event::from_raw_descriptor(kick.into_raw_fd()) };
            queues.insert(
                index,
                config.activate(&self.memory, event, self.interrupt.clone())?,
            );
        }
        Ok(queues)
    }

    /// Starts `device` on the guest's queues.
    pub fn activate(&self, device: &mut dyn VirtioDevice) -> Result<()> {
        device.activate(self.memory.clone(), self.interrupt.clone(), self.queues()?)
    }

    /// Wakes `device` with the queues that it, or another, gave up.
    pub fn wake(
        &self,
        device: &mut dyn VirtioDevice,
        queues: BTreeMap<usize, Queue>,
    ) -> Result<()> {
        device.virtio_wake(Some((self.memory.clone(), self.interrupt.clone(), queues)))
    }
}

impl Drop for PluginRig {
    fn drop(&mut self) {
        if let Some((ended, thread)) = self.line.take() {
            ended.store(true, Ordering::Relaxed);
            // It only waits and signals.
            let _ = thread.join();
        }
    }
}
