// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel says no, or gives up: what the guest sees, what is logged, and that
//! the device works after a reset.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crosvm_vsock::address::{BusAddr, Gpa, Range};
use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::kernel::{Access, QueueIndex, Vhost};
use device_virtio_vsock::snapshot::Snapshot;
use device_virtio_vsock::{Config, Confinement};
use devices::harness::status;
use devices::virtio::VirtioDevice;
use model_kernel::{name, ModelKernel, Outcome};
use snapshot::AnySnapshot;

use crate::board::{config, device, eventually, Board, ACKED};
use crate::logs;
use crate::rings::{rings, EVENT};
use crate::vm::TestVm;

fn kernel() -> ModelKernel {
    ModelKernel::new(KernelKind::Overloaded)
}

/// A plain VM whose kernel is confined.
pub fn confined(confinement: Confinement) -> Config {
    Config {
        confinement,
        ..config()
    }
}

/// The rings, and nothing else.
pub fn rings_alone() -> Confinement {
    let first = rings(0).desc;
    let size = rings(EVENT).used + 0x1000 - first;
    Confinement::Restricted(vec![Range::new(Gpa(first), size).unwrap()])
}

#[test]
fn an_activation_that_fails_at_any_call_can_be_tried_again() {
    for confinement in [Confinement::None, Confinement::Identity, rings_alone()] {
        for failing in 0.. {
            let kernel = Arc::new(kernel());
            let mut device = device(&kernel, confined(confinement.clone()));
            device.ack_features(ACKED.bits());
            let board = Board::new();
            kernel.fail_any(failing, libc::ENOMEM);
            let activated = board.activate(&mut device, board.queues());
            if kernel.has_faults() {
                // There are no more calls.
                assert!(activated.is_ok() && failing > 10);
                break;
            }
            if activated.is_err() {
                assert!(!kernel.is_running(), "call {failing}");
                board.assert_activates(&kernel, &mut device);
            }
        }
    }
}

#[test]
fn a_failed_activation_shows_in_the_status() {
    let mut vm = TestVm::new(kernel(), config());
    vm.kernel.fail(name::SET_RUNNING, 0, libc::EFAULT);
    for index in 0..3 {
        crate::rings::set_up(vm.transport.queue(index), index);
        vm.transport.queue(index).set_ready(true);
    }
    vm.transport.write_status(status::READY);
    assert_eq!(vm.transport.status(), status::READY | status::NEEDS_RESET);
    assert!(!vm.kernel.is_running());
    // crosvm's transport asks this device no more; another one may.
    let board = Board::new();
    let device = vm.transport.device();
    let (memory, interrupt) = (board.memory.clone(), board.interrupt.clone());
    device.activate(memory, interrupt, board.queues()).unwrap();
    board.assert_runs(&vm.kernel);
}

#[test]
fn a_wake_that_the_kernel_fails_at_any_call_leaves_a_device_for_a_reset() {
    for confinement in [Confinement::None, Confinement::Identity] {
        let mut broken = 0;
        for failing in 0.. {
            let mut vm = TestVm::new(kernel(), confined(confinement.clone()));
            vm.boot();
            vm.transport.sleep().unwrap();
            vm.kernel.fail_any(failing, libc::ENOMEM);
            vm.transport.wake().unwrap();
            if vm.kernel.has_faults() {
                assert!(broken > 5);
                break;
            }
            vm.post_event_buffer();
            if vm.kernel.is_cut_off() {
                broken += 1;
                vm.assert_told_of_reset(0);
                // Masks change nothing, and are no reason to complain.
                logs::collect();
                logs::taken();
                vm.transport.mask_vector(0, true);
                vm.transport.mask_vector(0, false);
                assert_eq!(logs::taken(), [""; 0]);
                vm.reset();
                vm.boot();
            }
            vm.assert_works();
        }
    }
}

#[test]
fn a_device_that_did_not_wake_keeps_its_place_and_may_wake_later() {
    use model_kernel::Call;
    let mut vm = TestVm::running();
    for _ in 0..3 {
        vm.kernel
            .access(QueueIndex::Tx, BusAddr(0x1000), 64, Access::Read);
    }
    let before: Snapshot = {
        vm.transport.sleep().unwrap();
        let snapshot = vm.transport.device().virtio_snapshot().unwrap();
        AnySnapshot::from_any(snapshot).unwrap()
    };
    assert_eq!(before.vring_bases, Some([0, 3]));
    vm.kernel.fail_always(name::SET_VRING_ADDR, libc::ENOMEM);
    for _ in 0..3 {
        vm.transport.wake().unwrap();
        vm.transport.sleep().unwrap();
        let after = vm.transport.device().virtio_snapshot().unwrap();
        assert_eq!(AnySnapshot::from_any::<Snapshot>(after).unwrap(), before);
    }
    vm.kernel.heal();
    vm.kernel.forget_calls();
    vm.transport.wake().unwrap();
    vm.assert_works();
    let calls = vm.kernel.calls();
    assert!(calls.contains(&Call::SetVringBase(QueueIndex::Tx, 3)));
    // Its connections may have timed out: the guest is told.
    vm.post_event_buffer();
    vm.assert_told_of_reset(0);
}

#[test]
fn a_sleep_that_the_kernel_refuses_leaves_the_device_awake_until_a_reset() {
    let mut vm = TestVm::running();
    vm.kernel.fail(name::GET_VRING_BASE, 0, libc::EIO);
    let refused = format!("{:#}", vm.transport.sleep().unwrap_err());
    assert!(refused.contains("does not sleep"), "{refused}");
    assert!(refused.contains("VHOST_GET_VRING_BASE"), "{refused}");
    vm.post_event_buffer();
    vm.assert_told_of_reset(0);
    // Where the queues were is lost: the device sleeps, and cannot be moved.
    vm.transport.sleep().unwrap();
    let refused = vm.transport.snapshot().unwrap_err().to_string();
    assert!(refused.contains("needs a reset first"), "{refused}");
    vm.kernel.forget_calls();
    vm.transport.wake().unwrap();
    assert_eq!(vm.kernel.calls(), []);
    vm.reset();
    vm.boot();
    vm.assert_works();
    vm.suspend();
}

#[test]
fn queues_that_a_wake_cannot_take_are_refused_and_good_ones_taken_after() {
    let kernel = Arc::new(kernel());
    let mut device = device(&kernel, config());
    let board = Board::new();
    board.assert_activates(&kernel, &mut device);
    let mut queues = device.virtio_sleep().unwrap().unwrap();
    let mut lacking = board.queues();
    lacking.remove(&EVENT);
    let refused = board.wake(&mut device, lacking).unwrap_err().to_string();
    assert!(refused.contains("needs its 3 queues"), "{refused}");
    let astray = board.queue(EVENT, |config| {
        config.set_used_ring(vm_memory::GuestAddress(1 << 40));
    });
    let good = queues.insert(EVENT, astray).unwrap();
    let refused = board.wake(&mut device, queues).unwrap_err().to_string();
    assert!(refused.contains("is not guest memory"), "{refused}");
    let mut queues = board.queues();
    queues.insert(EVENT, good);
    board.wake(&mut device, queues).unwrap();
    board.assert_runs(&kernel);
}

#[test]
fn a_broken_queue_is_logged_once_and_the_guest_told() {
    logs::collect();
    let mut vm = TestVm::running();
    vm.post_event_buffer();
    vm.kernel.break_queue(QueueIndex::Tx);
    vm.assert_told_of_reset(0);
    // No more is said of what breaks then, and the guest is told once.
    vm.post_event_buffer();
    for _ in 0..20 {
        vm.kernel.break_queue(QueueIndex::Rx);
    }
    vm.assert_called(QueueIndex::Rx, 0);
    vm.transport.sleep().unwrap();
    assert_eq!(vm.events.used(), 1);
    let lines = logs::with(&format!("CID {}:", vm.cid));
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("queue 1"), "{lines:#?}");
    assert!(lines[0].contains("needs a reset"), "{lines:#?}");
    vm.transport.wake().unwrap();
    vm.reset();
    vm.boot();
    vm.assert_works();
}

#[test]
fn a_broken_queue_is_told_of_when_the_buffer_comes() {
    logs::collect();
    let mut vm = TestVm::running();
    vm.kernel.break_queue(QueueIndex::Rx);
    eventually("the log line", || {
        !logs::with(&format!("CID {}:", vm.cid)).is_empty()
    });
    vm.post_event_buffer();
    vm.assert_told_of_reset(0);
    assert_eq!(vm.transport.status(), status::READY);
}

#[test]
fn a_denied_access_is_logged_and_the_guest_told() {
    logs::collect();
    let mut vm = TestVm::new(kernel(), confined(rings_alone()));
    vm.boot();
    vm.post_event_buffer();
    let secret = BusAddr(0x8_7000);
    let outcome = vm.kernel.access(QueueIndex::Tx, secret, 64, Access::Read);
    assert_eq!(outcome, Outcome::Missed);
    vm.assert_told_of_reset(0);
    vm.transport.sleep().unwrap();
    let lines = logs::with(&format!("CID {}:", vm.cid));
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("0x87000"), "{lines:#?}");
    assert!(lines[0].contains("needs a reset"), "{lines:#?}");
    // The other is the IOTLB service's own: what it denied.
    let lines = logs::with("0x87000");
    assert_eq!(lines.len(), 2, "{lines:#?}");
    vm.transport.wake().unwrap();
    vm.reset();
    vm.boot();
    vm.assert_works();
}

/// Whether an epoll instance of this process watches `fd`.
fn is_watched(fd: RawFd) -> bool {
    let instances = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    let texts = instances.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    let watched = format!("tfd: {fd:>8} ");
    texts.into_iter().any(|text| text.contains(&watched))
}

#[test]
fn a_service_that_fails_is_told_of_once_and_its_descriptor_left_alone() {
    logs::collect();
    let mut vm = TestVm::new(kernel(), confined(rings_alone()));
    vm.boot();
    vm.post_event_buffer();
    let descriptor = vm.kernel.descriptor().as_raw_fd();
    eventually("the worker watches the kernel", || is_watched(descriptor));
    // The miss stays unread, and its descriptor readable for ever.
    vm.kernel.fail_always(name::READ, libc::EIO);
    let secret = BusAddr(0x9_7000);
    let _ = vm.kernel.access(QueueIndex::Tx, secret, 64, Access::Read);
    vm.assert_told_of_reset(0);
    eventually("the worker no longer watches it, or it would spin", || {
        !is_watched(descriptor)
    });
    vm.transport.sleep().unwrap();
    let lines = logs::with(&format!("CID {}:", vm.cid));
    assert_eq!(lines.len(), 1, "{lines:#?}");
}

#[test]
fn an_iotlb_that_the_kernel_does_not_have_is_refused_with_what_to_do() {
    for confinement in [Confinement::Identity, rings_alone()] {
        let kernel = Arc::new(ModelKernel::new(KernelKind::NoIotlb));
        let mut device = device(&kernel, confined(confinement));
        let board = Board::new();
        let refused = board.activate(&mut device, board.queues()).unwrap_err();
        assert!(refused.to_string().contains("use mode off"), "{refused}");
    }
}

#[test]
fn restricted_without_anything_shared_is_refused_with_what_to_do() {
    let kernel = Arc::new(kernel());
    let mut device = device(&kernel, confined(Confinement::Restricted(Vec::new())));
    let board = Board::new();
    let refused = board.activate(&mut device, board.queues()).unwrap_err();
    assert!(refused.to_string().contains("shared="), "{refused}");
    let Confinement::Restricted(ranges) = rings_alone() else {
        unreachable!("it is restricted");
    };
    device.window().share(ranges[0]).unwrap();
    board.assert_activates(&kernel, &mut device);
}
