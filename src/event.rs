// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! eventfd(2) and poll(2), the two calls that the standard library lacks.
//!
//! `unsafe` is here for these calls alone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// An eventfd in non-blocking mode.
#[derive(Debug)]
pub struct EventFd(File);

impl EventFd {
    /// A new one, not signalled.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, and nobody else has the new descriptor.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Another descriptor of the same event.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Signals it.
    pub fn signal(&self) -> io::Result<()> {
        match (&self.0).write_all(&1u64.to_ne_bytes()) {
            // The counter is full: signalled already.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    /// Whether it was signalled since the last call.
    pub fn take(&self) -> io::Result<bool> {
        match (&self.0).read_exact(&mut [0; 8]) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for EventFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

/// Waits until one of `fds` is readable or broken, or the time is over; says of
/// each whether it is. `None` waits without limit.
pub fn poll<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let milliseconds = timeout.map_or(-1, |timeout| {
        timeout.as_millis().try_into().unwrap_or(i32::MAX)
    });
    // SAFETY: the array is valid for N entries for the time of the call.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, milliseconds) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        // A signal is no error: nothing is ready, and the caller looks again.
        return match error.kind() {
            io::ErrorKind::Interrupted => Ok([false; N]),
            _ => Err(error),
        };
    }
    Ok(polled.map(|fd| fd.revents != 0))
}

/// What a descriptor is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Something to read, or the end of it.
    Readable,
    /// Room to write, or an end to a connection attempt.
    Writable,
}

/// Waits until `fd` is ready or broken, `timeout` at most; whether it is. A signal ends
/// the wait early.
pub fn wait_for(fd: BorrowedFd<'_>, readiness: Readiness, timeout: Duration) -> io::Result<bool> {
    let mut polled = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: match readiness {
            Readiness::Readable => libc::POLLIN,
            Readiness::Writable => libc::POLLOUT,
        },
        revents: 0,
    };
    let milliseconds = timeout.as_millis().try_into().unwrap_or(i32::MAX);
    // SAFETY: `polled` is one valid entry for the time of the call.
    let ready = unsafe { libc::poll(&mut polled, 1, milliseconds) };
    match ready {
        0.. => Ok(ready > 0),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_taken_once_and_seen_by_poll() {
        let (event, quiet) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let ready = || poll([event.as_fd(), quiet.as_fd()], Some(Duration::ZERO)).unwrap();
        assert_eq!(ready(), [false, false]);
        event.try_clone().unwrap().signal().unwrap();
        assert_eq!(ready(), [true, false]);
        assert!(event.take().unwrap());
        assert!(!event.take().unwrap());
    }
}
