// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The [`Muxer`]'s clock and books: deadlines, and what follows from what a connection
//! has become ([`Muxer::settle`], called after every change).

use std::time::{Duration, Instant};

use super::connection::State;
use super::muxer::Muxer;
use super::slab::Id;
use super::tokens;
use crate::epoll::Interest;

/// The first pause before a full backlog is tried again.
const FIRST_DIAL_PAUSE: Duration = Duration::from_millis(2);
/// The longest such pause.
const LONGEST_DIAL_PAUSE: Duration = Duration::from_millis(100);

impl Muxer {
    /// Wakes a connection at `when`, if that is still its deadline then.
    pub(super) fn set_deadline(&mut self, id: Id, when: Instant) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.deadline = Some(when);
            self.timers.add(when, id);
        }
    }

    /// Brings the books in line with what a connection has become: call it after
    /// every change.
    pub(super) fn settle(&mut self, id: Id, now: Instant) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if connection.state == State::Gone {
            self.remove(id);
            return;
        }
        let pending = connection.held();
        self.pending_bytes = self.pending_bytes - connection.counted_pending + pending;
        connection.count_pending(pending, now);
        let waits_for = connection.waits_for();
        self.waiting.count(connection, waits_for);
        if let (true, Some(socket)) = (connection.watched, &connection.socket) {
            let wants_room = connection.wants_room();
            if wants_room != connection.watches_room {
                let interest = if wants_room {
                    Interest::BOTH_EDGE
                } else {
                    Interest::READABLE_EDGE
                };
                // Cannot fail for a registered descriptor.
                let _ = self.epoll.modify(socket, tokens::connection(id), interest);
                connection.watches_room = wants_room;
            }
        }
        if connection.update_due() {
            connection.wants.update |= connection.state == State::Established;
        }
        if connection.has_work() {
            if !connection.queued {
                connection.queued = true;
                self.ready.push_back(id);
            }
        } else if connection.is_stalled() && connection.deadline.is_none() {
            let pause = connection.next_pause();
            self.set_deadline(id, now + pause);
        } else if connection.state == State::Lingering && connection.deadline.is_none() {
            let close = self.limits.close;
            self.set_deadline(id, now + close);
        }
        self.relieve();
    }

    /// Keeps the bytes held within their limit, at the cost of whoever has hoarded: of the
    /// connections with many of them the one from which none has gone for longest.
    fn relieve(&mut self) {
        while self.pending_bytes > self.limits.pending_bytes {
            let all = || self.connections.iter();
            let most = all().map(|(_, c)| c.counted_pending).max().unwrap_or(0);
            let hoarder = all()
                .filter(|(_, c)| c.counted_pending * 2 >= most)
                .min_by_key(|(_, c)| c.held_since);
            let Some((id, connection)) = hoarder else {
                return;
            };
            let (port, held) = (connection.key.guest_port, connection.counted_pending);
            self.stats.limit_pending_bytes.add(1);
            let limit = self.limits.pending_bytes;
            self.report(format_args!(
                "{limit} bytes wait for programs that do not read: reset the connection of \
                 guest port {port}, which has {held} of them"
            ));
            self.abort(id);
        }
    }

    /// Acts on deadlines that have come.
    pub fn tick(&mut self, now: Instant) {
        while let Some((when, id)) = self.timers.pop(now) {
            let Some(connection) = self.connections.get_mut(id) else {
                continue;
            };
            if connection.deadline != Some(when) {
                continue;
            }
            connection.deadline = None;
            match connection.state {
                State::Dialing if connection.socket.is_none() => {
                    let expired = connection.expires.is_some_and(|expires| now >= expires);
                    if expired {
                        self.refuse_request(id);
                    } else {
                        self.dial(id, now);
                    }
                }
                // It was given its time.
                State::Dialing | State::Ringing | State::Asked(_) | State::Closing => {
                    self.refuse_request(id);
                }
                State::Lingering => self.remove(id),
                State::Established if connection.is_stalled() => {
                    connection.wants.credit_request = true;
                }
                State::Established | State::Gone => {}
            }
            self.settle(id, now);
        }
        self.expire_clients(now);
        self.open_listeners(now);
    }

    /// The next deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.timers.next(),
            self.client_timers.next(),
            self.closed_until,
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Tries again later to reach a host program whose backlog is full.
    pub(super) fn dial_later(&mut self, id: Id, now: Instant) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.pause = match connection.pause {
            Duration::ZERO => FIRST_DIAL_PAUSE,
            pause => (pause * 2).min(LONGEST_DIAL_PAUSE),
        };
        let until = *connection.expires.get_or_insert(now + self.limits.dial);
        let when = until.min(now + connection.pause);
        self.set_deadline(id, when);
    }
}
