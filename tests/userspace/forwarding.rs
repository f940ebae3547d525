// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's connections forwarded to the host's own vsock. What passes there needs a
//! kernel with `vsock_loopback`: a cell of the lab carries data both ways. Here is what
//! needs none: nothing hangs, the guest is refused.

use std::io::ErrorKind;
use std::time::Duration;

use crosvm_vsock::address::Cid;
use crosvm_vsock::userspace::listener::HostPlace;
use guest_driver::SocketType;

use crate::harness::Vm;

/// A port that other runs of this test are unlikely to use.
fn port() -> u32 {
    20_000 + std::process::id() % 40_000
}

#[test]
fn a_guest_without_a_counterpart_is_refused() {
    let vm = Vm::with(
        |c| {
            c.host = HostPlace::Vsock {
                cid: Cid::LOCAL,
                listen: Vec::new(),
            };
            c.limits.dial = Duration::from_millis(300);
        },
        |_| {},
    );
    let error = vm.guest.connect(2, port(), SocketType::STREAM).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    vm.assert_clean();
}
