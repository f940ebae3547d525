// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one epoll instance of a VM's thread, and the tokens that come back from it.
//!
//! A [`Token`] names what an event is for: a kind, a slot and the slot's
//! generation, so that an event still in the batch for something that has just
//! ended never reaches what took its slot.
//!
//! `unsafe` here: the three epoll system calls.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose event it is; each user of the loop has kinds of its own.
    pub kind: u8,
    /// The place in the user's table, below 2^24.
    pub slot: u32,
    /// Told apart from the earlier holders of that place.
    pub generation: u32,
}

impl Token {
    /// A token that needs no generation, for what lives as long as the loop.
    pub const fn lasting(kind: u8, slot: u32) -> Self {
        Self {
            kind,
            slot,
            generation: 0,
        }
    }

    fn to_raw(self) -> u64 {
        u64::from(self.kind) << 56
            | u64::from(self.slot & 0xff_ffff) << 32
            | u64::from(self.generation)
    }

    fn from_raw(raw: u64) -> Self {
        Self {
            kind: (raw >> 56) as u8,
            slot: (raw >> 32) as u32 & 0xff_ffff,
            generation: raw as u32,
        }
    }
}

/// What a descriptor is watched for, or what has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(u32);

impl Interest {
    /// Nothing for now, but it stays registered; errors are reported all the same.
    pub const NONE: Self = Self(0);
    /// Readable, while it is (level-triggered).
    pub const READABLE: Self = Self(libc::EPOLLIN as u32);
    /// Each time it becomes readable or its peer stops sending (edge-triggered). What is
    /// there when watching begins, or changes, counts as an edge (`ep_insert`, `ep_modify`).
    pub const READABLE_EDGE: Self =
        Self((libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLRDHUP | libc::EPOLLET) as u32);
    /// As [`READABLE_EDGE`](Self::READABLE_EDGE), and each time it becomes writable.
    pub const BOTH_EDGE: Self = Self(Self::READABLE_EDGE.0 | libc::EPOLLOUT as u32);

    /// There is something to read, or the end of it.
    pub fn readable(self) -> bool {
        self.0 & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// There is room to write, or writing would fail at once.
    pub fn writable(self) -> bool {
        self.0 & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// The peer sends no more.
    pub fn read_closed(self) -> bool {
        self.0 & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// Out-of-band data is there.
    pub fn urgent(self) -> bool {
        self.0 & libc::EPOLLPRI as u32 != 0
    }

    /// The peer is gone in both directions.
    pub fn hung_up(self) -> bool {
        self.0 & (libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }
}

/// An epoll instance.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

/// Room for the events of one wake-up.
pub struct Events {
    raw: Vec<libc::epoll_event>,
}

impl Events {
    /// At most `most` events a wake-up.
    pub fn with_capacity(most: usize) -> Self {
        Self {
            raw: Vec::with_capacity(most.max(1)),
        }
    }

    /// What the last [`Epoll::wait`] found.
    pub fn iter(&self) -> impl Iterator<Item = (Token, Interest)> + '_ {
        self.raw
            .iter()
            .map(|event| (Token::from_raw(event.u64), Interest(event.events)))
    }
}

impl Epoll {
    /// A new one, closed on exec.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: `fd` was just opened and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    fn control(
        &self,
        operation: libc::c_int,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: interest.0,
            u64: token.to_raw(),
        };
        // SAFETY: both descriptors are open, `event` is valid for the call.
        check(unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), &mut event)
        })?;
        Ok(())
    }

    /// Starts to watch `fd`. Closing the last copy of a descriptor ends it, too.
    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_fd(), token, interest)
    }

    /// Watches `fd` for something else; an edge that is already there counts anew.
    pub fn modify(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_fd(), token, interest)
    }

    /// No longer watches `fd`.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        let token = Token::lasting(0, 0);
        self.control(libc::EPOLL_CTL_DEL, fd.as_fd(), token, Interest(0))
    }

    /// Waits for events, `timeout` at most (rounded up to a millisecond; `None`:
    /// for ever). An interrupting signal counts as no event.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map_or(-1, |t| {
            i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        events.raw.clear();
        let most = i32::try_from(events.raw.capacity()).unwrap_or(i32::MAX);
        // SAFETY: the vector has room for `most` events, which the kernel fills in.
        let found = check(unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), events.raw.as_mut_ptr(), most, timeout)
        });
        match found {
            // SAFETY: the kernel has initialised the first `found` events.
            Ok(found) => unsafe { events.raw.set_len(found as usize) },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventFd;

    #[test]
    fn tokens_come_back_as_they_went() {
        let token = Token {
            kind: 0xfe,
            slot: 0xab_cdef,
            generation: 0x1234_5678,
        };
        assert_eq!(Token::from_raw(token.to_raw()), token);
    }

    #[test]
    fn an_edge_is_reported_once_per_signal() {
        let epoll = Epoll::new().unwrap();
        let event = EventFd::new().unwrap();
        let token = Token::lasting(1, 2);
        epoll.add(&event, token, Interest::READABLE_EDGE).unwrap();
        let mut events = Events::with_capacity(4);
        for _ in 0..2 {
            event.signal().unwrap();
            epoll.wait(&mut events, Some(Duration::ZERO)).unwrap();
            assert_eq!(events.iter().map(|(t, _)| t).collect::<Vec<_>>(), [token]);
            epoll.wait(&mut events, Some(Duration::ZERO)).unwrap();
            assert_eq!(events.iter().count(), 0);
        }
    }
}
