// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A jail closes what `keep_rds` does not name. A file of its own, since other
//! tests open descriptors of the same process.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::sync::Arc;

use crosvm_vsock::address::GuestCid;
use crosvm_vsock::compat::{IotlbBit, KernelKind, Vm};
use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::kernel::VhostVsock;
use device_virtio_vsock::{Config, Confinement, Vsock};
use devices::virtio::VirtioDevice;
use model_kernel::ModelKernel;

fn open() -> BTreeSet<RawFd> {
    let listed = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let numbers: Vec<RawFd> = numbers.map(|name| name.parse().unwrap()).collect();
    // The list's own descriptor is closed by now.
    let still_open = |fd: &RawFd| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok();
    numbers.into_iter().filter(still_open).collect()
}

#[test]
fn all_that_was_opened_before_the_jail_is_kept() {
    let before = open();
    let kernel = Arc::new(ModelKernel::new(KernelKind::Overloaded));
    let config = Config {
        cid: GuestCid::new(3).unwrap(),
        vm: Vm::Plain,
        base_features: FeatureSet::EMPTY,
        iotlb_bit: IotlbBit::default(),
        confinement: Confinement::Identity,
        queue_sizes: [256; 3],
    };
    let device = Vsock::new(VhostVsock::with_kernel(kernel).unwrap(), config).unwrap();
    let opened: BTreeSet<_> = open().difference(&before).copied().collect();
    let kept: BTreeSet<_> = device.keep_rds().into_iter().collect();
    assert!(!opened.is_empty());
    assert_eq!(kept, opened);
}
