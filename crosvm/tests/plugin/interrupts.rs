// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's calls on their way to the guest: relayed, or straight to the
//! vector where crosvm tells of MSI-X masks.

use std::time::Duration;

use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::kernel::QueueIndex;
use model_kernel::ModelKernel;

use crate::board::{config, eventually};
use crate::vm::{TestVm, PATIENCE};

const NOW: Duration = Duration::ZERO;

fn vm_with_vectors(vectors: [u16; 3]) -> TestVm {
    let mut vm = TestVm::new(ModelKernel::new(KernelKind::Overloaded), config());
    vm.boot_with_vectors(vectors);
    vm
}

#[test]
fn a_call_reaches_the_vector_of_its_queue_and_no_other() {
    let vm = vm_with_vectors([2, 0, 1]);
    vm.assert_called(QueueIndex::Rx, 2);
    vm.assert_called(QueueIndex::Tx, 0);
    for vector in 0..4 {
        assert!(!vm.transport.interrupted(vector, NOW), "vector {vector}");
    }
}

#[test]
fn a_call_of_either_queue_reaches_a_shared_vector() {
    let vm = vm_with_vectors([1, 1, 1]);
    for queue in QueueIndex::ALL {
        vm.assert_called(queue, 1);
    }
}

#[test]
fn a_call_that_waits_at_a_sleep_is_delivered_before_it() {
    // Often enough to meet the worker on either side of its wait.
    for _ in 0..50 {
        let mut vm = TestVm::running();
        assert!(vm.kernel.notify(QueueIndex::Rx));
        assert!(vm.kernel.notify(QueueIndex::Tx));
        vm.transport.sleep().unwrap();
        assert!(vm.transport.interrupted(0, NOW));
        assert!(vm.transport.interrupted(1, NOW));
    }
}

#[test]
fn a_call_for_a_masked_vector_waits_for_the_mask() {
    let mut vm = TestVm::running();
    vm.transport.mask_vector(0, true);
    assert!(vm.kernel.notify(QueueIndex::Rx));
    eventually("the pending bit", || vm.transport.pending(0));
    assert!(!vm.transport.interrupted(0, NOW));
    vm.assert_called(QueueIndex::Tx, 1);
    vm.transport.mask_vector(0, false);
    assert!(vm.transport.interrupted(0, PATIENCE));
    vm.assert_works();
}

#[cfg(feature = "msix-status")]
mod direct {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;
    use std::sync::Arc;

    use crosvm_vsock::address::BusAddr;
    use crosvm_vsock::kernel::Access;
    use devices::harness::status;
    use model_kernel::{name, Call};

    use super::*;
    use crate::failures::{confined, rings_alone};

    /// The queues whose call was set since the last look.
    fn set(vm: &TestVm) -> Vec<QueueIndex> {
        let calls = vm.kernel.calls();
        vm.kernel.forget_calls();
        let set = calls.iter().map(|call| match call {
            Call::SetVringCall(queue, true) => *queue,
            other => panic!("{other:?}"),
        });
        set.collect()
    }

    /// Whether a call goes to the vector without the worker's help: crosvm's
    /// suspension holds back what the device signals, and only that.
    fn is_direct(vm: &mut TestVm, queue: QueueIndex, vector: u16) -> bool {
        vm.transport.write_status(status::READY | status::SUSPEND);
        assert!(vm.kernel.notify(queue));
        let direct = vm.transport.interrupted(vector, NOW);
        vm.transport.write_status(status::READY);
        direct
    }

    #[test]
    fn an_unmasked_vector_is_the_kernels_own() {
        let mut vm = TestVm::running();
        assert!(is_direct(&mut vm, QueueIndex::Rx, 0));
        assert!(is_direct(&mut vm, QueueIndex::Tx, 1));
        // After a wake as well, and after a restore.
        vm.transport.sleep().unwrap();
        vm.transport.wake().unwrap();
        while vm.transport.interrupted(0, NOW) {}
        assert!(is_direct(&mut vm, QueueIndex::Rx, 0));
        let mut vm = crate::restore::restored(vm);
        vm.transport.wake().unwrap();
        assert!(is_direct(&mut vm, QueueIndex::Tx, 1));
    }

    #[test]
    fn a_mask_switches_to_the_relayed_event_and_back() {
        let mut vm = TestVm::running();
        vm.kernel.forget_calls();
        vm.transport.mask_vector(1, true);
        assert_eq!(set(&vm), [QueueIndex::Tx]);
        // What is masked already does not change.
        vm.transport.mask_vector(1, true);
        assert_eq!(set(&vm), []);
        assert!(is_direct(&mut vm, QueueIndex::Rx, 0));
        assert!(!is_direct(&mut vm, QueueIndex::Tx, 1));
        eventually("the pending bit", || vm.transport.pending(1));
        vm.transport.mask_vector(1, false);
        assert_eq!(set(&vm), [QueueIndex::Tx]);
        assert!(vm.transport.interrupted(1, PATIENCE));
        assert!(is_direct(&mut vm, QueueIndex::Tx, 1));
    }

    #[test]
    fn the_mask_of_all_vectors_switches_all_queues() {
        let mut vm = TestVm::running();
        vm.kernel.forget_calls();
        vm.transport.write_msix_control(true, true);
        assert_eq!(set(&vm), QueueIndex::ALL);
        assert!(!is_direct(&mut vm, QueueIndex::Rx, 0));
        eventually("the pending bit", || vm.transport.pending(0));
        vm.transport.write_msix_control(true, false);
        assert_eq!(set(&vm), QueueIndex::ALL);
        assert!(vm.transport.interrupted(0, PATIENCE));
        assert!(is_direct(&mut vm, QueueIndex::Rx, 0));
    }

    #[test]
    fn a_vector_that_no_queue_has_changes_nothing() {
        let mut vm = vm_with_vectors([0, 0xffff, 2]);
        vm.kernel.forget_calls();
        for vector in [1, 2, 3] {
            vm.transport.mask_vector(vector, true);
            vm.transport.mask_vector(vector, false);
        }
        assert_eq!(set(&vm), []);
        assert!(is_direct(&mut vm, QueueIndex::Rx, 0));
    }

    #[test]
    fn a_shared_vector_changes_all_its_queues() {
        let mut vm = vm_with_vectors([1, 1, 1]);
        vm.kernel.forget_calls();
        vm.transport.mask_vector(1, true);
        assert_eq!(set(&vm), QueueIndex::ALL);
        for queue in QueueIndex::ALL {
            assert!(!is_direct(&mut vm, queue, 1));
        }
        vm.transport.mask_vector(1, false);
        assert_eq!(set(&vm), QueueIndex::ALL);
        assert!(vm.transport.interrupted(1, PATIENCE));
    }

    #[test]
    fn vectors_beyond_the_table_are_relayed_to_nobody() {
        let mut vm = vm_with_vectors([4, 0xfffe, 2]);
        vm.transport.write_msix_control(true, true);
        vm.transport.write_msix_control(true, false);
        for queue in QueueIndex::ALL {
            assert!(vm.kernel.notify(queue));
        }
        vm.transport.sleep().unwrap();
    }

    #[test]
    fn a_device_that_is_not_active_hears_of_masks_and_does_nothing() {
        let mut vm = TestVm::new(ModelKernel::new(KernelKind::Overloaded), config());
        vm.kernel.forget_calls();
        vm.transport.enable_msix();
        vm.transport.mask_vector(0, true);
        assert_eq!(set(&vm), []);
        vm.boot();
        vm.transport.sleep().unwrap();
        vm.kernel.forget_calls();
        vm.transport.mask_vector(0, true);
        assert_eq!(set(&vm), []);
        // It catches up when it wakes.
        vm.transport.wake().unwrap();
        assert!(!is_direct(&mut vm, QueueIndex::Rx, 0));
        eventually("the pending bit", || vm.transport.pending(0));
    }

    #[test]
    fn a_mask_waits_for_no_worker() {
        let kernel = ModelKernel::new(KernelKind::Overloaded);
        let mut vm = TestVm::new(kernel, confined(rings_alone()));
        vm.boot();
        // The worker stands still in its answer to a miss.
        let (stands, standing) = channel();
        let (go_on, gone_on) = channel::<()>();
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        vm.kernel.before(name::READ, 0, move || {
            stands.send(()).unwrap();
            // The test fails before it hangs.
            let _ = gone_on.recv_timeout(PATIENCE);
            over.store(true, Ordering::SeqCst);
        });
        let nowhere = BusAddr(0x9_0000);
        vm.kernel.access(QueueIndex::Tx, nowhere, 64, Access::Read);
        standing.recv_timeout(PATIENCE).unwrap();
        vm.kernel.forget_calls();
        vm.transport.mask_vector(0, true);
        vm.transport.mask_vector(0, false);
        assert_eq!(set(&vm), [QueueIndex::Rx, QueueIndex::Rx]);
        assert!(!is_over.load(Ordering::SeqCst));
        go_on.send(()).unwrap();
    }

    #[test]
    fn a_kernel_that_does_not_take_the_irqfd_fails_the_start() {
        for (skip, starts) in [(2, false), (3, false), (4, true)] {
            let mut vm = TestVm::new(ModelKernel::new(KernelKind::Overloaded), config());
            vm.kernel.fail(name::SET_VRING_CALL, skip, libc::ENOMEM);
            vm.transport.enable_msix();
            for index in 0..3 {
                crate::rings::set_up(vm.transport.queue(index), index);
                vm.transport.queue(index).set_ready(true);
            }
            vm.transport.write_status(status::READY);
            assert_eq!(vm.kernel.is_running(), starts, "{skip}");
            assert_eq!(vm.transport.status() == status::READY, starts);
        }
    }
}
