// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Flow control of one connection, in both directions (VIRTIO 1.2, 5.10.6.3).
//!
//! Counters are free-running and wrap at 2^32; only their differences mean anything.
//! What the guest says of its own buffer is not believed further than it reaches:
//! a buffer that shrinks below what is on its way, or a count of bytes forwarded
//! that were never sent, leaves no room rather than a huge one.
//!
//! Linux guests since 6.12.92 also bound the *number* of packets in a socket's queue
//! by `(packets + 1) * SKB_TRUESIZE(0) <= buf_alloc` and reset the connection beyond
//! it, which the credit on the wire does not express. So packets on their way are
//! counted here, too ([`Credit::packet_room`]). Of an empty message nobody tells whether it
//! was read: it counts as read with all bytes before it, once the guest says anything.

use std::collections::VecDeque;

use super::packet::Header;

/// Bytes of a guest's buffer that one packet counts for, whatever its payload:
/// `SKB_TRUESIZE(0)` is 576 with 64-byte cache lines; with some room to spare.
const PACKET_COST: u32 = 768;

/// Packets on their way to a guest at most, however large its buffer.
const MAX_PACKETS: u32 = 4096;

/// The guest has sent more than it had room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest sent {len} bytes with room for {room}")]
pub struct Overrun {
    len: u32,
    room: u32,
}

/// Both directions' counters.
#[derive(Debug)]
pub struct Credit {
    /// Size of our buffer for bytes from the guest.
    buf_alloc: u32,
    /// Bytes the guest has sent.
    received: u32,
    /// Of these, bytes handed on to the host socket.
    forwarded: u32,
    /// `forwarded` as the guest last heard it.
    advertised: u32,
    /// Size of the guest's buffer.
    peer_buf_alloc: u32,
    /// Bytes the guest's reader has taken, as the guest last said.
    peer_forwarded: u32,
    /// Bytes sent to the guest.
    sent: u32,
    /// `sent` after each packet that the guest's reader may not have taken yet.
    in_flight: VecDeque<u32>,
    /// Packets sent since the guest was last asked for its counters.
    since_asked: usize,
}

impl Credit {
    /// No traffic yet; `buf_alloc` is the size of our buffer in bytes.
    pub fn new(buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            received: 0,
            forwarded: 0,
            advertised: 0,
            peer_buf_alloc: 0,
            peer_forwarded: 0,
            sent: 0,
            in_flight: VecDeque::new(),
            since_asked: 0,
        }
    }

    /// Takes the credit fields of any packet from the guest.
    pub fn heard(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        while let Some(end) = self.in_flight.front() {
            // Taken if its end is not ahead of what the guest says it has read.
            if end.wrapping_sub(self.peer_forwarded) as i32 > 0 {
                break;
            }
            self.in_flight.pop_front();
        }
        if self.in_flight.is_empty() && self.in_flight.capacity() > 64 {
            self.in_flight = VecDeque::new();
        }
    }

    /// Counts `len` bytes of payload from the guest.
    pub fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        let held = self.received.wrapping_sub(self.forwarded);
        let room = self.buf_alloc.saturating_sub(held);
        if len > room {
            return Err(Overrun { len, room });
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// Counts `len` bytes as handed on to the host.
    pub fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Whether the guest should hear of the room it has, for want of other packets:
    /// half of what it may send has become free without it knowing. A guest that
    /// waits has used all it knows of, so this comes true before it waits in vain.
    ///
    /// Linux guests since 2026 send no more than their *own* buffer holds, however
    /// large ours is (`virtio_transport_tx_buf_size`).
    ///
    /// With a `message_under_way` what is held goes on only once the rest of it has come,
    /// so that a guest with little room left is told of any more that there is.
    pub fn update_due(&self, message_under_way: bool) -> bool {
        let window = self.buf_alloc.min(self.peer_buf_alloc).max(2);
        let news = self.forwarded.wrapping_sub(self.advertised);
        let known = window.saturating_sub(self.received.wrapping_sub(self.advertised));
        news >= window / 2 || message_under_way && news > 0 && known <= window / 4
    }

    /// Fills in the credit fields of a packet to the guest.
    pub fn stamp(&mut self, header: &mut Header) {
        header.buf_alloc = self.buf_alloc;
        header.fwd_cnt = self.forwarded;
        self.advertised = self.forwarded;
    }

    /// Bytes that may be sent to the guest now.
    pub fn room(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buf_alloc.saturating_sub(on_the_way)
    }

    /// Data packets that may be on their way at once.
    pub fn most_packets(&self) -> usize {
        (self.peer_buf_alloc / PACKET_COST).clamp(1, MAX_PACKETS) as usize
    }

    /// Data packets that may be sent to the guest now.
    pub fn packet_room(&self) -> usize {
        self.most_packets().saturating_sub(self.in_flight.len())
    }

    /// Whether to ask the guest for its counters: half of the packets it can hold are
    /// on their way, and many have been sent since the last time. Linux says by itself
    /// how many bytes were read, but not for small ones before many have come together.
    pub fn ask_due(&mut self) -> bool {
        let most = self.most_packets();
        let due = self.in_flight.len() > most / 2 && self.since_asked > most / 4;
        if due {
            self.since_asked = 0;
        }
        due
    }

    /// The size of the guest's buffer: no message longer than that can arrive.
    pub fn peer_buf_alloc(&self) -> u32 {
        self.peer_buf_alloc
    }

    /// Counts a data packet with `len` bytes of payload sent to the guest.
    pub fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
        self.in_flight.push_back(self.sent);
        self.since_asked += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    #[test]
    fn counters_wrap() {
        let mut credit = Credit::new(1000);
        credit.received = u32::MAX - 100;
        credit.forwarded = u32::MAX - 200;
        credit.advertised = u32::MAX - 200;
        credit.receive(900).unwrap();
        assert_eq!(credit.receive(1), Err(Overrun { len: 1, room: 0 }));
        credit.forward(500);
        assert!(credit.update_due(false));
        let mut out = Header::default();
        credit.stamp(&mut out);
        assert_eq!((out.buf_alloc, out.fwd_cnt), (1000, 299));
        assert!(!credit.update_due(false));
        credit.sent = u32::MAX - 9;
        credit.heard(&header(4096, u32::MAX - 9));
        credit.send(100);
        assert_eq!(credit.room(), 3996);
        credit.heard(&header(4096, 90));
        assert_eq!(credit.room(), 4096);
    }

    #[test]
    fn a_guest_that_sends_no_more_than_its_own_buffer_holds_hears_in_time() {
        let mut credit = Credit::new(1 << 20);
        credit.heard(&header(4096, 0));
        assert_eq!(credit.receive(4096), Ok(()));
        credit.forward(2047);
        assert!(!credit.update_due(false));
        credit.forward(1);
        assert!(credit.update_due(false));
    }

    #[test]
    fn a_message_that_fills_what_room_the_guest_knows_of_does_not_wait_for_its_own_end() {
        let mut credit = Credit::new(1 << 20);
        credit.heard(&header(4096, 0));
        credit.receive(1000).unwrap();
        credit.forward(1000);
        credit.receive(2000).unwrap();
        assert!(!credit.update_due(true), "there is room still");
        credit.receive(96).unwrap();
        assert!(credit.update_due(true) && !credit.update_due(false));
        credit.stamp(&mut Header::default());
        credit.receive(2000).unwrap();
        assert!(!credit.update_due(true), "there is nothing to tell");
    }

    #[test]
    fn a_buffer_that_shrinks_leaves_no_room_rather_than_a_huge_one() {
        let mut credit = Credit::new(1000);
        credit.heard(&header(65536, 0));
        credit.send(50000);
        credit.heard(&header(4096, 0));
        assert_eq!(credit.room(), 0);
        credit.heard(&header(4096, 48000));
        assert_eq!(credit.room(), 2096);
    }

    #[test]
    fn bytes_never_sent_cannot_be_forwarded() {
        let mut credit = Credit::new(1000);
        credit.heard(&header(65536, 1));
        assert_eq!(credit.room(), 0);
    }

    #[test]
    fn packets_on_their_way_are_bounded() {
        let mut credit = Credit::new(1000);
        credit.heard(&header(262_144, 0));
        let most = credit.packet_room();
        // What Linux 6.12.92 takes: (packets + 1) * 576 <= buf_alloc.
        assert!((most as u32 + 1) * 576 <= 262_144 && most > 200, "{most}");
        for _ in 0..most {
            credit.send(1);
        }
        assert_eq!(credit.packet_room(), 0);
        assert!(
            credit.ask_due() && !credit.ask_due(),
            "asked once, not in a storm"
        );
        credit.heard(&header(262_144, 3));
        assert_eq!(credit.packet_room(), 3);
        assert!(!credit.ask_due());
        credit.heard(&header(262_144, most as u32));
        assert_eq!(credit.packet_room(), most);
    }
}
