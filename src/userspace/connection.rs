// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One connection between a guest's socket and a host socket.
//!
//! ```text
//!  guest asks            host asks
//!   Dialing  Ringing      Asked          host socket not there yet / sibling not
//!      \______\____________/             heard yet / guest not heard yet
//!              |  RESPONSE
//!         Established ----------------.   each direction ends by itself:
//!              | host gone             |  guest SHUTDOWN -> shutdown(2),
//!              | SHUTDOWN(both) sent   |  host end of file -> SHUTDOWN(send),
//!           Closing                    |  host reads no more -> SHUTDOWN(receive)
//!              | RST                   |  guest SHUTDOWN(both): RST at once
//!              v                       v
//!             gone <--------------- Lingering   the rest is on its way to the host
//! ```
//!
//! Nothing in here knows rings or tables. What the guest must be told is noted in
//! [`Wants`] and becomes packets when it has posted buffers.

use std::io;
use std::time::{Duration, Instant};

use super::credit::Credit;
use super::outbox::Outbox;
use super::packet::{Header, Op, Shutdown, SocketType};
use super::socket::{Direction, Received, Socket, MAX_SEGMENTS};
use super::waiting::WaitsFor;
use crate::address::{Cid, Port};
use crate::guest_memory::Segment;

/// What tells connections apart: the guest's port, and whose port is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The host, or a sibling.
    pub peer: Cid,
    /// Its port.
    pub peer_port: Port,
    /// The guest's port.
    pub guest_port: Port,
}

/// What the host's side hears when the guest has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing: the connection simply works.
    Silent,
}

/// Where a connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The guest has asked; there is no connected host socket yet.
    Dialing,
    /// The guest has asked for a sibling, which has not said yes yet.
    Ringing,
    /// The host has asked; the guest has not said yes yet.
    Asked(Greeting),
    /// Both have said yes.
    Established,
    /// The guest has been told that it is over and has not confirmed it yet.
    Closing,
    /// It is over for the guest; the host has yet to take the rest.
    Lingering,
    /// Over.
    Gone,
}

/// What the guest must be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// `REQUEST`.
    pub request: bool,
    /// `RESPONSE`.
    pub response: bool,
    /// `SHUTDOWN` with all that [`Connection::closed`] says.
    pub shutdown: bool,
    /// `CREDIT_UPDATE`, unless another packet carries it.
    pub update: bool,
    /// `CREDIT_REQUEST`.
    pub credit_request: bool,
}

impl Wants {
    fn any(self) -> bool {
        self != Self::default()
    }
}

/// How an attempt to read from the host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// This many bytes came.
    Bytes(usize),
    /// There is nothing at present.
    Empty,
    /// There will be nothing any more.
    End,
}

/// A message from the host on its way to the guest in pieces.
#[derive(Debug)]
pub struct Message {
    /// All of it.
    pub bytes: Vec<u8>,
    /// How much of it the guest has been given.
    pub given: usize,
    /// In how many packets.
    pub packets: usize,
}

/// A message that the host's socket cannot carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes is too long for the host's socket")]
pub struct MessageTooLong(usize);

/// Bytes asked of the host's socket to begin with, and at least.
const SMALLEST_WINDOW: usize = 4 << 10;
/// Bytes asked of the host's socket at most.
const LARGEST_WINDOW: usize = 256 << 10;
/// The first pause before a guest without room is asked for its counters.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Its name on the wire.
    pub key: Key,
    /// Bytes or messages.
    pub socket_type: SocketType,
    /// Where it stands.
    pub state: State,
    /// The host's socket, once there is one and as long as it is of use.
    pub socket: Option<Socket>,
    /// Flow control.
    pub credit: Credit,
    /// What the host's socket has refused so far.
    pub outbox: Outbox,
    /// What the guest must be told.
    pub wants: Wants,
    /// What the guest has closed.
    pub guest_closed: Shutdown,
    /// What the host has closed, from the guest's peer's view: `send`: end of file;
    /// `receive`: the host reads no more.
    pub closed: Shutdown,
    /// The host's socket may have something to read.
    pub readable: bool,
    /// The event loop has said that something other than bytes comes, once: an end of
    /// file, or out-of-band data, which `recvmsg` stops at.
    pub end_announced: bool,
    /// The host's peer is gone in both directions.
    pub hung_up: bool,
    /// How much to ask of the host's socket at once: grows while it delivers.
    pub window: usize,
    /// Room the guest must have before reading makes sense: 1, or a whole message.
    pub needs: u32,
    /// A message on its way to the guest in pieces.
    pub message: Option<Message>,
    /// When to act if nothing else happens; what to do follows from the state.
    pub deadline: Option<Instant>,
    /// When to stop trying, while that is the state.
    pub expires: Option<Instant>,
    /// How long the last wait for room was.
    pub pause: Duration,
    /// In the muxer's queue of connections with something for the guest.
    pub queued: bool,
    /// Watched for room to write.
    pub watches_room: bool,
    /// Registered with the event loop.
    pub watched: bool,
    /// Counted among those that wait for this.
    pub counted_waiting: Option<WaitsFor>,
    /// Bytes held and counted towards the VM's limit.
    pub counted_pending: usize,
    /// Since when none of them has gone.
    pub held_since: Option<Instant>,
}

impl Connection {
    /// A connection that has just been asked for.
    pub fn new(key: Key, socket_type: SocketType, state: State, buf_alloc: u32) -> Self {
        Self {
            key,
            socket_type,
            state,
            socket: None,
            credit: Credit::new(buf_alloc),
            outbox: Outbox::default(),
            wants: Wants::default(),
            guest_closed: Shutdown::default(),
            closed: Shutdown::default(),
            readable: false,
            end_announced: false,
            hung_up: false,
            window: SMALLEST_WINDOW,
            needs: 1,
            message: None,
            deadline: None,
            expires: None,
            pause: Duration::ZERO,
            queued: false,
            watches_room: false,
            watched: false,
            counted_waiting: None,
            counted_pending: 0,
            held_since: None,
        }
    }

    /// Who has not said yes yet, if anybody.
    pub fn waits_for(&self) -> Option<WaitsFor> {
        match self.state {
            State::Dialing => Some(WaitsFor::Host),
            State::Ringing => Some(WaitsFor::Sibling),
            State::Asked(_) => Some(WaitsFor::guest(self.key.peer)),
            State::Established | State::Closing | State::Lingering | State::Gone => None,
        }
    }

    /// What it holds of others' bytes, and what that costs.
    pub fn held(&self) -> usize {
        let message = self.message.as_ref();
        self.outbox.held() + message.map_or(0, |message| message.bytes.len())
    }

    /// Notes how many bytes are held now.
    pub fn count_pending(&mut self, pending: usize, now: Instant) {
        if pending < self.counted_pending {
            self.held_since = None;
        }
        if pending > 0 {
            self.held_since.get_or_insert(now);
        }
        self.counted_pending = pending;
    }

    /// Whether data from the host may go to the guest, room or not.
    fn may_read(&self) -> bool {
        self.state == State::Established
            && !self.guest_closed.receive
            && ((self.readable && !self.closed.send) || self.message.is_some())
    }

    /// Whether there is data from the host for the guest, and room for it.
    pub fn can_read(&self) -> bool {
        self.may_read() && self.credit.room() >= self.needs && self.credit.packet_room() > 0
    }

    /// Whether data waits for room at the guest.
    pub fn is_stalled(&self) -> bool {
        self.may_read() && !self.can_read()
    }

    /// Whether there is anything to tell the guest now.
    pub fn has_work(&self) -> bool {
        self.wants.any() || self.can_read()
    }

    /// Whether to watch the host's socket for room.
    pub fn wants_room(&self) -> bool {
        !self.outbox.is_empty() || (self.state == State::Dialing && self.socket.is_some())
    }

    /// A header from this connection to the guest, credit included.
    pub fn header(&mut self, op: Op, guest: Cid, len: u32) -> Header {
        let from = (self.key.peer, self.key.peer_port);
        let mut header = Header::new(op, self.socket_type, from, (guest, self.key.guest_port));
        header.len = len;
        self.credit.stamp(&mut header);
        self.wants.update = false;
        header
    }

    /// Takes a packet's credit fields.
    pub fn heard(&mut self, header: &Header) {
        self.credit.heard(header);
        // A message that no longer fits is looked at again once all before it was taken.
        self.needs = self.needs.min(self.credit.peer_buf_alloc().max(1));
        if self.can_read() {
            self.pause = Duration::ZERO;
        }
    }

    /// When to ask the guest for its counters, if it stays silent.
    pub fn next_pause(&mut self) -> Duration {
        self.pause = match self.pause {
            Duration::ZERO => FIRST_PAUSE,
            pause => (pause * 2).min(LONGEST_PAUSE),
        };
        self.pause
    }

    /// Hands payload from the guest on to the host. `ends`: a message ends with it.
    /// Credit was checked packet by packet.
    pub fn deliver(
        &mut self,
        segments: &[Segment<'_>],
        len: usize,
        ends: bool,
    ) -> Result<(), MessageTooLong> {
        if self.closed.receive {
            self.credit.forward(len as u32);
            return Ok(());
        }
        let result = match self.socket_type {
            SocketType::Stream => self.deliver_bytes(segments, len),
            SocketType::SeqPacket => self.deliver_message(segments, len, ends),
        };
        result.or_else(|error| self.write_failed(&error, len))
    }

    /// A write has failed for good; `len` is what it was to take, if the outbox does not know.
    fn write_failed(&mut self, error: &io::Error, len: usize) -> Result<(), MessageTooLong> {
        if error.raw_os_error() == Some(libc::EMSGSIZE) {
            let message = self.outbox.next(self.socket_type).unwrap_or(len);
            return Err(MessageTooLong(message));
        }
        self.host_reads_no_more();
        Ok(())
    }

    /// Writes straight from guest memory, if nothing waits before it; how many bytes went.
    /// What a broken socket refuses is gone.
    fn send(&mut self, segments: &[Segment<'_>], len: usize) -> io::Result<usize> {
        let (true, Some(socket)) = (self.outbox.is_empty(), &self.socket) else {
            return Ok(0);
        };
        match socket.send(segments) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => {
                self.credit.forward(*result.as_ref().unwrap_or(&len) as u32);
                result
            }
        }
    }

    fn deliver_bytes(&mut self, segments: &[Segment<'_>], len: usize) -> io::Result<()> {
        let sent = self.send(segments, len)?;
        if sent == len {
            return Ok(());
        }
        let mut rest = Vec::new();
        crate::guest_memory::slice_across(segments, sent, len - sent, &mut rest);
        self.outbox.push(&rest);
        Ok(())
    }

    fn deliver_message(
        &mut self,
        segments: &[Segment<'_>],
        len: usize,
        ends: bool,
    ) -> io::Result<()> {
        let whole = ends && segments.len() <= MAX_SEGMENTS && len > 0;
        if whole && self.send(segments, len)? > 0 {
            return Ok(());
        }
        self.outbox.push(segments);
        if ends {
            self.outbox.end_message();
            return self.flush_outbox();
        }
        Ok(())
    }

    /// Whether the guest should hear of the room it has.
    pub fn update_due(&self) -> bool {
        let message = self.socket_type == SocketType::SeqPacket && self.outbox.is_open();
        self.credit.update_due(message)
    }

    fn flush_outbox(&mut self) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let flushed = self.outbox.flush(socket, self.socket_type);
        self.credit.forward(flushed.bytes as u32);
        if flushed.more {
            // Asking anew brings an event, although the socket has not been full.
            self.watches_room = false;
        }
        flushed.error.map_or(Ok(()), Err)
    }

    /// The host's socket has room again.
    pub fn flush(&mut self) -> Result<(), MessageTooLong> {
        if let Err(error) = self.flush_outbox() {
            self.write_failed(&error, 0)?;
        }
        if self.outbox.is_empty() {
            if self.guest_closed.send {
                self.shut(Direction::Write);
            }
            if self.state == State::Lingering {
                self.state = State::Gone;
            }
        }
        Ok(())
    }

    fn shut(&self, direction: Direction) {
        if let Some(socket) = &self.socket {
            socket.shutdown(direction);
        }
    }

    /// A write has failed for good: what is left cannot be delivered.
    fn host_reads_no_more(&mut self) {
        let lost = self.outbox.clear();
        self.credit.forward(lost as u32);
        self.close(Shutdown {
            receive: true,
            send: self.hung_up && self.closed.send,
        });
    }

    /// Notes that the host has closed `which` and has the guest told, if it is news.
    pub fn close(&mut self, which: Shutdown) {
        let closed = self.closed.and(which);
        if closed != self.closed && self.state == State::Established {
            self.wants.shutdown = true;
        }
        self.closed = closed;
    }

    /// The guest closes `which` (5.10.6.5). Whether it has now closed both.
    pub fn guest_closes(&mut self, which: Shutdown) -> bool {
        let before = self.guest_closed;
        self.guest_closed = before.and(which);
        if self.guest_closed.receive && !before.receive {
            self.message = None;
            self.shut(Direction::Read);
        }
        if self.guest_closed.send && !before.send {
            if self.socket_type == SocketType::SeqPacket {
                self.outbox.abandon_message();
            }
            if self.outbox.is_empty() {
                self.shut(Direction::Write);
            }
        }
        self.guest_closed.is_both()
    }

    /// The guest has nothing more to do with this connection: what it has sent before
    /// it closed that direction is still delivered, all else ends.
    pub fn let_go(&mut self) {
        self.wants = Wants::default();
        self.deadline = None;
        self.state = match (self.guest_closed.send, self.outbox.is_empty()) {
            (true, false) => State::Lingering,
            _ => State::Gone,
        };
    }

    /// Reads bytes of the host's stream into guest memory.
    pub fn read(&mut self, segments: &[Segment<'_>]) -> Read {
        let Some(socket) = &self.socket else {
            return Read::End;
        };
        let asked: usize = segments.iter().map(Segment::len).sum();
        match socket.receive(segments) {
            Ok(Received { len: 0, .. }) => Read::End,
            Ok(Received { len, cut }) => {
                // Less than asked for is all there was: what comes after is an edge.
                self.readable &= len == asked || cut || self.end_announced;
                self.window = if len == asked {
                    (self.window * 2).min(LARGEST_WINDOW)
                } else {
                    len.clamp(SMALLEST_WINDOW, LARGEST_WINDOW)
                };
                Read::Bytes(len)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Read::Empty
            }
            Err(_) => {
                // The host's peer closed without reading all: over in both directions.
                self.hung_up = true;
                Read::End
            }
        }
    }

    /// The host sends no more.
    pub fn end_of_file(&mut self) {
        self.readable = false;
        self.close(Shutdown {
            send: true,
            receive: self.hung_up,
        });
    }

    /// The host's peer is gone in both directions; what it has sent is still there.
    pub fn hang_up(&mut self) {
        self.hung_up = true;
        if self.closed.send || self.guest_closed.receive {
            self.close(Shutdown::BOTH);
        }
    }
}
