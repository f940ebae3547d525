// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`Event`]: a blocking eventfd.
//!
//! `unsafe`: eventfd(2) and poll(2), which the standard library does not wrap.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

use crate::{
    errno_result, AsRawDescriptor, FromRawDescriptor, IntoRawDescriptor, RawDescriptor, Result,
    SafeDescriptor,
};

/// An event: signalled until somebody waits for it.
#[derive(Debug)]
pub struct Event(File);

/// How a wait with a limit ended.
#[derive(Debug, PartialEq, Eq)]
pub enum EventWaitResult {
    /// The event was signalled; it no longer is.
    Signaled,
    /// The time ran out.
    TimedOut,
}

impl Event {
    /// A new event, not signalled. As crosvm's, its descriptor is blocking.
    pub fn new() -> Result<Event> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, 0) };
        if fd < 0 {
            return errno_result();
        }
        // SAFETY: the kernel just gave us this descriptor.
        Ok(Event(unsafe { File::from_raw_fd(fd) }))
    }

    /// Signals.
    pub fn signal(&self) -> Result<()> {
        self.write_count(1)
    }

    /// Waits for a signal and takes it.
    pub fn wait(&self) -> Result<()> {
        self.read_count().map(drop)
    }

    /// Waits for a signal and takes it, for at most `timeout`.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<EventWaitResult> {
        let mut pollfd = libc::pollfd {
            fd: self.as_raw_descriptor(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = timeout.as_millis().try_into().unwrap_or(i32::MAX);
        // SAFETY: the pointer is to one pollfd, which outlives the call.
        match unsafe { libc::poll(&mut pollfd, 1, millis) } {
            0 => Ok(EventWaitResult::TimedOut),
            1 => self.wait().map(|()| EventWaitResult::Signaled),
            _ => errno_result(),
        }
    }

    /// Takes a signal if there is one; never blocks.
    pub fn reset(&self) -> Result<()> {
        self.wait_timeout(Duration::ZERO).map(drop)
    }

    /// Another descriptor of the same event.
    pub fn try_clone(&self) -> Result<Event> {
        Ok(Event(self.0.try_clone()?))
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.as_raw_descriptor() == other.as_raw_descriptor()
    }
}

impl Eq for Event {}

/// What only an eventfd can do.
pub trait EventExt {
    /// Adds `v` to the count.
    fn write_count(&self, v: u64) -> Result<()>;

    /// Waits for a count above zero, takes it and leaves zero.
    fn read_count(&self) -> Result<u64>;
}

impl EventExt for Event {
    fn write_count(&self, v: u64) -> Result<()> {
        Ok((&self.0).write_all(&v.to_ne_bytes())?)
    }

    fn read_count(&self) -> Result<u64> {
        let mut count = [0; 8];
        loop {
            match (&self.0).read(&mut count) {
                Ok(_) => return Ok(u64::from_ne_bytes(count)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsRawDescriptor for Event {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.0.as_raw_fd()
    }
}

impl IntoRawDescriptor for Event {
    fn into_raw_descriptor(self) -> RawDescriptor {
        self.0.into_raw_descriptor()
    }
}

impl FromRawDescriptor for Event {
    unsafe fn from_raw_descriptor(descriptor: RawDescriptor) -> Self {
        // SAFETY: the caller's promise is the same.
        Event(unsafe { File::from_raw_descriptor(descriptor) })
    }
}

impl From<SafeDescriptor> for Event {
    fn from(descriptor: SafeDescriptor) -> Self {
        Event(descriptor.into())
    }
}

impl From<Event> for SafeDescriptor {
    fn from(event: Event) -> Self {
        event.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_taken_once() {
        let event = Event::new().unwrap();
        assert_eq!(
            event.wait_timeout(Duration::ZERO),
            Ok(EventWaitResult::TimedOut)
        );
        event.try_clone().unwrap().signal().unwrap();
        event.signal().unwrap();
        assert_eq!(event.read_count(), Ok(2));
        event.write_count(7).unwrap();
        assert_eq!(
            event.wait_timeout(Duration::from_secs(60)),
            Ok(EventWaitResult::Signaled)
        );
        event.signal().unwrap();
        event.reset().unwrap();
        event.reset().unwrap();
        assert_eq!(
            event.wait_timeout(Duration::ZERO),
            Ok(EventWaitResult::TimedOut)
        );
    }
}
