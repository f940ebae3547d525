// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a connection has received and nobody has read yet: a ring of bytes,
//! and the ends of messages in it. Filled straight from guest memory.

use std::collections::VecDeque;

use crate::packet::seq_flags;

/// A whole message of a seqpacket connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its length in bytes.
    pub len: usize,
    /// It is the last one of a record (MSG_EOR).
    pub eor: bool,
}

/// Bytes received, and the messages they form.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    first: usize,
    len: usize,
    whole: VecDeque<Message>,
    /// The length of the message that has no end yet.
    open: usize,
}

impl Inbox {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends `len` bytes that `fill` writes piece by piece: it gets the
    /// offset of each piece and the place for it.
    pub(crate) fn append<E>(
        &mut self,
        len: usize,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.bytes.len() - self.len < len {
            self.grow(len);
        }
        let size = self.bytes.len();
        let at = if size == 0 {
            0
        } else {
            (self.first + self.len) % size
        };
        let first_part = len.min(size - at);
        fill(0, &mut self.bytes[at..at + first_part])?;
        if first_part < len {
            fill(first_part, &mut self.bytes[..len - first_part])?;
        }
        self.len += len;
        Ok(())
    }

    fn grow(&mut self, more: usize) {
        let size = (self.len + more).next_power_of_two().max(4096);
        let mut bytes = vec![0; size];
        let len = self.copy_out(&mut bytes);
        (self.bytes, self.first, self.len) = (bytes, 0, len);
    }

    /// Counts appended bytes into a message, and ends it if the flags say so.
    pub(crate) fn mark(&mut self, len: usize, flags: u32) {
        self.open += len;
        if flags & seq_flags::EOM != 0 {
            self.whole.push_back(Message {
                len: std::mem::take(&mut self.open),
                eor: flags & seq_flags::EOR != 0,
            });
        }
    }

    /// Reads up to `out.len()` bytes, over all boundaries.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> usize {
        let n = self.copy_out(out);
        self.len -= n;
        self.first = if self.len == 0 {
            0
        } else {
            (self.first + n) % self.bytes.len()
        };
        n
    }

    /// Takes the next whole message.
    pub(crate) fn read_message(&mut self, out: &mut Vec<u8>) -> Option<Message> {
        let message = self.whole.pop_front()?;
        out.resize(message.len, 0);
        self.read(out);
        Some(message)
    }

    fn copy_out(&self, out: &mut [u8]) -> usize {
        let n = out.len().min(self.len);
        let first_part = n.min(self.bytes.len() - self.first);
        out[..first_part].copy_from_slice(&self.bytes[self.first..self.first + first_part]);
        out[first_part..n].copy_from_slice(&self.bytes[..n - first_part]);
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(inbox: &mut Inbox, data: &[u8]) {
        let fill = |at: usize, place: &mut [u8]| {
            place.copy_from_slice(&data[at..at + place.len()]);
            Ok::<(), ()>(())
        };
        inbox.append(data.len(), fill).unwrap();
    }

    #[test]
    fn bytes_wrap_and_grow_in_order() {
        let mut inbox = Inbox::default();
        let (mut next_in, mut next_out) = (0u8, 0u8);
        for round in 0..2000usize {
            let data: Vec<u8> = (0..round % 97)
                .map(|_| {
                    next_in = next_in.wrapping_add(1);
                    next_in
                })
                .collect();
            put(&mut inbox, &data);
            let mut out = vec![0; round * 7 % 89];
            let n = inbox.read(&mut out);
            for &byte in &out[..n] {
                next_out = next_out.wrapping_add(1);
                assert_eq!(byte, next_out);
            }
        }
    }

    #[test]
    fn messages_keep_their_boundaries() {
        let mut inbox = Inbox::default();
        let mut out = Vec::new();
        put(&mut inbox, b"on");
        inbox.mark(2, 0);
        assert_eq!(inbox.read_message(&mut out), None);
        put(&mut inbox, b"e");
        inbox.mark(1, seq_flags::EOM);
        inbox.mark(0, seq_flags::EOM | seq_flags::EOR);
        let message = inbox.read_message(&mut out);
        assert_eq!(message, Some(Message { len: 3, eor: false }));
        assert_eq!(out, b"one");
        let message = inbox.read_message(&mut out);
        assert_eq!(message, Some(Message { len: 0, eor: true }));
        assert_eq!(inbox.read_message(&mut out), None);
    }
}
