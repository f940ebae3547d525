// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The event queue's one message: all connections are gone (VIRTIO 1.2, 5.10.6.7).

use super::ring::{Direction, RingError, SplitRing};
use crate::bus::Bus;
use crate::guest_memory::write_across;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` as it is on the wire.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Reports a transport reset in the event queue. Whether there was a buffer for it: if
/// not, the kick that comes with one is the time to try again. What was used is not
/// published yet.
pub(crate) fn report(ring: &mut SplitRing, bus: &Bus) -> Result<bool, RingError> {
    ring.begin_turn();
    let mut segments = Vec::new();
    ring.begin_turn();
    // Bounded: a driver may go on posting buffers that cannot hold the event.
    for _ in 0..=ring.size() {
        if ring.turn_is_over() {
            return Ok(false);
        }
        segments.clear();
        let Some(chain) = ring.pop(bus, Direction::Writable, &mut segments)? else {
            if ring.enable_kicks() {
                continue;
            }
            return Ok(false);
        };
        let fits = chain
            .buffers
            .is_ok_and(|len| len as usize >= TRANSPORT_RESET.len());
        let written = if fits {
            write_across(&segments, &TRANSPORT_RESET)
        } else {
            0
        };
        ring.push_used(chain.head, written as u32);
        if fits {
            return Ok(true);
        }
    }
    Ok(false)
}
