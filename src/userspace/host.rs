// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's side of the [`Muxer`]: what host clients and siblings ask of the guest, and
//! the sockets that the guest's requests lead to.
//!
//! Nothing here waits: a full backlog is tried again by a timer, a sibling answers through
//! a socket.

use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use super::connection::{Greeting, Key, State};
use super::hybrid;
use super::listener::HostPlace;
use super::muxer::Muxer;
use super::packet::{Header, SocketType};
use super::sibling::{Membership, Offer, OfferError, YES};
use super::slab::Id;
use super::socket::{is_out_of_descriptors, Socket};
use super::tokens;
use super::waiting::WaitsFor;
use crate::address::{Cid, Port};
use crate::epoll::Interest;

/// Offers of siblings taken in a row before others get their turn.
const MAIL_BURST: usize = 64;

/// The lowest port that the guest sees host clients on; those below are for programs
/// with names.
pub(super) const FIRST_HOST_PORT: u32 = 1 << 30;

impl Muxer {
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
    pub(super) fn open_from_host(
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
            self.note(format_args!(
                "the guest is not there yet: hung up on a client"
            ));
            return;
        }
        if self.by_key.contains_key(&key) || !self.may_wait_for(WaitsFor::guest(key.peer)) {
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
            match socket.send_bytes(&[IoSlice::new(&bytes)]) {
                Ok(len) if len == bytes.len() => {}
                // The socket's buffer is empty: a greeting that does not fit cannot be sent.
                Ok(_) => return self.abort(id),
                // It has left. What it sent before is still the guest's.
                Err(_) => connection.hung_up = true,
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
        let sibling = |membership: &Membership| membership.knows(key.peer);
        let is_sibling = || self.membership.as_ref().is_some_and(sibling);
        if key.peer == Cid::HOST || (forwarded && !is_sibling()) {
            self.dial(id, now);
        } else {
            self.ring(id, now);
        }
        self.settle(id, now);
    }

    /// Tries to reach the host program that the guest asked for.
    pub(super) fn dial(&mut self, id: Id, now: Instant) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let (key, socket_type) = (connection.key, connection.socket_type);
        let waited = connection.counted_waiting.is_some();
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
                    self.refuse_request(id);
                } else if connected {
                    self.reached(id);
                } else if self.may_wait_for(WaitsFor::Host) {
                    self.set_deadline(id, now + self.limits.dial);
                } else {
                    self.refuse_request(id);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if waited || self.may_wait_for(WaitsFor::Host) {
                    self.dial_later(id, now);
                } else {
                    self.refuse_request(id);
                }
            }
            Err(error) => {
                if !self.noted_out_of_descriptors(&error) {
                    self.note(format_args!("nobody at port {port}: {error}"));
                }
                self.refuse_request(id);
            }
        }
    }

    /// Whether the request cannot be met for want of descriptors, which is noted.
    fn noted_out_of_descriptors(&self, error: &io::Error) -> bool {
        let is = is_out_of_descriptors(error);
        if is {
            self.stats.out_of_descriptors.add(1);
            self.report(format_args!("a guest's request is refused: {error}"));
        }
        is
    }

    /// Ends what was asked for and is not to be had.
    pub(super) fn refuse_request(&mut self, id: Id) {
        self.stats.refused.add(1);
        self.abort(id);
    }

    /// There is a host program for what the guest asked for.
    fn reached(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.state = State::Established;
            connection.wants.response = true;
            connection.deadline = None;
            connection.pause = Duration::ZERO;
            if connection.hung_up {
                connection.hang_up();
            }
            self.stats.connections.add(1);
        }
        self.tell_of_start(id);
    }

    /// Asks the device of the sibling that the guest asked for.
    fn ring(&mut self, id: Id, now: Instant) {
        if !self.may_wait_for(WaitsFor::Sibling) || !self.offer(id) {
            return self.refuse_request(id);
        }
        if let Some(connection) = self.connections.get_mut(id) {
            connection.state = State::Ringing;
            self.set_deadline(id, now + self.limits.handshake);
        }
    }

    /// Puts one end of a pair into a sibling's mailbox and keeps the other.
    fn offer(&mut self, id: Id) -> bool {
        let (Some(connection), Some(membership)) = (self.connections.get_mut(id), &self.membership)
        else {
            return false;
        };
        let (key, socket_type) = (connection.key, connection.socket_type);
        let (ours, theirs) = match Socket::pair(socket_type) {
            Ok(pair) => pair,
            Err(error) => {
                self.noted_out_of_descriptors(&error);
                return false;
            }
        };
        let offer = Offer {
            from: self.guest.cid(),
            from_port: key.guest_port,
            to_port: key.peer_port,
            socket_type,
            socket: theirs,
        };
        match membership.offer(key.peer, offer) {
            Ok(()) => self.attach(id, ours, false),
            Err(OfferError::Nobody) => false,
            Err(error @ OfferError::Full) => {
                self.stats.limit_half_open.add(1);
                self.report(format_args!("CID {}: {error}", key.peer));
                false
            }
        }
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
        // An edge comes once, whatever the connection is waiting for then.
        connection.hung_up |= interest.hung_up();
        match connection.state {
            State::Dialing if interest.writable() => {
                let result = connection.socket.as_ref().map(Socket::connect_result);
                match result {
                    Some(Ok(())) => self.reached(id),
                    _ => self.refuse_request(id),
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
                    _ => self.refuse_request(id),
                }
            }
            State::Asked(_) if interest.hung_up() => {
                // What it has sent is the guest's, even so.
                let left = |socket: &Socket| socket.peek(&mut [0]).is_ok_and(|len| len > 0);
                if !connection.socket.as_ref().is_some_and(left) {
                    self.note(format_args!("a client left before the guest answered"));
                    self.abort(id);
                }
            }
            State::Established | State::Lingering => {
                if interest.hung_up() {
                    connection.hang_up();
                }
                if interest.writable() && !connection.outbox.is_empty() {
                    if let Err(error) = connection.flush() {
                        self.report(format_args!("{error}: connection reset"));
                        return self.abort(id);
                    }
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
