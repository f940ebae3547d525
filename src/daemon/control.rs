// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's VMs behind its control socket.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use crosvm_vsock::control::socket::ControlSocket;
use crosvm_vsock::control::{Backend, Device, Service};
use crosvm_vsock::mailbox::Mailbox;
use crosvm_vsock::path::DataPath;
use crosvm_vsock::vhost_user::worker::Worker;
use crosvm_vsock::watchers::Watchers;
use log::info;

use super::announce::kind;
use super::Ready;
use crate::cli::vm;

/// How to reach a VM's thread, and to hear of it.
pub struct Way {
    mailbox: Mailbox,
    watchers: Arc<Watchers>,
}

impl Way {
    pub fn to<P: DataPath>(worker: &Worker<P>) -> Self {
        Self {
            mailbox: worker.mailbox(),
            watchers: worker.watchers(),
        }
    }
}

/// What is known of a VM before it runs.
pub struct About {
    backend: Backend,
    reason: Option<String>,
}

impl About {
    pub fn of(vm: &vm::Vm) -> Self {
        Self {
            backend: match &vm.backend {
                vm::Backend::Userspace(_) => Backend::Userspace,
                vm::Backend::Kernel { device, .. } => Backend::Kernel(kind(device)),
            },
            reason: vm.chosen.map(str::to_owned),
        }
    }
}

/// Opens the control socket, if there is to be one.
pub fn open(
    path: Option<&Path>,
    abouts: Vec<About>,
    vms: &[Ready],
) -> anyhow::Result<Option<ControlSocket>> {
    let Some(path) = path else {
        return Ok(None);
    };
    let since = SystemTime::now();
    let devices = abouts.into_iter().zip(vms).map(|(about, vm)| Device {
        cid: vm.job.cid,
        backend: about.backend,
        reason: about.reason,
        mailbox: vm.way.mailbox.clone(),
        watchers: vm.way.watchers.clone(),
        since,
    });
    let socket = ControlSocket::open(path, Service::new(devices)).context("control socket")?;
    info!("control socket at {}", path.display());
    Ok(Some(socket))
}
