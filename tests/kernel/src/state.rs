// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel keeps for one open descriptor, and the rules by which it changes.

use std::collections::VecDeque;
use std::io;

use crosvm_vsock::address::{Address, Hva, Iova, Range};
use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::QueueIndex;
use crosvm_vsock::memory::{MemoryMap, PAGE};

use crate::call::Call;
use crate::fault::Fault;
use crate::iotlb::{Entry, Hole, Table};
use crate::message::Message;
use crate::vring::{Vring, NOWHERE, READ, WRITE};

/// Measured: seqpacket, indirect, event index, version 1, and the legacy bits
/// 24, 26 and 27 that vhost offers and nobody here may pass.
pub(crate) const OFFERED: FeatureSet = FeatureSet::from_bits(0x1_3d00_0002);
/// `VHOST_BACKEND_F_IOTLB_MSG_V2`.
pub(crate) const MSG_V2: u64 = 1 << 1;
/// `max_iotlb_entries`.
pub(crate) const IOTLB_LIMIT: usize = 2048;
/// What `access_ok` lets pass on the 64-bit machine with the most user space.
pub(crate) const USER_SPACE: u64 = (1 << 56) - PAGE;

/// `mm` of the caller, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Owner {
    ThisProcess,
    AnotherProcess,
}

#[derive(Clone, Debug)]
pub(crate) struct Traits {
    pub(crate) kind: KernelKind,
    pub(crate) separate: Feature,
    pub(crate) offered: FeatureSet,
    pub(crate) sticky: bool,
    pub(crate) iotlb_limit: usize,
    /// A queue asks for one address at a time (`vq->iotlb_miss`).
    pub(crate) asks_once: bool,
    /// The separate bit turns the IOTLB on as well, on a kernel of kind SplitCompat.
    pub(crate) alias: bool,
}

/// The model's whole state; one lock, as `dev->mutex` with all queues' locks.
pub(crate) struct State {
    pub(crate) traits: Traits,
    pub(crate) owner: Option<Owner>,
    pub(crate) acked: FeatureSet,
    pub(crate) backend_features: u64,
    pub(crate) memory: Option<MemoryMap>,
    pub(crate) iotlb: Option<Table>,
    pub(crate) vrings: [Vring; 2],
    /// `dev->read_list`: asked, not read yet.
    pub(crate) unread: VecDeque<Unread>,
    /// `dev->pending_list`: read, not answered yet.
    pub(crate) pending: Vec<(QueueIndex, Iova)>,
    pub(crate) cid: Option<u64>,
    pub(crate) calls: Vec<Call>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) wakeups: [usize; 2],
    pub(crate) violations: Vec<String>,
}

pub(crate) struct Unread {
    /// Which queue waits; `None` for bytes that a test made up.
    pub(crate) queue: Option<(QueueIndex, Iova)>,
    pub(crate) bytes: Vec<u8>,
}

impl State {
    pub(crate) fn new(kind: KernelKind) -> Self {
        Self {
            traits: Traits {
                kind,
                separate: bit(63),
                offered: OFFERED,
                sticky: false,
                iotlb_limit: IOTLB_LIMIT,
                asks_once: false,
                alias: false,
            },
            owner: None,
            acked: FeatureSet::EMPTY,
            backend_features: 0,
            memory: None,
            iotlb: None,
            vrings: Default::default(),
            unread: VecDeque::new(),
            pending: Vec::new(),
            cid: None,
            calls: Vec::new(),
            faults: Vec::new(),
            wakeups: [0; 2],
            violations: Vec::new(),
        }
    }

    pub(crate) fn running(&self) -> bool {
        self.vrings.iter().any(|vring| vring.backend)
    }

    pub(crate) fn offered(&self) -> FeatureSet {
        let Traits {
            kind,
            separate,
            offered,
            ..
        } = self.traits;
        let platform = Feature::ACCESS_PLATFORM.set();
        match kind {
            KernelKind::NoIotlb => offered - Feature::SEQPACKET.set(),
            KernelKind::Overloaded => offered | platform,
            KernelKind::Split | KernelKind::SplitCompat => offered | platform | separate.set(),
        }
    }

    /// Whether these bits ask this kernel for its IOTLB.
    pub(crate) fn asks_for_iotlb(&self, features: FeatureSet) -> bool {
        let platform = features.has(Feature::ACCESS_PLATFORM);
        let separate = features.has(self.traits.separate);
        match self.traits.kind {
            KernelKind::NoIotlb => false,
            KernelKind::Overloaded => platform,
            KernelKind::SplitCompat => platform || (separate && self.traits.alias),
            KernelKind::Split => separate,
        }
    }

    pub(crate) fn has_message_interface(&self) -> bool {
        self.traits.kind != KernelKind::NoIotlb
    }

    pub(crate) fn violated(&mut self, rule: impl Into<String>) {
        self.violations.push(rule.into());
    }

    /// `vhost_iotlb_miss`: the caller updates the descriptor's readiness.
    pub(crate) fn miss(&mut self, queue: QueueIndex, iova: Iova, perm: u8) {
        let unread = self.unread.iter().filter_map(|unread| unread.queue);
        let mut asked = unread.chain(self.pending.iter().copied());
        if self.traits.asks_once && asked.any(|(other, _)| other == queue) {
            return;
        }
        let v2 = self.backend_features & MSG_V2 != 0;
        let message = Message {
            version: if v2 { 2 } else { 1 },
            iova: iova.raw(),
            size: 0,
            uaddr: 0,
            perm,
            kind: Message::MISS,
        };
        self.unread.push_back(Unread {
            queue: Some((queue, iova)),
            bytes: message.encode().to_vec(),
        });
    }

    pub(crate) fn set_features(&mut self, features: FeatureSet) -> io::Result<()> {
        if !self.offered().contains(features) {
            return fail(libc::EOPNOTSUPP);
        }
        let known = [
            Feature::SEQPACKET,
            Feature::INDIRECT_DESC,
            Feature::EVENT_IDX,
            Feature::VERSION_1,
            Feature::ACCESS_PLATFORM,
            self.traits.separate,
        ];
        let strange = features - FeatureSet::of(&known);
        if !strange.is_empty() {
            self.violated(format!("passed {strange}, which nobody implements"));
        }
        if self.running() {
            self.violated("changed the features of running queues");
        }
        let was_on = self.iotlb.is_some();
        if self.asks_for_iotlb(features) {
            self.iotlb = Some(Table::new(self.traits.iotlb_limit));
            if !was_on && !self.traits.sticky {
                self.forget_rings();
            }
        } else if was_on && !self.traits.sticky {
            self.iotlb = None;
            self.forget_rings();
            self.unread.clear();
            self.pending.clear();
        }
        self.acked = features;
        Ok(())
    }

    /// `vhost_vq_invalidate_access`, of kernels that can turn the IOTLB off.
    pub(crate) fn forget_rings(&mut self) {
        for vring in &mut self.vrings {
            vring.addresses = NOWHERE;
        }
    }

    /// `vhost_vsock_start` for one queue.
    pub(crate) fn start(&mut self, queue: QueueIndex) -> io::Result<()> {
        // vhost_vq_access_ok: without a memory table nothing is, IOTLB or not.
        let Some(memory) = &self.memory else {
            return fail(libc::EFAULT);
        };
        let vring = &self.vrings[index(queue)];
        let event_idx = self.acked.has(Feature::EVENT_IDX);
        if self.iotlb.is_none() {
            let rings = vring.rings(event_idx);
            if rings
                .iter()
                .any(|(range, _)| range.last().raw() >= USER_SPACE)
            {
                return fail(libc::EFAULT);
            }
        }
        if vring.backend {
            return Ok(());
        }
        // vhost_vq_init_access: writes used->flags, reads used->idx. Through the
        // IOTLB both look for a *readable* entry (__vhost_get_user_slow).
        for field in vring.used_head() {
            let Some(field) = field else {
                return fail(libc::EFAULT);
            };
            match &self.iotlb {
                None => {
                    let hva = Hva(field.first().raw());
                    let mapped = memory
                        .regions()
                        .iter()
                        .any(|region| region.hva().contains(hva));
                    if !mapped {
                        return fail(libc::EFAULT);
                    }
                }
                Some(table) => {
                    let hole = match table.walk(field, READ) {
                        Ok(pieces) if pieces.len() == 1 => continue,
                        Ok(_) => None,
                        Err(hole) => Some(hole),
                    };
                    vring.signal_error();
                    if let Some(Hole::Missing(iova)) = hole {
                        self.miss(queue, iova, READ);
                    }
                    return fail(libc::EFAULT);
                }
            }
        }
        self.vrings[index(queue)].backend = true;
        Ok(())
    }

    /// `vhost_process_iotlb_msg`, and what the rules say of such a message.
    pub(crate) fn process(&mut self, message: Message) -> io::Result<()> {
        let range = message
            .last()
            .and_then(|last| Range::inclusive(Iova(message.iova), Iova(last)));
        let Some(range) = range else {
            self.violated(format!(
                "a message of size 0 or beyond the end: {message:?}"
            ));
            return fail(libc::EINVAL);
        };
        match message.kind {
            Message::UPDATE => self.update(message, range),
            Message::INVALIDATE => match &mut self.iotlb {
                Some(table) => {
                    table.delete(range);
                    Ok(())
                }
                None => fail(libc::EFAULT),
            },
            other => {
                self.violated(format!("a message of type {other}"));
                fail(libc::EFAULT)
            }
        }
    }

    pub(crate) fn update(&mut self, message: Message, range: Range<Iova>) -> io::Result<()> {
        let Message {
            iova, uaddr, perm, ..
        } = message;
        let beyond = uaddr
            .checked_add(message.size)
            .is_none_or(|end| end > USER_SPACE);
        if self.iotlb.is_none() || beyond {
            return fail(libc::EFAULT);
        }
        if perm == 0 || perm > READ | WRITE {
            self.violated(format!("an update with access {perm}"));
        }
        let page_ends = iova | uaddr | range.last().raw().wrapping_add(1);
        if page_ends % PAGE != 0 {
            self.violated(format!("an update that could split a field: {message:?}"));
        }
        let entry = Entry {
            range,
            host: Hva(uaddr),
            perm,
        };
        let host = range.at(entry.host);
        if let (Some(memory), Some(host)) = (&self.memory, host) {
            let regions = memory.regions().iter();
            let inside: u64 = regions
                .filter_map(|region| region.hva().intersection(&host)?.size())
                .map(|size| size.get())
                .sum();
            if inside != message.size {
                self.violated(format!("an update beyond guest memory: {message:?}"));
            }
        }
        let running = self.running();
        if let Some(table) = &mut self.iotlb {
            let mut entries = table.entries().iter();
            let overlapped = entries.find(|old| running && old.range.overlaps(&range));
            let overlapped = overlapped.copied();
            table.add(entry);
            if let Some(old) = overlapped {
                self.violated(format!("an update over {old:?} that nobody invalidated"));
            }
        }
        // vhost_iotlb_notify_vq: only misses that were read already.
        let wakeups = &mut self.wakeups;
        self.pending.retain(|(queue, miss)| {
            let answered = range.contains(*miss);
            wakeups[index(*queue)] += usize::from(answered);
            !answered
        });
        Ok(())
    }
}

pub(crate) fn index(queue: QueueIndex) -> usize {
    queue.number() as usize
}

pub(crate) fn fail<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

pub(crate) fn bit(number: u8) -> Feature {
    Feature::from_number(number).expect("a bit from 0 to 63")
}
