// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes from the guest that a full host socket has refused.
//!
//! The only copy on the way to the host, and bounded: credit keeps a connection's
//! share below its `buf_alloc`. Of sequenced packets the boundaries are kept, and the
//! message still under way in pieces waits here for its end.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use super::packet::SocketType;
use super::socket::Socket;
use crate::guest_memory::Segment;

/// Writes in a row before other connections get their turn: a quick reader of small
/// messages could keep us for ever.
const MOST_WRITES: usize = 128;

/// What a flush has come to.
#[derive(Debug, Default)]
pub struct Flushed {
    /// Bytes that went.
    pub bytes: usize,
    /// There is more, and the socket may still have room.
    pub more: bool,
    /// The socket takes no more, ever.
    pub error: Option<io::Error>,
}

/// A queue of bytes, or of messages.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: VecDeque<u8>,
    /// Lengths of the complete messages at the front; unused for streams.
    messages: VecDeque<usize>,
    /// Bytes at the back that belong to no complete message.
    open: usize,
}

impl Outbox {
    /// Bytes held.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What it costs to hold them: an empty message is not for nothing.
    pub fn held(&self) -> usize {
        self.bytes.len() + self.messages.len() * size_of::<usize>()
    }

    /// Whether nothing waits, not even a message under way.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.messages.is_empty()
    }

    /// Whether a message is under way.
    pub fn is_open(&self) -> bool {
        self.open > 0
    }

    /// Appends the bytes of `segments`; of a message, those that come next.
    pub fn push(&mut self, segments: &[Segment<'_>]) {
        let mut chunk = [0u8; 4096];
        for segment in segments {
            let mut rest = *segment;
            while !rest.is_empty() {
                let taken = rest.read(&mut chunk);
                self.bytes.extend(&chunk[..taken]);
                rest = rest.split_at(taken).1;
                self.open += taken;
            }
        }
    }

    /// Ends the message under way.
    pub fn end_message(&mut self) {
        self.messages.push_back(std::mem::take(&mut self.open));
    }

    /// Forgets the message under way: its end will not come.
    pub fn abandon_message(&mut self) {
        let complete = self.bytes.len() - std::mem::take(&mut self.open);
        self.bytes.truncate(complete);
    }

    /// Forgets everything; how many bytes that were.
    pub fn clear(&mut self) -> usize {
        let len = self.bytes.len();
        *self = Self::default();
        len
    }

    /// How many bytes the next write is to take: all, or the first complete message's.
    pub fn next(&self, socket_type: SocketType) -> Option<usize> {
        match socket_type {
            SocketType::Stream => (!self.bytes.is_empty()).then_some(self.bytes.len()),
            SocketType::SeqPacket => self.messages.front().copied(),
        }
    }

    /// Writes until the socket is full, or others should have their turn.
    pub fn flush(&mut self, socket: &Socket, socket_type: SocketType) -> Flushed {
        let mut flushed = Flushed::default();
        for turn in 0.. {
            let Some(len) = self.next(socket_type) else {
                break;
            };
            if turn == MOST_WRITES {
                flushed.more = true;
                break;
            }
            let (front, back) = self.bytes.as_slices();
            let front = &front[..len.min(front.len())];
            let back = &back[..len - front.len()];
            match socket.send_bytes(&[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(sent) => {
                    self.bytes.drain(..sent);
                    // A message goes as a whole.
                    self.messages.pop_front();
                    flushed.bytes += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    flushed.error = Some(error);
                    break;
                }
            }
        }
        self.release();
        flushed
    }

    /// Gives memory back that is no longer needed: limits count what is held, and a reader
    /// that leaves a few bytes of many must not hold the room of all of them.
    fn release(&mut self) {
        shrink(&mut self.bytes);
        shrink(&mut self.messages);
    }
}

/// Keeps the room for twice of what is there, once it is for four times as much.
fn shrink<T>(queue: &mut VecDeque<T>) {
    const SMALL: usize = 4096;
    if queue.is_empty() {
        *queue = VecDeque::new();
    } else if queue.capacity() > SMALL.max(4 * queue.len()) {
        queue.shrink_to(2 * queue.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userspace::socket::NextMessage;

    fn outbox(bytes: &[u8]) -> Outbox {
        Outbox {
            bytes: bytes.iter().copied().collect(),
            messages: VecDeque::new(),
            open: bytes.len(),
        }
    }

    #[test]
    fn messages_leave_whole_and_the_one_under_way_stays() {
        let (socket, peer) = Socket::pair(SocketType::SeqPacket).unwrap();
        let mut outbox = outbox(b"one");
        outbox.end_message();
        outbox.bytes.extend(b"tw");
        outbox.open = 2;
        assert_eq!(outbox.flush(&socket, SocketType::SeqPacket).bytes, 3);
        let mut got = [0; 8];
        assert_eq!(peer.receive_bytes(&mut got).unwrap(), 3);
        assert_eq!((outbox.len(), outbox.is_empty()), (2, false));
        outbox.abandon_message();
        assert!(outbox.is_empty());
    }

    #[test]
    fn an_empty_message_is_one() {
        let (socket, peer) = Socket::pair(SocketType::SeqPacket).unwrap();
        let mut outbox = Outbox::default();
        outbox.end_message();
        assert!(!outbox.is_empty());
        outbox.flush(&socket, SocketType::SeqPacket);
        assert!(outbox.is_empty());
        assert_eq!(peer.next_message().unwrap(), NextMessage::Of(0));
    }

    #[test]
    fn many_messages_leave_others_their_turn() {
        let (socket, peer) = Socket::pair(SocketType::SeqPacket).unwrap();
        let mut outbox = Outbox::default();
        for _ in 0..2 * MOST_WRITES {
            outbox.end_message();
        }
        let mut left = 2 * MOST_WRITES;
        while left > 0 {
            let before = outbox.messages.len();
            let flushed = outbox.flush(&socket, SocketType::SeqPacket);
            let went = before - outbox.messages.len();
            assert!(went <= MOST_WRITES);
            assert_eq!(flushed.more, went == MOST_WRITES && left > went);
            left -= went;
            while peer.receive_bytes(&mut [0]).is_ok() {}
        }
    }

    #[test]
    fn what_went_before_an_error_counts() {
        let (socket, peer) = Socket::pair(SocketType::SeqPacket).unwrap();
        let mut outbox = outbox(b"one");
        outbox.end_message();
        // More than a socket's buffer: it will never go.
        outbox.bytes.extend(vec![0; 4 << 20]);
        outbox.open = 4 << 20;
        outbox.end_message();
        let flushed = outbox.flush(&socket, SocketType::SeqPacket);
        assert_eq!(flushed.bytes, 3);
        assert_eq!(flushed.error.unwrap().raw_os_error(), Some(libc::EMSGSIZE));
        drop(peer);
    }

    #[test]
    fn a_full_socket_keeps_the_rest() {
        let (socket, peer) = Socket::pair(SocketType::Stream).unwrap();
        let mut outbox = outbox(&vec![7; 4 << 20]);
        let mut total = outbox.flush(&socket, SocketType::Stream).bytes;
        assert_eq!(outbox.len(), (4 << 20) - total);
        let mut got = vec![0; 1 << 20];
        while !outbox.is_empty() {
            while peer.receive_bytes(&mut got).is_ok() {}
            total += outbox.flush(&socket, SocketType::Stream).bytes;
        }
        assert_eq!(total, 4 << 20);
    }

    #[test]
    fn what_is_left_of_much_does_not_hold_the_room_of_all() {
        let (socket, peer) = Socket::pair(SocketType::Stream).unwrap();
        let mut outbox = outbox(&vec![7; 4 << 20]);
        let mut got = vec![0; 1 << 16];
        while outbox.len() > 100_000 {
            outbox.flush(&socket, SocketType::Stream);
            peer.receive_bytes(&mut got).unwrap();
        }
        assert!(!outbox.is_empty(), "nothing is tested");
        assert!(
            outbox.bytes.capacity() <= 400_000,
            "{}",
            outbox.bytes.capacity()
        );
    }

    #[test]
    fn empty_messages_count() {
        let mut outbox = Outbox::default();
        for _ in 0..100 {
            outbox.end_message();
        }
        assert_eq!((outbox.len(), outbox.held()), (0, 100 * size_of::<usize>()));
    }
}
