// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The IOTLB service: tells the kernel what it may reach, and answers its misses.
//!
//! Once bit 33 (or the separate bit of a split kernel) is acknowledged, vhost
//! looks every address up in a table that starts empty. The service fills it
//! through the vhost descriptor:
//!
//! - *before the start* with all rings, readable and writable, since
//!   `VHOST_VSOCK_SET_RUNNING` touches the used rings synchronously, and since a
//!   ring mapped with too little access stalls its queue without a miss or an error;
//! - *while running* on each miss, idempotently: the kernel drops its oldest entry
//!   at the limit without a word, and repeats itself;
//! - *on a change* ([`Iotlb::changed`]): invalidate first, since an update adds
//!   beside what is there, and give back what the invalidation took too much.
//!
//! A miss that the [`Translator`] denies is not answered (the kernel has no
//! message for that): it is counted, logged and returned, and the owner of the
//! device fails the queue visibly. It also halts the device, as a failure of the
//! service does: `VHOST_VSOCK_SET_RUNNING(0)`, and only a full start runs it again.
//! What a denied queue that ran on would do depends on the kernel
//! (`vhost_iotlb_miss`):
//!
//! - before 7.x it asks anew at each notification, and the kernel keeps every miss
//!   in memory of its own: the guest decides how much;
//! - since 7.x it asks for nothing more, whatever is mapped meanwhile, until its
//!   last miss is answered or the IOTLB is turned off (`vhost_clear_msg`). On a
//!   halted device the host's programs get `EHOSTUNREACH` and need not wait.
//!
//! [`message`] is the wire, [`table`] the mirror of the kernel's entries,
//! [`translator`] decides. Every change of the table and the writes that carry it
//! out happen under one lock, so that the kernel never keeps a translation that
//! its translator has taken back.

pub mod message;
pub mod table;
pub mod translator;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::{error, warn};

use self::message::{parse_miss, Command, Mapping, MessageFormat, MESSAGE_SIZE};
use self::table::Table;
use self::translator::Translator;
use super::ioctl::Vhost;
use crate::access::{Access, Miss};
use crate::address::{Address, Iova, Range};
use crate::memory::{MemoryMap, PAGE};
use crate::rate_limit::{debug_within, RateLimit};

/// Misses answered in one go before the caller's loop gets its turn again.
const BATCH: usize = 64;

/// The service of one activation of one device.
pub struct Iotlb {
    kernel: Arc<dyn Vhost>,
    memory: MemoryMap,
    translator: Arc<dyn Translator>,
    format: MessageFormat,
    mirror: Mutex<Mirror>,
    counters: Counters,
    complaints: RateLimit,
    notes: RateLimit,
}

/// What the kernel was told.
struct Mirror {
    table: Table,
    /// The device is stopped: the kernel is told nothing.
    closed: bool,
    /// A miss was denied or the service failed: the queues are not to run again.
    halted: bool,
    /// The activation has ended: the descriptor is another's now.
    over: bool,
    /// Misses read while closed. Since 7.x a queue asks for nothing else before
    /// its last miss is answered (`vhost_iotlb_miss`): they must not be lost.
    unanswered: Vec<Miss>,
}

impl Mirror {
    /// What was asked while closed, once open again.
    fn overdue(&mut self) -> Vec<Miss> {
        match self.closed || self.over {
            true => Vec::new(),
            false => std::mem::take(&mut self.unanswered),
        }
    }
}

impl std::fmt::Debug for Iotlb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Iotlb")
            .field("format", &self.format)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Counters {
    misses: AtomicU64,
    repeats: AtomicU64,
    updates: AtomicU64,
    invalidations: AtomicU64,
    denials: AtomicU64,
    malformed: AtomicU64,
}

/// What the service has done since activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Addresses that the kernel asked for.
    pub misses: u64,
    /// Of these, addresses that it had been told already: asked twice, or dropped
    /// by a kernel with a lower limit than the default.
    pub repeats: u64,
    /// Entries that it was told.
    pub updates: u64,
    /// Ranges that it was told to forget.
    pub invalidations: u64,
    /// Entries that it dropped for want of room, all of which it may ask for again.
    pub evictions: u64,
    /// Misses that the translator denied.
    pub denials: u64,
    /// Messages that made no sense.
    pub malformed: u64,
    /// Entries held now.
    pub entries: u64,
}

/// An access that the translator does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Where.
    pub iova: Iova,
    /// What the kernel wanted to do.
    pub access: Access,
}

/// The service lost the kernel.
#[derive(Debug, thiserror::Error)]
pub enum IotlbError {
    /// An update or invalidation was refused: `EFAULT` when the IOTLB is off.
    #[error(
        "the kernel refused an IOTLB message ({what}): its IOTLB is off, or it is out of memory"
    )]
    Send {
        /// Which.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// read(2) failed.
    #[error("IOTLB messages cannot be read from the kernel")]
    Receive(#[source] io::Error),
}

impl Iotlb {
    /// A service that has told the kernel nothing yet. `table_limit` is the
    /// kernel's `max_iotlb_entries`.
    pub(super) fn new(
        kernel: Arc<dyn Vhost>,
        memory: MemoryMap,
        translator: Arc<dyn Translator>,
        format: MessageFormat,
        table_limit: usize,
    ) -> Self {
        Self {
            kernel,
            memory,
            translator,
            format,
            mirror: Mutex::new(Mirror {
                table: Table::new(table_limit),
                closed: false,
                halted: false,
                over: false,
                unanswered: Vec::new(),
            }),
            counters: Counters::default(),
            complaints: RateLimit::default(),
            notes: RateLimit::default(),
        }
    }

    /// The memory that it maps.
    pub fn memory(&self) -> &MemoryMap {
        &self.memory
    }

    /// Forgets misses from before this activation: the kernel keeps what nobody
    /// read, and it is about a table that is gone (`vhost_init_device_iotlb`
    /// clears no list). Only while no queue runs.
    pub(super) fn discard_old_misses(&self) -> Result<(), IotlbError> {
        while self.receive(&mut [0; MESSAGE_SIZE])?.is_some() {}
        Ok(())
    }

    /// Tells the kernel all that the translator gives in advance.
    pub(super) fn preload(&self) -> Result<(), IotlbError> {
        let mut mirror = self.lock();
        let mut commands = Vec::new();
        self.map_preloads(&mut mirror.table, Range::everything(), &mut commands);
        self.send(&commands)
    }

    /// Takes everything back: no queue reaches any memory when this returns, and
    /// no miss is answered before [`open`](Self::open).
    pub(super) fn close(&self) -> Result<(), IotlbError> {
        let mut mirror = self.lock();
        mirror.closed = true;
        let mut commands = Vec::new();
        mirror.table.unmap(Range::everything(), &mut commands);
        self.send(&commands)
    }

    /// Goes on after [`close`](Self::close), with nothing mapped.
    pub(super) fn open(&self) {
        self.lock().closed = false;
    }

    /// Makes sure that the kernel can read and write all of `range`; `false` when
    /// the translator does not let it.
    pub(super) fn require(&self, range: Range<Iova>) -> Result<bool, IotlbError> {
        let mut mirror = self.lock();
        let mut next = range.first();
        loop {
            let mapping = match mirror.table.covering(next) {
                Some(mapping) => mapping,
                None => {
                    let Some(mapping) = self.translate(next) else {
                        return Ok(false);
                    };
                    let mut commands = Vec::new();
                    mirror.table.map(mapping, &mut commands);
                    self.send(&commands)?;
                    mapping
                }
            };
            if !mapping.access.allows(Access::ReadWrite) {
                return Ok(false);
            }
            match mapping.range.last().checked_add(1) {
                Some(after) if after <= range.last() => next = after,
                _ => return Ok(true),
            }
        }
    }

    /// Answers the misses that wait, at most a batch of them; returns those that
    /// were denied. A denial or a failure halts the device before this returns;
    /// what its queues had asked by then can still be read.
    pub fn serve(&self) -> Result<Vec<Denial>, IotlbError> {
        let mut denials = Vec::new();
        let mut mirror = self.lock();
        for miss in mirror.overdue() {
            denials.extend(self.answer(&mut mirror, miss)?);
        }
        drop(mirror);
        for _ in 0..BATCH {
            // Read under the lock too: what comes after the end is not ours.
            let mut mirror = self.lock();
            if mirror.over {
                break;
            }
            let mut bytes = [0; MESSAGE_SIZE];
            let received = self.receive(&mut bytes);
            let Some(filled) = received.inspect_err(|_| self.halt(&mut mirror))? else {
                break;
            };
            match parse_miss(&bytes[..filled.min(MESSAGE_SIZE)]) {
                Ok(miss) => denials.extend(self.answer(&mut mirror, miss)?),
                Err(error) => {
                    count(&self.counters.malformed);
                    if self.complaints.allow() {
                        warn!("vhost-vsock: ignored {error}");
                    }
                }
            }
        }
        Ok(denials)
    }

    /// The translation of `range` has changed: the kernel forgets what it held
    /// there and is told what the translator now gives in advance. When this
    /// returns, no queue uses the old translation. Does nothing while the device is
    /// stopped or once the activation has ended.
    pub fn changed(&self, range: Range<Iova>) -> Result<(), IotlbError> {
        let mut mirror = self.lock();
        if mirror.closed || mirror.over {
            return Ok(());
        }
        let mut commands = Vec::new();
        mirror.table.unmap(range, &mut commands);
        self.map_preloads(&mut mirror.table, range, &mut commands);
        self.send(&commands)
    }

    /// Whether the activation has ended.
    pub(super) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Whether a denial or a failure has halted the device.
    pub(super) fn is_halted(&self) -> bool {
        self.lock().halted
    }

    /// What the service has done so far.
    pub fn stats(&self) -> Stats {
        let table = &self.lock().table;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            misses: load(&self.counters.misses),
            repeats: load(&self.counters.repeats),
            updates: load(&self.counters.updates),
            invalidations: load(&self.counters.invalidations),
            evictions: table.evictions(),
            denials: load(&self.counters.denials),
            malformed: load(&self.counters.malformed),
            entries: table.held() as u64,
        }
    }

    fn answer(&self, mirror: &mut Mirror, miss: Miss) -> Result<Option<Denial>, IotlbError> {
        let answered = self.map_or_deny(mirror, miss);
        if !matches!(answered, Ok(None)) {
            self.halt(mirror);
        }
        answered
    }

    /// Stops the queues, once. Under the lock, so that it cannot hit the next
    /// activation. A call that fails is made again by whoever stops the device.
    fn halt(&self, mirror: &mut Mirror) {
        if std::mem::replace(&mut mirror.halted, true) {
            return;
        }
        if let Err(error) = self.kernel.set_running(false) {
            error!("vhost-vsock: the queues cannot be stopped: {error}");
        }
    }

    fn map_or_deny(&self, mirror: &mut Mirror, miss: Miss) -> Result<Option<Denial>, IotlbError> {
        let Miss { iova, access } = miss;
        count(&self.counters.misses);
        if mirror.closed {
            if mirror.unanswered.len() < BATCH && !mirror.unanswered.contains(&miss) {
                mirror.unanswered.push(miss);
            }
            return Ok(None);
        }
        let mapping = self.translate(iova);
        let Some(mapping) = mapping.filter(|mapping| mapping.access.allows(access)) else {
            count(&self.counters.denials);
            if self.complaints.allow() {
                warn!("vhost-vsock: denied the kernel {access} access to IOVA {iova}");
            }
            return Ok(Some(Denial { iova, access }));
        };
        if mirror.table.covering(iova).is_some() {
            count(&self.counters.repeats);
        }
        let mut commands = Vec::new();
        mirror.table.map(mapping, &mut commands);
        debug_within!(
            self.notes,
            "vhost-vsock: miss at IOVA {iova} ({access}), mapped {}",
            mapping.range
        );
        self.send(&commands)?;
        Ok(None)
    }

    /// The translator's answer for one address, cut to the region that backs it
    /// and checked: a translator is somebody else's code.
    fn translate(&self, iova: Iova) -> Option<Mapping> {
        let translation = self.translator.translate(iova)?;
        let into = iova.offset_from(translation.range.first())?;
        let gpa = translation.gpa.checked_add(into)?;
        let parts = self.host_parts(&translation);
        let nowhere = !translation.range.contains(iova) || parts.is_empty();
        if nowhere && self.complaints.allow() {
            warn!("vhost-vsock: IOVA {iova} translates to GPA {gpa}, which is no guest memory");
        }
        parts.into_iter().find(|part| part.range.contains(iova))
    }

    /// Maps what the translator gives in advance, as far as there is room: the
    /// rest waits for misses.
    fn map_preloads(&self, table: &mut Table, range: Range<Iova>, commands: &mut Vec<Command>) {
        let translations = self.translator.preload(range);
        let mappings = translations.iter().flat_map(|one| self.host_parts(one));
        for mapping in mappings {
            if table.is_half_full() {
                break;
            }
            table.map(mapping, commands);
        }
    }

    /// One mapping for each memory region behind a translation. Ends that are not
    /// page-aligned could split a ring's field: such a translation gives nothing.
    fn host_parts(&self, translation: &super::Translation) -> Vec<Mapping> {
        let super::Translation { range, gpa, access } = *translation;
        let ends = range.first().raw() | gpa.raw() | range.last().raw().wrapping_add(1);
        let guest = range.at(gpa).filter(|_| ends % PAGE == 0);
        let parts = guest.into_iter().flat_map(|guest| self.memory.parts(guest));
        parts
            .filter_map(|(part, host)| {
                let into = part.first().offset_from(gpa)?;
                Some(Mapping {
                    range: part.at(range.first().checked_add(into)?)?,
                    host: host.first(),
                    access,
                })
            })
            .collect()
    }

    fn send(&self, commands: &[Command]) -> Result<(), IotlbError> {
        for command in commands {
            let (what, counter) = match command {
                Command::Update(_) => ("update", &self.counters.updates),
                Command::Invalidate(_) => ("invalidation", &self.counters.invalidations),
            };
            count(counter);
            for message in command.encode(self.format) {
                self.kernel
                    .send(&message)
                    .map_err(|source| IotlbError::Send { what, source })?;
            }
        }
        Ok(())
    }

    fn receive(&self, bytes: &mut [u8; MESSAGE_SIZE]) -> Result<Option<usize>, IotlbError> {
        self.kernel.receive(bytes).map_err(IotlbError::Receive)
    }

    fn lock(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hold that an activation has on its service. When it lets go, the kernel
/// hears nothing more of the service: a window or a monitor that still has it
/// cannot reach into the next activation.
#[derive(Debug)]
pub(super) struct Service(pub(super) Arc<Iotlb>);

impl Drop for Service {
    fn drop(&mut self) {
        self.0.lock().over = true;
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
