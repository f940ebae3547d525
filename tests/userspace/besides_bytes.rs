// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a host program's socket can carry besides bytes: descriptors and out-of-band data.
//! `recvmsg` stops at either, which must not be taken for the end of what is there.
//!
//! `unsafe` here: sendmsg(2) and send(2) with what the standard library does not offer.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use crate::harness::Vm;

/// Sends one byte and a descriptor with it.
fn send_with_descriptor(socket: &UnixStream, byte: u8) {
    let fd = socket.as_raw_fd();
    let mut part = libc::iovec {
        iov_base: std::ptr::from_ref(&byte).cast_mut().cast(),
        iov_len: 1,
    };
    // Aligned for a `cmsghdr`, and large enough for one with a descriptor.
    let mut control = [0u64; 4];
    // SAFETY: all zeroes is a valid `msghdr`; `control` is aligned and has room for the
    // one header with the one descriptor that is written; all of it lives through the call.
    let sent = unsafe {
        let size = std::mem::size_of_val(&fd) as u32;
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(header)
            .cast::<libc::c_int>()
            .write_unaligned(fd);
        libc::sendmsg(fd, &message, 0)
    };
    assert_eq!(sent, 1);
}

#[test]
fn bytes_behind_descriptors_arrive() {
    let vm = Vm::start();
    let (mut guest, mut host) = vm.guest_connects(70);
    for round in 0..20 {
        host.write_all(b"before").unwrap();
        send_with_descriptor(&host, b'd');
        send_with_descriptor(&host, b'd');
        host.write_all(b"after").unwrap();
        let mut got = [0; 13];
        guest.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"beforeddafter", "round {round}");
    }
    vm.assert_clean();
}

#[test]
fn bytes_behind_out_of_band_data_arrive() {
    let vm = Vm::start();
    let (mut guest, mut host) = vm.guest_connects(70);
    for round in 0..20 {
        host.write_all(b"before").unwrap();
        // SAFETY: one byte is valid for the call.
        let sent = unsafe { libc::send(host.as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_OOB) };
        assert_eq!(sent, 1);
        host.write_all(b"after").unwrap();
        let mut got = [0; 11];
        guest.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"beforeafter", "round {round}");
    }
    vm.assert_clean();
}
