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

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
use crate::cli::vm::{Backend, Vm};
use crate::logging;

/// How long all threads together may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// A VM that can be run on a thread of its own.
struct Ready {
    cid: GuestCid,
    stop: Arc<EventFd>,
    run: Box<dyn FnOnce() -> io::Result<()> + Send>,
    #[cfg(feature = "control")]
    way: control::Way,
}

/// A VM's thread.
struct Running {
    stop: Arc<EventFd>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Ready {
    fn new<P: DataPath + Send + 'static>(cid: GuestCid, worker: Worker<P>) -> Self {
        Self {
            cid,
            stop: worker.stop_event(),
            #[cfg(feature = "control")]
            way: control::Way::to(&worker),
            run: Box::new(|| worker.run()),
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
    let failed = Arc::new(EventFd::new().context("no event to wait for")?);
    let mut running = Vec::new();
    for vm in all {
        let Ready { cid, stop, run, .. } = vm;
        let failed = failed.clone();
        let thread = std::thread::Builder::new()
            .name(format!("vsock-{cid}"))
            .spawn(move || {
                let result = run().with_context(|| format!("vm {cid}"));
                if result.is_err() {
                    failed.signal().context("cannot report a failure")?;
                }
                result
            })
            .context("no thread for a VM")?;
        running.push(Running { stop, thread });
    }
    info!("serving {} VM(s)", running.len());
    notify("READY=1");
    poll([signals.as_fd(), failed.as_fd()], None).context("cannot wait for signals")?;
    notify("STOPPING=1");
    let result = finish(running);
    // After the VMs: a client may wait for an answer from one of them.
    #[cfg(feature = "control")]
    drop(control);
    result
}

fn prepare(vm: Vm, neighbourhood: &Arc<Neighbourhood>) -> anyhow::Result<Ready> {
    let epoll = Arc::new(Epoll::new().context("no event loop")?);
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
            Ok(Ready::new(cid, Worker::new(&socket, path)?))
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
            Ok(Ready::new(cid, Worker::new(&socket, path)?))
        }
    }
}

/// Ends all threads; the first one's error, if there is one. One that does not end, since a
/// VMM holds it up with an event that takes no signal, ends with the process.
fn finish(running: Vec<Running>) -> anyhow::Result<()> {
    for vm in &running {
        vm.stop.signal().context("cannot stop a VM")?;
    }
    let deadline = Instant::now() + PATIENCE;
    let mut result = Ok(());
    for vm in running {
        while !vm.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !vm.thread.is_finished() {
            let name = vm.thread.thread().name().unwrap_or("a VM").to_owned();
            result = result.and(Err(anyhow::anyhow!("the thread {name} does not end")));
            continue;
        }
        let ended = vm
            .thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("a VM's thread has panicked")));
        result = result.and(ended);
    }
    result
}
