// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device under test, on a thread of this process.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crosvm_vsock::address::GuestCid;
use crosvm_vsock::epoll::Epoll;
use crosvm_vsock::event::EventFd;
use crosvm_vsock::userspace::host::HostPlace;
use crosvm_vsock::userspace::sibling::Neighbourhood;
use crosvm_vsock::userspace::stats::Stats;
use crosvm_vsock::userspace::{Config, UserspacePath};
use crosvm_vsock::vhost_user::worker::Worker;
use tempfile::TempDir;

use super::PATIENCE;

/// A running device; it ends when dropped.
pub struct Device {
    dir: TempDir,
    pub stats: Arc<Stats>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Device {
    pub fn start(
        neighbourhood: &Arc<Neighbourhood>,
        cid: u64,
        edit: impl FnOnce(&mut Config),
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let cid = GuestCid::new(cid).unwrap();
        let mut config = Config::new(cid, HostPlace::Unix(dir.path().join("vm.vsock")));
        edit(&mut config);
        let epoll = Arc::new(Epoll::new().unwrap());
        let path = UserspacePath::new(config, neighbourhood, epoll).unwrap();
        let stats = path.stats();
        let worker = Worker::new(&dir.path().join("vhost.socket"), path).unwrap();
        let stop = worker.stop_event();
        let thread = std::thread::Builder::new()
            .name("device".into())
            .spawn(move || worker.run())
            .unwrap();
        Self {
            dir,
            stats,
            stop,
            thread: Some(thread),
        }
    }

    /// Where VMMs connect.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("vhost.socket")
    }

    /// Where host clients connect.
    pub fn uds(&self) -> PathBuf {
        self.dir.path().join("vm.vsock")
    }

    /// Where the guest's requests for `port` go.
    pub fn port_path(&self, port: u32) -> PathBuf {
        self.dir.path().join(format!("vm.vsock_{port}"))
    }

    /// A host program that listens on `port`, in place of any before it.
    pub fn listen(&self, port: u32) -> UnixListener {
        let path = self.port_path(port);
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).unwrap()
    }

    /// A host client's socket before it says anything.
    pub fn knock(&self) -> UnixStream {
        let stream = UnixStream::connect(self.uds()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A host client that connects to a port of the guest, as Cuttlefish's do: reads
    /// exactly as many bytes as the answer must have.
    pub fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut stream = self.knock();
        stream.write_all(format!("connect {port}\n").as_bytes())?;
        let expected = format!("OK {port}\n").into_bytes();
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer)?;
        assert_eq!(answer, expected);
        Ok(stream)
    }

    /// Ends the device; fails if it had failed.
    pub fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.signal().unwrap();
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.stop.signal().unwrap();
        } else {
            self.end();
        }
    }
}
