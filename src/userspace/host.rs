// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's side of the [`Muxer`]: clients that ask for the guest, and the sockets that
//! the guest's requests lead to.
//!
//! Nothing here waits. A client that has not said `CONNECT` is a socket in a bounded
//! table with a deadline; a full backlog is tried again by a timer; when descriptors
//! run out, new connections are refused with the help of a spare one and the others
//! go on.

use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use log::debug;

use super::connection::{Greeting, Key, State};
use super::hybrid::{self, Line};
use super::listener::{HostPlace, ListenerKind};
use super::muxer::Muxer;
use super::packet::{Header, SocketType};
use super::sibling::{Offer, YES};
use super::slab::Id;
use super::socket::{is_out_of_descriptors, Socket};
use super::tokens;
use crate::address::{Cid, Port};
use crate::epoll::Interest;
use crate::event::EventFd;

/// Clients accepted in a row before others get their turn.
const ACCEPT_BURST: usize = 64;

/// Offers of siblings taken in a row before others get their turn.
const MAIL_BURST: usize = 64;

/// How long nobody is let in when not even the spare descriptor is left.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);

/// The lowest port that the guest sees host clients on; those below are for programs
/// with names.
pub(super) const FIRST_HOST_PORT: u32 = 1 << 30;

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
        if self.clients.len() + self.half_open.all >= self.limits.half_open {
            self.stats.limit_half_open.add(1);
            let limit = self.limits.half_open;
            self.report(format_args!(
                "{limit} connections are half open: hung up on a client"
            ));
            return;
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

    pub(super) fn expire_clients(&mut self, now: Instant) {
        while let Some((when, id)) = self.client_timers.pop(now) {
            if self.clients.get_mut(id).is_some_and(|c| c.deadline == when) {
                debug!("vm {}: a client said nothing in time", self.guest);
                self.clients.remove(id);
            }
        }
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
                debug!("vm {}: a client: {error}", self.guest);
                self.clients.remove(id);
            }
        }
    }

    /// A port that no connection to `guest_port` uses.
    pub(super) fn free_port(&mut self, guest_port: Port) -> Port {
        loop {
            let port = Port(self.next_port);
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_HOST_PORT);
            let key = Key {
                peer: Cid::HOST,
                peer_port: port,
                guest_port,
            };
            // Ends: there are fewer connections than ports.
            if !self.by_key.contains_key(&key) {
                return port;
            }
        }
    }

    /// A host client asks for a port of the guest. `watched`: its socket is already known to
    /// the event loop, under that token.
    fn open_from_host(
        &mut self,
        socket: Socket,
        socket_type: SocketType,
        guest_port: Port,
        watched: Option<crate::epoll::Token>,
        now: Instant,
    ) {
        let key = Key {
            peer: Cid::HOST,
            peer_port: self.free_port(guest_port),
            guest_port,
        };
        let greeting = match self.host.place {
            HostPlace::Unix(_) => Greeting::Bytes(self.reply.line(guest_port, key.peer_port)),
            HostPlace::Vsock { .. } => Greeting::Silent,
        };
        self.ask_guest(key, socket, socket_type, greeting, watched.is_some(), now);
    }

    /// Asks the guest on behalf of whoever has the other end of `socket`.
    pub(super) fn ask_guest(
        &mut self,
        key: Key,
        socket: Socket,
        socket_type: SocketType,
        greeting: Greeting,
        watched: bool,
        now: Instant,
    ) {
        if !self.listening {
            self.stats.refused.add(1);
            debug!(
                "vm {}: the guest is not there yet: hung up on a client",
                self.guest
            );
            return;
        }
        if self.by_key.contains_key(&key) {
            return;
        }
        let Some(id) = self.add(key, socket_type, State::Asked(greeting)) else {
            return;
        };
        if !self.attach(id, socket, watched) {
            self.remove(id);
            return;
        }
        if let Some(connection) = self.connections.get_mut(id) {
            connection.wants.request = true;
        }
        self.set_deadline(id, now + self.limits.handshake);
        self.settle(id, now);
    }

    /// Gives a connection its host socket. `false`: the event loop cannot watch it.
    fn attach(&mut self, id: Id, socket: Socket, watched: bool) -> bool {
        let Some(connection) = self.connections.get_mut(id) else {
            return false;
        };
        let token = tokens::connection(id);
        let result = if watched {
            self.epoll.modify(&socket, token, Interest::READABLE_EDGE)
        } else {
            self.epoll.add(&socket, token, Interest::READABLE_EDGE)
        };
        connection.watched = result.is_ok();
        connection.socket = Some(socket);
        result.is_ok()
    }

    /// The guest has accepted what the host asked for.
    pub(super) fn accepted_by_guest(&mut self, id: Id) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let before = std::mem::replace(&mut connection.state, State::Established);
        connection.deadline = None;
        if let (State::Asked(Greeting::Bytes(bytes)), Some(socket)) = (before, &connection.socket) {
            let sent = socket.send_bytes(&[IoSlice::new(&bytes)]);
            // The socket's buffer is empty: a greeting that does not fit cannot be sent.
            if !sent.is_ok_and(|len| len == bytes.len()) {
                debug!("vm {}: a client left before the guest accepted", self.guest);
                self.abort(id);
                return;
            }
        }
        if connection.hung_up {
            connection.hang_up();
        }
        self.stats.connections.add(1);
        self.tell_of_start(id);
    }

    /// The guest asks for a port of the host or of a sibling.
    pub(super) fn open_from_guest(
        &mut self,
        key: Key,
        socket_type: SocketType,
        header: &Header,
        now: Instant,
    ) {
        let Some(id) = self.add(key, socket_type, State::Dialing) else {
            return self.refuse(key, socket_type);
        };
        if let Some(connection) = self.connections.get_mut(id) {
            connection.credit.heard(header);
        }
        // A guest whose vsock is forwarded may ask for any CID: the host's programs stand
        // in for VMs that are not there.
        let forwarded = matches!(self.host.place, HostPlace::Vsock { .. });
        if key.peer == Cid::HOST {
            self.dial(id, now);
        } else if !self.ring(id, now) {
            if forwarded {
                self.dial(id, now);
            } else {
                self.stats.refused.add(1);
                self.abort(id);
            }
        }
        self.settle(id, now);
    }

    /// Tries to reach the host program that the guest asked for.
    pub(super) fn dial(&mut self, id: Id, now: Instant) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let (key, socket_type) = (connection.key, connection.socket_type);
        let port = key.peer_port;
        let handed_over = self.acceptors.offer(self.guest, key, socket_type);
        let (socket, connected) = match (handed_over, &self.host.place) {
            (Some(socket), _) => (socket, true),
            (None, HostPlace::Unix(base)) => {
                let path = hybrid::guest_path(base, port);
                (Socket::connect_unix(&path, socket_type), true)
            }
            (None, HostPlace::Vsock { cid, .. }) => {
                (Socket::connect_vsock(*cid, port, socket_type), false)
            }
        };
        match socket {
            Ok(socket) => {
                if !self.attach(id, socket, false) {
                    self.abort(id);
                } else if connected {
                    self.reached(id);
                } else {
                    self.set_deadline(id, now + self.limits.dial);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.dial_later(id, now),
            Err(error) => {
                if is_out_of_descriptors(&error) {
                    self.stats.out_of_descriptors.add(1);
                    self.report(format_args!("a guest's request is refused: {error}"));
                } else {
                    debug!("vm {}: nobody at port {port}: {error}", self.guest);
                }
                self.stats.refused.add(1);
                self.abort(id);
            }
        }
    }

    /// There is a host program for what the guest asked for.
    fn reached(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.state = State::Established;
            connection.wants.response = true;
            connection.deadline = None;
            connection.pause = Duration::ZERO;
            self.stats.connections.add(1);
        }
        self.tell_of_start(id);
    }

    /// Asks the device of the sibling that the guest asked for. `false`: there is none.
    fn ring(&mut self, id: Id, now: Instant) -> bool {
        let Some(connection) = self.connections.get_mut(id) else {
            return false;
        };
        let (key, socket_type) = (connection.key, connection.socket_type);
        let rung = self.membership.as_ref().and_then(|membership| {
            let (ours, theirs) = Socket::pair(socket_type).ok()?;
            let offer = Offer {
                from: self.guest.cid(),
                from_port: key.guest_port,
                to_port: key.peer_port,
                socket_type,
                socket: theirs,
            };
            membership.offer(key.peer, offer).then_some(ours)
        });
        let rung = rung.is_some_and(|socket| self.attach(id, socket, false));
        if let (true, Some(connection)) = (rung, self.connections.get_mut(id)) {
            connection.state = State::Ringing;
            self.set_deadline(id, now + self.limits.handshake);
        }
        rung
    }

    /// Siblings ask for the guest.
    pub(super) fn mail(&mut self, now: Instant) {
        let Some(mailbox) = self.membership.as_ref().map(|m| m.mailbox().clone()) else {
            return;
        };
        mailbox.clear_wake();
        for taken in 0.. {
            if taken == MAIL_BURST {
                // A sibling that never stops asking must not keep us from all else.
                mailbox.wake_again();
                return;
            }
            let Some(offer) = mailbox.take() else {
                return;
            };
            if self.half_open.by_siblings >= self.limits.sibling_requests {
                self.stats.limit_half_open.add(1);
                self.report(format_args!(
                    "siblings have asked for the guest {} times without an answer yet: refused one more",
                    self.limits.sibling_requests
                ));
                continue;
            }
            let key = Key {
                peer: offer.from,
                peer_port: offer.from_port,
                guest_port: offer.to_port,
            };
            let greeting = Greeting::Bytes(vec![YES]);
            self.ask_guest(key, offer.socket, offer.socket_type, greeting, false, now);
        }
    }

    /// Something has happened to a connection's socket.
    pub(super) fn connection_event(&mut self, id: Id, interest: Interest, now: Instant) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.readable |= interest.readable();
        connection.end_announced |= interest.read_closed() || interest.urgent();
        match connection.state {
            State::Dialing if interest.writable() => {
                let result = connection.socket.as_ref().map(Socket::connect_result);
                match result {
                    Some(Ok(())) => self.reached(id),
                    _ => {
                        self.stats.refused.add(1);
                        self.abort(id);
                    }
                }
            }
            State::Ringing if interest.readable() => {
                let mut answer = [0u8; 1];
                let got = connection
                    .socket
                    .as_ref()
                    .map(|socket| socket.receive_bytes(&mut answer));
                match got {
                    Some(Ok(1)) if answer[0] == YES => self.reached(id),
                    Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => {
                        self.stats.refused.add(1);
                        self.abort(id);
                    }
                }
            }
            State::Asked(_) if interest.hung_up() => {
                debug!("vm {}: a client left before the guest answered", self.guest);
                self.abort(id);
            }
            State::Established | State::Lingering => {
                if interest.hung_up() {
                    connection.hang_up();
                }
                if interest.writable() && !connection.outbox.is_empty() {
                    connection.flush();
                    if connection.state == State::Lingering {
                        let close = self.limits.close;
                        self.set_deadline(id, now + close);
                    }
                }
            }
            _ => {}
        }
        self.settle(id, now);
    }
}
