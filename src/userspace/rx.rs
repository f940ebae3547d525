// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From host sockets to the buffers of the guest's receive queue.
//!
//! One `recvmsg` fills as many posted buffers as credit allows, straight in guest
//! memory; the headers are written afterwards. Connections take turns, each with a
//! bounded read. When the guest has posted no buffers, nothing is read: the host's
//! programs wait in their own sockets.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use super::connection::{Connection, Message, Read, State};
use super::muxer::Muxer;
use super::packet::{Header, MessageEnd, Op, Shutdown, SocketType, HEADER_LEN};
use super::ring::{Direction, RingError, SplitRing};
use super::slab::Id;
use super::socket::{NextMessage, LONGEST_UNTOLD, MAX_SEGMENTS};
use crate::bus::Bus;
use crate::guest_memory::{slice_across, write_across, Segment};

/// Packets given in a row before the other direction gets its turn.
const BURST: usize = 1024;

/// Buffers filled by one system call.
const MOST_BUFFERS: usize = 64;

/// A posted buffer that has not been used yet: a stretch of the arena.
#[derive(Clone, Copy)]
struct Buffer {
    head: u16,
    start: usize,
    end: usize,
    /// Payload bytes it has room for.
    room: usize,
}

/// The receive queue's buffers, as far as they were looked at in this turn.
pub(super) struct Buffers<'m, 'r> {
    ring: &'r mut SplitRing,
    bus: &'m Bus,
    arena: Vec<Segment<'m>>,
    posted: VecDeque<Buffer>,
    /// A buffer was needed and there was none.
    starved: bool,
    given: usize,
}

impl<'m, 'r> Buffers<'m, 'r> {
    fn new(ring: &'r mut SplitRing, bus: &'m Bus) -> Self {
        Self {
            ring,
            bus,
            arena: Vec::new(),
            posted: VecDeque::new(),
            starved: false,
            given: 0,
        }
    }

    /// Looks at buffers until there are `count`, or room for `bytes`, or no more.
    fn look(&mut self, count: usize, bytes: usize) -> Result<(), RingError> {
        let mut room: usize = self.posted.iter().map(|buffer| buffer.room).sum();
        while self.posted.len() < count
            && (room < bytes || self.posted.is_empty())
            && !self.ring.turn_is_over()
        {
            let start = self.arena.len();
            let popped = self
                .ring
                .pop(self.bus, Direction::Writable, &mut self.arena)?;
            let Some(chain) = popped else {
                break;
            };
            let total = chain.buffers.map_or(0, |len| len as usize);
            if total < HEADER_LEN {
                self.arena.truncate(start);
                if !self.posted.is_empty() {
                    // Chains go back in order: this one once those before it are used.
                    self.ring.unpop(1);
                    break;
                }
                // Of no use to anybody: a header does not fit, or it is malformed.
                self.ring.push_used(chain.head, 0);
                continue;
            }
            let buffer = Buffer {
                head: chain.head,
                start,
                end: self.arena.len(),
                room: total - HEADER_LEN,
            };
            room += buffer.room;
            self.posted.push_back(buffer);
        }
        Ok(())
    }

    /// Whether there is a buffer for this turn.
    fn any(&mut self) -> Result<bool, RingError> {
        self.look(1, 0)?;
        self.starved |= self.posted.is_empty() && !self.ring.turn_is_over();
        Ok(!self.posted.is_empty())
    }

    fn use_up(&mut self, header: &Header, payload: usize) {
        if let Some(buffer) = self.posted.pop_front() {
            write_across(&self.arena[buffer.start..buffer.end], &header.to_bytes());
            self.ring
                .push_used(buffer.head, (HEADER_LEN + payload) as u32);
            self.given += 1;
            if self.posted.is_empty() {
                self.arena.clear();
            }
        }
    }

    /// Gives the guest a packet without payload. `false`: there is no buffer.
    fn give(&mut self, header: impl FnOnce() -> Header) -> Result<bool, RingError> {
        if !self.any()? {
            return Ok(false);
        }
        self.use_up(&header(), 0);
        Ok(true)
    }

    /// The payload parts of the next buffers, `bytes` and `packets` at most; buffers
    /// without room for payload end the list. `None`: the first one has none, or there is none.
    fn payload(&self, bytes: usize, packets: usize) -> Option<Vec<Segment<'m>>> {
        let mut segments = Vec::new();
        let mut left = bytes;
        for buffer in self.posted.iter().take(packets) {
            if buffer.room == 0 || left == 0 || segments.len() >= MAX_SEGMENTS - 64 {
                break;
            }
            let parts = &self.arena[buffer.start..buffer.end];
            left -= slice_across(parts, HEADER_LEN, left, &mut segments);
        }
        segments.truncate(MAX_SEGMENTS);
        (!segments.is_empty()).then_some(segments)
    }
}

/// Gives the guest what there is for it. Whether there may be more to give with the
/// buffers it has posted, and whether it must post some.
pub(super) fn pump(
    ring: &mut SplitRing,
    bus: &Bus,
    muxer: &mut Muxer,
    now: Instant,
) -> Result<Progress, RingError> {
    ring.begin_turn();
    let mut buffers = Buffers::new(ring, bus);
    let result = fill(&mut buffers, muxer, now);
    let Buffers {
        ring,
        posted,
        starved,
        given,
        ..
    } = buffers;
    ring.unpop(posted.len() as u16);
    muxer.stats.packets_to_guest.add(given as u64);
    result?;
    Ok(Progress {
        more: muxer.has_news() && !starved,
        starved,
    })
}

/// What a turn has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// There is more to give, and room for it.
    pub more: bool,
    /// There is more to give, and no room for it.
    pub starved: bool,
}

fn fill(buffers: &mut Buffers<'_, '_>, muxer: &mut Muxer, now: Instant) -> Result<(), RingError> {
    while buffers.given < BURST && muxer.has_news() {
        if !buffers.any()? {
            return Ok(());
        }
        if let Some(reset) = muxer.resets.pop_front() {
            buffers.give(|| reset)?;
            // Resets must not keep connections waiting, however many there are.
            if !buffers.any()? {
                return Ok(());
            }
        }
        if let Some(id) = muxer.ready.pop_front() {
            serve(id, buffers, muxer, now)?;
            muxer.settle(id, now);
        }
    }
    Ok(())
}

/// A connection's turn: what must be said before data, data, what comes after it.
fn serve(
    id: Id,
    buffers: &mut Buffers<'_, '_>,
    muxer: &mut Muxer,
    now: Instant,
) -> Result<(), RingError> {
    let guest = muxer.guest_cid();
    let Some(connection) = muxer.connections.get_mut(id) else {
        return Ok(());
    };
    connection.queued = false;
    let openings = [
        (connection.wants.request, Op::Request),
        (connection.wants.response, Op::Response),
    ];
    for (wanted, op) in openings {
        if wanted {
            if !buffers.give(|| connection.header(op, guest, 0))? {
                return Ok(());
            }
            connection.wants.request &= op != Op::Request;
            connection.wants.response &= op != Op::Response;
        }
    }
    if connection.can_read() {
        let outcome = match connection.socket_type {
            SocketType::Stream => give_bytes(connection, guest, buffers)?,
            SocketType::SeqPacket => give_message(connection, guest, buffers)?,
        };
        match outcome {
            Outcome::Given(bytes) => {
                muxer.stats.bytes_to_guest.add(bytes as u64);
                connection.wants.credit_request |= connection.credit.ask_due();
            }
            Outcome::TooLong(len) => {
                muxer.report(format_args!(
                    "a message of {len} bytes does not fit the guest's buffers: connection reset"
                ));
                muxer.abort(id);
                return Ok(());
            }
        }
    }
    let closings = [
        (connection.wants.shutdown, Op::Shutdown(connection.closed)),
        (connection.wants.update, Op::CreditUpdate),
        (connection.wants.credit_request, Op::CreditRequest),
    ];
    for (wanted, op) in closings {
        // An update is no longer wanted if another packet has carried it.
        if !wanted || (op == Op::CreditUpdate && !connection.wants.update) {
            continue;
        }
        if !buffers.give(|| connection.header(op, guest, 0))? {
            return Ok(());
        }
        match op {
            Op::Shutdown(closed) => {
                connection.wants.shutdown = false;
                if closed == Shutdown::BOTH {
                    connection.state = State::Closing;
                    connection.socket = None;
                    connection.watched = false;
                    connection.outbox.clear();
                    connection.message = None;
                    connection.wants = super::connection::Wants::default();
                    let close = muxer.limits.close;
                    muxer.set_deadline(id, now + close);
                    return Ok(());
                }
            }
            _ => connection.wants.credit_request &= op != Op::CreditRequest,
        }
    }
    Ok(())
}

/// What came of a connection's turn to be read.
enum Outcome {
    /// This many bytes went to the guest.
    Given(usize),
    /// The next message will never fit.
    TooLong(usize),
}

/// Uses up a buffer that has no room for payload: the packet says nothing but credit.
fn spend_small_buffer(
    connection: &mut Connection,
    guest: crate::address::Cid,
    buffers: &mut Buffers<'_, '_>,
) -> Result<(), RingError> {
    buffers.give(|| connection.header(Op::CreditUpdate, guest, 0))?;
    Ok(())
}

fn give_bytes(
    connection: &mut Connection,
    guest: crate::address::Cid,
    buffers: &mut Buffers<'_, '_>,
) -> Result<Outcome, RingError> {
    let bytes = connection.window.min(connection.credit.room() as usize);
    let packets = connection.credit.packet_room().min(MOST_BUFFERS);
    buffers.look(packets, bytes)?;
    let Some(segments) = buffers.payload(bytes, packets) else {
        if !buffers.any()? {
            return Ok(Outcome::Given(0));
        }
        spend_small_buffer(connection, guest, buffers)?;
        return Ok(Outcome::Given(0));
    };
    let given = match connection.read(&segments) {
        Read::Bytes(given) => given,
        Read::Empty => 0,
        Read::End => {
            connection.end_of_file();
            0
        }
    };
    let mut left = given;
    while left > 0 {
        let Some(room) = buffers.posted.front().map(|buffer| buffer.room) else {
            break;
        };
        let len = room.min(left);
        let header = connection.header(Op::Data(MessageEnd::default()), guest, len as u32);
        connection.credit.send(len as u32);
        buffers.use_up(&header, len);
        left -= len;
    }
    Ok(Outcome::Given(given))
}

/// There is nothing to read, or there will be nothing any more.
fn no_message(connection: &mut Connection, error: &io::Error) -> Outcome {
    if error.kind() == io::ErrorKind::WouldBlock {
        connection.readable = false;
    } else {
        connection.hung_up = true;
        connection.end_of_file();
    }
    Outcome::Given(0)
}

fn give_message(
    connection: &mut Connection,
    guest: crate::address::Cid,
    buffers: &mut Buffers<'_, '_>,
) -> Result<Outcome, RingError> {
    if connection.message.is_none() {
        let Some(socket) = &connection.socket else {
            return Ok(Outcome::Given(0));
        };
        let next = match socket.next_message() {
            Ok(next) => next,
            Err(error) => return Ok(no_message(connection, &error)),
        };
        let len = match next {
            NextMessage::Of(len) if len > connection.credit.peer_buf_alloc() as usize => {
                return Ok(Outcome::TooLong(len));
            }
            NextMessage::Of(len) if len > connection.credit.room() as usize => {
                connection.needs = len as u32;
                return Ok(Outcome::Given(0));
            }
            NextMessage::Of(len) => len,
            NextMessage::Untold => LONGEST_UNTOLD,
            NextMessage::End => {
                connection.end_of_file();
                return Ok(Outcome::Given(0));
            }
        };
        connection.needs = 1;
        let mut bytes = vec![0; len];
        match socket.receive_message(&mut bytes) {
            Ok(0) if next == NextMessage::Untold && socket.read_closed() => {
                connection.end_of_file();
                return Ok(Outcome::Given(0));
            }
            Ok(taken) => {
                bytes.truncate(taken);
                bytes.shrink_to_fit();
            }
            Err(error) => return Ok(no_message(connection, &error)),
        }
        if bytes.len() > connection.credit.peer_buf_alloc() as usize {
            return Ok(Outcome::TooLong(bytes.len()));
        }
        connection.message = Some(Message {
            bytes,
            given: 0,
            packets: 0,
        });
    }
    let mut total = 0;
    while connection.credit.packet_room() > 0 {
        let Some(message) = &connection.message else {
            break;
        };
        if !buffers.any()? {
            break;
        }
        let rest = &message.bytes[message.given..];
        let room = connection.credit.room() as usize;
        let part = &rest[..rest.len().min(room)];
        let len = if rest.is_empty() {
            0
        } else if part.is_empty() {
            break;
        } else if let Some(segments) = buffers.payload(part.len(), 1) {
            write_across(&segments, part)
        } else {
            spend_small_buffer(connection, guest, buffers)?;
            continue;
        };
        let done = message.given + len == message.bytes.len();
        let end = MessageEnd {
            message: done,
            record: false,
        };
        if let Some(message) = &mut connection.message {
            message.given += len;
            message.packets += 1;
        }
        if done {
            connection.message = None;
        }
        let header = connection.header(Op::Data(end), guest, len as u32);
        connection.credit.send(len as u32);
        buffers.use_up(&header, len);
        total += len;
    }
    match &connection.message {
        // The guest reads a message once it has all of it.
        Some(message) if message.packets >= connection.credit.most_packets() => {
            Ok(Outcome::TooLong(message.bytes.len()))
        }
        _ => Ok(Outcome::Given(total)),
    }
}
