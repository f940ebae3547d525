// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as programs start it: arguments, exit codes, signals, readiness, sockets.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use guest_driver::packet::{Header, Op};
use guest_driver::queues::Queue;
use guest_driver::vhost_user::{Vmm, ACCESS_PLATFORM};
use guest_driver::{Guest, GuestConfig, SocketType};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

fn daemon() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crosvm-vsock"));
    command.env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
    command
}

fn run(arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = daemon().args(arguments).output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    (status.code().unwrap(), text)
}

/// A daemon that has said that it is ready.
fn start(dir: &TempDir, arguments: &[String]) -> Child {
    start_with(dir, arguments, Stdio::piped())
}

fn start_with(dir: &TempDir, arguments: &[String], stderr: Stdio) -> Child {
    let name = dir.path().join("notify");
    let _ = std::fs::remove_file(&name);
    let notify = UnixDatagram::bind(&name).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let child = daemon()
        .args(arguments)
        .env("NOTIFY_SOCKET", &name)
        .stderr(stderr)
        .spawn()
        .unwrap();
    let mut message = [0; 64];
    let len = notify.recv(&mut message).expect("no readiness");
    assert_eq!(&message[..len], b"READY=1");
    child
}

fn end(mut child: Child, signal: i32) -> (i32, String) {
    // SAFETY: no pointers; the process is ours and has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < deadline, "it does not end"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut text = String::new();
    if let Some(mut stderr) = child.stderr {
        stderr.read_to_string(&mut text).unwrap();
    }
    (status.code().unwrap_or(-1), text)
}

fn vm(dir: &TempDir, cid: u32) -> String {
    let path = dir.path().display();
    format!("guest-cid={cid},socket={path}/vhost{cid}.socket,uds-path={path}/vm{cid}.vsock")
}

fn vm_arguments(dir: &TempDir, cids: &[u32]) -> Vec<String> {
    cids.iter()
        .flat_map(|cid| ["--vm".to_owned(), vm(dir, *cid)])
        .collect()
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_wrong() {
    for (arguments, expected) in [
        (&["--vm", "guest-cid=3"][..], "`socket` is missing"),
        (
            &["--vm", "guest-cid=3,sokcet=s"],
            "unknown setting `sokcet`",
        ),
        (
            &["--vm", "socket=s,uds-path=u", "--vm", "socket=t,uds-path=v"],
            "two VMs have CID 3",
        ),
        (
            &[
                "--vm",
                "socket=s,uds-path=u",
                "--vm",
                "guest-cid=4,socket=s,uds-path=v",
            ],
            "the path s is used twice",
        ),
        (
            &["--vm", "socket=s,uds-path=u", "--socket", "t"],
            "single VM",
        ),
        (&["--socket", "s"], "either `uds-path`"),
        (
            &["--socket=s", "--uds-path=u", "--max-half-open=x"],
            "max-half-open: `x` is not a number from 1 on",
        ),
        (
            &["--guest-cid", "2", "--socket", "s", "--uds-path", "u"],
            "`2` is not a guest's CID",
        ),
        (
            &["--config", "/does/not/exist"],
            "cannot read /does/not/exist",
        ),
        (&["--nonsense"], "--nonsense"),
        (&["--log-level", "info"], "no VM to serve"),
        (
            &["--log-level", "wran"],
            "off, error, warn, info, debug, trace",
        ),
        (
            &["--log-level", "debug,rsbinder=no"],
            "`rsbinder=no` is neither",
        ),
        (&["--log-level", "info,rsbinder=Error"], "no VM to serve"),
        (&[], "Usage"),
    ] {
        let (code, text) = run(arguments);
        assert_eq!(code, 2, "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}

#[test]
fn what_fails_at_run_time_exits_with_1() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let uds = format!(
        "socket={},uds-path={}/u",
        file.display(),
        dir.path().display()
    );
    let (code, text) = run(&["--vm", &uds]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("is not a socket"), "{text}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let (code, text) = run(&["--vm", "socket=/nonexistent/s,uds-path=/nonexistent/u"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("cannot listen at /nonexistent/u"), "{text}");
    let socket = dir.path().join("auto");
    let auto = format!(
        "socket={},backend=auto,device=/nonexistent/d",
        socket.display()
    );
    let (code, text) = run(&["--vm", &auto]);
    assert_eq!(code, 1, "{text}");
    for expected in [
        "neither uds-path nor forward-cid",
        "cannot open /nonexistent/d",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert!(!socket.exists(), "a VMM would wait at it");
}

#[test]
fn auto_says_which_backend_it_has_chosen_and_why() {
    let dir = TempDir::new().unwrap();
    let arguments = ["--backend=auto".to_owned()];
    let arguments = [&arguments[..], &vm_arguments(&dir, &[3])].concat();
    let (code, text) = end(start(&dir, &arguments), libc::SIGTERM);
    assert_eq!(code, 0, "{text}");
    let lines: Vec<_> = text.lines().filter(|line| line.contains("auto")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].contains("userspace path"), "{text}");
}

#[test]
fn the_log_begins_with_version_features_and_backend() {
    let dir = TempDir::new().unwrap();
    let (_, text) = end(start(&dir, &vm_arguments(&dir, &[3, 4])), libc::SIGTERM);
    let first = text.lines().next().unwrap_or_default();
    let expected = concat!("crosvm-vsock ", env!("CARGO_PKG_VERSION"), " with ");
    assert!(first.contains(expected), "{text}");
    assert!(first.contains("vhost-user; backend userspace"), "{text}");

    let device = dir.path().join("none");
    let settings = format!("socket=s,backend=kernel,device={}", device.display());
    let (code, text) = run(&["--vm", &settings]);
    assert_eq!(code, 1, "{text}");
    let first = text.lines().next().unwrap_or_default();
    let expected = format!("backend kernel through {} (kind unknown)", device.display());
    assert!(first.contains(&expected), "{text}");
}

#[test]
fn help_goes_to_stdout() {
    let output = daemon().arg("--help").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "forward-listen",
        "max-pending-bytes",
        "Examples:",
        "Exit codes:",
        "Environment:",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn signals_end_it_cleanly_and_no_socket_stays() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let dir = TempDir::new().unwrap();
        let child = start(&dir, &vm_arguments(&dir, &[3, 4]));
        for name in [
            "vhost3.socket",
            "vm3.vsock",
            "vm3.vsock_seqpacket",
            "vhost4.socket",
        ] {
            UnixStream::connect(dir.path().join(name))
                .map(drop)
                .or_else(|error| {
                    // The one for sequenced packets is there, of another type.
                    if error.raw_os_error() == Some(libc::EPROTOTYPE) {
                        Ok(())
                    } else {
                        Err(error)
                    }
                })
                .unwrap();
        }
        let (code, text) = end(child, signal);
        assert_eq!(code, 0, "{text}");
        let _ = std::fs::remove_file(dir.path().join("notify"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

/// Rings at addresses that only a vIOMMU understands, and no way to ask it.
#[test]
fn a_viommu_that_cannot_be_asked_is_refused_and_the_log_says_why() {
    let config = GuestConfig::default();
    let guest = Guest::new(config.clone()).unwrap();
    let dir = TempDir::new().unwrap();
    let child = start(&dir, &vm_arguments(&dir, &[3]));
    let socket = dir.path().join("vhost3.socket");
    let mut vmm = Vmm::connect(&socket).unwrap();
    vmm.extra_features |= ACCESS_PLATFORM;
    vmm.behind_viommu = true;
    vmm.start(&guest, &config).unwrap_err();
    drop(vmm);

    let mut vmm = Vmm::connect(&socket).unwrap();
    vmm.start(&guest, &config).unwrap();
    let (code, text) = end(child, libc::SIGTERM);
    assert_eq!(code, 0, "{text}");
    let refusal = "is not guest memory, and ACCESS_PLATFORM is acknowledged: a vIOMMU";
    assert!(text.contains(refusal), "{text}");
}

#[test]
fn sockets_of_a_process_that_was_killed_are_replaced() {
    let dir = TempDir::new().unwrap();
    let arguments = vm_arguments(&dir, &[3]);
    let (code, _) = end(start(&dir, &arguments), libc::SIGKILL);
    assert_eq!(code, -1);
    assert!(dir.path().join("vm3.vsock").exists());
    let (code, text) = end(start(&dir, &arguments), libc::SIGTERM);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn a_single_vm_by_options_and_from_a_file() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (socket, uds) = (path("s"), path("u"));
    let options = [
        "--guest-cid=9",
        "--groups=a+b",
        "--queue-size=1024",
        "--tx-buffer-size=65536",
        "--max-connections=100",
        "--max-half-open=10",
        "--max-pending-bytes=1000000",
        "--max-pending-resets=10",
        "--max-sibling-requests=10",
        "--handshake-timeout-ms=1000",
    ];
    let mut arguments: Vec<String> = options.map(str::to_owned).to_vec();
    arguments.extend([format!("--socket={socket}"), format!("--uds-path={uds}")]);
    let (code, text) = end(start(&dir, &arguments), libc::SIGTERM);
    assert_eq!(code, 0, "{text}");
    let file = path("config.yaml");
    std::fs::write(
        &file,
        format!(
            "vms:\n  - guest_cid: 9\n    socket: {socket}\n    uds_path: {uds}\n    groups: a+b\n"
        ),
    )
    .unwrap();
    let child = start(&dir, &["--config".to_owned(), file]);
    UnixStream::connect(&uds).unwrap();
    let (code, text) = end(child, libc::SIGTERM);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn readiness_comes_through_an_abstract_socket_too() {
    use std::os::linux::net::SocketAddrExt;
    let dir = TempDir::new().unwrap();
    let name = format!("crosvm-vsock-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let notify = UnixDatagram::bind_addr(&address).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let child = daemon()
        .args(vm_arguments(&dir, &[3]))
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut message = [0; 64];
    let len = notify.recv(&mut message).unwrap();
    assert_eq!(&message[..len], b"READY=1");
    end(child, libc::SIGTERM);
    let len = notify.recv(&mut message).unwrap();
    assert_eq!(&message[..len], b"STOPPING=1");
}

#[test]
fn an_idle_daemon_uses_no_cpu() {
    let dir = TempDir::new().unwrap();
    let child = start(&dir, &vm_arguments(&dir, &[3, 4, 5]));
    let stat = format!("/proc/{}/stat", child.id());
    let switches = || -> u64 {
        let tasks = std::fs::read_dir(Path::new(&stat).with_file_name("task")).unwrap();
        tasks
            .map(|task| {
                let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
                let line = status
                    .lines()
                    .find(|l| l.starts_with("voluntary_ctxt"))
                    .unwrap();
                line.split_whitespace()
                    .nth(1)
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            })
            .sum()
    };
    std::thread::sleep(Duration::from_millis(100));
    let before = switches();
    std::thread::sleep(Duration::from_millis(500));
    // Not timed: no thread may wake up at all.
    assert_eq!(switches(), before);
    end(child, libc::SIGTERM);
}

fn boot(socket: &Path, cid: u64) -> (Guest, Vmm) {
    let config = GuestConfig {
        cid,
        ..GuestConfig::default()
    };
    let guest = Guest::new(config.clone()).unwrap();
    let mut vmm = Vmm::connect(socket).unwrap();
    vmm.start(&guest, &config).unwrap();
    (guest, vmm)
}

/// A call event whose count is full, and which waits for somebody to read it.
fn full_event() -> File {
    // SAFETY: no pointers; the result is checked before it is owned.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just opened, nobody else's.
    let mut event = unsafe { File::from_raw_fd(fd) };
    event.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    event
}

#[test]
fn a_vmm_that_holds_its_device_up_holds_up_neither_its_neighbour_nor_the_end() {
    let dir = TempDir::new().unwrap();
    let child = start(&dir, &vm_arguments(&dir, &[3, 4]));
    let (_guest, vmm) = boot(&dir.path().join("vhost3.socket"), 3);
    let stuck = std::thread::spawn(move || vmm.set_call(Queue::Rx, full_event()));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!stuck.is_finished(), "nothing is tested");
    drop(boot(&dir.path().join("vhost4.socket"), 4));
    let (code, text) = end(child, libc::SIGTERM);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("the thread vsock-3 does not end"), "{text}");
    assert!(stuck.join().unwrap().is_err());
    let _ = std::fs::remove_file(dir.path().join("notify"));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_guest_cannot_fill_the_log_of_those_who_look_closer() {
    let dir = TempDir::new().unwrap();
    let arguments = [
        &["--log-level=debug".to_owned()],
        &vm_arguments(&dir, &[3])[..],
    ]
    .concat();
    let child = start(&dir, &arguments);
    let (guest, _vmm) = boot(&dir.path().join("vhost3.socket"), 3);
    let raw = guest.raw();
    for number in 0..300 {
        let header = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: number,
            dst_port: 99,
            socket_type: SocketType::STREAM,
            op: if number % 2 == 0 { Op(77) } else { Op::REQUEST },
            ..Header::default()
        };
        raw.send(&header, &[]).unwrap();
        raw.expect(Op::RST, PATIENCE).unwrap();
    }
    let (code, text) = end(child, libc::SIGTERM);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("DEBUG"), "{text}");
    let lines = text.lines().count();
    assert!(lines < 40, "{lines} lines");
}

/// It has hung up on the channel for them.
#[test]
fn a_vmm_that_cannot_be_asked_for_translations_does_not_fill_the_log() {
    let dir = TempDir::new().unwrap();
    let child = start(&dir, &vm_arguments(&dir, &[3]));
    let config = GuestConfig::default();
    for _ in 0..20 {
        let guest = Guest::new(config.clone()).unwrap();
        let mut vmm = Vmm::connect(dir.path().join("vhost3.socket")).unwrap();
        vmm.extra_features |= ACCESS_PLATFORM;
        vmm.behind_viommu = true;
        vmm.negotiate(&guest, &config).unwrap();
        drop(vmm.serve_iotlb(&guest).unwrap());
        vmm.start_rings(&guest).unwrap();
    }
    let (code, text) = end(child, libc::SIGTERM);
    assert_eq!(code, 0, "{text}");
    let complaint = "cannot be asked to translate";
    let lines = text.lines().filter(|line| line.contains(complaint)).count();
    assert!(0 < lines && lines < 10, "{lines}: {text}");
}

/// Cuttlefish's logs go through a pipe, which is full once its reader is stuck.
#[test]
fn a_log_that_nobody_reads_holds_up_neither_guests_nor_the_end() {
    let dir = TempDir::new().unwrap();
    let (reader, mut stderr) = UnixStream::pair().unwrap();
    let copy = OwnedFd::from(stderr.try_clone().unwrap());
    let child = start_with(&dir, &vm_arguments(&dir, &[3]), copy.into());
    stderr.set_nonblocking(true).unwrap();
    while stderr.write(&[b'\n'; 4096]).is_ok() {}
    while stderr.write(b"\n").is_ok() {}
    stderr.set_nonblocking(false).unwrap();
    drop(stderr);
    let socket = dir.path().join("vhost3.socket");
    let served = std::thread::spawn(move || drop(boot(&socket, 3)));
    let deadline = Instant::now() + PATIENCE;
    while !served.is_finished() {
        assert!(Instant::now() < deadline, "the guest is not served");
        std::thread::sleep(Duration::from_millis(5));
    }
    served.join().unwrap();
    let (code, _) = end(child, libc::SIGTERM);
    assert_eq!(code, 0);
    drop(reader);
}

#[test]
fn sockets_of_a_process_that_lives_are_left_to_it() {
    let dir = TempDir::new().unwrap();
    let arguments = vm_arguments(&dir, &[3]);
    let first = start(&dir, &arguments);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (code, text) = run(&arguments);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("vm3.vsock is in use"), "{text}");
    UnixStream::connect(dir.path().join("vm3.vsock")).unwrap();
    assert_eq!(end(first, libc::SIGTERM).0, 0);
}

/// What runs beside it in the same directory is not touched.
#[test]
fn a_listener_of_somebody_else_is_not_removed_at_the_end() {
    let dir = TempDir::new().unwrap();
    let other = UnixListener::bind(dir.path().join("vm3.vsock_70")).unwrap();
    let (code, _) = end(start(&dir, &vm_arguments(&dir, &[3])), libc::SIGTERM);
    assert_eq!(code, 0);
    assert!(dir.path().join("vm3.vsock_70").exists());
    drop(other);
}
