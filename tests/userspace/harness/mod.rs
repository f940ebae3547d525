// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A whole VM for a test: device, VMM and guest, and host programs around it.

mod device;

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosvm_vsock::userspace::sibling::Neighbourhood;
use crosvm_vsock::userspace::Config;
use guest_driver::packet::{Header, Op};
use guest_driver::{Guest, GuestConfig, SocketType};

pub use device::Device;
pub use guest_driver::vhost_user::{Vmm, ACCESS_PLATFORM, SEQPACKET, VERSION_1};

/// Longest that anything in a test waits: long, since the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A device, its VMM and its guest.
pub struct Vm {
    pub guest: Guest,
    pub vmm: Vmm,
    pub device: Device,
}

impl Vm {
    /// With all defaults.
    pub fn start() -> Self {
        Self::with(|_| {}, |_| {})
    }

    /// With device and guest as the two say.
    pub fn with(device: impl FnOnce(&mut Config), guest: impl FnOnce(&mut GuestConfig)) -> Self {
        Self::new(Device::start(&Arc::default(), 3, device), 3, guest)
    }

    /// One of several VMs in a process.
    pub fn among(
        neighbourhood: &Arc<Neighbourhood>,
        cid: u64,
        device: impl FnOnce(&mut Config),
        guest: impl FnOnce(&mut GuestConfig),
    ) -> Self {
        assert!(
            !Device::is_foreign(),
            "not applicable: several VMs in one program"
        );
        Self::new(Device::start(neighbourhood, cid, device), cid, guest)
    }

    fn new(device: Device, cid: u64, guest: impl FnOnce(&mut GuestConfig)) -> Self {
        let mut config = GuestConfig {
            cid,
            ..GuestConfig::default()
        };
        guest(&mut config);
        let guest = Guest::new(config.clone()).unwrap();
        let mut vmm = device.connect();
        vmm.start(&guest, &config).unwrap();
        Self { guest, vmm, device }
    }

    /// A connection from the guest to a host program: the guest's end and the host's.
    pub fn guest_connects(&self, port: u32) -> (guest_driver::Stream, UnixStream) {
        let listener = self.device.listen(port);
        let stream = self.guest.connect(2, port, SocketType::STREAM).unwrap();
        (stream, accept(&listener))
    }

    /// A connection from a host program to the guest: the host's end and the guest's.
    pub fn host_connects(&self, port: u32) -> (UnixStream, guest_driver::Stream) {
        let listener = self.guest.listen(port, SocketType::STREAM).unwrap();
        let host = self.device.dial(port).unwrap();
        (host, listener.accept().unwrap())
    }

    /// Fails if the device has broken a rule of the protocol that the driver knows.
    pub fn assert_clean(&self) {
        let violations = self.guest.take_violations();
        assert!(violations.is_empty(), "{violations:#?}");
        assert_eq!(self.guest.failure(), None);
    }

    /// Fails unless new connections work in both directions: the device lives.
    pub fn assert_alive(&self) {
        let (mut guest, mut host) = self.guest_connects(60_001);
        guest.write_all(b"alive?").unwrap();
        let mut got = [0; 6];
        host.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"alive?");
        let (mut host, mut guest) = self.host_connects(60_002);
        host.write_all(b"alive!").unwrap();
        guest.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"alive!");
    }
}

/// The next client of a host program, with a time limit on all it does.
pub fn accept(listener: &UnixListener) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    listener.set_nonblocking(true).unwrap();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                return stream;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "nobody connects");
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits until `done`, and fails with `what` if that takes too long.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A header from guest 3 to the host with room for 64 KiB.
pub fn header(op: Op, guest_port: u32, host_port: u32) -> Header {
    Header {
        src_cid: 3,
        dst_cid: 2,
        src_port: guest_port,
        dst_port: host_port,
        socket_type: SocketType::STREAM,
        op,
        buf_alloc: 65536,
        ..Header::default()
    }
}

/// Processor time that this process has had.
pub fn processor_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
