// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first line of the log: what was built, and what it runs on.

use std::path::Path;
use std::sync::Arc;

use crosvm_vsock::compat::{IotlbBit, KernelKind};
use crosvm_vsock::kernel::ioctl::VhostFd;
use crosvm_vsock::kernel::probe::probe;
use crosvm_vsock::kernel::{Error, Vhost};
use log::info;

use crate::cli::vm::{Backend, Vm};

/// The features that change what this program can do.
const FEATURES: &[(&str, bool)] = &[
    ("control", cfg!(feature = "control")),
    ("config-file", cfg!(feature = "config-file")),
    ("generate", cfg!(feature = "generate")),
    ("userspace", cfg!(feature = "userspace")),
    ("vhost-user", cfg!(feature = "vhost-user")),
];

/// Logs version, features, backends, and the kind of each kernel device.
pub fn announce(vms: &[Vm]) {
    let features: Vec<&str> = FEATURES
        .iter()
        .filter_map(|(name, on)| on.then_some(*name))
        .collect();
    info!(
        "crosvm-vsock {} with {}; {}",
        env!("CARGO_PKG_VERSION"),
        features.join(", "),
        backends(vms)
    );
}

fn backends(vms: &[Vm]) -> String {
    let mut names: Vec<String> = Vec::new();
    let mut userspace = 0;
    for vm in vms {
        match &vm.backend {
            Backend::Userspace(_) => userspace += 1,
            Backend::Kernel { device, .. } => {
                let kind = match kind(device) {
                    Some(kind) => format!("kind {kind}"),
                    None => "kind unknown".to_owned(),
                };
                let name = format!("kernel through {} ({kind})", device.display());
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    if userspace > 0 {
        names.insert(0, "userspace".to_owned());
    }
    format!("backend {}", names.join(", "))
}

/// What bit 33 means to this device. Starts nothing; whoever opens the device for a VM
/// says what is wrong with it.
pub fn kind(device: &Path) -> Option<KernelKind> {
    let open = || {
        VhostFd::open(device)
            .map(|fd| Arc::new(fd) as Arc<dyn Vhost>)
            .map_err(|source| Error::Open {
                path: device.to_owned(),
                source,
            })
    };
    let report = probe(open, IotlbBit::default()).ok()?;
    Some(report.kind)
}
