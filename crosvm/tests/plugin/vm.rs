// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device in a VM: behind the stand-in of crosvm's virtio-pci transport, with a
//! guest that uses MSI-X.

use std::sync::Arc;
use std::time::Duration;

use crosvm_vsock::address::GuestCid;
use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::kernel::QueueIndex;
use device_virtio_vsock::Config;
use devices::harness::{status, Transport};
use model_kernel::ModelKernel;
use snapshot::AnySnapshot;
use vm_memory::GuestMemory;

use crate::board::{config, device, eventually, ACKED};
use crate::rings::{self, EventDriver, EVENT, WRITABLE};

/// A VM and its guest.
pub struct TestVm {
    pub cid: GuestCid,
    pub kernel: Arc<ModelKernel>,
    pub memory: GuestMemory,
    pub transport: Transport,
    pub events: EventDriver,
}

impl TestVm {
    /// A VM that was just powered on.
    pub fn new(kernel: ModelKernel, config: Config) -> Self {
        let kernel = Arc::new(kernel);
        let memory = rings::memory();
        let cid = config.cid;
        let device = device(&kernel, config);
        Self {
            cid,
            transport: Transport::new(memory.clone(), Box::new(device)).unwrap(),
            events: EventDriver::new(&memory),
            kernel,
            memory,
        }
    }

    /// A VM on a kernel of today, whose guest is up.
    pub fn running() -> Self {
        let mut vm = Self::new(ModelKernel::new(KernelKind::Overloaded), config());
        vm.boot();
        vm
    }

    /// The guest's driver starts.
    pub fn boot(&mut self) {
        self.boot_with_vectors([0, 1, 2]);
    }

    /// As [`boot`](Self::boot), with these vectors for the queues.
    pub fn boot_with_vectors(&mut self, vectors: [u16; 3]) {
        self.transport.enable_msix();
        self.transport.ack_features(ACKED.bits());
        for (index, vector) in vectors.into_iter().enumerate() {
            let queue = self.transport.queue(index);
            rings::set_up(queue, index);
            queue.set_vector(vector);
            queue.set_ready(true);
        }
        self.transport.write_status(status::READY);
        assert_eq!(self.transport.status(), status::READY);
        assert!(self.kernel.is_running());
    }

    /// The guest's driver resets the device, and its own event queue.
    pub fn reset(&mut self) {
        self.transport.write_status(0);
        assert!(!self.transport.queue(0).ready());
        self.memory
            .write_all_at_addr(
                &[0; 0x4000],
                vm_memory::GuestAddress(rings::rings(EVENT).desc),
            )
            .unwrap();
        self.events = EventDriver::new(&self.memory);
    }

    /// The guest posts a buffer for an event, and says so.
    pub fn post_event_buffer(&mut self) {
        self.events.post(4, WRITABLE);
        self.kick();
    }

    /// The guest kicks the event queue.
    pub fn kick(&self) {
        self.transport.kick(EVENT).signal().unwrap();
    }

    /// The `n`-th buffer comes back with a transport reset, and an interrupt says
    /// so.
    pub fn assert_told_of_reset(&self, n: u16) {
        eventually("a transport reset", || self.events.used() > n);
        assert_eq!(self.events.event(n), (4, Some(0)));
        assert!(self.transport.interrupted(2, PATIENCE));
    }

    /// A call of the kernel's for `queue` reaches the guest at `vector`.
    pub fn assert_called(&self, queue: QueueIndex, vector: u16) {
        assert!(self.kernel.notify(queue));
        assert!(self.transport.interrupted(vector, PATIENCE));
    }

    /// The device serves both queues.
    pub fn assert_works(&self) {
        assert!(self.kernel.is_running());
        self.assert_called(QueueIndex::Rx, 0);
        self.assert_called(QueueIndex::Tx, 1);
        assert_eq!(self.kernel.violations(), [""; 0]);
    }

    /// Puts the VM to sleep and takes its state.
    pub fn suspend(&mut self) -> AnySnapshot {
        self.transport.sleep().unwrap();
        self.transport.snapshot().unwrap()
    }

    /// A second VM, asleep, in the state of a first one but for guest memory, which
    /// is empty.
    pub fn restored(snapshot: AnySnapshot, config: Config, kernel: ModelKernel) -> Self {
        let mut vm = Self::new(kernel, config);
        vm.transport.sleep().unwrap();
        vm.transport.restore(snapshot).unwrap();
        vm
    }
}

/// Longer than any machine is busy.
pub const PATIENCE: Duration = Duration::from_secs(10);
