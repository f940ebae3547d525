// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Notifications between driver and device: eventfds, and waiting for some.
//!
//! Contains `unsafe` for the two system calls that std does not offer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A non-blocking eventfd: a kick (driver to device) or a call (device to driver).
#[derive(Debug)]
pub struct EventFd(File);

impl EventFd {
    /// Makes one with a count of zero.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved; the result is checked before use.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        Ok(EventFd(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Adds one. A full counter is as good as one more, so it is no error.
    pub fn signal(&self) -> io::Result<()> {
        match (&self.0).write_all(&1u64.to_ne_bytes()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Takes the whole count; 0 if nothing was signalled.
    pub fn take(&self) -> io::Result<u64> {
        let mut count = [0; 8];
        match (&self.0).read_exact(&mut count) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(e) => Err(e),
            Ok(()) => Ok(u64::from_ne_bytes(count)),
        }
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of the eventfds is signalled, at most `timeout` (rounded up
/// to milliseconds); says which are.
pub fn wait_any<const N: usize>(
    events: [&EventFd; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut fds = events.map(|e| libc::pollfd {
        fd: e.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let millis = timeout.map_or(-1, |t| {
        i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    });
    // SAFETY: `fds` is an array of N pollfds that lives through the call.
    if unsafe { libc::poll(fds.as_mut_ptr(), N as libc::nfds_t, millis) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        return Ok([false; N]);
    }
    Ok(fds.map(|fd| fd.revents != 0))
}
