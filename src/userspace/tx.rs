// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the guest's transmit queue to host sockets.
//!
//! Packets are taken in bursts. As long as they carry data for one connection, their
//! payload is only noted: one system call then writes it all, straight from guest
//! memory. Any other packet ends the gathering first, so order is kept. Used entries
//! are written on the way and shown to the guest once, after the last write.

use std::time::Instant;

use super::muxer::{Muxer, Verdict};
use super::packet::{Header, HEADER_LEN};
use super::ring::{Direction, RingError, SplitRing};
use super::slab::Id;
use super::socket::MAX_SEGMENTS;
use crate::bus::Bus;
use crate::guest_memory::{read_across, slice_across, Segment};

/// Packets taken in a row before the other direction gets its turn, at most.
const BURST: usize = 1024;

/// Bytes written by one system call, give or take a packet.
const MOST_BYTES: usize = 128 << 10;

/// Segments a packet may bring along and still be gathered with others.
const MOST_SEGMENTS: usize = MAX_SEGMENTS - 64;

/// Payload for one connection that has not been written yet.
struct Gather<'m> {
    id: Option<Id>,
    segments: Vec<Segment<'m>>,
    bytes: usize,
}

impl Gather<'_> {
    fn flush(&mut self, muxer: &mut Muxer, ends: bool, now: Instant) {
        if let Some(id) = self.id.take() {
            // A packet can consist of more segments than one system call takes.
            let mut pieces = self.segments.chunks(MAX_SEGMENTS).peekable();
            if pieces.peek().is_none() {
                muxer.deliver(id, &[], 0, ends, now);
            }
            while let Some(piece) = pieces.next() {
                let len = piece.iter().map(Segment::len).sum();
                muxer.deliver(id, piece, len, ends && pieces.peek().is_none(), now);
            }
            self.segments.clear();
            self.bytes = 0;
        }
    }
}

/// Takes a burst of packets. Whether there may be more.
pub(super) fn pump(
    ring: &mut SplitRing,
    bus: &Bus,
    muxer: &mut Muxer,
    now: Instant,
) -> Result<bool, RingError> {
    ring.begin_turn();
    if ring.available()? == 0 {
        return Ok(false);
    }
    ring.disable_kicks();
    // A guest whose ring is full fills one part while another is served.
    let burst = (usize::from(ring.size()) / 4).clamp(16, BURST);
    let mut chain_segments = Vec::new();
    let mut gather = Gather {
        id: None,
        segments: Vec::new(),
        bytes: 0,
    };
    let mut taken = 0;
    let result = loop {
        // Answers leave through the other queue: it gets its turn before they are too many.
        if taken == burst || ring.turn_is_over() || (taken > 0 && muxer.has_most_resets()) {
            break Ok(true);
        }
        chain_segments.clear();
        let chain = match ring.pop(bus, Direction::Readable, &mut chain_segments) {
            Ok(Some(chain)) => chain,
            Ok(None) => break Ok(false),
            Err(error) => break Err(error),
        };
        taken += 1;
        let mut raw = [0u8; HEADER_LEN];
        let header = (read_across(&chain_segments, &mut raw) == HEADER_LEN)
            .then(|| Header::from_bytes(&raw));
        match (header, chain.buffers) {
            (Some(header), Ok(total)) => {
                let payload = total.saturating_sub(HEADER_LEN as u32);
                packet(&header, payload, &chain_segments, &mut gather, muxer, now);
            }
            (header, _) => {
                gather.flush(muxer, false, now);
                muxer.malformed(header.as_ref());
            }
        }
        ring.push_used(chain.head, 0);
    };
    gather.flush(muxer, false, now);
    muxer.stats.packets_from_guest.add(taken as u64);
    result
}

fn packet<'m>(
    header: &Header,
    payload: u32,
    chain: &[Segment<'m>],
    gather: &mut Gather<'m>,
    muxer: &mut Muxer,
    now: Instant,
) {
    // Anything but more data must find what came before it delivered.
    if gather.id.is_some() && !header.is_data() {
        gather.flush(muxer, false, now);
    }
    let Verdict::Deliver { id, len, ends } = muxer.packet(header, payload, now) else {
        return;
    };
    if gather.id.is_some_and(|other| other != id) {
        gather.flush(muxer, false, now);
    }
    gather.id = Some(id);
    gather.bytes += slice_across(chain, HEADER_LEN, len as usize, &mut gather.segments);
    if ends || gather.bytes >= MOST_BYTES || gather.segments.len() >= MOST_SEGMENTS {
        gather.flush(muxer, ends, now);
    }
}
