// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel path under control: a restricted device on the model of the kernel, behind a
//! real vhost-user front end and a real control socket.

use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

use crosvm_vsock::address::{BusAddr, Cid, GuestCid, Port};
use crosvm_vsock::compat::KernelKind as Kind;
use crosvm_vsock::control::binder::{
    IVsockDevice as Errors, IotlbAccess, IotlbMode, KernelKind, Strong, VsockBackend, VsockDevice,
    VsockDeviceState, UNKNOWN,
};
use crosvm_vsock::control::client::Client;
use crosvm_vsock::control::socket::ControlSocket;
use crosvm_vsock::control::{Backend, Device, Service};
use crosvm_vsock::epoll::Epoll;
use crosvm_vsock::event::EventFd;
use crosvm_vsock::kernel::{Access, Addressing, QueueIndex, VhostVsock};
use crosvm_vsock::userspace::packet::SocketType;
use crosvm_vsock::userspace::socket::Socket;
use crosvm_vsock::vhost_user::kernel_path::KernelPath;
use crosvm_vsock::vhost_user::worker::Worker;
use guest_driver::packet::Event;
use guest_driver::vhost_user::Vmm;
use guest_driver::{Guest, GuestConfig};
use model_kernel::{Host, ModelKernel, Outcome};
use tempfile::TempDir;

use crate::callbacks::{listener, Told};
use crate::harness::{acceptor, refused, wait_for_state, wait_until, PATIENCE};

/// Where the guest's rings and buffers are: the second region of memory.
const SHARED: i64 = 0x1_4000_0000;
/// What the guest keeps to itself: the first.
const PRIVATE: i64 = 0x1000_0000;
const SIZE: i64 = 32 << 20;

/// A device on the model kernel, with its control socket and a client.
struct Rig {
    /// Each device that was opened; a closed one gives its CID back.
    kernels: Arc<Mutex<Vec<Weak<ModelKernel>>>>,
    stop: Arc<EventFd>,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
    device: Strong<dyn VsockDevice>,
    client: Client,
    _socket: ControlSocket,
    dir: TempDir,
}

impl Rig {
    fn new(addressing: Addressing) -> Self {
        let dir = TempDir::new().unwrap();
        let kernels = Arc::<Mutex<Vec<Weak<ModelKernel>>>>::default();
        let (list, host) = (kernels.clone(), Host::default());
        let open = Box::new(move || {
            let kernel = Arc::new(ModelKernel::new(Kind::Overloaded).on(&host));
            list.lock().unwrap().push(Arc::downgrade(&kernel));
            VhostVsock::with_kernel(kernel)
        });
        let cid = GuestCid::new(3).unwrap();
        let epoll = Arc::new(Epoll::new().unwrap());
        let path = KernelPath::new(cid, 32768, open, epoll).unwrap();
        let path = path.with_addressing(addressing);
        let worker = Worker::new(&dir.path().join("vhost.socket"), path).unwrap();
        let device = Device {
            cid,
            backend: Backend::Kernel(Some(Kind::Overloaded)),
            reason: Some("a test says so".into()),
            mailbox: worker.mailbox(),
            watchers: worker.watchers(),
            since: SystemTime::now(),
        };
        let control = dir.path().join("control");
        let socket = ControlSocket::open(&control, Service::new([device])).unwrap();
        let stop = worker.stop_event();
        let thread = std::thread::spawn(move || worker.run());
        let client = Client::open(&control, true).unwrap();
        Self {
            kernels,
            stop,
            thread: Some(thread),
            device: client.device(3).unwrap(),
            client,
            _socket: socket,
            dir,
        }
    }

    fn boot(&self) -> (Guest, Vmm) {
        let config = GuestConfig {
            rings_from: Some(
                guest_driver::memory::Gpa(SHARED as u64)
                    ..guest_driver::memory::Gpa((SHARED + SIZE) as u64),
            ),
            ..GuestConfig::default()
        };
        let guest = Guest::new(config.clone()).unwrap();
        let mut vmm = Vmm::connect(self.dir.path().join("vhost.socket")).unwrap();
        vmm.start(&guest, &config).unwrap();
        wait_for_state(&self.device, VsockDeviceState::RUNNING);
        (guest, vmm)
    }

    /// The device that was opened last.
    fn kernel(&self) -> Arc<ModelKernel> {
        let kernels = self.kernels.lock().unwrap();
        kernels.last().and_then(Weak::upgrade).unwrap()
    }

    /// The kernel reads a buffer that the guest has sent.
    fn reads(&self, at: i64) -> Outcome {
        let at = BusAddr(at as u64);
        self.kernel().access(QueueIndex::Tx, at, 64, Access::Read)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.signal().unwrap();
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap().unwrap();
        }
    }
}

#[test]
fn a_denied_access_is_told_and_a_reset_makes_the_device_run_again() {
    let rig = Rig::new(Addressing::Restricted(Arc::default()));
    let device = &rig.device;
    device.share(SHARED, SIZE).unwrap();
    let (guest, _vmm) = rig.boot();
    let (callback, told) = listener();
    device.registerCallback(&callback).unwrap();

    assert!(matches!(rig.reads(SHARED + 0x8000), Outcome::Done(_)));
    assert_eq!(rig.reads(PRIVATE), Outcome::Missed);
    let fault = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(fault, Told::Fault(PRIVATE, IotlbAccess::READ));
    let state = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(state, Told::State(VsockDeviceState::NEEDS_RESET));
    assert_eq!(device.getStatistics().unwrap().accessesDenied, 1);
    assert!(!rig.kernel().is_running(), "the queues were stopped");

    device.reset().unwrap();
    let state = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(state, Told::State(VsockDeviceState::RUNNING));
    assert_eq!(guest.wait_event(PATIENCE).unwrap(), Event::TRANSPORT_RESET);
    assert!(rig.kernel().is_running());
    assert_eq!(rig.kernels.lock().unwrap().len(), 2, "a device of its own");
    assert!(matches!(rig.reads(SHARED + 0x8000), Outcome::Done(_)));
    let statistics = device.getStatistics().unwrap();
    assert_eq!((statistics.accessesDenied, statistics.resets), (1, 1));
}

#[test]
fn what_is_shared_can_be_reached_and_what_is_not_cannot() {
    let rig = Rig::new(Addressing::Restricted(Arc::default()));
    let device = &rig.device;
    device.share(SHARED, SIZE).unwrap();
    let (_guest, _vmm) = rig.boot();
    device.share(PRIVATE, 0x2000).unwrap();
    wait_until("the kernel reaches it", || {
        matches!(rig.reads(PRIVATE + 0x1000), Outcome::Done(_))
    });
    device.unshare(PRIVATE + 0x1000, 0x1000).unwrap();
    assert!(matches!(rig.reads(PRIVATE), Outcome::Done(_)));
    assert_eq!(rig.reads(PRIVATE + 0x1000), Outcome::Missed);
    wait_for_state(device, VsockDeviceState::NEEDS_RESET);
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let rig = Rig::new(Addressing::Restricted(Arc::default()));
    let device = &rig.device;
    device.share(SHARED, SIZE).unwrap();
    let (_guest, _vmm) = rig.boot();
    for (address, size, why) in [
        (SHARED, 0, "size is 0"),
        (SHARED + 1, 0x1000, "multiples"),
        (SHARED, 0x800, "multiples"),
        (0x9000_0000, 0x1000, "guest memory"),
        (-0x1000, 0x2000, "past the last"),
    ] {
        let (code, message) = refused(device.share(address, size));
        assert_eq!(code, Errors::ERROR_BAD_RANGE, "{why}");
        assert!(message.contains(why), "{why}: {message}");
    }
    let (code, _) = refused(device.unshare(SHARED, 0x10));
    assert_eq!(code, Errors::ERROR_BAD_RANGE);
}

#[test]
fn a_kernel_that_does_not_follow_is_unexpected() {
    let rig = Rig::new(Addressing::Restricted(Arc::default()));
    let device = &rig.device;
    device.share(SHARED, SIZE).unwrap();
    let (_guest, _vmm) = rig.boot();
    rig.kernel()
        .fail_always(model_kernel::name::WRITE, libc::EIO);
    let (code, message) = refused(device.unshare(SHARED, SIZE));
    assert_eq!(code, Errors::ERROR_UNEXPECTED);
    assert!(message.contains("did not follow"), "{message}");
}

#[test]
fn what_the_kernel_keeps_to_itself_is_said_to_be() {
    let rig = Rig::new(Addressing::Off);
    let (_guest, _vmm) = rig.boot();
    let device = &rig.device;
    assert_eq!(rig.client.guest_cids().unwrap(), [3]);
    assert_eq!(device.getBackend().unwrap(), VsockBackend::KERNEL);
    assert_eq!(device.getBackendReason().unwrap(), "a test says so");
    assert_eq!(device.getKernelKind().unwrap(), KernelKind::OVERLOADED);
    assert_eq!(device.getIotlbMode().unwrap(), IotlbMode::OFF);
    let statistics = device.getStatistics().unwrap();
    assert_eq!(statistics.bytesFromGuest, UNKNOWN);
    assert_eq!(statistics.connectionsOpen, UNKNOWN);
    let (theirs, _ours) = acceptor();
    for (code, message) in [
        refused(device.getConnections(0)),
        refused(device.listen(5, &theirs)),
        refused(device.unlisten(5)),
        refused(device.share(SHARED, SIZE)),
        refused(device.unshare(SHARED, SIZE)),
    ] {
        assert_eq!(code, Errors::ERROR_UNSUPPORTED);
        assert!(message.contains("not on this device"), "{message}");
    }
}

#[test]
fn a_mode_is_what_was_asked_for() {
    for (addressing, expected) in [
        (Addressing::Off, IotlbMode::OFF),
        (Addressing::Identity, IotlbMode::IDENTITY),
    ] {
        let rig = Rig::new(addressing);
        let (_guest, _vmm) = rig.boot();
        assert_eq!(rig.device.getIotlbMode().unwrap(), expected);
        let entries = rig.device.getStatistics().unwrap().iotlbEntries;
        assert_eq!(entries > 0, expected == IotlbMode::IDENTITY, "{entries}");
        assert!(matches!(rig.reads(PRIVATE), Outcome::Done(_)));
        rig.device.reset().unwrap();
        assert!(matches!(rig.reads(PRIVATE), Outcome::Done(_)));
    }
}

#[test]
fn a_guest_that_the_host_kernel_does_not_reach_is_not_connected() {
    let rig = Rig::new(Addressing::Restricted(Arc::default()));
    rig.device.share(SHARED, SIZE).unwrap();
    let (_guest, _vmm) = rig.boot();
    // No device of the host's own kernel has the guest's CID here. A kernel without vsock
    // is another matter.
    let kernel = Socket::connect_vsock(Cid(3), Port(5), SocketType::Stream).err();
    let expected = match kernel.and_then(|error| error.raw_os_error()) {
        Some(libc::EAFNOSUPPORT) => Errors::ERROR_UNEXPECTED,
        _ => Errors::ERROR_FAILED_TO_CONNECT,
    };
    assert_eq!(refused(rig.device.connect(5)).0, expected);
}
