// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The set-up that tests share: guest memory in two regions, two queues with
//! their events, and a device on a model of the kernel.

use std::os::fd::AsFd;
use std::sync::Arc;

use crosvm_vsock::address::{Address, BusAddr, Gpa, GuestCid, Hva, Iova, Range};
use crosvm_vsock::compat::{IotlbBit, KernelKind, Mode, Vm};
use crosvm_vsock::event::EventFd;
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::{
    Access, Activation, Addressing, Error, MessageFormat, Monitor, QueueIndex, QueueSetup,
    VhostVsock, Window,
};
use crosvm_vsock::memory::{MemoryMap, Region, PAGE};

use crate::data_path::Outcome;
use crate::kernel::ModelKernel;
use crate::page_table::PageTable;

/// Bytes in each of the two regions of guest memory.
pub const REGION_SIZE: u64 = 1 << 20;
/// Where the guest sees the first region.
pub const LOW: Gpa = Gpa(0x10_0000);
/// Where the guest sees the second region.
pub const HIGH: Gpa = Gpa(0x4000_0000);
const LOW_HOST: Hva = Hva(0x7f00_0000_0000);
const HIGH_HOST: Hva = Hva(0x7e00_1000_0000);

/// Descriptors in each queue, as the bench sets them up.
pub const QUEUE_SIZE: u16 = 256;

/// Where a queue and its first buffer lie, as the driver wrote it. Each ring of
/// [`QUEUE_SIZE`] fits the page that it begins.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Descriptor table.
    pub desc: BusAddr,
    /// Available ring.
    pub avail: BusAddr,
    /// Used ring.
    pub used: BusAddr,
    /// A page for packets.
    pub buffer: BusAddr,
}

impl Place {
    const fn at(first: u64) -> Self {
        Self {
            desc: BusAddr(first),
            avail: BusAddr(first + PAGE),
            used: BusAddr(first + 2 * PAGE),
            buffer: BusAddr(first + 3 * PAGE),
        }
    }

    /// The two places of a guest that writes guest physical addresses: one in
    /// each region.
    pub const PHYSICAL: [Self; 2] = [Self::at(LOW.0), Self::at(HIGH.0)];

    /// The two places of a guest behind [`PageTable::scattered`].
    pub const VIRTUAL: [Self; 2] = [
        Self::at(PageTable::BASE.0),
        Self::at(PageTable::BASE.0 + 64 * PAGE),
    ];

    /// The places for a mode.
    pub fn of(mode: Mode) -> [Self; 2] {
        match mode {
            Mode::Translated => Self::VIRTUAL,
            Mode::Off | Mode::Identity | Mode::Restricted => Self::PHYSICAL,
        }
    }
}

/// A device that is owned and idle, on a model of the kernel.
///
/// Dropping it checks that no rule was violated.
#[derive(Debug)]
pub struct Bench {
    /// The kernel.
    pub kernel: Arc<ModelKernel>,
    /// The device under test.
    pub device: VhostVsock,
    /// Guest memory: [`LOW`] and [`HIGH`].
    pub memory: MemoryMap,
    /// The queues' driver notifications.
    pub kicks: [EventFd; 2],
    /// The queues' device notifications.
    pub calls: [EventFd; 2],
}

impl Bench {
    /// The guest's CID.
    pub const CID: u64 = 42;

    /// A device on `kernel`, owned by this process.
    pub fn new(kernel: ModelKernel) -> Self {
        let mut bench = Self::unowned(kernel);
        bench.device.own().expect("nobody else owns the model");
        bench
    }

    /// A device on `kernel` as it was opened.
    pub fn unowned(kernel: ModelKernel) -> Self {
        let kernel = Arc::new(kernel);
        let device = VhostVsock::with_kernel(kernel.clone()).expect("the model is a vhost-vsock");
        let event = || EventFd::new().expect("an eventfd");
        Self {
            kernel,
            device,
            memory: memory(),
            kicks: [event(), event()],
            calls: [event(), event()],
        }
    }

    /// One of every kernel that has an IOTLB, with its name.
    pub fn kernels() -> Vec<(&'static str, ModelKernel)> {
        let new = ModelKernel::new;
        vec![
            ("6.1", new(KernelKind::Overloaded).sticky()),
            ("6.12", new(KernelKind::Overloaded)),
            ("7.3", new(KernelKind::Overloaded).asks_once()),
            ("6.1 split", new(KernelKind::Split).sticky()),
            ("6.12 split", new(KernelKind::Split)),
            ("6.1 splitcompat", new(KernelKind::SplitCompat).sticky()),
            ("6.12 splitcompat", new(KernelKind::SplitCompat).alias()),
        ]
    }

    /// Activates for a VM that fits the addressing, with a guest that
    /// acknowledged all it was offered.
    pub fn activate(&mut self, addressing: Addressing) -> Result<Monitor, Error> {
        self.activate_with(addressing, |_| {})
    }

    /// As [`activate`](Self::activate), changed before it happens.
    pub fn activate_with<'a>(
        &'a mut self,
        addressing: Addressing,
        change: impl FnOnce(&mut Activation<'a>),
    ) -> Result<Monitor, Error> {
        let mode = addressing.mode();
        let vm = match mode {
            Mode::Off | Mode::Identity => Vm::Plain,
            Mode::Restricted => Vm::Protected,
            Mode::Translated => Vm::Viommu,
        };
        let platform = match vm.wants_platform_access() {
            true => IotlbBit::default().either(),
            false => FeatureSet::EMPTY,
        };
        let places = Place::of(mode);
        let queue = |i: usize| QueueSetup {
            size: QUEUE_SIZE,
            desc: places[i].desc,
            avail: places[i].avail,
            used: places[i].used,
            base: 0,
            kick: self.kicks[i].as_fd(),
            call: self.calls[i].as_fd(),
        };
        let mut activation = Activation {
            cid: GuestCid::new(Self::CID).expect("a guest's CID"),
            vm,
            acked: platform
                | FeatureSet::of(&[Feature::VERSION_1, Feature::EVENT_IDX, Feature::SEQPACKET]),
            iotlb_bit: IotlbBit::default(),
            addressing,
            messages: MessageFormat::V1,
            memory: self.memory.clone(),
            queues: [queue(0), queue(1)],
        };
        change(&mut activation);
        self.device.activate(&activation)
    }

    /// A window with the queues and buffers of [`Place::PHYSICAL`] and nothing
    /// else: 16 pages at the start of each region.
    pub fn window(&self) -> Arc<Window> {
        let window = Window::new();
        for first in [LOW, HIGH] {
            window
                .share(pages(first, 16))
                .expect("whole pages can be shared");
        }
        Arc::new(window)
    }

    /// Every mode with what it needs.
    pub fn addressings(&self) -> [Addressing; 4] {
        [
            Addressing::Off,
            Addressing::Identity,
            Addressing::Restricted(self.window()),
            Addressing::Translated(Arc::new(PageTable::scattered(&self.memory))),
        ]
    }

    /// Lets a queue use a buffer to the end: runs its handler, serves what it
    /// asks for, and runs it again when it is woken.
    pub fn transfer(
        &self,
        monitor: &mut Monitor,
        queue: QueueIndex,
        at: BusAddr,
        size: u64,
    ) -> Outcome {
        let access = match queue {
            QueueIndex::Rx => Access::Write,
            QueueIndex::Tx => Access::Read,
        };
        // Each round maps a page: of six rings, or of the buffer.
        for _ in 0..1000 {
            let outcome = self.kernel.access(queue, at, size, access);
            let woken = self.kernel.wakeups(queue);
            if outcome != Outcome::Missed {
                return outcome;
            }
            monitor.handle();
            if self.kernel.wakeups(queue) == woken {
                return outcome;
            }
        }
        panic!("queue {queue} is woken for {at} again and again, and finds nothing");
    }

    /// Checks that both queues can use their buffers in a mode.
    pub fn assert_flows(&self, monitor: &mut Monitor, mode: Mode) {
        for (queue, place) in QueueIndex::ALL.into_iter().zip(Place::of(mode)) {
            let outcome = self.transfer(monitor, queue, place.buffer, PAGE);
            assert!(
                matches!(outcome, Outcome::Done(_)),
                "queue {queue} in mode {mode}: {outcome:?}"
            );
        }
    }

    /// Checks that no queue runs any more, whatever it is notified of: the kernel
    /// asks for nothing.
    pub fn assert_halted(&self, mode: Mode) {
        assert!(!self.kernel.is_running(), "mode {mode}");
        let kept = self.kernel.misses_kept();
        for (queue, place) in QueueIndex::ALL.into_iter().zip(Place::of(mode)) {
            let outcome = self.kernel.access(queue, place.buffer, PAGE, Access::Read);
            assert_eq!(outcome, Outcome::Stopped, "queue {queue} in mode {mode}");
        }
        assert_eq!(self.kernel.misses_kept(), kept, "mode {mode}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.kernel.violations(), [""; 0]);
        }
    }
}

/// Guest memory: two regions whose host addresses lie the other way round.
pub fn memory() -> MemoryMap {
    let region = |gpa, hva| Region::new(gpa, hva, REGION_SIZE).expect("a region");
    MemoryMap::new(vec![region(LOW, LOW_HOST), region(HIGH, HIGH_HOST)]).expect("two regions")
}

/// `count` pages of guest memory from `first` on.
pub fn pages(first: Gpa, count: u64) -> Range<Gpa> {
    Range::new(first, count * PAGE).expect("a range of pages")
}

/// The same numbers as I/O virtual addresses: what an identity map makes of them.
pub fn iovas(range: Range<Gpa>) -> Range<Iova> {
    range.at(Iova(range.first().raw())).expect("a range")
}
