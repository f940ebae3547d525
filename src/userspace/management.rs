// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What may be asked of this data path beside moving data ([`Managed`]), and what it tells
//! those who watch it.

use std::sync::Arc;
use std::time::Instant;

use super::acceptor::Acceptor;
use super::connection::{Connection, Greeting, Key, State};
use super::muxer::Muxer;
use super::packet::SocketType;
use super::sibling::YES;
use super::slab::Id;
use super::socket::Socket;
use super::{UserspacePath, FEATURES};
use crate::address::{Cid, Gpa, Port, Range};
use crate::compat::Mode;
use crate::management::{
    Answer, Call, ConnectionInfo, Managed, Progress, Refusal, Statistics, Status,
};
use crate::watchers::{Event, Watchers};

const NO_IOTLB: Refusal =
    Refusal::Unsupported("the userspace path has no IOTLB: ranges are shared with backend=kernel");

impl Connection {
    fn info(&self) -> ConnectionInfo {
        ConnectionInfo {
            guest_port: self.key.guest_port,
            peer: self.key.peer,
            peer_port: self.key.peer_port,
            socket_type: self.socket_type,
            progress: match self.state {
                _ if self.waits_for().is_some() => Progress::Opening,
                State::Established => Progress::Established,
                _ => Progress::Closing,
            },
            pending: self.outbox.len(),
        }
    }

    /// Both sides had said yes, whatever has become of it since.
    fn was_established(&self) -> bool {
        self.waits_for().is_none() && self.counted_waiting.is_none()
    }
}

impl Muxer {
    /// A connection was established.
    pub(super) fn tell_of_start(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(id) {
            self.watchers.tell(|| Event::Connected(connection.info()));
        }
    }

    /// A connection is over; what was never established is no news.
    pub(super) fn tell_of_end(&self, connection: &Connection) {
        if connection.was_established() {
            self.watchers
                .tell(|| Event::Disconnected(connection.info()));
        }
    }
}

impl Managed for UserspacePath {
    fn status(&self) -> Status {
        let active = self.active.as_ref();
        let translated = active.is_some_and(|active| active.bus.is_translated());
        Status {
            mode: match translated {
                true => Mode::Translated,
                false => Mode::Off,
            },
            offered: FEATURES,
            acknowledged: active.map(|active| active.features),
            needs_reset: self.broken,
        }
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            traffic: Some(self.muxer.stats.clone()),
            open: Some(self.muxer.connections.len()),
            resets: self.muxer.stats.resets.get(),
            ..Statistics::default()
        }
    }

    fn connections(&mut self, most: usize) -> Result<Vec<ConnectionInfo>, Refusal> {
        let connections = &mut self.muxer.connections;
        let ids: Vec<Id> = connections.ids().take(most).collect();
        let info = |id| connections.get_mut(id).map(|connection| connection.info());
        Ok(ids.into_iter().filter_map(info).collect())
    }

    fn connect(&mut self, port: Port) -> Result<Call, Refusal> {
        if !self.muxer.listening {
            return Err(Refusal::NotRunning);
        }
        let (ours, theirs) = Socket::pair(SocketType::Stream)?;
        let key = Key {
            peer: Cid::HOST,
            peer_port: self.muxer.free_port(port),
            guest_port: port,
        };
        let greeting = Greeting::Bytes(vec![YES]);
        let now = Instant::now();
        self.muxer
            .ask_guest(key, theirs, SocketType::Stream, greeting, false, now);
        if !self.muxer.by_key.contains_key(&key) {
            let why = "the VM has as many connections, or half-open ones, as it may have";
            return Err(Refusal::TooMany(why.into()));
        }
        Ok(Call {
            socket: ours,
            port,
            answer: Answer::Byte,
        })
    }

    fn listen(&mut self, port: Port, acceptor: Acceptor) -> Result<(), Refusal> {
        self.muxer.acceptors.add(port, acceptor)
    }

    fn unlisten(&mut self, port: Port) -> Result<(), Refusal> {
        self.muxer.acceptors.remove(port);
        Ok(())
    }

    fn share(&mut self, _range: Range<Gpa>) -> Result<(), Refusal> {
        Err(NO_IOTLB)
    }

    fn unshare(&mut self, _range: Range<Gpa>) -> Result<(), Refusal> {
        Err(NO_IOTLB)
    }

    fn reset(&mut self) -> Result<(), Refusal> {
        if self.active.is_none() {
            return Err(Refusal::NotRunning);
        }
        self.muxer.forget_guest();
        self.reset_event = true;
        Ok(())
    }

    fn watch(&mut self, watchers: Arc<Watchers>) {
        self.muxer.watchers = watchers;
    }
}
