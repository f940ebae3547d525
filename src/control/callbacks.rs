// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clients that hear what happens to a device: a thread and a bounded queue for each, so
//! that one that does not read keeps nobody else waiting.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::debug;

use super::binder::{self, on_death, DeathLink, Strong, VsockDeviceCallback};
use super::convert;
use crate::address::GuestCid;
use crate::management::Refusal;
use crate::watchers::{Event, Watcher, Watchers};

/// Callbacks a device can have.
const MOST: usize = 64;

type Callback = Strong<dyn VsockDeviceCallback>;

/// Callbacks with the number of the watcher that each has.
type List = Mutex<Vec<(Callback, u64)>>;

/// The callbacks of one device.
pub(super) struct Callbacks {
    cid: GuestCid,
    watchers: Arc<Watchers>,
    list: Arc<List>,
}

fn lock(list: &List) -> MutexGuard<'_, Vec<(Callback, u64)>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut listed = lock(&self.list);
        if listed.iter().any(|(other, _)| other == callback) {
            return Ok(());
        }
        let watcher = self.watchers.watch(MOST).ok_or_else(|| {
            let why = format!("the device has {MOST} callbacks: unregister one first");
            Refusal::TooMany(why)
        })?;
        let number = watcher.number();
        let watchers = self.watchers.clone();
        let link = on_death(callback, move || watchers.dismiss(number))
            .map_err(|status| Refusal::Failed(format!("the callback is not there: {status:?}")))?;
        let (cid, told, list) = (self.cid, callback.clone(), self.list.clone());
        std::thread::Builder::new()
            .name(format!("callback-{cid}"))
            .spawn(move || {
                deliver(cid, &watcher, &told, link);
                lock(&list).retain(|(_, other)| *other != number);
            })?;
        listed.push((callback.clone(), number));
        Ok(())
    }

    /// Tells `callback` no more.
    pub(super) fn remove(&self, callback: &Callback) {
        let list = lock(&self.list);
        if let Some((_, number)) = list.iter().find(|(other, _)| other == callback) {
            self.watchers.dismiss(*number);
        }
    }
}

/// Tells one client, until it is gone or is to be told no more.
fn deliver(cid: GuestCid, watcher: &Watcher, callback: &Callback, _link: DeathLink) {
    while let Ok(event) = watcher.events.recv() {
        if let Err(status) = tell(cid.cid().0.into(), callback, event) {
            debug!("vm {cid}: a callback is given up: {status}");
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
