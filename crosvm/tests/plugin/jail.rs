// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device stays within crosvm's stock policy for vhost-vsock: its requests to
//! the kernel, in every mode and over a whole life.

use crosvm_vsock::address::{BusAddr, Gpa, Range};
use crosvm_vsock::compat::{KernelKind, Vm};
use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::kernel::{Access, QueueIndex};
use device_virtio_vsock::{Config, Confinement};
use model_kernel::{Call, ModelKernel};

use crate::board::config;
use crate::rings::MEMORY_SIZE;
use crate::vm::TestVm;

/// The second argument of the ioctls that `vhost_vsock.policy` lets pass.
const POLICY: [u32; 16] = [
    0x8008_af00, // GET_FEATURES
    0x4008_af00, // SET_FEATURES
    0x0000_af01, // SET_OWNER
    0x0000_af02, // RESET_OWNER
    0x4008_af03, // SET_MEM_TABLE
    0x4008_af04, // SET_LOG_BASE
    0x4004_af07, // SET_LOG_FD
    0x4008_af10, // SET_VRING_NUM
    0x4028_af11, // SET_VRING_ADDR
    0x4008_af12, // SET_VRING_BASE
    0xc008_af12, // GET_VRING_BASE
    0x4008_af20, // SET_VRING_KICK
    0x4008_af21, // SET_VRING_CALL
    0x4008_af22, // SET_VRING_ERR
    0x4008_af60, // VSOCK_SET_GUEST_CID
    0x4004_af61, // VSOCK_SET_RUNNING
];

/// `linux/vhost.h`; none for what is no ioctl.
fn request(call: &Call) -> Option<u32> {
    Some(match call {
        Call::GetFeatures => 0x8008_af00,
        Call::SetOwner => 0xaf01,
        Call::SetFeatures(_) => 0x4008_af00,
        Call::GetBackendFeatures => 0x8008_af26,
        Call::SetBackendFeatures(_) => 0x4008_af25,
        Call::SetMemTable(_) => 0x4008_af03,
        Call::SetVringNum(..) => 0x4008_af10,
        Call::SetVringBase(..) => 0x4008_af12,
        Call::GetVringBase(_) => 0xc008_af12,
        Call::SetVringAddr(..) => 0x4028_af11,
        Call::SetVringKick(..) => 0x4008_af20,
        Call::SetVringCall(..) => 0x4008_af21,
        Call::SetVringErr(..) => 0x4008_af22,
        Call::SetGuestCid(_) => 0x4008_af60,
        Call::SetRunning(_) => 0x4004_af61,
        Call::Write(_) | Call::Read => return None,
    })
}

fn life(kernel: ModelKernel, config: Config) -> Vec<Call> {
    let mut vm = TestVm::new(kernel, config.clone());
    vm.boot();
    for _ in 0..2 {
        vm.kernel
            .access(QueueIndex::Tx, BusAddr(0x1000), 64, Access::Read);
        vm.transport.sleep().unwrap();
        vm.transport.wake().unwrap();
    }
    let snapshot = vm.suspend();
    vm.transport.wake().unwrap();
    vm.reset();
    vm.boot();
    let mut calls = vm.kernel.calls();

    let kernel = ModelKernel::new(KernelKind::Overloaded);
    let mut restored = TestVm::restored(snapshot, config, kernel);
    restored.transport.wake().unwrap();
    restored.kernel.break_queue(QueueIndex::Rx);
    restored.post_event_buffer();
    restored.assert_told_of_reset(0);
    restored.reset();
    calls.extend(restored.kernel.calls());
    calls
}

#[test]
fn only_requests_of_the_stock_policy_and_messages_of_version_1() {
    let all = Range::new(Gpa(0), MEMORY_SIZE).unwrap();
    for confinement in [
        Confinement::None,
        Confinement::Identity,
        Confinement::Restricted(vec![all]),
    ] {
        for sticky in [false, true] {
            let kernel = ModelKernel::new(KernelKind::Overloaded);
            let config = Config {
                vm: Vm::Protected,
                base_features: FeatureSet::EMPTY,
                confinement: confinement.clone(),
                ..config()
            };
            let calls = match sticky {
                true => life(kernel.sticky(), config),
                false => life(kernel, config),
            };
            let outside = calls
                .iter()
                .filter(|call| request(call).is_some_and(|number| !POLICY.contains(&number)));
            assert_eq!(outside.collect::<Vec<_>>(), [] as [&Call; 0]);
            let messages = calls.iter().filter_map(|call| match call {
                Call::Write(message) => Some(message.version),
                _ => None,
            });
            let versions: Vec<_> = messages.collect();
            // Without an IOTLB there is one still: to see that there is none.
            assert!(!versions.is_empty());
            assert!(versions.iter().all(|version| *version == 1));
        }
    }
}
