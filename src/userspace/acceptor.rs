// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Listeners that an operator has put in a host program's place.
//!
//! An acceptor is a Unix socket whose other end somebody holds. Each connection of the
//! guest's to its port becomes a message there: [`MESSAGE_LEN`] bytes, and the connection's
//! socket as a descriptor with it. No path, no name, no right but that to the descriptor.
//! A full acceptor is a full backlog: tried again for a while. One whose other end is
//! closed gives its port back.
//!
//! Limits: the descriptors that wait in an acceptor are those of its owner's making only
//! as far as the socket's send buffer goes, which the kernel bounds (wmem_default).
//!
//! `unsafe` here: `getsockopt`, and `sendmsg` with a descriptor, which the standard library
//! lacks.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::connection::Key;
use super::packet::SocketType;
use super::socket::Socket;
use crate::address::{Cid, GuestCid, Port};
use crate::management::Refusal;

/// A message's size: the guest's CID and its port, little-endian, 64 bits each.
pub const MESSAGE_LEN: usize = 16;

/// Ports that can be listened to at once.
const MOST: usize = 256;

/// Room for one descriptor in a control message, and more than its alignment needs.
const CONTROL_LEN: usize = 64;

/// One end of a pair of sequenced-packet Unix sockets, to send connections to.
#[derive(Debug)]
pub struct Acceptor(OwnedFd);

impl Acceptor {
    /// Checks a descriptor from outside.
    pub fn new(fd: OwnedFd) -> Result<Self, Refusal> {
        check_type(fd.as_fd())?;
        Ok(Self(fd))
    }
}

/// Acceptors by the host's port.
#[derive(Debug, Default)]
pub(super) struct Acceptors(HashMap<Port, OwnedFd>);

impl Acceptors {
    /// Sends connections to `port` to `acceptor` from now on.
    pub(super) fn add(&mut self, port: Port, acceptor: Acceptor) -> Result<(), Refusal> {
        self.0.retain(|_, other| !is_closed(other.as_fd()));
        if self.0.contains_key(&port) {
            return Err(Refusal::PortInUse(port));
        }
        if self.0.len() >= MOST {
            let why = format!("{MOST} ports have a listener: unlisten one first");
            return Err(Refusal::TooMany(why));
        }
        self.0.insert(port, acceptor.0);
        Ok(())
    }

    /// Gives `port` back.
    pub(super) fn remove(&mut self, port: Port) {
        self.0.remove(&port);
    }

    /// Hands a connection over, if there is an acceptor for it: its other end, or why it
    /// cannot be had (`WouldBlock`: not yet).
    pub(super) fn offer(
        &mut self,
        guest: GuestCid,
        key: Key,
        socket_type: SocketType,
    ) -> Option<io::Result<Socket>> {
        if key.peer != Cid::HOST || self.0.is_empty() {
            return None;
        }
        let acceptor = self.0.get(&key.peer_port)?;
        let pair = Socket::pair(socket_type)
            .and_then(|(ours, theirs)| Ok((ours, theirs.into_blocking()?)));
        let (ours, theirs) = match pair {
            Ok(pair) => pair,
            Err(error) => return Some(Err(error)),
        };
        let mut message = [0; MESSAGE_LEN];
        message[..8].copy_from_slice(&guest.raw().to_le_bytes());
        message[8..].copy_from_slice(&u64::from(key.guest_port.0).to_le_bytes());
        match send(acceptor.as_fd(), &message, theirs.as_fd()) {
            Err(error) if is_end(&error) => {
                self.0.remove(&key.peer_port);
                None
            }
            sent => Some(sent.map(|()| ours)),
        }
    }
}

/// The other end is closed.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPIPE | libc::ECONNRESET | libc::ECONNREFUSED | libc::ENOTCONN)
    )
}

/// Nobody has the other end. A message that its owner has sent here by mistake makes the
/// socket look alive, which is harmless: sending tells.
fn is_closed(fd: BorrowedFd<'_>) -> bool {
    let mut byte = 0u8;
    // SAFETY: `byte` is valid for the one byte asked for.
    let len = unsafe {
        libc::recv(
            fd.as_raw_fd(),
            std::ptr::from_mut(&mut byte).cast(),
            1,
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    };
    match len {
        0 => true,
        1.. => false,
        _ => io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock,
    }
}

fn option(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is valid for `len` bytes.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &mut len,
        )
    };
    match result {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

fn check_type(fd: BorrowedFd<'_>) -> Result<(), Refusal> {
    let refuse = |what| Err(Refusal::BadAcceptor(what));
    match (option(fd, libc::SO_DOMAIN), option(fd, libc::SO_TYPE)) {
        (Err(_), _) | (_, Err(_)) => refuse("not a socket"),
        (Ok(domain), _) if domain != libc::AF_UNIX => refuse("not a Unix socket"),
        (_, Ok(kind)) if kind != libc::SOCK_SEQPACKET => refuse("not of type SOCK_SEQPACKET"),
        _ if matches!(option(fd, libc::SO_ACCEPTCONN), Ok(1)) => refuse("a listening socket"),
        _ if is_closed(fd) => refuse("not connected"),
        _ => Ok(()),
    }
}

/// Sends `bytes` and a copy of `descriptor`, without waiting.
fn send(to: BorrowedFd<'_>, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(align(16))]
    struct Control([u8; CONTROL_LEN]);
    const FD_LEN: libc::c_uint = mem::size_of::<libc::c_int>() as libc::c_uint;

    let mut control = Control([0; CONTROL_LEN]);
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeroes is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: the macros compute sizes and place a header in `control`, which is aligned
    // for it and has room for one descriptor (CMSG_SPACE(4) is 24 at most).
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(FD_LEN) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(FD_LEN) as _;
        let place = libc::CMSG_DATA(header).cast::<libc::c_int>();
        place.write_unaligned(descriptor.as_raw_fd());
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `message` leads to `part`, `bytes` and `control`, all valid for the call,
    // which only reads them.
    let sent = unsafe { libc::sendmsg(to.as_raw_fd(), &message, flags) };
    match sent {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
