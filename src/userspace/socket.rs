// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Host sockets, never blocking: Unix and vsock, stream and sequenced-packet.
//!
//! Data moves with `sendmsg` and `recvmsg` straight from and to [`Segment`]s of guest
//! memory, with `MSG_DONTWAIT` and `MSG_NOSIGNAL` whatever the process's settings.
//! Under Cuttlefish's `process_sandboxer` every call made here on Unix sockets is
//! allowed but `shutdown`, which half-close cannot do without, `setsockopt`, which
//! sequenced sockets need at their end, and `socketpair`, which only siblings use.
//!
//! `unsafe` here: the socket system calls.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use super::packet::SocketType;
use crate::address::{Cid, Port};
use crate::guest_memory::Segment;

/// Segments a single system call takes (`UIO_MAXIOV`).
pub const MAX_SEGMENTS: usize = 1024;

/// Size of a vsock socket's buffer (`VSOCK_DEFAULT_BUFFER_SIZE`), which bounds its messages.
pub const LONGEST_UNTOLD: usize = 256 << 10;

/// The most bytes that the path of a Unix socket has: `sun_path` holds a 0 besides.
pub const LONGEST_PATH: usize =
    mem::size_of::<libc::sockaddr_un>() - mem::offset_of!(libc::sockaddr_un, sun_path) - 1;

/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 1024;

/// A connected, connecting or listening socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

/// What comes next from a socket that carries messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextMessage {
    /// A message of this many bytes.
    Of(usize),
    /// A message, or the end: this socket's kernel does not tell (vsock before Linux 6.6).
    /// No message is longer than [`LONGEST_UNTOLD`] there.
    Untold,
    /// The peer has closed, and nothing is left.
    End,
}

/// Which directions of a socket to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Take no more from the peer.
    Read,
    /// Send no more to the peer.
    Write,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether a call has failed for want of descriptors or memory, and may work later.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

const FLAGS: libc::c_int = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

fn raw_type(socket_type: SocketType) -> libc::c_int {
    match socket_type {
        SocketType::Stream => libc::SOCK_STREAM,
        SocketType::SeqPacket => libc::SOCK_SEQPACKET,
    }
}

/// A socket address of any family, as the kernel takes it.
struct RawAddress<T> {
    address: T,
    len: libc::socklen_t,
}

fn unix_address(path: &OsStr) -> io::Result<RawAddress<libc::sockaddr_un>> {
    // SAFETY: all zeroes is a valid `sockaddr_un`.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    let bytes = path.as_bytes();
    if bytes.is_empty() || bytes.len() > LONGEST_PATH || bytes.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{path:?} cannot be the path of a Unix socket: 1 to {LONGEST_PATH} bytes, none of them 0"
            ),
        ));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let len = mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok(RawAddress {
        address,
        len: len as libc::socklen_t,
    })
}

fn vsock_address(cid: Cid, port: Port) -> RawAddress<libc::sockaddr_vm> {
    // SAFETY: all zeroes is a valid `sockaddr_vm`.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid.0;
    address.svm_port = port.0;
    RawAddress {
        address,
        len: mem::size_of::<libc::sockaddr_vm>() as libc::socklen_t,
    }
}

/// What [`Socket::receive`] has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes (0: the end, or an empty message).
    pub len: usize,
    /// Descriptors, which nobody here wants, came with them: `recvmsg` stops behind such
    /// bytes, whatever comes after.
    pub cut: bool,
}

impl Socket {
    fn new(family: libc::c_int, socket_type: SocketType) -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(family, raw_type(socket_type) | FLAGS, 0) })?;
        // SAFETY: `fd` was just opened and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    fn connect<T>(self, to: &RawAddress<T>) -> io::Result<Self> {
        let address = std::ptr::from_ref(&to.address).cast();
        // SAFETY: `address` is valid for `len` bytes.
        let result = check(unsafe { libc::connect(self.fd.as_raw_fd(), address, to.len) });
        match result {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(self),
        }
    }

    fn listen<T>(self, at: &RawAddress<T>) -> io::Result<Self> {
        let address = std::ptr::from_ref(&at.address).cast();
        // SAFETY: `address` is valid for `len` bytes.
        check(unsafe { libc::bind(self.fd.as_raw_fd(), address, at.len) })?;
        // SAFETY: no pointers.
        check(unsafe { libc::listen(self.fd.as_raw_fd(), BACKLOG) })?;
        Ok(self)
    }

    /// Connects to the Unix socket at `path`. `WouldBlock`: its backlog is full.
    pub fn connect_unix(path: &OsStr, socket_type: SocketType) -> io::Result<Self> {
        let address = unix_address(path)?;
        Self::new(libc::AF_UNIX, socket_type)?.connect(&address)
    }

    /// Listens at `path`, which must be free.
    pub fn listen_unix(path: &OsStr, socket_type: SocketType) -> io::Result<Self> {
        let address = unix_address(path)?;
        Self::new(libc::AF_UNIX, socket_type)?.listen(&address)
    }

    /// Begins to connect to a vsock address of this host: once the socket is writable,
    /// [`connect_result`](Self::connect_result) says what came of it.
    pub fn connect_vsock(cid: Cid, port: Port, socket_type: SocketType) -> io::Result<Self> {
        Self::new(libc::AF_VSOCK, socket_type)?.connect(&vsock_address(cid, port))
    }

    /// Listens on a vsock port of this host.
    pub fn listen_vsock(port: Port, socket_type: SocketType) -> io::Result<Self> {
        Self::new(libc::AF_VSOCK, socket_type)?.listen(&vsock_address(Cid::ANY, port))
    }

    /// What came of a connection that was begun.
    pub fn connect_result(&self) -> io::Result<()> {
        let mut error: libc::c_int = 0;
        let mut len = mem::size_of_val(&error) as libc::socklen_t;
        // SAFETY: `error` is valid for `len` bytes.
        check(unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                std::ptr::from_mut(&mut error).cast(),
                &mut len,
            )
        })?;
        match error {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Two ends of a connection within this process.
    pub fn pair(socket_type: SocketType) -> io::Result<(Self, Self)> {
        let mut fds = [-1; 2];
        // SAFETY: `fds` has room for two descriptors.
        check(unsafe {
            libc::socketpair(
                libc::AF_UNIX,
                raw_type(socket_type) | FLAGS,
                0,
                fds.as_mut_ptr(),
            )
        })?;
        // SAFETY: both were just opened and belong to nobody else.
        let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
        Ok((Self { fd: own(fds[0]) }, Self { fd: own(fds[1]) }))
    }

    /// The next connection that waits; `WouldBlock` when none does.
    pub fn accept(&self) -> io::Result<Self> {
        let null = std::ptr::null_mut();
        // SAFETY: the kernel takes null for an address nobody wants.
        let fd = check(unsafe {
            libc::accept4(self.fd.as_raw_fd(), null, std::ptr::null_mut(), FLAGS)
        })?;
        // SAFETY: `fd` was just opened and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Sends from guest memory, [`MAX_SEGMENTS`] at most; how many bytes went.
    pub fn send(&self, segments: &[Segment<'_>]) -> io::Result<usize> {
        // SAFETY: a `Segment` has the layout of an `iovec` (repr(transparent)) and is
        // mapped; the kernel only reads what the list leads to.
        unsafe { self.send_raw(segments.as_ptr().cast(), segments.len()) }
    }

    /// Sends bytes of our own; how many went.
    pub fn send_bytes(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        // SAFETY: `IoSlice` is guaranteed to have the layout of an `iovec`.
        unsafe { self.send_raw(slices.as_ptr().cast(), slices.len()) }
    }

    /// # Safety
    /// `list` must be valid for `count` entries, each readable memory.
    unsafe fn send_raw(&self, list: *const libc::iovec, count: usize) -> io::Result<usize> {
        // SAFETY: all zeroes is a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = list.cast_mut();
        message.msg_iovlen = count.min(MAX_SEGMENTS) as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: as the caller promises.
        check_len(unsafe { libc::sendmsg(self.fd.as_raw_fd(), &message, flags) })
    }

    /// Receives into guest memory, [`MAX_SEGMENTS`] at most.
    pub fn receive(&self, segments: &[Segment<'_>]) -> io::Result<Received> {
        // SAFETY: all zeroes is a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = segments.as_ptr().cast_mut().cast();
        message.msg_iovlen = segments.len().min(MAX_SEGMENTS) as _;
        // SAFETY: a `Segment` has the layout of an `iovec` (repr(transparent)) and is
        // mapped and writable; nothing else of `message` is set.
        let len = check_len(unsafe {
            libc::recvmsg(self.fd.as_raw_fd(), &mut message, libc::MSG_DONTWAIT)
        })?;
        Ok(Received {
            len,
            cut: message.msg_flags & libc::MSG_CTRUNC != 0,
        })
    }

    fn receive_flags(&self, out: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
        let flags = flags | libc::MSG_DONTWAIT;
        // SAFETY: `out` is valid for its length.
        check_len(unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                out.as_mut_ptr().cast(),
                out.len(),
                flags,
            )
        })
    }

    /// Receives into a buffer of our own.
    pub fn receive_bytes(&self, out: &mut [u8]) -> io::Result<usize> {
        self.receive_flags(out, 0)
    }

    /// Looks at what comes next without taking it.
    pub fn peek(&self, out: &mut [u8]) -> io::Result<usize> {
        self.receive_flags(out, libc::MSG_PEEK)
    }

    /// Receives a message into a buffer of our own.
    ///
    /// A Unix peer that closes with unread messages leaves an error in front of those that
    /// it has sent (`unix_release_sock`, `__skb_try_recv_datagram`), once. They count.
    pub fn receive_message(&self, out: &mut [u8]) -> io::Result<usize> {
        self.past_reset(|| self.receive_bytes(out))
    }

    /// Looks at the message that comes next.
    pub fn next_message(&self) -> io::Result<NextMessage> {
        // One byte: vsock has nothing to say to whoever asks for none.
        let look = || self.receive_flags(&mut [0], libc::MSG_PEEK | libc::MSG_TRUNC);
        match self.past_reset(look) {
            // Linux 5.14 to 6.5 make the one out of the other.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOMEM)) => {
                Ok(NextMessage::Untold)
            }
            Ok(0) if self.read_closed() && !self.has_message()? => Ok(NextMessage::End),
            len => len.map(NextMessage::Of),
        }
    }

    fn past_reset(&self, mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        match call() {
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => call(),
            result => result,
        }
    }

    /// Whether there is a message, be it empty, rather than the end: only a message has a
    /// sender. Always `false` for vsock, which does not tell.
    fn has_message(&self) -> io::Result<bool> {
        if self.pass_credentials(true).is_err() {
            return Ok(false);
        }
        let mut control = [0u64; 8];
        // SAFETY: all zeroes is a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control) as _;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: `control` is valid for its length; nothing else of `message` is set.
        let looked = check_len(unsafe { libc::recvmsg(self.fd.as_raw_fd(), &mut message, flags) });
        // Left on, it would give our end a name once we send.
        self.pass_credentials(false)?;
        looked.map(|_| message.msg_controllen > 0)
    }

    fn pass_credentials(&self, whether: bool) -> io::Result<()> {
        let value = libc::c_int::from(whether);
        // SAFETY: `value` is valid for its length.
        check(unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PASSCRED,
                std::ptr::from_ref(&value).cast(),
                mem::size_of_val(&value) as libc::socklen_t,
            )
        })?;
        Ok(())
    }

    /// Whether the peer sends no more, whatever is left to read.
    pub fn read_closed(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLRDHUP,
            revents: 0,
        };
        // SAFETY: `poll` is one valid entry; the timeout is 0.
        unsafe { libc::poll(&mut poll, 1, 0) };
        poll.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
    }

    /// Gives the socket to somebody who will wait for it.
    pub fn into_blocking(self) -> io::Result<OwnedFd> {
        // SAFETY: no pointers.
        let flags = check(unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_GETFL) })?;
        let blocking = flags & !libc::O_NONBLOCK;
        // SAFETY: no pointers.
        check(unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_SETFL, blocking) })?;
        Ok(self.fd)
    }

    /// Closes one direction. Errors mean that it is closed already.
    pub fn shutdown(&self, direction: Direction) {
        let how = match direction {
            Direction::Read => libc::SHUT_RD,
            Direction::Write => libc::SHUT_WR,
        };
        // SAFETY: no pointers.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), how) };
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_boundaries_and_say_their_length() {
        let (a, b) = Socket::pair(SocketType::SeqPacket).unwrap();
        a.send_bytes(&[IoSlice::new(b"one"), IoSlice::new(b"two")])
            .unwrap();
        a.send_bytes(&[IoSlice::new(b"3")]).unwrap();
        assert_eq!(b.next_message().unwrap(), NextMessage::Of(6));
        let mut out = [0; 16];
        assert_eq!(b.receive_bytes(&mut out).unwrap(), 6);
        assert_eq!(b.next_message().unwrap(), NextMessage::Of(1));
        assert!(!b.read_closed());
        drop(a);
        assert!(b.read_closed());
    }

    #[test]
    fn messages_of_a_peer_that_left_without_reading_are_there() {
        let (a, b) = Socket::pair(SocketType::SeqPacket).unwrap();
        b.send_bytes(&[IoSlice::new(b"unread")]).unwrap();
        a.send_bytes(&[IoSlice::new(b"reply")]).unwrap();
        drop(a);
        assert_eq!(b.next_message().unwrap(), NextMessage::Of(5));
        assert_eq!(b.receive_message(&mut [0; 16]).unwrap(), 5);
        assert_eq!(b.next_message().unwrap(), NextMessage::End);
    }

    #[test]
    fn an_empty_message_is_not_the_end() {
        let (a, b) = Socket::pair(SocketType::SeqPacket).unwrap();
        for message in [&b""[..], b"between", b""] {
            a.send_bytes(&[IoSlice::new(message)]).unwrap();
        }
        drop(a);
        for len in [0, 7, 0] {
            assert_eq!(b.next_message().unwrap(), NextMessage::Of(len));
            assert_eq!(b.receive_message(&mut [0; 16]).unwrap(), len);
        }
        assert_eq!(b.next_message().unwrap(), NextMessage::End);
    }

    /// Why records are not told apart on Unix sockets, in either direction: the kernel takes
    /// MSG_EOR there and forgets it.
    #[test]
    fn unix_sockets_carry_no_end_of_record() {
        let (a, b) = Socket::pair(SocketType::SeqPacket).unwrap();
        let sent = b"record";
        // SAFETY: `sent` is valid for its length.
        let len = unsafe {
            libc::send(
                a.as_fd().as_raw_fd(),
                sent.as_ptr().cast(),
                sent.len(),
                libc::MSG_EOR,
            )
        };
        assert_eq!(len, 6);
        let mut out = [0u8; 16];
        let mut list = libc::iovec {
            iov_base: out.as_mut_ptr().cast(),
            iov_len: out.len(),
        };
        // SAFETY: all zeroes is a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &mut list;
        message.msg_iovlen = 1;
        // SAFETY: `message` leads to one valid buffer and nothing else.
        let len = unsafe { libc::recvmsg(b.as_fd().as_raw_fd(), &mut message, 0) };
        assert_eq!((len, message.msg_flags & libc::MSG_EOR), (6, 0));
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused_with_its_limit() {
        let long = "x".repeat(108);
        let error = Socket::connect_unix(OsStr::new(&long), SocketType::Stream).unwrap_err();
        assert!(error.to_string().contains("1 to 107 bytes"), "{error}");
    }
}
