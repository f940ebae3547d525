// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMs' threads: how they start, and how the daemon ends when one does.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use crosvm_vsock::address::GuestCid;
use crosvm_vsock::event::EventFd;
use log::error;

/// How long all threads together may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a VM's thread is to do.
pub struct Job {
    pub cid: GuestCid,
    /// The socket files that it removes when it ends.
    pub sockets: Vec<PathBuf>,
    /// Signalled, it ends `run`.
    pub stop: Arc<EventFd>,
    pub run: Box<dyn FnOnce() -> io::Result<()> + Send>,
}

/// A VM's thread.
pub struct Running {
    sockets: Vec<PathBuf>,
    stop: Arc<EventFd>,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// Tells that a thread has ended, also if it was by a panic.
struct End(Arc<EventFd>);

impl Drop for End {
    fn drop(&mut self) {
        if let Err(error) = self.0.signal() {
            error!("cannot report the end of a VM: {error}");
        }
    }
}

impl Job {
    /// Starts the thread; `ended` is signalled when it ends, whatever the reason.
    pub fn start(self, ended: &Arc<EventFd>) -> anyhow::Result<Running> {
        let Self {
            cid,
            sockets,
            stop,
            run,
        } = self;
        let end = End(ended.clone());
        let thread = std::thread::Builder::new()
            .name(format!("vsock-{cid}"))
            .spawn(move || {
                let _end = end;
                run().with_context(|| format!("vm {cid}"))
            })
            .context("no thread for a VM")?;
        Ok(Running {
            sockets,
            stop,
            thread,
        })
    }
}

/// Ends all threads; the first one's error, if there is one. One that does not end, since a
/// VMM holds it up with an event that takes no signal, ends with the process.
pub fn finish(running: Vec<Running>) -> anyhow::Result<()> {
    for vm in &running {
        vm.stop.signal().context("cannot stop a VM")?;
    }
    let deadline = Instant::now() + PATIENCE;
    let mut result = Ok(());
    for vm in running {
        while !vm.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let name = vm.thread.thread().name().unwrap_or("a VM").to_owned();
        if !vm.thread.is_finished() {
            result = result.and(Err(anyhow::anyhow!("the thread {name} does not end")));
            for path in &vm.sockets {
                // It may have been removed by somebody else.
                let _ = std::fs::remove_file(path);
            }
            continue;
        }
        let ended = vm
            .thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the thread {name} has panicked")));
        result = result.and(ended);
    }
    result
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use crosvm_vsock::event::{wait_for, Readiness};

    use super::*;

    #[test]
    fn a_thread_that_panics_ends_the_daemon_with_an_error() {
        let ended = Arc::new(EventFd::new().unwrap());
        let job = Job {
            cid: GuestCid::new(3).unwrap(),
            sockets: Vec::new(),
            stop: Arc::new(EventFd::new().unwrap()),
            run: Box::new(|| panic!("a test")),
        };
        let running = job.start(&ended).unwrap();
        let told = wait_for(ended.as_fd(), Readiness::Readable, Duration::from_secs(10));
        assert!(told.unwrap());
        let error = finish(vec![running]).unwrap_err().to_string();
        assert_eq!(error, "the thread vsock-3 has panicked");
    }
}
