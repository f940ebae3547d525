// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether to look again for a moment before sleeping.
//!
//! Waking up costs more than a small packet. Where the next packet is soon there, the
//! thread yields its processor and looks again, instead of asking to be woken; and the
//! other side need not wake it. That is expected where packets one way alternate with
//! packets the other way, and where the guest's follow soon after each time that the
//! thread had nothing to do. Looking that finds nothing steals from others: so it begins
//! after some such signs only, and ever later the more often it is disappointed. Without
//! traffic there is no wake-up, so an idle VM never looks.

use std::time::{Duration, Instant};

use crate::path::{QUEUES, RX, TX};

/// Signs after which the next packet is expected.
const EXPECTED: i8 = 4;
/// More of them make no difference.
const MOST: i8 = 8;
/// What a disappointment costs, in signs: less after a hit, twice as much after another
/// disappointment, within these bounds.
const COSTS: [i8; 2] = [1, 64];
/// A sleep of this many times the time of looking is short: being woken takes a part of it.
const SHORT: u32 = 4;

/// What traffic was like, and whether the thread is looking.
#[derive(Debug)]
pub(super) struct Polling {
    most: Duration,
    /// The queue that was busy last, alone.
    last: usize,
    score: i8,
    /// What the next disappointment costs.
    cost: i8,
    /// Looking, until then.
    until: Option<Instant>,
    /// Nothing to do, since then.
    idle: Option<Instant>,
}

impl Polling {
    /// Looks for `most` at a time; never, if that is zero.
    pub fn new(most: Duration) -> Self {
        Self {
            most,
            last: QUEUES,
            score: 0,
            cost: COSTS[0],
            until: None,
            idle: None,
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
            let slept = self.idle.take();
            let short = slept.is_some_and(|since| now < since + self.most * SHORT);
            let step = if alternates || (busy == TX && short) {
                1
            } else {
                -1
            };
            if self.until.is_some() && short {
                self.cost = (self.cost / 2).max(COSTS[0]);
            }
            self.score = (self.score + step).clamp(-COSTS[1], MOST);
            self.last = busy;
            self.until = (self.score >= EXPECTED).then(|| now + self.most);
        } else if self.until.is_some_and(|until| now >= until) {
            self.until = None;
            self.score = EXPECTED - self.cost;
            self.cost = self.cost.saturating_mul(2).min(COSTS[1]);
        }
        self.idle.get_or_insert(now);
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

    /// Packets of the guest's, `apart` from each other, with nothing to do in between.
    fn stream(polling: &mut Polling, now: &mut Instant, apart: Duration, packets: usize) -> bool {
        (0..packets).fold(false, |_, _| {
            *now += apart;
            polling.turned(true, false, *now)
        })
    }

    #[test]
    fn a_conversation_is_waited_for_and_what_goes_both_ways_at_once_is_not() {
        let now = Instant::now();
        let mut polling = Polling::new(MOST_TIME);
        assert!(conversation(&mut polling, now, 10));
        let mut both_ways = Polling::new(MOST_TIME);
        assert!(!(0..10).any(|_| both_ways.turned(true, true, now)));
    }

    #[test]
    fn a_guest_that_sends_again_soon_is_waited_for_and_a_slow_one_is_not() {
        let mut now = Instant::now();
        let mut polling = Polling::new(MOST_TIME);
        assert!(stream(&mut polling, &mut now, MOST_TIME, 10));
        assert!(!stream(&mut polling, &mut now, MOST_TIME * SHORT, 10));
        let mut to_guest = Polling::new(MOST_TIME);
        assert!(!(0..10).any(|_| to_guest.turned(false, true, now)));
    }

    #[test]
    fn silence_ends_it() {
        let now = Instant::now();
        let mut polling = Polling::new(MOST_TIME);
        assert!(conversation(&mut polling, now, 10));
        assert!(polling.turned(false, false, now + MOST_TIME / 2));
        assert!(!polling.turned(false, false, now + MOST_TIME));
        assert!(!polling.turned(false, false, now + MOST_TIME * 2));
    }

    #[test]
    fn disappointments_make_it_rare_and_hits_make_it_frequent_again() {
        let mut now = Instant::now();
        let mut polling = Polling::new(MOST_TIME);
        let mut looked = 0;
        for _ in 0..10_000 {
            now += MOST_TIME * 2;
            if polling.turned(true, false, now) {
                looked += 1;
                assert!(!polling.turned(false, false, now + MOST_TIME));
            }
        }
        assert!((100..200).contains(&looked), "looked {looked} times");
        assert!(stream(&mut polling, &mut now, MOST_TIME / 2, 200));
        assert!(!polling.turned(false, false, now + MOST_TIME));
        assert!(stream(&mut polling, &mut now, MOST_TIME * 2, 5));
    }

    #[test]
    fn zero_is_off() {
        let mut polling = Polling::new(Duration::ZERO);
        assert!(!conversation(&mut polling, Instant::now(), 100));
    }
}
