// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon with a control socket, and a VM in front of it.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use crosvm_vsock::control::binder::{
    self, ParcelFileDescriptor, Strong, VsockDevice, VsockDeviceState, VsockStatistics,
};
use crosvm_vsock::control::client::Client;
use crosvm_vsock::userspace::packet::SocketType as Kind;
use crosvm_vsock::userspace::socket::Socket;
use guest_driver::vhost_user::Vmm;
use guest_driver::{Guest, GuestConfig, SocketType};
use tempfile::TempDir;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Threads of a daemon with one VM and no client: the main one, the VM's, the one that lets
/// clients in, and the one that writes the log.
pub const THREADS: usize = 4;

/// Longest that anything in a test waits: long, since the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_crosvm-vsock");

/// A running daemon; it is killed when dropped.
pub struct Daemon {
    pub dir: TempDir,
    child: Child,
}

impl Daemon {
    /// Serves guest 3, with more settings for its VM.
    pub fn start(settings: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().display();
        let vm = format!("guest-cid=3,socket={path}/vhost.socket,uds-path={path}/vm{settings}");
        Self::spawn(dir, &["--vm", &vm])
    }

    /// With a command line, to which the control socket is added.
    pub fn spawn(dir: TempDir, arguments: &[&str]) -> Self {
        let child = Command::new(PROGRAM)
            .args(arguments)
            .arg("--control")
            .arg(dir.path().join("control"))
            .spawn()
            .unwrap();
        let daemon = Self { dir, child };
        wait_until("the control socket", || daemon.control().exists());
        daemon
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    pub fn client(&self) -> Client {
        Client::open(&self.control(), false).unwrap()
    }

    /// A command that asks this daemon.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env("CROSVM_VSOCK_CONTROL", self.control());
        command
    }

    /// What such a command says.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn count(&self, what: &str) -> usize {
        let path = format!("/proc/{}/{what}", self.pid());
        std::fs::read_dir(path).unwrap().count()
    }

    /// Its threads: one that waits for signals, one that writes the log, one for new clients,
    /// one for each VM, and as many as its clients need.
    pub fn threads(&self) -> usize {
        self.count("task")
    }

    /// Its open descriptors.
    pub fn descriptors(&self) -> usize {
        self.count("fd")
    }

    /// Waits for its end; whether it was a success.
    pub fn wait(&mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon, a VMM and a guest that runs.
pub struct Vm {
    pub guest: Guest,
    _vmm: Vmm,
    pub daemon: Daemon,
}

impl Vm {
    pub fn start() -> Self {
        Self::with("")
    }

    /// With more settings for the daemon's VM.
    pub fn with(settings: &str) -> Self {
        let daemon = Daemon::start(settings);
        let config = GuestConfig::default();
        let guest = Guest::new(config.clone()).unwrap();
        let mut vmm = Vmm::connect(daemon.dir.path().join("vhost.socket")).unwrap();
        vmm.start(&guest, &config).unwrap();
        let vm = Self {
            guest,
            _vmm: vmm,
            daemon,
        };
        let client = vm.client();
        wait_for_state(&client.device(3).unwrap(), VsockDeviceState::RUNNING);
        vm
    }

    pub fn client(&self) -> Client {
        self.daemon.client()
    }

    /// A connection to a port of the guest by way of the control socket, and the guest's end.
    pub fn connect(
        &self,
        device: &Strong<dyn VsockDevice>,
        port: u32,
    ) -> (UnixStream, guest_driver::Stream) {
        let listener = self.guest.listen(port, SocketType::STREAM).unwrap();
        let host = stream(device.connect(port.into()).unwrap());
        (host, listener.accept().unwrap())
    }

    /// Fails unless the data path works in both directions.
    pub fn assert_alive(&self) {
        let client = self.client();
        let (host, guest) = self.connect(&client.device(3).unwrap(), 60_000);
        assert_flows(host, guest);
    }
}

/// Fails unless data goes both ways.
pub fn assert_flows(mut host: UnixStream, mut guest: guest_driver::Stream) {
    let mut got = [0; 5];
    host.write_all(b"there").unwrap();
    guest.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"there");
    guest.write_all(b"back!").unwrap();
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"back!");
}

/// A descriptor that was handed over, with a time limit on all that is done with it.
pub fn stream(descriptor: ParcelFileDescriptor) -> UnixStream {
    limited(OwnedFd::from(descriptor).into())
}

fn limited(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Both ends of an acceptor: the one to hand over, and the one where connections arrive.
pub fn acceptor() -> (ParcelFileDescriptor, UnixStream) {
    let (ours, theirs) = Socket::pair(Kind::SeqPacket).unwrap();
    let ours = UnixStream::from(ours.into_blocking().unwrap());
    let theirs = theirs.into_blocking().unwrap();
    (ParcelFileDescriptor::new(theirs), limited(ours))
}

/// The next connection that arrives: the guest's CID and port, and the socket.
pub fn arrival(acceptor: &UnixStream) -> (u64, u64, UnixStream) {
    let mut message = [0; 16];
    let (len, file) = acceptor.recv_with_fd(&mut message).unwrap();
    assert_eq!(len, message.len());
    let number = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().unwrap());
    let stream = UnixStream::from(OwnedFd::from(file.expect("a descriptor")));
    (number(0), number(8), limited(stream))
}

/// Waits until `done`, and fails with `what` if that takes too long.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn wait_for_state(device: &Strong<dyn VsockDevice>, state: VsockDeviceState) {
    wait_until("the device's state", || device.getState().unwrap() == state);
}

/// Waits until the statistics are as they should be.
pub fn wait_for_statistics(
    device: &Strong<dyn VsockDevice>,
    what: &str,
    done: impl Fn(&VsockStatistics) -> bool,
) {
    wait_until(what, || done(&device.getStatistics().unwrap()));
}

/// The constant that a call was refused with, and the message.
pub fn refused<T>(result: binder::Result<T>) -> (i32, String) {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(status) => binder::refusal(&status).expect("a constant of the interface"),
    }
}
