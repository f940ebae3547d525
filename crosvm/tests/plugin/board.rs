// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device without a transport: calls in any order, queues of any shape.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use base::Event;
use crosvm_vsock::address::GuestCid;
use crosvm_vsock::compat::{IotlbBit, Vm};
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::{QueueIndex, VhostVsock};
use device_virtio_vsock::{Config, Confinement, Vsock};
use devices::virtio::{Interrupt, Queue, QueueConfig, VirtioDevice};
use devices::IrqLevelEvent;
use model_kernel::ModelKernel;
use vm_memory::GuestMemory;

use crate::rings;

/// What a guest acknowledges here.
pub const ACKED: FeatureSet = FeatureSet::of(&[Feature::VERSION_1, Feature::SEQPACKET]);

/// The configuration of a plain VM, with a CID that no other test has.
pub fn config() -> Config {
    static CID: AtomicU64 = AtomicU64::new(1000);
    Config {
        cid: GuestCid::new(CID.fetch_add(1, Ordering::Relaxed)).unwrap(),
        vm: Vm::Plain,
        base_features: FeatureSet::EMPTY,
        iotlb_bit: IotlbBit::default(),
        confinement: Confinement::None,
        queue_sizes: [rings::SIZE; 3],
    }
}

/// A device, in its jail already.
pub fn device(kernel: &Arc<ModelKernel>, config: Config) -> Vsock {
    let vhost = VhostVsock::with_kernel(kernel.clone()).unwrap();
    let mut device = Vsock::new(vhost, config).unwrap();
    device.on_device_sandboxed();
    device
}

/// Guest memory, interrupts by the line, and kicks.
pub struct Board {
    pub memory: GuestMemory,
    pub interrupt: Interrupt,
    pub kicks: [Event; 3],
}

impl Board {
    pub fn new() -> Self {
        let line = IrqLevelEvent::new().unwrap();
        Self {
            memory: rings::memory(),
            interrupt: Interrupt::new(
                line,
                None,
                0xffff,
                #[cfg(target_arch = "x86_64")]
                None,
            ),
            kicks: [(); 3].map(|()| Event::new().unwrap()),
        }
    }

    /// A queue, changed before it is made ready.
    pub fn queue(&self, index: usize, change: impl FnOnce(&mut QueueConfig)) -> Queue {
        let mut config = QueueConfig::new(rings::SIZE, 0);
        rings::set_up(&mut config, index);
        change(&mut config);
        config.set_ready(true);
        let kick = self.kicks[index].try_clone().unwrap();
        config
            .activate(&self.memory, kick, self.interrupt.clone())
            .unwrap()
    }

    /// All queues as they should be.
    pub fn queues(&self) -> BTreeMap<usize, Queue> {
        (0..3).map(|i| (i, self.queue(i, |_| {}))).collect()
    }

    pub fn activate(
        &self,
        device: &mut Vsock,
        queues: BTreeMap<usize, Queue>,
    ) -> anyhow::Result<()> {
        device.activate(self.memory.clone(), self.interrupt.clone(), queues)
    }

    pub fn wake(&self, device: &mut Vsock, queues: BTreeMap<usize, Queue>) -> anyhow::Result<()> {
        device.virtio_wake(Some((self.memory.clone(), self.interrupt.clone(), queues)))
    }

    /// Activates and checks that the device works.
    pub fn assert_activates(&self, kernel: &ModelKernel, device: &mut Vsock) {
        device.ack_features(ACKED.bits());
        self.activate(device, self.queues()).unwrap();
        self.assert_runs(kernel);
    }

    /// A call of the kernel's reaches the guest.
    pub fn assert_runs(&self, kernel: &ModelKernel) {
        assert!(kernel.is_running());
        for queue in QueueIndex::ALL {
            self.interrupt.read_and_reset_interrupt_status();
            assert!(kernel.notify(queue));
            eventually("an interrupt", || {
                self.interrupt.read_interrupt_status() == 1
            });
        }
        assert_eq!(kernel.violations(), [""; 0]);
    }
}

/// Waits for another thread's work. How long it takes proves nothing.
pub fn eventually(what: &str, done: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("waited in vain for {what}");
}
