// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An open descriptor, as the test that made it sees it: which kernel it belongs
//! to, what it was called with, what it holds.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crosvm_vsock::address::{Iova, Range};
use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::event::EventFd;
use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::kernel::QueueIndex;

use crate::call::Call;
use crate::fault::{Fault, Hook, When};
use crate::iotlb::Entry;
use crate::message::Message;
use crate::state::{bit, fail, index, Owner, State, Unread};

/// The CIDs of one host: two models on the same host cannot have the same one.
#[derive(Clone, Debug, Default)]
pub struct Host(pub(crate) Arc<Mutex<BTreeMap<u64, usize>>>);

/// One open `/dev/vhost-vsock` of one modelled kernel.
pub struct ModelKernel {
    pub(crate) host: Host,
    /// Readable as long as a message waits.
    pub(crate) waiting: EventFd,
    hooks: Mutex<Vec<Hook>>,
    state: Mutex<State>,
}

impl ModelKernel {
    /// An open descriptor of a kernel of this kind, alone on its host. Its IOTLB
    /// goes off with its bit; the separate bit is 63.
    pub fn new(kind: KernelKind) -> Self {
        Self {
            host: Host::default(),
            waiting: EventFd::new().expect("an eventfd"),
            hooks: Mutex::default(),
            state: Mutex::new(State::new(kind)),
        }
    }

    /// A kernel whose IOTLB, once on, stays on for the life of the descriptor.
    pub fn sticky(self) -> Self {
        self.with(|state| state.traits.sticky = true)
    }

    /// A kernel whose queues ask for nothing more before their last miss is
    /// answered, as since 7.x.
    pub fn asks_once(self) -> Self {
        self.with(|state| state.traits.asks_once = true)
    }

    /// A kernel of kind SplitCompat whose separate bit alone asks for the IOTLB too.
    pub fn alias(self) -> Self {
        self.with(|state| state.traits.alias = true)
    }

    /// A kernel with another separate bit than 63.
    pub fn separate_bit(self, number: u8) -> Self {
        self.with(|state| state.traits.separate = bit(number))
    }

    /// A kernel that offers these bits as well, whatever they mean.
    pub fn offering(self, more: FeatureSet) -> Self {
        self.with(|state| state.traits.offered |= more)
    }

    /// A kernel with another `max_iotlb_entries` than 2048.
    pub fn iotlb_limit(self, entries: usize) -> Self {
        self.with(|state| state.traits.iotlb_limit = entries)
    }

    /// Another descriptor on `host`.
    pub fn on(mut self, host: &Host) -> Self {
        self.host = host.clone();
        self
    }

    /// A descriptor that another process owns.
    pub fn owned_elsewhere(self) -> Self {
        self.with(|state| state.owner = Some(Owner::AnotherProcess))
    }

    fn with(self, change: impl FnOnce(&mut State)) -> Self {
        change(&mut self.state());
        self
    }

    /// Every call so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.state().calls.clear();
    }

    /// The messages among the calls so far.
    pub fn messages(&self) -> Vec<Message> {
        let calls = self.calls();
        let messages = calls.iter().filter_map(|call| match call {
            Call::Write(message) => Some(*message),
            _ => None,
        });
        messages.collect()
    }

    /// Makes one call of this name fail without effect: the first from now for
    /// `skip` 0.
    pub fn fail(&self, name: &'static str, skip: usize, errno: i32) {
        let name = Some(name);
        self.fault(When { name, skip }, errno, false);
    }

    /// Makes every call of this name fail from now on.
    pub fn fail_always(&self, name: &'static str, errno: i32) {
        let name = Some(name);
        self.fault(When { name, skip: 0 }, errno, true);
    }

    /// Makes one call fail, whichever it is: the first from now for `skip` 0.
    pub fn fail_any(&self, skip: usize, errno: i32) {
        self.fault(When { name: None, skip }, errno, false);
    }

    fn fault(&self, when: When, errno: i32, for_ever: bool) {
        self.state().faults.push(Fault {
            when,
            errno,
            for_ever,
        });
    }

    /// Whether a fault still waits for its call.
    pub fn has_faults(&self) -> bool {
        !self.state().faults.is_empty()
    }

    /// Heals all faults.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Runs something right before a call of this name takes effect, in the
    /// caller's thread: the first call from now for `skip` 0.
    pub fn before(&self, name: &'static str, skip: usize, run: impl FnOnce() + Send + 'static) {
        let name = Some(name);
        let when = When { name, skip };
        let run = Box::new(run);
        lock(&self.hooks).push(Hook { when, run });
    }

    /// What was done that some kernel forgives and the rules forbid.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// What the IOTLB holds, oldest first; `None` while it is off.
    pub fn entries(&self) -> Option<Vec<Entry>> {
        let state = self.state();
        state.iotlb.as_ref().map(|table| table.entries().to_vec())
    }

    /// Whether an entry of the IOTLB shares an address with `range`.
    pub fn holds(&self, range: Range<Iova>) -> bool {
        let entries = self.entries().unwrap_or_default();
        entries.iter().any(|entry| entry.range.overlaps(&range))
    }

    /// The bits that `VHOST_SET_FEATURES` left.
    pub fn acked(&self) -> FeatureSet {
        self.state().acked
    }

    /// Whether both queues are started.
    pub fn is_running(&self) -> bool {
        self.state().vrings.iter().all(|vring| vring.backend)
    }

    /// Whether no queue is started, and none has an eventfd bound.
    pub fn is_quiet(&self) -> bool {
        !self.state().running() && !self.has_events()
    }

    /// Whether no queue can reach a ring, started or not, and none has an eventfd
    /// bound.
    pub fn is_cut_off(&self) -> bool {
        let state = self.state();
        let cut_off = QueueIndex::ALL
            .into_iter()
            .all(|queue| !state.vrings[index(queue)].backend || !state.reaches_rings(queue));
        drop(state);
        cut_off && !self.has_events()
    }

    fn has_events(&self) -> bool {
        self.state()
            .vrings
            .iter()
            .any(|vring| vring.kick.is_some() || vring.call.is_some() || vring.error.is_some())
    }

    /// The CID that the descriptor has.
    pub fn cid(&self) -> Option<u64> {
        self.state().cid
    }

    /// How often an update woke the queue.
    pub fn wakeups(&self, queue: QueueIndex) -> usize {
        self.state().wakeups[index(queue)]
    }

    /// Messages that wait to be read.
    pub fn unread(&self) -> usize {
        self.state().unread.len()
    }

    /// Misses that the kernel holds memory for: not read yet, or not answered.
    pub fn misses_kept(&self) -> usize {
        let state = self.state();
        let unread = state.unread.iter().filter(|unread| unread.queue.is_some());
        unread.count() + state.pending.len()
    }

    /// Makes the kernel say something: bytes for the next read.
    pub fn say(&self, bytes: &[u8]) {
        let mut state = self.state();
        let bytes = bytes.to_vec();
        state.unread.push_back(Unread { queue: None, bytes });
        self.update_waiting(&state);
    }

    /// Signals the queue's call event, as `vhost_signal` does for used buffers;
    /// whether one is bound.
    pub fn notify(&self, queue: QueueIndex) -> bool {
        let state = self.state();
        let call = &state.vrings[index(queue)].call;
        let signalled = call.as_ref().map(EventFd::signal);
        signalled.is_some_and(|signalled| signalled.is_ok())
    }

    /// Signals the queue's error event, as `vq_err` does on a broken ring.
    pub fn break_queue(&self, queue: QueueIndex) {
        self.state().vrings[index(queue)].signal_error();
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Records a call and lets it fail if that is wished.
    pub(crate) fn enter(&self, call: Call) -> io::Result<MutexGuard<'_, State>> {
        let due = {
            let mut hooks = lock(&self.hooks);
            let at = hooks.iter_mut().position(|hook| hook.when.is_now(&call));
            at.map(|at| hooks.remove(at))
        };
        if let Some(hook) = due {
            (hook.run)();
        }
        let mut state = self.state();
        let mut failure = None;
        state.faults.retain_mut(|fault| {
            let now = failure.is_none() && fault.when.is_now(&call);
            if now {
                failure = Some(fault.errno);
            }
            !now || fault.for_ever
        });
        state.calls.push(call);
        match failure {
            Some(errno) => fail(errno),
            None => Ok(state),
        }
    }

    /// As [`enter`](Self::enter), for what only the owner may do
    /// (`vhost_dev_check_owner`).
    pub(crate) fn enter_owned(&self, call: Call) -> io::Result<MutexGuard<'_, State>> {
        let state = self.enter(call)?;
        match state.owner {
            Some(Owner::ThisProcess) => Ok(state),
            _ => fail(libc::EPERM),
        }
    }

    /// `vhost_chr_poll`: readable while the read list is not empty.
    pub(crate) fn update_waiting(&self, state: &State) {
        match state.unread.is_empty() {
            true => self.waiting.take().map(drop),
            false => self.waiting.signal(),
        }
        .expect("an eventfd works");
    }
}

impl std::fmt::Debug for ModelKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelKernel").finish_non_exhaustive()
    }
}

impl Drop for ModelKernel {
    fn drop(&mut self) {
        if let Some(cid) = self.state().cid {
            lock(&self.host.0).remove(&cid);
        }
    }
}

/// A test that panicked holding the lock says so by itself.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
