// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device under test: on a thread of this process, or another program.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread::JoinHandle;

use crosvm_vsock::address::GuestCid;
use crosvm_vsock::epoll::Epoll;
use crosvm_vsock::event::EventFd;
use crosvm_vsock::userspace::listener::HostPlace;
use crosvm_vsock::userspace::sibling::Neighbourhood;
use crosvm_vsock::userspace::stats::{Counter, Stats};
use crosvm_vsock::userspace::{Config, UserspacePath};
use crosvm_vsock::vhost_user::worker::Worker;
use tempfile::TempDir;

use super::{wait_until, Vmm, PATIENCE};

/// Names another program to test in place of this crate's device: one that takes the command
/// line of `vhost-device-vsock`. Tests that need more than that say so and fail.
const PROGRAM: &str = "VSOCK_TEST_DEVICE";

/// What serves the VM.
enum Server {
    /// A thread of this process.
    Thread(Arc<EventFd>, JoinHandle<io::Result<()>>),
    /// Another program.
    Program(Child),
    /// Nothing any more.
    Ended,
}

/// A running device; it ends when dropped.
pub struct Device {
    dir: TempDir,
    /// What it has counted; of another program nothing is known.
    pub stats: Arc<Stats>,
    server: Server,
}

impl Device {
    pub fn start(
        neighbourhood: &Arc<Neighbourhood>,
        cid: u64,
        edit: impl FnOnce(&mut Config),
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let cid = GuestCid::new(cid).unwrap();
        let plain = Config::new(cid, HostPlace::Unix(dir.path().join("vm.vsock")));
        let mut config = plain.clone();
        edit(&mut config);
        if let Some(program) = std::env::var_os(PROGRAM) {
            return Self::start_program(&program, dir, &plain, config);
        }
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
            server: Server::Thread(stop, thread),
        }
    }

    fn start_program(program: &OsStr, dir: TempDir, plain: &Config, mut config: Config) -> Self {
        let path = dir.path().display();
        let mut vm = format!(
            "guest-cid={},socket={path}/vhost.socket,uds-path={path}/vm.vsock,queue-size={}",
            config.cid, config.max_queue_size
        );
        // Always said, so that all programs have the same.
        vm += &format!(",tx-buffer-size={}", config.limits.buf_alloc);
        config.limits.buf_alloc = plain.limits.buf_alloc;
        assert!(
            config == *plain,
            "not applicable: {PROGRAM} cannot be set up like this"
        );
        let child = Command::new(program).args(["--vm", &vm]).spawn().unwrap();
        let device = Self {
            dir,
            stats: Arc::default(),
            server: Server::Program(child),
        };
        // Looked at, not connected to: it may serve its first connection only.
        wait_until("the program's sockets", || {
            device.socket().exists() && device.uds().exists()
        });
        device
    }

    /// How many descriptors are open in the process that the device is in. Other tests may
    /// run there, too.
    pub fn open_descriptors(&self) -> usize {
        let process = match &self.server {
            Server::Program(child) => child.id().to_string(),
            _ => "self".to_owned(),
        };
        std::fs::read_dir(format!("/proc/{process}/fd"))
            .unwrap()
            .count()
    }

    /// Whether another program is tested.
    pub fn is_foreign() -> bool {
        std::env::var_os(PROGRAM).is_some()
    }

    /// Fails unless one of the device's counters has this value.
    pub fn assert_counted(&self, counter: impl FnOnce(&Stats) -> &Counter, expected: u64) {
        if !Self::is_foreign() {
            assert_eq!(counter(&self.stats).get(), expected);
        }
    }

    /// A VMM that has connected. Another program may need a while between two of them.
    pub fn connect(&self) -> Vmm {
        let mut connected = None;
        wait_until("the device takes a VMM", || {
            let vmm = Vmm::connect(self.socket());
            connected = vmm
                .ok()
                .filter(|vmm| !Self::is_foreign() || vmm.features().is_ok());
            connected.is_some() || !Self::is_foreign()
        });
        connected.expect("a VMM that has connected")
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
        match std::mem::replace(&mut self.server, Server::Ended) {
            Server::Thread(stop, thread) => {
                stop.signal().unwrap();
                thread.join().unwrap().unwrap();
            }
            Server::Program(mut child) => {
                let ended = child.try_wait().unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
                assert_eq!(ended, None, "it had ended by itself");
            }
            Server::Ended => {}
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return self.end();
        }
        // The test has failed already: only leave nothing behind.
        match &mut self.server {
            Server::Thread(stop, _) => drop(stop.signal()),
            Server::Program(child) => drop(child.kill().and_then(|()| child.wait())),
            Server::Ended => {}
        }
    }
}
