// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes from the guest that a full host socket has refused.
//!
//! The only copy on the way to the host, and bounded: credit keeps a connection's
//! share below its `buf_alloc`. Of sequenced packets the boundaries are kept, and the
//! message still under way in pieces waits here for its end.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use super::socket::Socket;
use crate::guest_memory::Segment;

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

    /// Whether nothing waits, not even a message under way.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.messages.is_empty()
    }

    /// Appends the bytes of `segments`.
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

    /// Forgets everything; how many bytes that were.
    pub fn clear(&mut self) -> usize {
        let len = self.bytes.len();
        *self = Self::default();
        len
    }

    /// Writes to a stream until the socket is full; how many bytes went.
    pub fn flush_bytes(&mut self, socket: &Socket) -> io::Result<usize> {
        let mut total = 0;
        while !self.bytes.is_empty() {
            let (front, back) = self.bytes.as_slices();
            match socket.send_bytes(&[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(sent) => {
                    self.bytes.drain(..sent);
                    total += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.open = self.bytes.len();
        self.release();
        Ok(total)
    }

    /// Sends complete messages until the socket is full; how many bytes went.
    pub fn flush_messages(&mut self, socket: &Socket) -> io::Result<usize> {
        let mut total = 0;
        while let Some(&len) = self.messages.front() {
            let (front, back) = self.bytes.as_slices();
            let front = &front[..len.min(front.len())];
            let back = &back[..len - front.len()];
            match socket.send_bytes(&[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(_) => {
                    self.bytes.drain(..len);
                    self.messages.pop_front();
                    total += len;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.release();
        Ok(total)
    }

    /// Gives the memory of a queue that has been emptied back.
    fn release(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
    }
}
