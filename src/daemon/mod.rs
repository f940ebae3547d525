// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon: a thread for each VM, and one that waits for a signal.
//!
//! SIGTERM and SIGINT end it cleanly: connections end, socket files go, exit code 0.
//! All sockets are there before it reports readiness (sd_notify). Errors go to
//! stderr.

mod announce;
#[cfg(feature = "control")]
mod control;
mod notify;
mod signals;
mod threads;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use crosvm_vsock::address::GuestCid;
use crosvm_vsock::compat::Mode;
use crosvm_vsock::epoll::Epoll;
use crosvm_vsock::event::{poll, EventFd};
use crosvm_vsock::kernel::{Addressing, VhostVsock};
use crosvm_vsock::path::DataPath;
use crosvm_vsock::userspace::listener::HostPlace;
use crosvm_vsock::userspace::sibling::Neighbourhood;
use crosvm_vsock::userspace::UserspacePath;
use crosvm_vsock::vhost_user::kernel_path::KernelPath;
use crosvm_vsock::vhost_user::worker::Worker;
use log::info;

use self::announce::announce;
use self::notify::notify;
use self::signals::Signals;
use self::threads::Job;
use crate::cli::vm::{Backend, Vm};
use crate::logging;

/// A VM that can be run on a thread of its own.
struct Ready {
    job: Job,
    #[cfg(feature = "control")]
    way: control::Way,
}

impl Ready {
    fn new<P: DataPath + Send + 'static>(
        cid: GuestCid,
        sockets: Vec<PathBuf>,
        worker: Worker<P>,
    ) -> Self {
        Self {
            #[cfg(feature = "control")]
            way: control::Way::to(&worker),
            job: Job {
                cid,
                sockets,
                stop: worker.stop_event(),
                run: Box::new(|| worker.run()),
            },
        }
    }
}

/// Serves `vms` until a signal, and at the socket `control` whoever asks about them.
pub fn run(vms: Vec<Vm>, control: Option<&Path>) -> ExitCode {
    let code = match serve(vms, control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::tell(&error);
            ExitCode::FAILURE
        }
    };
    logging::flush();
    code
}

fn serve(vms: Vec<Vm>, control: Option<&Path>) -> anyhow::Result<()> {
    // Before any thread: they inherit the mask.
    let signals = Signals::block().context("cannot wait for signals")?;
    signals::raise_descriptor_limit();
    announce(&vms);
    let neighbourhood = Arc::default();
    #[cfg(feature = "control")]
    let abouts: Vec<_> = vms.iter().map(control::About::of).collect();
    let mut all = Vec::new();
    for vm in vms {
        let cid = vm.cid;
        all.push(prepare(vm, &neighbourhood).with_context(|| format!("vm {cid}"))?);
    }
    // Others can make us log from here on.
    logging::in_background().context("no thread for the log")?;
    #[cfg(feature = "control")]
    let control = control::open(control, abouts, &all)?;
    #[cfg(not(feature = "control"))]
    let _ = control;
    let ended = Arc::new(EventFd::new().context("no event to wait for")?);
    let mut running = Vec::new();
    for vm in all {
        running.push(vm.job.start(&ended)?);
    }
    info!("serving {} VM(s)", running.len());
    notify("READY=1");
    poll([signals.as_fd(), ended.as_fd()], None).context("cannot wait for signals")?;
    notify("STOPPING=1");
    let result = threads::finish(running);
    // After the VMs: a client may wait for an answer from one of them.
    #[cfg(feature = "control")]
    drop(control);
    result
}

fn prepare(vm: Vm, neighbourhood: &Arc<Neighbourhood>) -> anyhow::Result<Ready> {
    let epoll = Arc::new(Epoll::new().context("no event loop")?);
    let sockets = vm.sockets();
    let Vm {
        socket,
        cid,
        backend,
        chosen,
    } = vm;
    let why = chosen.map_or_else(String::new, |why| format!(" (backend auto: {why})"));
    match backend {
        Backend::Userspace(config) => {
            match &config.host {
                HostPlace::Unix(path) => {
                    info!(
                        "vm {cid}: userspace path{why}, host programs around {}",
                        path.display()
                    );
                }
                HostPlace::Vsock { cid: to, .. } => {
                    info!("vm {cid}: userspace path{why}, forwarded to vsock CID {to}");
                }
            }
            let path = UserspacePath::new(config, neighbourhood, epoll)?;
            Ok(Ready::new(cid, sockets, Worker::new(&socket, path)?))
        }
        Backend::Kernel {
            device,
            max_queue_size,
            mode,
        } => {
            let name = device.display().to_string();
            let open = Box::new(move || VhostVsock::open(&device));
            let path = KernelPath::new(cid, max_queue_size, open, epoll);
            let path = match chosen {
                Some(why) => path.with_context(|| {
                    format!("backend auto: {why}, as the userspace path needs, nor can the kernel path be had")
                })?,
                None => path?,
            };
            let path = match mode {
                Mode::Restricted => path.with_addressing(Addressing::Restricted(Arc::default())),
                Mode::Identity => path.with_addressing(Addressing::Identity),
                Mode::Off | Mode::Translated => path,
            };
            info!("vm {cid}: kernel path through {name}, IOTLB {mode}{why}");
            Ok(Ready::new(cid, sockets, Worker::new(&socket, path)?))
        }
    }
}
