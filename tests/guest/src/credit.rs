// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The credit of one connection, both ways (VIRTIO 1.2, 5.10.6.3). All
//! counters are 32 bits wide and wrap. Arithmetic only: sends nothing.

use std::time::{Duration, Instant};

use crate::packet::Header;

/// How long a starved sender waits before it asks for credit again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The data a connection had not been granted buffer space for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

/// Credit granted and received.
#[derive(Debug)]
pub(crate) struct Credit {
    /// Our receive buffer.
    buf_alloc: u32,
    /// Bytes taken out of it.
    fwd_cnt: u32,
    /// The `fwd_cnt` that the peer was last told.
    told: u32,
    /// Bytes received.
    rx_cnt: u32,
    /// The highest `rx_cnt` that the peer was ever allowed to reach.
    granted: u32,
    /// Tell the peer no `fwd_cnt` beyond `told`.
    held: bool,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// Bytes sent.
    tx_cnt: u32,
    asked: Option<Instant>,
}

impl Credit {
    pub(crate) fn new(buf_alloc: u32) -> Self {
        Credit {
            buf_alloc,
            fwd_cnt: 0,
            told: 0,
            rx_cnt: 0,
            granted: 0,
            held: false,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            tx_cnt: 0,
            asked: None,
        }
    }

    pub(crate) fn set_buf_alloc(&mut self, buf_alloc: u32) {
        self.buf_alloc = buf_alloc;
    }

    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Puts our side into a header that is about to be sent.
    pub(crate) fn stamp(&mut self, header: &mut Header) {
        if !self.held {
            self.told = self.fwd_cnt;
        }
        let limit = self.told.wrapping_add(self.buf_alloc);
        // A smaller buffer takes back nothing that is already under way.
        if limit.wrapping_sub(self.granted) as i32 > 0 {
            self.granted = limit;
        }
        header.buf_alloc = self.buf_alloc;
        header.fwd_cnt = self.told;
    }

    /// Takes the peer's side from a header. True if the peer has more room.
    pub(crate) fn learn(&mut self, header: &Header) -> bool {
        let before = self.peer_free();
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        let grew = self.peer_free() > before;
        if grew {
            self.asked = None;
        }
        grew
    }

    /// Accounts for `len` bytes of payload from the peer.
    pub(crate) fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        let room = self.granted.wrapping_sub(self.rx_cnt);
        if len > room {
            return Err(Overrun);
        }
        self.rx_cnt = self.rx_cnt.wrapping_add(len);
        Ok(())
    }

    /// Accounts for `len` bytes that left our buffer. True if the peer should
    /// be told now: a quarter of the buffer (at most 64 KiB) is news, or the
    /// buffer is empty and the peer thinks that it is more than half full.
    pub(crate) fn consume(&mut self, len: u32) -> bool {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(len);
        if self.held {
            return false;
        }
        let news = self.fwd_cnt.wrapping_sub(self.told);
        let empty = self.fwd_cnt == self.rx_cnt;
        let peer_sees = self.rx_cnt.wrapping_sub(self.told);
        news > 0
            && (news >= (self.buf_alloc / 4).min(64 << 10)
                || (empty && peer_sees > self.buf_alloc / 2))
    }

    /// Bytes that may be sent now. A buffer that shrank below what is in
    /// flight has no room, and not less than none.
    pub(crate) fn peer_free(&self) -> u32 {
        let in_flight = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    /// The peer's whole buffer.
    pub(crate) fn peer_buf_alloc(&self) -> u32 {
        self.peer_buf_alloc
    }

    /// Accounts for `len` bytes sent.
    pub(crate) fn send(&mut self, len: u32) {
        self.tx_cnt = self.tx_cnt.wrapping_add(len);
    }

    /// True if a starved sender should send a CREDIT_REQUEST: once, and again
    /// each second that brings nothing.
    pub(crate) fn should_ask(&mut self, now: Instant) -> bool {
        let due = self.asked.is_none_or(|at| now >= at + ASK_AGAIN);
        if due {
            self.asked = Some(now);
        }
        due
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

    /// A credit whose counters are about to wrap.
    fn at(counter: u32, buf_alloc: u32) -> Credit {
        Credit {
            fwd_cnt: counter,
            told: counter,
            rx_cnt: counter,
            granted: counter.wrapping_add(buf_alloc),
            tx_cnt: counter,
            peer_fwd_cnt: counter,
            ..Credit::new(buf_alloc)
        }
    }

    #[test]
    fn the_senders_side_wraps() {
        let start = u32::MAX - 999;
        let mut credit = at(start, 1000);
        assert!(credit.learn(&header(4000, start)));
        assert_eq!(credit.peer_free(), 4000);
        credit.send(3000);
        assert_eq!(credit.peer_free(), 1000);
        assert!(credit.learn(&header(4000, start.wrapping_add(2500))));
        assert_eq!(credit.peer_free(), 3500);
    }

    #[test]
    fn a_shrunken_buffer_leaves_no_room() {
        let mut credit = Credit::new(1000);
        credit.learn(&header(4000, 0));
        credit.send(3000);
        assert!(!credit.learn(&header(1000, 500)));
        assert_eq!(credit.peer_free(), 0);
    }

    #[test]
    fn the_receivers_side_wraps_and_finds_overruns() {
        let mut credit = at(u32::MAX - 499, 1000);
        assert_eq!(credit.receive(1000), Ok(()));
        assert_eq!(credit.receive(1), Err(Overrun));
        credit.consume(600);
        // Not told yet, so not granted yet.
        assert_eq!(credit.receive(1), Err(Overrun));
        let mut out = Header::default();
        credit.stamp(&mut out);
        assert_eq!((out.buf_alloc, out.fwd_cnt), (1000, 100));
        assert_eq!(credit.receive(600), Ok(()));
        assert_eq!(credit.receive(1), Err(Overrun));
    }

    #[test]
    fn what_was_granted_before_a_shrink_stays_granted() {
        let mut credit = Credit::new(1000);
        credit.stamp(&mut Header::default());
        credit.set_buf_alloc(10);
        credit.stamp(&mut Header::default());
        assert_eq!(credit.receive(1000), Ok(()));
        assert_eq!(credit.receive(1), Err(Overrun));
    }

    #[test]
    fn updates_are_rare_and_held_credit_is_not_told() {
        let mut credit = Credit::new(1000);
        credit.stamp(&mut Header::default());
        credit.receive(900).unwrap();
        assert!(!credit.consume(100));
        assert!(credit.consume(150));
        credit.hold(true);
        assert!(!credit.consume(650));
        let mut out = Header::default();
        credit.stamp(&mut out);
        assert_eq!(out.fwd_cnt, 0);
        credit.hold(false);
        credit.stamp(&mut out);
        assert_eq!(out.fwd_cnt, 900);
    }

    #[test]
    fn a_starved_sender_asks_once_a_second() {
        let mut credit = Credit::new(1000);
        let now = Instant::now();
        assert!(credit.should_ask(now));
        assert!(!credit.should_ask(now + Duration::from_millis(999)));
        assert!(credit.should_ask(now + Duration::from_millis(1000)));
        credit.learn(&header(1, 0));
        assert!(credit.should_ask(now + Duration::from_millis(1001)));
    }
}
