// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is offered to the guest, and what of its acknowledgements reaches the
//! kernel.

use std::sync::Arc;

use crosvm_vsock::compat::{KernelKind, Vm};
use crosvm_vsock::features::{Feature, FeatureSet};
use device_virtio_vsock::{Config, Confinement};
use devices::virtio::{base_features, VirtioDevice};
use hypervisor::ProtectionType;
use model_kernel::ModelKernel;

use crate::board::{config, device, Board, ACKED};
use crate::logs;

const PLATFORM: FeatureSet = FeatureSet::from_bits(1 << 63 | 1 << 33);

#[test]
fn platform_access_is_offered_by_the_vm_and_seqpacket_by_the_kernel() {
    for (kind, seqpacket) in [(KernelKind::NoIotlb, false), (KernelKind::Split, true)] {
        for (vm, protection, platform) in [
            (Vm::Plain, ProtectionType::Unprotected, FeatureSet::EMPTY),
            (Vm::Protected, ProtectionType::Protected, PLATFORM),
        ] {
            let kernel = Arc::new(ModelKernel::new(kind));
            let config = Config {
                vm,
                base_features: FeatureSet::from_bits(base_features(protection)),
                ..config()
            };
            let offered = FeatureSet::from_bits(device(&kernel, config).features());
            assert_eq!(offered & PLATFORM, platform);
            assert_eq!(offered.has(Feature::SEQPACKET), seqpacket);
            assert!(offered.has(Feature::VERSION_1) && offered.has(Feature::SUSPEND));
        }
    }
}

#[test]
fn bits_that_were_not_offered_are_dropped_with_one_warning() {
    logs::collect();
    let kernel = Arc::new(ModelKernel::new(KernelKind::Overloaded));
    let mut device = device(&kernel, config());
    logs::taken();
    device.ack_features(ACKED.bits() | 1 << 5 | 1 << 33 | 1 << 63);
    let lines = logs::taken();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("not offered"), "{lines:#?}");
    assert!(lines[0].contains("ACCESS_PLATFORM"), "{lines:#?}");
    for _ in 0..200 {
        device.ack_features(1 << 5 | (ACKED.bits() & 0xffff_ffff));
    }
    assert!(logs::taken().len() < 10);
    let board = Board::new();
    board.activate(&mut device, board.queues()).unwrap();
    assert_eq!(kernel.acked(), ACKED);
}

#[test]
fn halves_are_put_together_and_one_that_comes_again_replaces_itself() {
    let event_idx = Feature::EVENT_IDX.set().bits();
    let seqpacket = Feature::SEQPACKET.set().bits();
    let version_1 = Feature::VERSION_1.set().bits();
    for (writes, expected) in [
        (&[seqpacket, version_1][..], seqpacket | version_1),
        (&[version_1, seqpacket], seqpacket | version_1),
        (
            &[event_idx | seqpacket, version_1, seqpacket, version_1],
            seqpacket | version_1,
        ),
        (&[seqpacket, version_1, 0, version_1], version_1),
    ] {
        let kernel = Arc::new(ModelKernel::new(KernelKind::Overloaded));
        let mut device = device(&kernel, config());
        for write in writes {
            device.ack_features(*write);
        }
        let board = Board::new();
        board.activate(&mut device, board.queues()).unwrap();
        assert_eq!(kernel.acked().bits(), expected, "{writes:x?}");
    }
}

#[test]
fn a_running_device_keeps_the_features_that_it_was_started_with() {
    let kernel = Arc::new(ModelKernel::new(KernelKind::Overloaded));
    let mut device = device(&kernel, config());
    let board = Board::new();
    board.assert_activates(&kernel, &mut device);
    device.ack_features(Feature::EVENT_IDX.set().bits());
    let queues = device.virtio_sleep().unwrap().unwrap();
    device.ack_features(Feature::EVENT_IDX.set().bits());
    board.wake(&mut device, queues).unwrap();
    assert_eq!(kernel.acked(), ACKED);
    device.reset().unwrap();
    device.ack_features(Feature::EVENT_IDX.set().bits());
    board.activate(&mut device, board.queues()).unwrap();
    assert_eq!(kernel.acked(), Feature::EVENT_IDX.set());
}

#[test]
fn the_kernel_hears_of_platform_access_only_when_the_iotlb_is_wanted() {
    for (confinement, expected) in [
        (Confinement::None, FeatureSet::EMPTY),
        (Confinement::Identity, PLATFORM),
    ] {
        let kernel = Arc::new(ModelKernel::new(KernelKind::Split));
        let config = Config {
            vm: Vm::Protected,
            confinement,
            ..config()
        };
        let mut device = device(&kernel, config);
        device.ack_features((ACKED | PLATFORM).bits());
        let board = Board::new();
        board.activate(&mut device, board.queues()).unwrap();
        assert_eq!(kernel.acked() & PLATFORM, expected);
    }
}
