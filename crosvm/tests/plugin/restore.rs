// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Snapshots: what comes along into another device, what the guest is told, and
//! which snapshots are refused.

use std::sync::Arc;

use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::QueueIndex;
use device_virtio_vsock::snapshot::Snapshot;
use device_virtio_vsock::Config;
use devices::virtio::VirtioDevice;
use model_kernel::{Call, ModelKernel};
use snapshot::AnySnapshot;

use crate::board::{config, device, Board, ACKED};
use crate::vm::TestVm;

fn kernel() -> ModelKernel {
    ModelKernel::new(KernelKind::Overloaded)
}

/// The state of `old` in a new VM, asleep still. Its guest has posted nothing.
pub fn restored(mut old: TestVm) -> TestVm {
    let snapshot = old.suspend();
    let mut config = config();
    config.cid = old.cid;
    TestVm::restored(snapshot, config, kernel())
}

#[test]
fn the_guest_is_told_once_it_has_posted_a_buffer() {
    let mut vm = restored(TestVm::running());
    vm.transport.wake().unwrap();
    vm.assert_works();
    assert_eq!(vm.events.used(), 0);
    vm.post_event_buffer();
    vm.assert_told_of_reset(0);
    // And told once.
    vm.post_event_buffer();
    vm.assert_works();
    vm.transport.sleep().unwrap();
    assert_eq!(vm.events.used(), 1);
}

#[test]
fn the_guest_is_told_at_once_when_its_buffer_waits() {
    let mut vm = restored(TestVm::running());
    vm.post_event_buffer();
    vm.transport.wake().unwrap();
    vm.assert_told_of_reset(0);
}

#[test]
fn what_is_owed_stays_owed_over_another_sleep() {
    let mut vm = restored(TestVm::running());
    for _ in 0..2 {
        vm.transport.wake().unwrap();
        vm.transport.sleep().unwrap();
    }
    vm.transport.wake().unwrap();
    vm.post_event_buffer();
    vm.assert_told_of_reset(0);
}

#[test]
fn what_is_owed_ends_with_a_reset() {
    let mut vm = restored(TestVm::running());
    vm.transport.wake().unwrap();
    vm.reset();
    vm.boot();
    vm.post_event_buffer();
    vm.assert_works();
    vm.transport.sleep().unwrap();
    assert_eq!(vm.events.used(), 0);
}

#[test]
fn a_sleep_alone_loses_no_connection() {
    let mut vm = TestVm::running();
    vm.post_event_buffer();
    vm.transport.sleep().unwrap();
    vm.transport.wake().unwrap();
    vm.assert_works();
    vm.transport.sleep().unwrap();
    assert_eq!(vm.events.used(), 0);
}

#[test]
fn the_kernels_queues_and_the_features_come_along() {
    use crosvm_vsock::address::BusAddr;
    use crosvm_vsock::kernel::Access;
    let old = TestVm::running();
    for _ in 0..3 {
        old.kernel
            .access(QueueIndex::Tx, BusAddr(0x1000), 64, Access::Read);
    }
    let mut new = restored(old);
    new.transport.wake().unwrap();
    new.assert_works();
    let calls = new.kernel.calls();
    assert!(calls.contains(&Call::SetVringBase(QueueIndex::Rx, 0)));
    assert!(calls.contains(&Call::SetVringBase(QueueIndex::Tx, 3)));
    assert_eq!(new.kernel.acked(), ACKED);
}

#[test]
fn a_device_that_was_not_active_is_restored_inactive() {
    let mut old = TestVm::new(kernel(), config());
    old.transport.ack_features(ACKED.bits());
    let mut new = restored(old);
    new.transport.wake().unwrap();
    assert!(!new.kernel.is_running());
    new.boot();
    new.assert_works();
}

/// A snapshot changed by `change` is refused with `words` by a device on `kernel`;
/// the device wakes as what it was, and works.
fn refused(kernel: ModelKernel, words: &str, change: impl FnOnce(&mut Snapshot, &Config)) {
    let kernel = Arc::new(kernel);
    let config = config();
    let mut device = device(&kernel, config.clone());
    device.virtio_sleep().unwrap();
    let mut snapshot = Snapshot {
        version: 1,
        cid: config.cid.raw(),
        offered: device.features(),
        acked: Feature::VERSION_1.set().bits(),
        queues: 3,
        vring_bases: Some([5, 6]),
    };
    change(&mut snapshot, &config);
    let before = device.virtio_snapshot().unwrap();
    kernel.forget_calls();
    let any = AnySnapshot::to_any(snapshot).unwrap();
    let text = format!("{:#}", device.virtio_restore(any).unwrap_err());
    assert!(text.contains(words), "{words:?} is not in {text:?}");
    assert_eq!(kernel.calls(), []);
    assert_eq!(device.virtio_snapshot().unwrap(), before);
    device.virtio_wake(None).unwrap();
    let board = Board::new();
    board.activate(&mut device, board.queues()).unwrap();
    board.assert_runs(&kernel);
    assert_eq!(kernel.acked(), FeatureSet::EMPTY);
}

#[test]
fn a_wrong_snapshot_is_refused_with_a_reason_and_changes_nothing() {
    refused(kernel(), "version 2", |snapshot, _| snapshot.version = 2);
    refused(kernel(), "is of CID 7", |snapshot, _| snapshot.cid = 7);
    refused(kernel(), "has 2 queues", |snapshot, _| snapshot.queues = 2);
    refused(kernel(), "without an offer", |snapshot, _| {
        snapshot.acked |= 1 << 5
    });
}

#[test]
fn a_snapshot_with_features_that_the_kernel_lacks_is_refused() {
    let seqpacket = Feature::SEQPACKET.set().bits();
    refused(
        ModelKernel::new(KernelKind::NoIotlb),
        "SEQPACKET",
        |snapshot, _| {
            snapshot.offered |= seqpacket;
            snapshot.acked |= seqpacket;
        },
    );
}

#[test]
fn what_is_no_snapshot_is_refused() {
    let kernel = Arc::new(kernel());
    let mut device = device(&kernel, config());
    device.virtio_sleep().unwrap();
    for junk in [
        AnySnapshot::to_any(()).unwrap(),
        AnySnapshot::to_any(5u64).unwrap(),
        AnySnapshot::to_any(["cid"]).unwrap(),
    ] {
        let refused = device.virtio_restore(junk).unwrap_err().to_string();
        assert!(refused.contains("no snapshot of a vsock"), "{refused}");
    }
    device.virtio_wake(None).unwrap();
    Board::new().assert_activates(&kernel, &mut device);
}
