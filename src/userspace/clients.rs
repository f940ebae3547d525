// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The door of the [`Muxer`]: host clients, until they have said what they want.
//!
//! A client that has not said `CONNECT` is a socket in a bounded table with a deadline.
//! When descriptors run out, new clients are hung up on with the help of a spare one and
//! all others go on.

use std::io;
use std::time::{Duration, Instant};

use super::hybrid::{self, Line};
use super::listener::ListenerKind;
use super::muxer::Muxer;
use super::packet::SocketType;
use super::slab::Id;
use super::socket::{is_out_of_descriptors, Socket};
use super::tokens;
use crate::epoll::Interest;
use crate::event::EventFd;

/// Clients accepted in a row before others get their turn.
const ACCEPT_BURST: usize = 64;

/// How long nobody is let in when not even the spare descriptor is left.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);

/// A host client that has not said yet what it wants.
#[derive(Debug)]
pub(super) struct Client {
    socket: Socket,
    socket_type: SocketType,
    deadline: Instant,
}

impl Muxer {
    /// Has the event loop watch listeners and mailbox.
    pub(super) fn watch(&self) -> io::Result<()> {
        for (slot, listener) in self.host.listeners.iter().enumerate() {
            let token = tokens::listener(slot);
            self.epoll
                .add(&listener.socket, token, Interest::READABLE)?;
        }
        if let Some(membership) = &self.membership {
            let mailbox = membership.mailbox().as_ref();
            self.epoll
                .add(mailbox, tokens::MAILBOX, Interest::READABLE)?;
        }
        Ok(())
    }

    /// Host programs connect to a listener.
    pub(super) fn accept(&mut self, slot: usize, now: Instant) {
        for _ in 0..ACCEPT_BURST {
            let Some(listener) = self.host.listeners.get(slot) else {
                return;
            };
            let (socket_type, kind) = (listener.socket_type, listener.kind.clone());
            match listener.socket.accept() {
                Ok(socket) => match kind {
                    ListenerKind::Hybrid(_) => self.add_client(socket, socket_type, now),
                    ListenerKind::Port(port) => {
                        self.open_from_host(socket, socket_type, port, None, now);
                    }
                },
                Err(error) if is_out_of_descriptors(&error) => {
                    self.turn_one_away(slot, now);
                    return;
                }
                // Nobody waits, or whoever did has left.
                Err(_) => return,
            }
        }
    }

    /// No descriptor is left for a client: hangs up on it with the spare one, for it would
    /// wait in the backlog, and wake us, for ever.
    fn turn_one_away(&mut self, slot: usize, now: Instant) {
        self.stats.out_of_descriptors.add(1);
        self.report(format_args!(
            "out of descriptors: a host client was turned away"
        ));
        self.spare = None;
        if let Some(listener) = self.host.listeners.get(slot) {
            if listener
                .socket
                .accept()
                .is_err_and(|error| is_out_of_descriptors(&error))
            {
                self.watch_listeners(Interest::NONE);
                self.closed_until = Some(now + OUT_OF_DESCRIPTORS);
            }
        }
        self.spare = EventFd::new().ok();
    }

    fn watch_listeners(&self, interest: Interest) {
        for (slot, listener) in self.host.listeners.iter().enumerate() {
            // Cannot fail for a registered descriptor.
            let _ = self
                .epoll
                .modify(&listener.socket, tokens::listener(slot), interest);
        }
    }

    /// Lets clients in again when it is time.
    pub(super) fn open_listeners(&mut self, now: Instant) {
        if self.closed_until.is_some_and(|until| until <= now) {
            self.closed_until = None;
            self.watch_listeners(Interest::READABLE);
        }
    }

    fn add_client(&mut self, socket: Socket, socket_type: SocketType, now: Instant) {
        if self.clients.is_full() {
            self.hang_up_on_the_most_silent(now);
        }
        let deadline = now + self.limits.handshake;
        let client = |_| Client {
            socket,
            socket_type,
            deadline,
        };
        let Some(id) = self.clients.insert(client) else {
            return;
        };
        self.client_timers.add(deadline, id);
        if let Some(client) = self.clients.get_mut(id) {
            let watched =
                self.epoll
                    .add(&client.socket, tokens::client(id), Interest::READABLE_EDGE);
            if watched.is_err() {
                self.clients.remove(id);
            }
        }
    }

    /// Makes room for a client: whoever means to ask does so at once.
    fn hang_up_on_the_most_silent(&mut self, now: Instant) {
        self.stats.limit_half_open.add(1);
        let limit = self.limits.half_open;
        self.report(format_args!(
            "{limit} clients have said nothing yet: hung up on one"
        ));
        // All have had the same time: the first deadline is that of the one here for longest.
        self.remove_first_client(now + self.limits.handshake);
    }

    pub(super) fn expire_clients(&mut self, now: Instant) {
        while self.remove_first_client(now) {
            self.note(format_args!("a client said nothing in time"));
        }
    }

    /// Hangs up on the client whose deadline comes first, if that is by `until`.
    fn remove_first_client(&mut self, until: Instant) -> bool {
        while let Some((when, id)) = self.client_timers.pop(until) {
            if self.clients.get_mut(id).is_some_and(|c| c.deadline == when) {
                self.clients.remove(id);
                return true;
            }
        }
        false
    }

    /// A client has said something, or has left.
    pub(super) fn client_event(&mut self, id: Id, now: Instant) {
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        match hybrid::read_line(&client.socket, client.socket_type) {
            Ok(Line::Partial) => {}
            Ok(Line::Connect(port)) => {
                if let Some(client) = self.clients.remove(id) {
                    let token = Some(tokens::client(id));
                    self.open_from_host(client.socket, client.socket_type, port, token, now);
                }
            }
            Ok(Line::Gone) => drop(self.clients.remove(id)),
            Ok(Line::Nonsense) => {
                self.clients.remove(id);
                self.report(format_args!(
                    "a client said something else than `CONNECT <port>`: hung up"
                ));
            }
            Err(error) => {
                self.note(format_args!("a client: {error}"));
                self.clients.remove(id);
            }
        }
    }
}
