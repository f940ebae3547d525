// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Those who want to know what happens to a device.
//!
//! The device's thread tells all of them, and waits for none: each has a bounded queue,
//! and what does not fit is dropped and counted. With nobody watching it costs one load.

use std::sync::atomic::{AtomicU64, AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::kernel::Denial;
use crate::management::ConnectionInfo;

/// Events that may wait for one watcher.
pub const MOST_WAITING: usize = 256;

/// Where a device stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// No front end is connected.
    #[default]
    NoVmm,
    /// A front end is connected; the queues are not set up, or are stopped.
    NoDriver,
    /// The queues are being served.
    Running,
    /// The queues were given up.
    NeedsReset,
}

impl State {
    const ALL: [Self; 4] = [Self::NoVmm, Self::NoDriver, Self::Running, Self::NeedsReset];
}

/// Something that has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The device has got into another state.
    State(State),
    /// The data path wanted to reach what the guest has not shared.
    Denied(Denial),
    /// A connection was established.
    Connected(ConnectionInfo),
    /// One that had been established is over.
    Disconnected(ConnectionInfo),
}

/// A device's state, and those who watch it.
#[derive(Debug, Default)]
pub struct Watchers {
    state: AtomicU8,
    count: AtomicUsize,
    queues: Mutex<Vec<(u64, SyncSender<Event>)>>,
    next: AtomicU64,
    dropped: AtomicU64,
}

/// Whoever watches: it ends when dropped.
#[derive(Debug)]
pub struct Watcher {
    watchers: Arc<Watchers>,
    number: u64,
    /// What has happened, in order.
    pub events: Receiver<Event>,
}

impl Watchers {
    fn queues(&self) -> MutexGuard<'_, Vec<(u64, SyncSender<Event>)>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to watch, unless `most` do already.
    pub fn watch(self: &Arc<Self>, most: usize) -> Option<Watcher> {
        let mut queues = self.queues();
        if queues.len() >= most {
            return None;
        }
        let (sender, events) = sync_channel(MOST_WAITING);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        queues.push((number, sender));
        self.count.store(queues.len(), Ordering::Relaxed);
        Some(Watcher {
            watchers: self.clone(),
            number,
            events,
        })
    }

    /// Ends a watcher: it hears what it was told before, and then that this was all.
    pub fn dismiss(&self, number: u64) {
        let mut queues = self.queues();
        queues.retain(|(other, _)| *other != number);
        self.count.store(queues.len(), Ordering::Relaxed);
    }

    /// How many watch.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Events that watchers missed.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Tells all watchers, if there are any.
    pub fn tell(&self, event: impl FnOnce() -> Event) {
        if self.count() == 0 {
            return;
        }
        let event = event();
        for (_, queue) in self.queues().iter() {
            if let Err(TrySendError::Full(_)) = queue.try_send(event) {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Where the device stands.
    pub fn state(&self) -> State {
        let state = self.state.load(Ordering::Relaxed);
        State::ALL
            .get(usize::from(state))
            .copied()
            .unwrap_or_default()
    }

    /// Notes where the device stands, and tells if that is news.
    pub fn set_state(&self, state: State) {
        if self.state.load(Ordering::Relaxed) != state as u8 {
            self.state.store(state as u8, Ordering::Relaxed);
            self.tell(|| Event::State(state));
        }
    }
}

impl Watcher {
    /// Its name for [`Watchers::dismiss`].
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Ends it: whoever it is for did not take an event. That one and all that wait were
    /// missed; says how many.
    pub fn give_up(&self) -> u64 {
        // None is added from now on.
        self.watchers.dismiss(self.number);
        let missed = 1 + self.events.try_iter().count() as u64;
        self.watchers.dropped.fetch_add(missed, Ordering::Relaxed);
        missed
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watchers.dismiss(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_that_does_not_look_misses_events_and_nobody_waits() {
        let watchers = Arc::new(Watchers::default());
        watchers.set_state(State::NoDriver);
        let slow = watchers.watch(2).unwrap();
        let quick = watchers.watch(2).unwrap();
        assert!(watchers.watch(2).is_none());
        for round in 0..MOST_WAITING + 10 {
            let state = [State::Running, State::NoDriver][round % 2];
            watchers.set_state(state);
            assert_eq!(quick.events.try_recv(), Ok(Event::State(state)));
        }
        assert_eq!(watchers.dropped(), 10);
        assert_eq!(slow.events.try_iter().count(), MOST_WAITING);
        drop((slow, quick));
        assert_eq!(watchers.count(), 0);
    }

    #[test]
    fn what_is_given_up_is_missed() {
        let watchers = Arc::new(Watchers::default());
        let watcher = watchers.watch(1).unwrap();
        for state in [State::NoDriver, State::Running, State::NoDriver] {
            watchers.set_state(state);
        }
        assert_eq!(watcher.events.recv(), Ok(Event::State(State::NoDriver)));
        assert_eq!(watcher.give_up(), 3);
        assert_eq!((watchers.dropped(), watchers.count()), (3, 0));
    }

    #[test]
    fn a_state_is_told_once() {
        let watchers = Arc::new(Watchers::default());
        let watcher = watchers.watch(1).unwrap();
        for _ in 0..3 {
            watchers.set_state(State::Running);
        }
        assert_eq!(watcher.events.try_iter().count(), 1);
        assert_eq!(watchers.state(), State::Running);
    }
}
