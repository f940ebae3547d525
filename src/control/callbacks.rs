// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clients that hear what happens to a device: a thread and a bounded queue for each, so
//! that one that does not read keeps nobody else waiting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::warn;

use super::binder::{self, on_death, DeathLink, Strong, VsockDeviceCallback};
use super::convert;
use crate::address::GuestCid;
use crate::management::Refusal;
use crate::watchers::{Event, Watcher, Watchers};

/// Callbacks a device can have.
const MOST: usize = 64;

type Callback = Strong<dyn VsockDeviceCallback>;

/// A callback that is told.
struct Told {
    callback: Callback,
    /// Its watcher's.
    number: u64,
    /// Shared with its thread, which may have events that wait.
    unregistered: Arc<AtomicBool>,
}

type List = Mutex<Vec<Told>>;

/// The callbacks of one device.
pub(super) struct Callbacks {
    cid: GuestCid,
    watchers: Arc<Watchers>,
    list: Arc<List>,
}

fn lock(list: &List) -> MutexGuard<'_, Vec<Told>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// By number: the callback may be there again, with another watcher.
fn forget(list: &List, number: u64) {
    lock(list).retain(|told| told.number != number);
}

impl Callbacks {
    pub(super) fn new(cid: GuestCid, watchers: Arc<Watchers>) -> Self {
        Self {
            cid,
            watchers,
            list: Arc::default(),
        }
    }

    /// Tells `callback` from now on; one that is told already is told once.
    pub(super) fn add(&self, callback: &Callback) -> Result<(), Refusal> {
        let Some((watcher, unregistered)) = self.enlist(callback)? else {
            return Ok(());
        };
        let number = watcher.number();
        self.begin(callback, watcher, unregistered)
            .inspect_err(|_| forget(&self.list, number))
    }

    /// A watcher for `callback` and whether it is unregistered, unless it has them.
    fn enlist(&self, callback: &Callback) -> Result<Option<(Watcher, Arc<AtomicBool>)>, Refusal> {
        let mut list = lock(&self.list);
        if list.iter().any(|told| told.callback == *callback) {
            return Ok(None);
        }
        let watcher = self.watchers.watch(MOST).ok_or_else(|| {
            let why = format!("the device has {MOST} callbacks: unregister one first");
            Refusal::TooMany(why)
        })?;
        let unregistered = Arc::<AtomicBool>::default();
        list.push(Told {
            callback: callback.clone(),
            number: watcher.number(),
            unregistered: unregistered.clone(),
        });
        Ok(Some((watcher, unregistered)))
    }

    /// Not under the lock: a death is noticed on other threads, which take it, too.
    fn begin(
        &self,
        callback: &Callback,
        watcher: Watcher,
        unregistered: Arc<AtomicBool>,
    ) -> Result<(), Refusal> {
        let number = watcher.number();
        let (watchers, list) = (self.watchers.clone(), self.list.clone());
        let died = move || {
            forget(&list, number);
            watchers.dismiss(number);
        };
        let link = on_death(callback, died)
            .map_err(|status| Refusal::Failed(format!("the callback is not there: {status:?}")))?;
        let (cid, told, list) = (self.cid, callback.clone(), self.list.clone());
        std::thread::Builder::new()
            .name(format!("callback-{cid}"))
            .spawn(move || {
                deliver(cid, &watcher, &told, &unregistered, link);
                forget(&list, number);
            })?;
        Ok(())
    }

    /// Tells `callback` no more, not even what waits.
    pub(super) fn remove(&self, callback: &Callback) {
        let mut list = lock(&self.list);
        if let Some(at) = list.iter().position(|told| told.callback == *callback) {
            let told = list.swap_remove(at);
            told.unregistered.store(true, Ordering::Relaxed);
            self.watchers.dismiss(told.number);
        }
    }
}

/// Tells one client, until it is gone or is to be told no more.
fn deliver(
    cid: GuestCid,
    watcher: &Watcher,
    callback: &Callback,
    unregistered: &AtomicBool,
    _link: DeathLink,
) {
    while let Ok(event) = watcher.events.recv() {
        if unregistered.load(Ordering::Relaxed) {
            return;
        }
        if let Err(status) = tell(cid.cid().0.into(), callback, event) {
            let missed = watcher.give_up();
            warn!("vm {cid}: a client has left, or does not take what it is told: {missed} event(s) missed: {status}");
            return;
        }
    }
}

fn tell(cid: i64, callback: &Callback, event: Event) -> binder::Result<()> {
    match event {
        Event::State(state) => callback.onStateChanged(cid, convert::state(state)),
        Event::Denied(denial) => {
            let iova = convert::address(denial.iova);
            callback.onIotlbFault(cid, iova, convert::access(denial.access))
        }
        Event::Connected(connection) => {
            callback.onConnected(cid, &convert::connection(&connection))
        }
        Event::Disconnected(connection) => {
            callback.onDisconnected(cid, &convert::connection(&connection))
        }
    }
}
