// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `crosvm-vsock connect`: when each direction ends, and what is told of it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::{Child, Output, Stdio};
use std::thread::JoinHandle;

use guest_driver::{SocketType, Stream};

use crate::harness::Vm;

/// The command on one side, a program in the guest on the other.
fn connected(vm: &Vm) -> (Child, Stream) {
    let listener = vm.guest.listen(5000, SocketType::STREAM).unwrap();
    let client = vm
        .daemon
        .command(&["connect", "3", "5000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (client, listener.accept().unwrap())
}

/// Writes all it can to the command, in a thread of its own.
fn feed(client: &mut Child, bytes: Vec<u8>) -> JoinHandle<()> {
    let mut input = client.stdin.take().unwrap();
    // It may hear that nobody reads any more.
    std::thread::spawn(move || drop(input.write_all(&bytes)))
}

fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn what_is_sent_arrives_though_the_guest_has_said_all_before() {
    let vm = Vm::start();
    let (mut client, mut guest) = connected(&vm);
    guest.write_all(b"go on").unwrap();
    guest.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    let mut out = client.stdout.take().unwrap();
    // Its end of file reaches the command, too, which has read nothing of its input yet.
    out.by_ref().take(5).read_to_string(&mut said).unwrap();
    assert_eq!(said, "go on");
    std::thread::sleep(std::time::Duration::from_millis(300));
    let data: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    let feeding = feed(&mut client, data.clone());
    let mut got = Vec::new();
    guest.read_to_end(&mut got).unwrap();
    assert!(got == data, "other bytes, or {} of them", got.len());
    feeding.join().unwrap();
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
}

#[test]
fn a_guest_that_closes_after_it_has_said_all_ends_it() {
    let vm = Vm::start();
    let (mut client, guest) = connected(&vm);
    let kept = client.stdin.take();
    guest.shutdown(Shutdown::Write).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(
        client.try_wait().unwrap().is_none(),
        "the guest still listens"
    );
    guest.close().unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(0));
    drop(kept);
}

#[test]
fn an_upload_that_the_guest_does_not_take_is_a_failure() {
    let vm = Vm::start();
    for close in [false, true] {
        let (mut client, mut guest) = connected(&vm);
        let feeding = feed(&mut client, vec![1; 8_000_000]);
        guest.read_exact(&mut [0; 100_000]).unwrap();
        if close {
            guest.close().unwrap();
        } else {
            guest.shutdown(Shutdown::Read).unwrap();
            // It may still say something.
            guest.write_all(b"enough").unwrap();
            guest.shutdown(Shutdown::Write).unwrap();
        }
        feeding.join().unwrap();
        let output = client.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", complaint(&output));
        let text = complaint(&output);
        assert!(text.contains("the guest stopped reading after"), "{text}");
        if !close {
            assert_eq!(output.stdout, b"enough");
        }
    }
}

#[test]
fn nobody_to_read_what_the_guest_says_is_no_failure() {
    let vm = Vm::start();
    let (mut client, mut guest) = connected(&vm);
    let kept = client.stdin.take();
    drop(client.stdout.take());
    // It may hear that the command is gone.
    let _ = guest.write_all(&[1; 500_000]);
    assert_eq!(client.wait().unwrap().code(), Some(0));
    drop(kept);
}
