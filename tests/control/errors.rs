// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every constant of the interface, each with a message that says what to do. Those that
//! need a kernel's IOTLB are in `denials`.

use std::io::ErrorKind;
use std::time::Instant;

use crosvm_vsock::control::binder::{self, IVsockDevice as Errors, ParcelFileDescriptor};
use crosvm_vsock::control::client::{Client, ClientError};
use crosvm_vsock::mailbox;
use crosvm_vsock::userspace::packet::SocketType;
use crosvm_vsock::userspace::socket::Socket;

use crate::callbacks::listener;
use crate::fake::{self, Fakes};
use crate::harness::{acceptor, refused, wait_until, Daemon, Vm};

#[test]
fn no_such_device() {
    let daemon = Daemon::start("");
    let refused = daemon.client().device(7).err();
    match refused {
        Some(ClientError::Refused { code, message }) => {
            assert_eq!(code, Errors::ERROR_NO_SUCH_DEVICE);
            assert!(
                message.contains("CID 7") && message.contains("3"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn not_running() {
    let daemon = Daemon::start("");
    let device = daemon.client().device(3).unwrap();
    let (code, message) = refused(device.connect(5));
    assert_eq!(code, Errors::ERROR_NOT_RUNNING);
    assert!(message.contains("driver"), "{message}");
    assert_eq!(refused(device.reset()).0, Errors::ERROR_NOT_RUNNING);
}

#[test]
fn port_number_denied() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let (theirs, _ours) = acceptor();
    for port in [-1, 0xffff_ffff, 1 << 32, i64::MIN] {
        for (code, message) in [
            refused(device.connect(port)),
            refused(device.listen(port, &theirs)),
            refused(device.unlisten(port)),
        ] {
            assert_eq!(code, Errors::ERROR_PORT_NUMBER_DENIED);
            assert!(message.contains(&port.to_string()), "{message}");
        }
    }
}

#[test]
fn failed_to_connect() {
    let vm = Vm::with(",handshake-timeout-ms=300");
    let device = vm.client().device(3).unwrap();
    let (code, message) = refused(device.connect(4242));
    assert_eq!(code, Errors::ERROR_FAILED_TO_CONNECT);
    assert!(message.contains("4242"), "{message}");
    // One that says nothing is no better than one that says no.
    vm.guest.pause();
    let (code, _) = refused(device.connect(4242));
    assert_eq!(code, Errors::ERROR_FAILED_TO_CONNECT);
    vm.guest.resume();
}

#[test]
fn unsupported() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    for (code, message) in [
        refused(device.share(0, 4096)),
        refused(device.unshare(0, 4096)),
    ] {
        assert_eq!(code, Errors::ERROR_UNSUPPORTED);
        assert!(message.contains("backend=kernel"), "{message}");
    }
}

#[test]
fn port_in_use() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let (theirs, _ours) = acceptor();
    device.listen(80, &theirs).unwrap();
    let (others, _kept) = acceptor();
    let (code, message) = refused(device.listen(80, &others));
    assert_eq!(code, Errors::ERROR_PORT_IN_USE);
    assert!(message.contains("port 80"), "{message}");
    device.listen(81, &others).unwrap();
}

#[test]
fn bad_descriptor() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let (stream, _other) = Socket::pair(SocketType::Stream).unwrap();
    let stream = stream.into_blocking().unwrap();
    let path = vm.daemon.dir.path().join("listening");
    let listening = Socket::listen_unix(path.as_os_str(), SocketType::SeqPacket).unwrap();
    let listening = listening.into_blocking().unwrap();
    let inet = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let (alone, other) = acceptor();
    drop(other);
    for (what, descriptor) in [
        (
            "not of type SOCK_SEQPACKET",
            ParcelFileDescriptor::new(stream),
        ),
        ("a listening socket", ParcelFileDescriptor::new(listening)),
        ("not a Unix socket", ParcelFileDescriptor::new(inet)),
        ("not a socket", ParcelFileDescriptor::new(file)),
        ("not connected", alone),
    ] {
        let (code, message) = refused(device.listen(80, &descriptor));
        assert_eq!(code, Errors::ERROR_BAD_DESCRIPTOR, "{what}");
        assert!(message.contains(what), "{what}: {message}");
    }
}

#[test]
fn too_many() {
    let vm = Vm::with(",max-connections=2");
    let device = vm.client().device(3).unwrap();
    let kept: Vec<_> = (0..2).map(|n| vm.connect(&device, 5000 + n)).collect();
    let (code, message) = refused(device.connect(5002));
    assert_eq!(code, Errors::ERROR_TOO_MANY);
    assert!(message.contains("as many"), "{message}");
    drop(kept);
    let mut acceptors = Vec::new();
    for port in 0..256 {
        let (theirs, ours) = acceptor();
        device.listen(port, &theirs).unwrap();
        acceptors.push(ours);
    }
    let (theirs, _ours) = acceptor();
    assert_eq!(
        refused(device.listen(256, &theirs)).0,
        Errors::ERROR_TOO_MANY
    );
    // Listeners that are gone do not count.
    drop(acceptors);
    device.listen(256, &theirs).unwrap();
}

#[test]
fn busy() {
    let (served, inbox, mailbox) = fake::device(9);
    let fakes = Fakes::new([served]);
    let device = fakes.client().device(9).unwrap();
    let busy = || {
        let (code, message) = refused(device.getStatistics());
        assert_eq!(code, Errors::ERROR_BUSY);
        message
    };
    // Its thread is stuck: this takes as long as a question may.
    let message = busy();
    assert!(
        message.contains("in time") && message.contains("may still happen"),
        "{message}"
    );
    // More questions than wait for it: some are refused, and from then on all.
    let waiting: Vec<_> = (0..70)
        .map(|_| {
            let mailbox = mailbox.clone();
            std::thread::spawn(move || mailbox.ask(|_| ()).unwrap_err())
        })
        .collect();
    wait_until("the queue is full", || {
        waiting.iter().any(|thread| thread.is_finished())
    });
    let asked = Instant::now();
    let message = busy();
    assert!(message.contains("as many questions"), "{message}");
    // At once, not when it has lost patience.
    assert!(asked.elapsed() < mailbox::PATIENCE);
    // Its thread has ended.
    drop(inbox);
    let message = busy();
    assert!(message.ends_with("has ended"), "{message}");
    for thread in waiting {
        thread.join().unwrap();
    }
}

/// The methods of the interface's file that document a constant.
fn documented(constant: &str) -> Vec<&str> {
    let file = include_str!("../../aidl/android/system/vsock/IVsockDevice.aidl");
    let mut methods = Vec::new();
    for item in file.split("/**").skip(1) {
        let (doc, rest) = item.split_once("*/").unwrap();
        let declaration = rest.split(['(', ';']).next().unwrap();
        let name = declaration.split_whitespace().next_back();
        if doc.contains(constant) {
            methods.extend(name);
        }
    }
    methods
}

#[test]
fn whatever_can_be_busy_is_documented_to_be() {
    let (served, inbox, _) = fake::device(9);
    let fakes = Fakes::new([served]);
    let client = Client::open(&fakes.path(), true).unwrap();
    let device = client.device(9).unwrap();
    drop(inbox);
    let (theirs, _ours) = acceptor();
    let (callback, _told) = listener();
    let results = [
        ("getCid", device.getCid().err()),
        ("getBackend", device.getBackend().err()),
        ("getBackendReason", device.getBackendReason().err()),
        ("getFeatures", device.getFeatures().err()),
        ("getKernelKind", device.getKernelKind().err()),
        ("getIotlbMode", device.getIotlbMode().err()),
        ("getState", device.getState().err()),
        ("getStatistics", device.getStatistics().err()),
        ("getConnections", device.getConnections(0).err()),
        ("connect", device.connect(5).err()),
        ("listen", device.listen(5, &theirs).err()),
        ("unlisten", device.unlisten(5).err()),
        ("share", device.share(0, 4096).err()),
        ("unshare", device.unshare(0, 4096).err()),
        ("reset", device.reset().err()),
        ("registerCallback", device.registerCallback(&callback).err()),
        (
            "unregisterCallback",
            device.unregisterCallback(&callback).err(),
        ),
    ];
    let busy = results.into_iter().filter_map(|(method, error)| {
        let error = error?;
        let (code, _) = binder::refusal(&error).unwrap_or_else(|| panic!("{method}: {error}"));
        (code == Errors::ERROR_BUSY).then_some(method)
    });
    assert_eq!(busy.collect::<Vec<_>>(), documented("ERROR_BUSY"));
}

#[test]
fn no_daemon_and_somebody_elses() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("nobody");
    let error = Client::open(&path, false).err().unwrap().to_string();
    assert!(
        error.contains("--control") && error.contains("nobody"),
        "{error}"
    );
    // Somebody else's socket: it listens, and hangs up.
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let hang_up = std::thread::spawn(move || drop(listener.accept()));
    match Client::open(&path, false).err() {
        Some(ClientError::Nonsense { source, .. }) => {
            assert_ne!(source.kind(), ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
    hang_up.join().unwrap();
}
