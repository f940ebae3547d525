// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All connections of one VM: which packet is whose, and what becomes of it.
//!
//! This file is the guest's side: packets in ([`Muxer::packet`], [`Muxer::deliver`]), RSTs
//! out. The host's side is in `clients.rs` and `host.rs`, timers and books in `upkeep.rs`; `rx.rs` turns
//! [`Wants`](super::connection::Wants) into packets.
//!
//! Rules for RST (5.10.6.4 and `virtio_transport_recv_pkt`): a packet for no
//! connection, of an unknown type or for nobody gets one, unless it is one itself; a
//! packet with a source that is not the guest's is dropped, since any answer would go
//! to somebody else's port. A guest that breaks the protocol on a connection loses
//! that connection.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use log::warn;

use super::acceptor::Acceptors;
use super::clients::Client;
use super::connection::{Connection, Key, State};
use super::host::FIRST_HOST_PORT;
use super::hybrid::Reply;
use super::limits::Limits;
use super::listener::HostSide;
use super::packet::{Header, Op, SocketType};
use super::sibling::Membership;
use super::slab::{Id, Slab};
use super::stats::Stats;
use super::timer::Timers;
use super::waiting::{Waiting, WaitsFor};
use crate::address::{Cid, GuestCid, Port};
use crate::epoll::Epoll;
use crate::event::EventFd;
use crate::guest_memory::Segment;
use crate::rate_limit::{debug_within, RateLimit};
use crate::watchers::Watchers;

/// What is to be done with a packet's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Done,
    /// Its first bytes go to this connection.
    Deliver {
        /// Whose it is.
        id: Id,
        /// How many bytes of it count.
        len: u32,
        /// Whether a message ends with it.
        ends: bool,
    },
}

/// Connections, clients and their books.
pub struct Muxer {
    pub(super) guest: GuestCid,
    pub(super) host: HostSide,
    pub(super) reply: Reply,
    pub(super) limits: Limits,
    pub(super) stats: Arc<Stats>,
    pub(super) epoll: Arc<Epoll>,
    pub(super) membership: Option<Membership>,
    pub(super) connections: Slab<Connection>,
    pub(super) clients: Slab<Client>,
    pub(super) by_key: HashMap<Key, Id>,
    /// The connection of the packet before: streams come in bursts.
    last: Option<(Key, Id)>,
    /// Connections with something for the guest, each once.
    pub(super) ready: VecDeque<Id>,
    /// RSTs for the guest.
    pub(super) resets: VecDeque<Header>,
    pub(super) timers: Timers,
    pub(super) client_timers: Timers,
    pub(super) waiting: Waiting,
    pub(super) pending_bytes: usize,
    pub(super) next_port: u32,
    /// Whether there is a guest to connect to. It may be paused: whoever asks then waits.
    pub(super) listening: bool,
    /// A descriptor to give up when there is no other.
    pub(super) spare: Option<EventFd>,
    /// No client is let in until then, for want of descriptors.
    pub(super) closed_until: Option<Instant>,
    pub(super) reports: RateLimit,
    notes: RateLimit,
    pub(super) acceptors: Acceptors,
    pub(super) watchers: Arc<Watchers>,
}

impl Muxer {
    /// The books of a VM with no connections yet.
    pub(super) fn new(
        guest: GuestCid,
        host: HostSide,
        reply: Reply,
        limits: Limits,
        membership: Membership,
        epoll: Arc<Epoll>,
    ) -> Self {
        Self {
            guest,
            host,
            reply,
            limits,
            stats: Arc::default(),
            epoll,
            membership: Some(membership),
            connections: Slab::new(limits.connections),
            clients: Slab::new(limits.half_open),
            by_key: HashMap::new(),
            last: None,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            timers: Timers::default(),
            client_timers: Timers::default(),
            waiting: Waiting::default(),
            pending_bytes: 0,
            next_port: FIRST_HOST_PORT,
            listening: false,
            spare: EventFd::new().ok(),
            closed_until: None,
            reports: RateLimit::default(),
            notes: RateLimit::default(),
            acceptors: Acceptors::default(),
            watchers: Arc::default(),
        }
    }

    /// The CID packets to the guest are for.
    pub(super) fn guest_cid(&self) -> Cid {
        self.guest.cid()
    }

    /// Logs what a guest or a client has brought about, not too often.
    pub(super) fn report(&self, what: std::fmt::Arguments<'_>) {
        if self.reports.allow() {
            warn!("vm {}: {what}", self.guest);
        }
    }

    /// Logs for whoever looks closer what a guest or a client has brought about, not too often.
    pub(super) fn note(&self, what: std::fmt::Arguments<'_>) {
        debug_within!(self.notes, "vm {}: {what}", self.guest);
    }

    /// Judges a packet from the guest that has `payload` bytes behind its header.
    pub fn packet(&mut self, header: &Header, payload: u32, now: Instant) -> Verdict {
        if header.src_cid != self.guest.raw() {
            self.stats.wrong_source.add(1);
            return Verdict::Done;
        }
        let key = u32::try_from(header.dst_cid).ok().map(|peer| Key {
            peer: Cid(peer),
            peer_port: Port(header.dst_port),
            guest_port: Port(header.src_port),
        });
        let (key, socket_type, op) = match (key, header.parse()) {
            (Some(key), Ok((socket_type, op))) => (key, socket_type, op),
            (key, parsed) => {
                if let Err(error) = parsed {
                    self.stats.malformed.add(1);
                    self.note(format_args!("{error}"));
                }
                // An operation that does not exist ends the connection it is for; a
                // type that does not exist says nothing of one.
                let named = Header { op: 1, ..*header };
                match key.and_then(|key| self.find(key)) {
                    Some(id) if named.parse().is_ok() => self.violation(id, "bad operation"),
                    _ => self.stray(header),
                }
                return Verdict::Done;
            }
        };
        let Some(id) = self.find(key) else {
            match op {
                Op::Request => self.open_from_guest(key, socket_type, header, now),
                _ => self.stray(header),
            }
            return Verdict::Done;
        };
        let Some(connection) = self.connections.get_mut(id) else {
            return Verdict::Done;
        };
        if op == Op::Request {
            // The guest has forgotten the old one, or it would not ask again.
            self.remove(id);
            self.open_from_guest(key, socket_type, header, now);
            return Verdict::Done;
        }
        if connection.socket_type != socket_type {
            self.stray(header);
            return Verdict::Done;
        }
        connection.heard(header);
        let verdict = self.on_connection(id, op, header, payload);
        self.settle(id, now);
        verdict
    }

    fn on_connection(&mut self, id: Id, op: Op, header: &Header, payload: u32) -> Verdict {
        let Some(connection) = self.connections.get_mut(id) else {
            return Verdict::Done;
        };
        match (&connection.state, op) {
            (_, Op::Reset) => {
                connection.let_go();
                self.unname(id);
            }
            (State::Asked(_), Op::Response) => self.accepted_by_guest(id),
            (State::Established, Op::Data(end)) => {
                let len = header.len;
                let complaint = if len > payload {
                    Some("a packet shorter than its length field says")
                } else if connection.guest_closed.send {
                    Some("data after the end of data")
                } else if connection.credit.receive(len).is_err() {
                    Some("more data than credit")
                } else {
                    None
                };
                if let Some(complaint) = complaint {
                    self.violation(id, complaint);
                    return Verdict::Done;
                }
                let ends = connection.socket_type == SocketType::SeqPacket && end.message;
                if len > 0 || ends {
                    return Verdict::Deliver { id, len, ends };
                }
            }
            (State::Established | State::Closing, Op::Shutdown(which)) => {
                if connection.guest_closes(which) {
                    let reset = connection.header(Op::Reset, self.guest.cid(), 0);
                    connection.let_go();
                    self.queue_reset(reset);
                    self.unname(id);
                }
            }
            (State::Established, Op::CreditRequest) => connection.wants.update = true,
            // Credit was taken above. A second RESPONSE says nothing new
            // (`virtio_transport_recv_connected` ignores it, too). What was on its way
            // when we said that it is over does not matter any more.
            (State::Established, Op::CreditUpdate | Op::Response) | (State::Closing, _) => {}
            (
                State::Dialing | State::Ringing | State::Asked(_),
                Op::CreditUpdate | Op::CreditRequest,
            ) => {}
            _ => self.violation(id, "a packet out of turn"),
        }
        Verdict::Done
    }

    /// Hands gathered payload on. `ends`: a message ends with it.
    pub fn deliver(
        &mut self,
        id: Id,
        segments: &[Segment<'_>],
        len: usize,
        ends: bool,
        now: Instant,
    ) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if let Err(error) = connection.deliver(segments, len, ends) {
            self.report(format_args!("{error}: connection reset"));
            self.abort(id);
            return;
        }
        self.stats.bytes_from_guest.add(len as u64);
        self.settle(id, now);
    }

    fn find(&mut self, key: Key) -> Option<Id> {
        if let Some((last, id)) = self.last {
            if last == key {
                return Some(id);
            }
        }
        let id = *self.by_key.get(&key)?;
        self.last = Some((key, id));
        Some(id)
    }

    /// Whether the next RST would be one too many.
    pub(super) fn has_most_resets(&self) -> bool {
        self.resets.len() >= self.limits.pending_resets
    }

    /// Queues an RST, unless too many wait.
    pub(super) fn queue_reset(&mut self, reset: Header) {
        if self.has_most_resets() {
            self.stats.limit_pending_resets.add(1);
            let limit = self.limits.pending_resets;
            self.report(format_args!(
                "{limit} refusals wait for the guest to post buffers: dropped one more"
            ));
            return;
        }
        self.resets.push_back(reset);
    }

    fn stray(&mut self, header: &Header) {
        if let Some(reset) = header.reset() {
            self.stats.stray_packets.add(1);
            self.queue_reset(reset);
        }
    }

    /// Refuses a request of the guest's.
    pub(super) fn refuse(&mut self, key: Key, socket_type: SocketType) {
        self.stats.refused.add(1);
        let guest = (self.guest.cid(), key.guest_port);
        let reset = Header::new(Op::Reset, socket_type, (key.peer, key.peer_port), guest);
        self.queue_reset(reset);
    }

    fn violation(&mut self, id: Id, what: &str) {
        self.stats.violations.add(1);
        if let Some(connection) = self.connections.get_mut(id) {
            let port = connection.key.guest_port;
            let what = format_args!("{what} from guest port {port}: connection reset");
            self.report(what);
        }
        self.abort(id);
    }

    /// A chain that makes no sense was for this connection, as far as can be told.
    pub fn malformed(&mut self, header: Option<&Header>) {
        self.stats.malformed.add(1);
        let Some(header) = header.filter(|h| h.src_cid == self.guest.raw()) else {
            return;
        };
        let Ok(peer) = u32::try_from(header.dst_cid) else {
            return self.stray(header);
        };
        let key = Key {
            peer: Cid(peer),
            peer_port: Port(header.dst_port),
            guest_port: Port(header.src_port),
        };
        match self.find(key) {
            Some(id) => self.violation(id, "a malformed packet"),
            None => self.stray(header),
        }
    }

    /// Ends a connection at once; the guest hears an RST.
    pub(super) fn abort(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(id) {
            if connection.state != State::Lingering {
                let reset = connection.header(Op::Reset, self.guest.cid(), 0);
                self.queue_reset(reset);
            }
            self.remove(id);
        }
    }

    /// The guest no longer knows the connection.
    fn unname(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(id) {
            let key = connection.key;
            if self.by_key.get(&key) == Some(&id) {
                self.by_key.remove(&key);
            }
            if self.last.is_some_and(|(_, last)| last == id) {
                self.last = None;
            }
        }
    }

    /// Forgets a connection; its socket closes.
    pub(super) fn remove(&mut self, id: Id) {
        self.unname(id);
        if let Some(mut connection) = self.connections.remove(id) {
            self.pending_bytes -= connection.counted_pending;
            self.tell_of_end(&connection);
            self.waiting.count(&mut connection, None);
        }
        // What waits for buffers would wait for ever if the guest posts none.
        if self.ready.len() > 2 * self.connections.len() + 64 {
            let connections = &mut self.connections;
            self.ready.retain(|id| connections.get_mut(*id).is_some());
        }
    }

    /// Whether one more connection may wait for `whom`: reported if not.
    pub(super) fn may_wait_for(&self, whom: WaitsFor) -> bool {
        let most = whom.most(&self.limits);
        if self.waiting.at(whom) < most {
            return true;
        }
        self.stats.limit_half_open.add(1);
        self.report(format_args!("{most} {whom}: refused one more"));
        false
    }

    /// Adds a connection that `key` names from now on. `None`: a limit is hit.
    pub(super) fn add(&mut self, key: Key, socket_type: SocketType, state: State) -> Option<Id> {
        let buf_alloc = self.limits.buf_alloc;
        let id = self
            .connections
            .insert(|_| Connection::new(key, socket_type, state, buf_alloc));
        match id {
            Some(id) => {
                self.by_key.insert(key, id);
            }
            None => {
                self.stats.limit_connections.add(1);
                let limit = self.limits.connections;
                self.report(format_args!(
                    "{limit} connections are open: refused one more"
                ));
            }
        }
        id
    }

    /// Whether the guest is to be told anything.
    pub fn has_news(&self) -> bool {
        !self.ready.is_empty() || !self.resets.is_empty()
    }

    /// Ends all connections without a word: the guest they belong to is gone.
    pub fn forget_guest(&mut self) {
        let ids: Vec<Id> = self.connections.ids().collect();
        if !ids.is_empty() {
            self.stats.resets.add(1);
        }
        for id in ids {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.let_go();
                if connection.state == State::Lingering {
                    self.unname(id);
                    self.settle(id, Instant::now());
                } else {
                    self.remove(id);
                }
            }
        }
        self.ready.clear();
        self.resets.clear();
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::listener::HostPlace;
    use super::super::sibling::Neighbourhood;
    use super::*;

    #[test]
    fn connections_that_are_gone_leave_nothing_behind_while_the_guest_posts_no_buffers() {
        let dir = tempfile::tempdir().unwrap();
        let _host = std::os::unix::net::UnixListener::bind(dir.path().join("vm_70")).unwrap();
        let street = Arc::new(Neighbourhood::default());
        let guest = GuestCid::new(3).unwrap();
        let host = HostSide::open(HostPlace::Unix(dir.path().join("vm"))).unwrap();
        let mut muxer = Muxer::new(
            guest,
            host,
            Reply::default(),
            Limits::default(),
            street.join(guest, Vec::new(), 1).unwrap(),
            Arc::new(Epoll::new().unwrap()),
        );
        let (from, to) = ((guest.cid(), Port(1000)), (Cid::HOST, Port(70)));
        for _ in 0..1000 {
            for op in [Op::Request, Op::Reset] {
                let header = Header::new(op, SocketType::Stream, from, to);
                muxer.packet(&header, 0, Instant::now());
            }
        }
        assert_eq!(muxer.connections.len(), 0);
        assert_eq!(
            muxer.stats.connections.get() + muxer.stats.refused.get(),
            1000
        );
        assert!(muxer.ready.len() < 200, "{} wait", muxer.ready.len());
    }
}
