// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether to look again for a moment before sleeping.
//!
//! Waking up costs more than a small packet. Where a packet one way is soon followed by
//! one the other way, the thread yields its processor and looks again, instead of asking
//! to be woken; and the other side need not wake it. A long stream gains nothing, and
//! looking that finds nothing steals from others: so it begins after some alternations
//! only, and one disappointment ends it for many. Without traffic there is no wake-up,
//! so an idle VM never looks.

use std::time::{Duration, Instant};

use crate::path::{QUEUES, RX, TX};

/// Alternations after which the next one is expected.
const EXPECTED: i8 = 4;
/// More of them make no difference.
const MOST: i8 = 8;
/// What a disappointment costs, in alternations.
const DISAPPOINTED: i8 = -32;

/// What traffic was like, and whether the thread is looking.
#[derive(Debug)]
pub(super) struct Polling {
    most: Duration,
    /// The queue that was busy last, alone.
    last: usize,
    score: i8,
    until: Option<Instant>,
}

impl Polling {
    /// Looks for `most` at a time; never, if that is zero.
    pub fn new(most: Duration) -> Self {
        Self {
            most,
            last: QUEUES,
            score: 0,
            until: None,
        }
    }

    /// Takes note of a turn: which queues have moved packets. Whether to have the next
    /// turn at once.
    pub fn turned(&mut self, sent: bool, received: bool, now: Instant) -> bool {
        if self.most.is_zero() {
            return false;
        }
        if sent || received {
            let busy = match (sent, received) {
                (true, false) => TX,
                (false, true) => RX,
                _ => QUEUES,
            };
            let alternates = busy != QUEUES && busy != self.last;
            let step = if alternates { 1 } else { -1 };
            self.score = (self.score + step).clamp(DISAPPOINTED, MOST);
            self.last = busy;
            self.until = (self.score >= EXPECTED).then(|| now + self.most);
        } else if self.until.is_some_and(|until| now >= until) {
            self.until = None;
            self.score = DISAPPOINTED;
        }
        self.until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST_TIME: Duration = Duration::from_micros(30);

    fn conversation(polling: &mut Polling, now: Instant, turns: usize) -> bool {
        (0..turns).fold(false, |_, turn| {
            polling.turned(turn % 2 == 0, turn % 2 == 1, now)
        })
    }

    #[test]
    fn a_conversation_is_waited_for_and_a_stream_is_not() {
        let now = Instant::now();
        let mut polling = Polling::new(MOST_TIME);
        assert!(conversation(&mut polling, now, 10));
        for _ in 0..10 {
            polling.turned(true, false, now);
        }
        assert!(!polling.turned(true, false, now));
        let mut both_ways = Polling::new(MOST_TIME);
        assert!(!(0..10).any(|_| both_ways.turned(true, true, now)));
    }

    #[test]
    fn silence_ends_it_and_for_long() {
        let now = Instant::now();
        let mut polling = Polling::new(MOST_TIME);
        assert!(conversation(&mut polling, now, 10));
        assert!(polling.turned(false, false, now + MOST_TIME / 2));
        assert!(!polling.turned(false, false, now + MOST_TIME));
        assert!(!polling.turned(false, false, now + MOST_TIME * 2));
        assert!(!conversation(&mut polling, now, 10));
        assert!(conversation(&mut polling, now, 40));
    }

    #[test]
    fn zero_is_off() {
        let mut polling = Polling::new(Duration::ZERO);
        assert!(!conversation(&mut polling, Instant::now(), 100));
    }
}
