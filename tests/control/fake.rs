// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that are what a test needs, behind a real control socket: busy, gone, or with
//! more than a guest could bring about soon.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crosvm_vsock::address::{Cid, Gpa, GuestCid, Port, Range};
use crosvm_vsock::compat::Mode;
use crosvm_vsock::control::client::Client;
use crosvm_vsock::control::socket::ControlSocket;
use crosvm_vsock::control::{Backend, Device, Service};
use crosvm_vsock::event::poll;
use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::mailbox::{mailbox, Inbox, Mailbox};
use crosvm_vsock::management::{
    Call, ConnectionInfo, Managed, Progress, Refusal, Statistics, Status,
};
use crosvm_vsock::userspace::acceptor::Acceptor;
use crosvm_vsock::userspace::packet::SocketType;
use crosvm_vsock::watchers::Watchers;
use tempfile::TempDir;

use crate::harness::PROGRAM;

/// A control socket with such devices.
pub struct Fakes {
    dir: TempDir,
    _socket: ControlSocket,
}

/// A device whose questions nobody answers until somebody does.
pub fn device(cid: u64) -> (Device, Inbox, Mailbox) {
    let (mailbox, inbox) = mailbox().unwrap();
    let device = Device {
        cid: GuestCid::new(cid).unwrap(),
        backend: Backend::Userspace,
        reason: None,
        mailbox: mailbox.clone(),
        watchers: Arc::default(),
        since: SystemTime::now(),
    };
    (device, inbox, mailbox)
}

impl Fakes {
    pub fn new(devices: impl IntoIterator<Item = Device>) -> Self {
        let dir = TempDir::new().unwrap();
        let socket = ControlSocket::open(&dir.path().join("control"), Service::new(devices));
        Self {
            _socket: socket.unwrap(),
            dir,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    pub fn client(&self) -> Client {
        Client::open(&self.path(), false).unwrap()
    }

    /// What a command says that asks these devices.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM)
            .args(arguments)
            .env("CROSVM_VSOCK_CONTROL", self.path())
            .output()
            .unwrap()
    }
}

/// A thread that answers for a device with so many connections.
pub struct Answering {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Answering {
    pub fn start(inbox: Inbox, connections: usize) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let end = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut device = Fake { connections };
            while !end.load(Ordering::Relaxed) {
                poll([inbox.as_fd()], Some(Duration::from_millis(20))).unwrap();
                inbox.answer(&mut device);
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Fake {
    connections: usize,
}

const NOT_HERE: Refusal = Refusal::Unsupported("this is no device");

impl Managed for Fake {
    fn status(&self) -> Status {
        Status {
            mode: Mode::Off,
            offered: FeatureSet::default(),
            acknowledged: None,
            needs_reset: false,
        }
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            open: Some(self.connections),
            ..Statistics::default()
        }
    }

    fn connections(&mut self, most: usize) -> Result<Vec<ConnectionInfo>, Refusal> {
        let connection = |port| ConnectionInfo {
            guest_port: Port(port as u32),
            peer: Cid(2),
            peer_port: Port(1),
            socket_type: SocketType::Stream,
            progress: Progress::Established,
            pending: 0,
        };
        Ok((0..self.connections.min(most)).map(connection).collect())
    }

    fn connect(&mut self, _: Port) -> Result<Call, Refusal> {
        Err(NOT_HERE)
    }

    fn listen(&mut self, _: Port, _: Acceptor) -> Result<(), Refusal> {
        Err(NOT_HERE)
    }

    fn unlisten(&mut self, _: Port) -> Result<(), Refusal> {
        Err(NOT_HERE)
    }

    fn share(&mut self, _: Range<Gpa>) -> Result<(), Refusal> {
        Err(NOT_HERE)
    }

    fn unshare(&mut self, _: Range<Gpa>) -> Result<(), Refusal> {
        Err(NOT_HERE)
    }

    fn reset(&mut self) -> Result<(), Refusal> {
        Err(NOT_HERE)
    }

    fn watch(&mut self, _: Arc<Watchers>) {}
}
