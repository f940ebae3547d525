// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One VM of the daemon: its data path and its vhost-user socket on a thread of this
//! process, as the daemon runs them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use anyhow::{anyhow, Context, Result};
use crosvm_vsock::address::GuestCid;
use crosvm_vsock::epoll::Epoll;
use crosvm_vsock::event::EventFd;
use crosvm_vsock::kernel::{Error, VhostVsock};
use crosvm_vsock::path::DataPath;
use crosvm_vsock::userspace::listener::HostPlace;
use crosvm_vsock::userspace::ring::MAX_QUEUE_SIZE;
use crosvm_vsock::userspace::{Config, UserspacePath};
use crosvm_vsock::vhost_user::kernel_path::KernelPath;
use crosvm_vsock::vhost_user::worker::Worker;

use crate::counting::Counting;

/// The devices that the kernel path has opened, in order. Weak: a device ends when the
/// path lets go of it, whoever looks on.
type Opened = Arc<Mutex<Vec<Weak<Counting>>>>;

/// A running VM of the daemon; it ends when dropped.
pub struct Daemon {
    socket: PathBuf,
    opened: Opened,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Daemon {
    /// With `--backend kernel`.
    pub fn kernel(cid: u64) -> Result<Self> {
        let opened = Opened::default();
        let list = opened.clone();
        let open = move || {
            let path = Path::new(VhostVsock::PATH);
            let kernel = Counting::open(path).map_err(|source| Error::Open {
                path: path.to_owned(),
                source,
            })?;
            let kernel = Arc::new(kernel);
            list.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Arc::downgrade(&kernel));
            VhostVsock::with_kernel(kernel)
        };
        let epoll = Arc::new(Epoll::new()?);
        let path = KernelPath::new(GuestCid::new(cid)?, MAX_QUEUE_SIZE, Box::new(open), epoll)?;
        Self::start(cid, path, opened)
    }

    /// With `--backend userspace` and host programs in `place`.
    pub fn userspace(cid: u64, place: HostPlace) -> Result<Self> {
        let config = Config::new(GuestCid::new(cid)?, place);
        let path = UserspacePath::new(config, &Arc::default(), Arc::new(Epoll::new()?))?;
        Self::start(cid, path, Opened::default())
    }

    fn start<P: DataPath + Send + 'static>(cid: u64, path: P, opened: Opened) -> Result<Self> {
        let socket = std::env::temp_dir().join(format!("vhost-{cid}.socket"));
        let worker = Worker::new(&socket, path)?;
        let stop = worker.stop_event();
        let thread = std::thread::Builder::new()
            .name(format!("vsock-{cid}"))
            .spawn(move || worker.run())?;
        Ok(Self {
            socket,
            opened,
            stop,
            thread: Some(thread),
        })
    }

    /// Where VMMs connect.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The devices of `/dev/vhost-vsock` opened so far; those still open can be looked at.
    pub fn devices(&self) -> Vec<Option<Arc<Counting>>> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.iter().map(Weak::upgrade).collect()
    }

    /// Ends it; an error if it had failed.
    pub fn end(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.stop.signal()?;
        let ended = thread
            .join()
            .map_err(|_| anyhow!("the daemon's thread panicked"))?;
        ended.context("the daemon's event loop")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A cell that failed is reported by its own error.
        let _ = self.finish();
    }
}
