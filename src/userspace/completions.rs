// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When to tell the guest that its packets were sent.
//!
//! Linux asks for an interrupt with every transmit completion, though it only wants its
//! memory back. So completions wait for company: until an eighth of the ring is owed, or
//! for a millisecond. A driver that waits for each completion before it does anything else
//! would lose that millisecond each time: when nothing has come meanwhile, the next
//! completions are told at once, more of them after each such disappointment.

use std::time::{Duration, Instant};

/// How long completions wait.
const WAIT: Duration = Duration::from_millis(1);
/// The share of the ring that may be owed.
const SHARE: u32 = 8;
/// Turns told at once after a disappointment, to begin with.
const FEWEST: u32 = 64;
/// Such turns at most.
const MOST: u32 = 1 << 16;

/// What completions wait for.
#[derive(Debug)]
pub(super) struct Completions {
    due: Option<Instant>,
    /// Turns to be told at once.
    at_once: u32,
    /// How many it will be after the next disappointment.
    next: u32,
    /// Turns that those that wait have come from.
    turns: u32,
}

impl Completions {
    pub fn new() -> Self {
        Self {
            due: None,
            at_once: 0,
            next: FEWEST,
            turns: 0,
        }
    }

    /// When those that wait are due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// There are completions, of `owed` of a ring's `size` entries; `new`: some of them
    /// came in this turn. Whether to tell them.
    pub fn tell(&mut self, owed: u32, size: u16, new: bool, now: Instant) -> bool {
        if new {
            self.turns = self.turns.saturating_add(1);
        }
        let company = owed.saturating_mul(SHARE) >= u32::from(size);
        let late = self.due.is_some_and(|due| now >= due);
        if company {
            self.next = FEWEST;
        } else if self.at_once > 0 {
            self.at_once -= 1;
        } else if late {
            // Whoever had sent more was not waiting.
            if self.turns == 1 {
                self.at_once = self.next;
                self.next = (self.next * 2).min(MOST);
            }
        } else {
            self.due.get_or_insert(now + WAIT);
            return false;
        }
        self.due = None;
        self.turns = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_wait_for_company_or_a_millisecond() {
        let now = Instant::now();
        let mut completions = Completions::new();
        assert!(!completions.tell(2, 256, true, now));
        assert!(!completions.tell(31, 256, true, now));
        assert!(completions.tell(32, 256, true, now));
        assert_eq!(completions.due(), None);
        assert!(!completions.tell(2, 256, true, now));
        assert!(!completions.tell(4, 256, true, now));
        assert_eq!(completions.due(), Some(now + WAIT));
        assert!(completions.tell(4, 256, false, now + WAIT));
        assert!(!completions.tell(2, 256, true, now), "more had come");
        assert!(Completions::new().tell(2, 8, true, now), "a small ring");
    }

    #[test]
    fn a_driver_that_waits_for_each_is_told_at_once() {
        let mut now = Instant::now();
        let mut completions = Completions::new();
        let mut waited = 0;
        for _ in 0..10_000 {
            if !completions.tell(2, 256, true, now) {
                waited += 1;
                now += WAIT;
                assert!(completions.tell(2, 256, false, now));
            }
        }
        assert!(waited < 10, "{waited} milliseconds lost");
    }
}
