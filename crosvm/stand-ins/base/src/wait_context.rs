// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`WaitContext`]: waiting for many descriptors at once, with epoll.
//!
//! `unsafe`: the three epoll calls.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

pub use base_event_token_derive::EventToken;
use smallvec::SmallVec;

use crate::{errno_result, AsRawDescriptor, RawDescriptor, Result};

/// How many events one wait returns at most.
const MAX_EVENTS: usize = 16;

/// What names a descriptor in a [`WaitContext`]; usually derived.
pub trait EventToken {
    /// The token as a number.
    fn as_raw_token(&self) -> u64;

    /// The token of a number that [`as_raw_token`](Self::as_raw_token) gave.
    fn from_raw_token(data: u64) -> Self;
}

macro_rules! integer_tokens {
    ($($integer:ty),*) => {
        $(impl EventToken for $integer {
            fn as_raw_token(&self) -> u64 {
                *self as u64
            }

            fn from_raw_token(data: u64) -> Self {
                data as Self
            }
        })*
    };
}

integer_tokens!(u8, u16, u32, u64, usize);

impl EventToken for () {
    fn as_raw_token(&self) -> u64 {
        0
    }

    fn from_raw_token(_data: u64) -> Self {}
}

/// A descriptor that is ready.
#[derive(Copy, Clone, Debug)]
pub struct TriggeredEvent<T: EventToken> {
    /// Its token.
    pub token: T,
    /// Can be read.
    pub is_readable: bool,
    /// Can be written.
    pub is_writable: bool,
    /// The other side closed.
    pub is_hungup: bool,
}

/// What to wait for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum EventType {
    /// Nothing, for now.
    None,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Either.
    ReadWrite,
}

impl From<EventType> for u32 {
    fn from(event_type: EventType) -> u32 {
        let events = match event_type {
            EventType::None => 0,
            EventType::Read => libc::EPOLLIN,
            EventType::Write => libc::EPOLLOUT,
            EventType::ReadWrite => libc::EPOLLIN | libc::EPOLLOUT,
        };
        events as u32
    }
}

/// A set of descriptors to wait for, each with its token. Level-triggered.
pub struct WaitContext<T: EventToken> {
    epoll: OwnedFd,
    tokens: PhantomData<[T]>,
}

impl<T: EventToken> WaitContext<T> {
    /// An empty set.
    pub fn new() -> Result<WaitContext<T>> {
        // SAFETY: epoll_create1 takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return errno_result();
        }
        Ok(WaitContext {
            // SAFETY: the kernel just gave us this descriptor.
            epoll: unsafe { OwnedFd::from_raw_fd(fd) },
            tokens: PhantomData,
        })
    }

    /// A set that waits until any of `triggers` can be read.
    pub fn build_with(triggers: &[(&dyn AsRawDescriptor, T)]) -> Result<WaitContext<T>> {
        let context = WaitContext::new()?;
        context.add_many(triggers)?;
        Ok(context)
    }

    /// Adds a descriptor to wait until it can be read.
    pub fn add(&self, descriptor: &dyn AsRawDescriptor, token: T) -> Result<()> {
        self.add_for_event(descriptor, EventType::Read, token)
    }

    /// Adds a descriptor to wait for `event_type`.
    pub fn add_for_event(
        &self,
        descriptor: &dyn AsRawDescriptor,
        event_type: EventType,
        token: T,
    ) -> Result<()> {
        self.control(
            libc::EPOLL_CTL_ADD,
            descriptor,
            event_type.into(),
            token.as_raw_token(),
        )
    }

    /// Adds descriptors to wait until they can be read.
    pub fn add_many(&self, triggers: &[(&dyn AsRawDescriptor, T)]) -> Result<()> {
        triggers.iter().try_for_each(|(descriptor, token)| {
            self.add(*descriptor, T::from_raw_token(token.as_raw_token()))
        })
    }

    /// Changes what an added descriptor is waited for, and its token.
    pub fn modify(
        &self,
        descriptor: &dyn AsRawDescriptor,
        event_type: EventType,
        token: T,
    ) -> Result<()> {
        self.control(
            libc::EPOLL_CTL_MOD,
            descriptor,
            event_type.into(),
            token.as_raw_token(),
        )
    }

    /// Removes a descriptor; `ENOENT` when it was not there.
    pub fn delete(&self, descriptor: &dyn AsRawDescriptor) -> Result<()> {
        // The kernel ignores the event of a removal.
        self.control(libc::EPOLL_CTL_DEL, descriptor, 0, 0)
    }

    /// Waits until a descriptor is ready.
    pub fn wait(&self) -> Result<SmallVec<[TriggeredEvent<T>; 16]>> {
        self.wait_millis(-1)
    }

    /// Waits until a descriptor is ready; none when `timeout` passed.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<SmallVec<[TriggeredEvent<T>; 16]>> {
        self.wait_millis(timeout.as_millis().try_into().unwrap_or(i32::MAX))
    }

    fn control(
        &self,
        operation: i32,
        descriptor: &dyn AsRawDescriptor,
        events: u32,
        token: u64,
    ) -> Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        let (epoll, fd) = (self.epoll.as_raw_fd(), descriptor.as_raw_descriptor());
        // SAFETY: the pointer is to one event, which outlives the call.
        if unsafe { libc::epoll_ctl(epoll, operation, fd, &mut event) } < 0 {
            return errno_result();
        }
        Ok(())
    }

    fn wait_millis(&self, millis: i32) -> Result<SmallVec<[TriggeredEvent<T>; 16]>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MAX_EVENTS];
        let (epoll, max) = (self.epoll.as_raw_fd(), MAX_EVENTS as i32);
        let ready = loop {
            // SAFETY: the pointer is to MAX_EVENTS events, which is what is told.
            let n = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), max, millis) };
            match usize::try_from(n) {
                Ok(n) => break n,
                Err(_) if crate::Error::last().errno() == libc::EINTR => {}
                Err(_) => return errno_result(),
            }
        };
        let is = |event: &libc::epoll_event, flags: i32| event.events & flags as u32 != 0;
        Ok(events[..ready]
            .iter()
            .map(|event| TriggeredEvent {
                token: T::from_raw_token(event.u64),
                is_readable: is(event, libc::EPOLLIN),
                is_writable: is(event, libc::EPOLLOUT),
                is_hungup: is(event, libc::EPOLLHUP | libc::EPOLLRDHUP),
            })
            .collect())
    }
}

impl<T: EventToken> AsRawDescriptor for WaitContext<T> {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, Tube};

    #[derive(EventToken, Copy, Clone, Debug, PartialEq, Eq)]
    enum Token {
        Kill,
        Queue { index: usize },
        Tube(u32),
    }

    #[test]
    fn derived_tokens_survive_the_trip() {
        for token in [Token::Kill, Token::Queue { index: 513 }, Token::Tube(7)] {
            assert_eq!(Token::from_raw_token(token.as_raw_token()), token);
        }
    }

    #[test]
    fn reports_what_is_ready() {
        let queue = Event::new().unwrap();
        let kill = Event::new().unwrap();
        let (ours, theirs) = Tube::pair().unwrap();
        let context =
            WaitContext::build_with(&[(&queue, Token::Queue { index: 2 }), (&kill, Token::Kill)])
                .unwrap();
        context
            .add_for_event(&ours, EventType::ReadWrite, Token::Tube(1))
            .unwrap();
        queue.signal().unwrap();
        let ready = context.wait().unwrap();
        let readable: Vec<_> = ready.iter().filter(|e| e.is_readable).collect();
        assert_eq!(readable.len(), 1);
        assert_eq!(readable[0].token, Token::Queue { index: 2 });
        assert!(ready.iter().any(|e| e.is_writable));

        context.delete(&queue).unwrap();
        let twice = context.delete(&queue).unwrap_err();
        assert_eq!(twice.errno(), libc::ENOENT);
        context
            .modify(&ours, EventType::None, Token::Tube(1))
            .unwrap();
        assert!(context.wait_timeout(Duration::ZERO).unwrap().is_empty());
        drop(theirs);
        let ready = context.wait().unwrap();
        assert!(ready[0].is_hungup && ready[0].token == Token::Tube(1));
    }
}
