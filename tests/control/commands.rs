// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The commands that ask a running daemon, and the socket in the file system.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use guest_driver::SocketType;
use tempfile::TempDir;

use crate::fake::{self, Answering, Fakes};
use crate::harness::{wait_until, Daemon, Vm, PROGRAM};

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn status_for_people_and_for_programs() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let _connection = vm.connect(&device, 5000);
    let text = out(&vm.daemon.ask(&["status"]));
    for expected in [
        "guest CID 3",
        "running",
        "userspace",
        "VERSION_1",
        "connections open",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // A line only for trouble that there was.
    assert!(!text.contains("malformed"), "{text}");

    let json = out(&vm.daemon.ask(&["status", "3", "--json"]));
    let all: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(all[0]["cid"], 3);
    assert_eq!(all[0]["state"], "running");
    assert_eq!(all[0]["statistics"]["connections_open"], 1);
    assert_eq!(all[0]["statistics"]["malformed"], 0);

    let metrics = out(&vm.daemon.ask(&["status", "--prometheus"]));
    assert_prometheus(&metrics);
    assert!(
        metrics.contains("\ncrosvm_vsock_up{cid=\"3\"} 1\n"),
        "{metrics}"
    );
    assert!(metrics.contains("\ncrosvm_vsock_connections_total{cid=\"3\"} 1\n"));
}

#[test]
fn metrics_of_several_guests_stand_together() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().display();
    let vms = [3, 4]
        .map(|cid| format!("guest-cid={cid},socket={path}/{cid}.socket,uds-path={path}/{cid}"));
    let daemon = Daemon::spawn(dir, &["--vm", &vms[0], "--vm", &vms[1]]);
    let metrics = out(&daemon.ask(&["status", "--prometheus"]));
    assert_prometheus(&metrics);
    for cid in [3, 4] {
        let up = format!("\ncrosvm_vsock_up{{cid=\"{cid}\"}} 0\n");
        assert!(metrics.contains(&up), "{metrics}");
        let info = format!(
            "\ncrosvm_vsock_info{{cid=\"{cid}\",backend=\"userspace\",kernel_kind=\"none\",\
             iotlb_mode=\"off\",state=\"no-vmm\"}} 1\n"
        );
        assert!(metrics.contains(&info), "{metrics}");
    }
    // Neither guest lacks a metric that the other has.
    let of = |cid| metrics.matches(&format!("{{cid=\"{cid}\"")).count();
    assert_eq!(of(3), of(4));
}

/// Fails unless each name has one HELP, one TYPE and then all its samples, each a number
/// with labels.
fn assert_prometheus(text: &str) {
    let mut names = Vec::new();
    let mut samples = 0;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let help = line.strip_prefix("# HELP ").unwrap();
        let (name, meaning) = help.split_once(' ').unwrap();
        assert!(!meaning.is_empty() && !names.contains(&name), "{line}");
        names.push(name);
        let kind = match name.ends_with("_total") {
            true => "counter",
            false => "gauge",
        };
        assert_eq!(lines.next().unwrap(), format!("# TYPE {name} {kind}"));
        while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
            let (labels, value) = sample.rsplit_once(' ').unwrap();
            let labels = labels.strip_prefix(name).unwrap();
            assert!(
                labels.starts_with("{cid=\"") && labels.ends_with("\"}"),
                "{sample}"
            );
            value.parse::<f64>().unwrap();
            samples += 1;
        }
    }
    assert!(samples > 20, "{samples}");
}

#[test]
fn connections_for_people_and_for_programs() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let _connection = vm.connect(&device, 5000);
    let text = out(&vm.daemon.ask(&["connections"]));
    let row = text.lines().nth(1).unwrap();
    assert!(row.starts_with("3:5000 ") && row.contains(" 2:"), "{text}");
    assert!(
        row.contains("stream") && row.contains("established"),
        "{text}"
    );
    let json = out(&vm.daemon.ask(&["connections", "3", "--json"]));
    let all: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(all[0]["guest_port"], 5000);
    assert_eq!(all[0]["state"], "established");
}

#[test]
fn connect_carries_both_directions_and_ends_each_by_itself() {
    let vm = Vm::start();
    let listener = vm.guest.listen(5000, SocketType::STREAM).unwrap();
    let mut client = vm
        .daemon
        .command(&["connect", "3", "5000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut guest = listener.accept().unwrap();
    let mut input = client.stdin.take().unwrap();
    input.write_all(b"question").unwrap();
    drop(input);
    let mut got = String::new();
    guest.read_to_string(&mut got).unwrap();
    assert_eq!(got, "question");
    // The end of its input was not the end of the connection.
    let answer = vec![b'a'; 200_000];
    guest.write_all(&answer).unwrap();
    guest.close().unwrap();
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.stdout, answer);
    assert_eq!(code(&output), Some(0));
}

#[test]
fn connect_ends_with_the_guest_though_there_is_input_to_come() {
    let vm = Vm::start();
    let listener = vm.guest.listen(5000, SocketType::STREAM).unwrap();
    let mut client = vm
        .daemon
        .command(&["connect", "3", "5000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let kept = client.stdin.take();
    listener.accept().unwrap().close().unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(0));
    drop(kept);
}

#[test]
fn reset_says_nothing_and_does_it() {
    let vm = Vm::start();
    let device = vm.client().device(3).unwrap();
    let (mut host, _guest) = vm.connect(&device, 5000);
    let output = vm.daemon.ask(&["reset", "3"]);
    assert_eq!((code(&output), out(&output)), (Some(0), String::new()));
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn errors_have_codes_and_say_what_to_do() {
    let vm = Vm::start();
    let dir = TempDir::new().unwrap();
    let nobody = dir.path().join("nobody");
    for (arguments, expected, words) in [
        (&["status", "9"][..], 5, "no guest has CID 9"),
        (&["connect", "3", "4242"], 6, "guest port 4242"),
        (&["connect", "3", "-1"], 2, "-1"),
        (&["connect", "3", "4294967296"], 2, "not a vsock port"),
        (&["connect", "3", "x"], 2, "`x` is not a vsock port"),
        (
            &["status", "3x"],
            2,
            "`3x` is not a guest's CID (3 to 4294967294)",
        ),
        (&["reset", "2"], 2, "`2` is not a guest's CID"),
        (
            &["status", "--control", nobody.to_str().unwrap()],
            3,
            "start crosvm-vsock with --control",
        ),
    ] {
        let output = vm.daemon.ask(arguments);
        let text = complaint(&output);
        assert_eq!(code(&output), Some(expected), "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?}: {text}");
    }
    let lost = Command::new(PROGRAM)
        .arg("status")
        .env_remove("CROSVM_VSOCK_CONTROL")
        .output()
        .unwrap();
    assert_eq!(code(&lost), Some(2));
    assert!(complaint(&lost).contains("--control PATH"));
}

#[test]
fn a_guest_that_does_not_answer_is_named_and_the_others_are_heard() {
    let (gone, inbox, _) = fake::device(3);
    drop(inbox);
    let (idle, inbox, _) = fake::device(4);
    let _answering = Answering::start(inbox, 2);
    let fakes = Fakes::new([gone, idle]);
    for (arguments, words) in [
        (&["status"][..], "guest CID 4"),
        (&["status", "--json"], "\"cid\": 4"),
        (&["connections"], "4:1"),
    ] {
        let output = fakes.ask(arguments);
        let (text, said) = (out(&output), complaint(&output));
        assert_eq!(code(&output), Some(1), "{said}");
        assert!(text.contains(words), "{arguments:?}: {text}");
        assert!(said.contains("guest CID 3: the device's thread"), "{said}");
    }
    // Asked for alone, it is what the command is about.
    let output = fakes.ask(&["status", "3"]);
    assert_eq!((code(&output), out(&output)), (Some(1), String::new()));
    assert_eq!(code(&fakes.ask(&["status", "4"])), Some(0));
}

#[test]
fn connections_that_do_not_fit_are_told_of() {
    let (device, inbox, _) = fake::device(4);
    let _answering = Answering::start(inbox, 1234);
    let fakes = Fakes::new([device]);
    let output = fakes.ask(&["connections", "--json"]);
    let all: serde_json::Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 1000);
    assert_eq!(code(&output), Some(0));
    let said = complaint(&output);
    assert!(said.contains("4: 234 more"), "{said}");
    let output = fakes.ask(&["connections"]);
    assert!(out(&output).contains("\n4: 234 more"), "{}", out(&output));
    assert_eq!(complaint(&output), "");
}

#[test]
fn nobody_to_read_an_answer_is_no_failure() {
    let vm = Vm::start();
    let (reader, writer) = UnixStream::pair().unwrap();
    drop(reader);
    let mut status = vm.daemon.command(&["status"]);
    let output = status.stdout(OwnedFd::from(writer)).output();
    let output = output.unwrap();
    assert_eq!(
        (code(&output), complaint(&output)),
        (Some(0), String::new())
    );
}

#[test]
fn a_socket_that_is_somebody_elses_is_told_in_one_line_and_soon() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("other");
    let ask = || {
        let asked = Instant::now();
        let output = Command::new(PROGRAM)
            .args(["status", "--control"])
            .arg(&path)
            .env_remove("RUST_LOG")
            .output()
            .unwrap();
        assert!(asked.elapsed() < Duration::from_secs(15));
        assert_eq!(code(&output), Some(1));
        let text = complaint(&output);
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    let listener = UnixListener::bind(&path).unwrap();
    // Nobody accepts: what an overloaded daemon does, too.
    assert!(ask().contains("did not answer in 5 s"));
    let hang_up = std::thread::spawn(move || listener.incoming().take(2).for_each(drop));
    let text = ask();
    assert!(text.contains("is it crosvm-vsock's"), "{text}");
    hang_up.join().unwrap();
}

/// A user with no rights of its own.
const NOBODY: u32 = 65534;

#[test]
fn another_user_has_no_permission() {
    let daemon = Daemon::start("");
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    // All that keeps the other user out is the socket's own mode.
    open(daemon.dir.path(), 0o755);
    let program = daemon.dir.path().join("program");
    std::fs::copy(PROGRAM, &program).unwrap();
    open(&program, 0o755);
    let mut status = Command::new(program);
    status.args(["status", "--control"]).arg(daemon.control());
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        status.uid(NOBODY).gid(NOBODY);
    } else {
        // We cannot be another user, but be treated as one.
        open(&daemon.control(), 0);
    }
    let output = status.output().unwrap();
    assert_eq!(code(&output), Some(4), "{}", complaint(&output));
    assert!(complaint(&output).contains("no permission"));
    open(&daemon.control(), 0o666);
    assert_eq!(code(&status.output().unwrap()), Some(0));
}

#[test]
fn the_socket_is_for_its_owner_and_goes_with_the_daemon() {
    let dir = TempDir::new().unwrap();
    let stale = dir.path().join("control");
    drop(UnixListener::bind(&stale).unwrap());
    let path = dir.path().display();
    let vm = format!("guest-cid=3,socket={path}/vhost.socket,uds-path={path}/vm");
    let mut daemon = Daemon::spawn(dir, &["--vm", &vm]);
    let is_private = || {
        let metadata = daemon.control().metadata();
        metadata.is_ok_and(|metadata| metadata.permissions().mode() & 0o777 == 0o600)
    };
    wait_until("the stale socket is replaced", is_private);
    assert!(daemon.control().metadata().unwrap().file_type().is_socket());
    assert_eq!(daemon.client().guest_cids().unwrap(), [3]);

    // Another daemon does not take it away.
    let other = format!(
        "guest-cid=4,socket={path}2,uds-path={path}3",
        path = daemon.dir.path().join("o").display()
    );
    let second = Command::new(PROGRAM)
        .args(["--vm", &other, "--control"])
        .arg(daemon.control())
        .output()
        .unwrap();
    assert_eq!(code(&second), Some(1));
    assert!(
        complaint(&second).contains("in use"),
        "{}",
        complaint(&second)
    );
    assert_eq!(daemon.client().guest_cids().unwrap(), [3]);

    let client = daemon.client();
    let ended = Command::new("kill").arg(daemon.pid().to_string()).status();
    assert!(ended.unwrap().success());
    assert!(daemon.wait(), "a client that stays does not keep it");
    assert!(!daemon.control().exists());
    let left: Vec<_> = std::fs::read_dir(daemon.dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(client.guest_cids().is_err());
}

#[test]
fn a_daemon_ends_though_a_client_waits_for_a_guest() {
    let mut vm = Vm::with(",handshake-timeout-ms=3600000");
    vm.guest.pause();
    let client = vm
        .daemon
        .command(&["connect", "3", "5000"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let device = vm.client().device(3).unwrap();
    wait_until("it has asked", || {
        device.getStatistics().unwrap().connectionsOpen == 1
    });
    let asked = Instant::now();
    let ended = Command::new("kill")
        .arg(vm.daemon.pid().to_string())
        .status();
    assert!(ended.unwrap().success());
    assert!(vm.daemon.wait());
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert_ne!(code(&client.wait_with_output().unwrap()), Some(0));
}

#[test]
fn restricted_memory_needs_somebody_to_share_it() {
    let output = Command::new(PROGRAM)
        .args([
            "--vm",
            "socket=/nowhere/s,backend=kernel,iotlb-mode=restricted",
        ])
        .output()
        .unwrap();
    assert_eq!(code(&output), Some(2));
    assert!(complaint(&output).contains("--control"));
}
