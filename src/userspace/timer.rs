// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Deadlines for the event loop: a heap whose outdated entries are skipped when
//! they come up. The loop sleeps until the first one (`epoll_wait`'s timeout), so no
//! timer descriptor is needed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::slab::Id;

/// Deadlines of connections and clients, which know themselves whether one still holds.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Id)>>,
}

impl Timers {
    /// Wakes `id` at `when`.
    pub fn add(&mut self, when: Instant, id: Id) {
        self.heap.push(Reverse((when, id)));
    }

    /// The next deadline.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((when, _))| *when)
    }

    /// Takes a deadline that has come.
    pub fn pop(&mut self, now: Instant) -> Option<(Instant, Id)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(due)| due)
    }
}
