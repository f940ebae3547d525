// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One device with one guest, put together as a VMM would.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{anyhow, Context, Result};
use crosvm_vsock::address::{Address, BusAddr, Gpa, GuestCid, Hva, Iova, Range};
use crosvm_vsock::compat::{offer, IotlbBit, Mode, Vm};
use crosvm_vsock::event::EventFd;
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::{
    Access, Activation, Addressing, Error, Failure, MessageFormat, QueueSetup, Translation,
    Translator, VhostVsock, Window,
};
use crosvm_vsock::memory::{MemoryMap, Region, PAGE};
use guest_driver::bus::AddressSpace;
use guest_driver::{Guest, GuestConfig};

use crate::counting::Counting;

/// What a cell wants of its VM.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What stands between the guest and its memory.
    pub vm: Vm,
    /// Which of the two platform bits the guest knows.
    pub platform: FeatureSet,
    /// The layout of IOTLB messages.
    pub messages: MessageFormat,
    /// The guest driver, without its CID and features.
    pub guest: GuestConfig,
}

impl Spec {
    /// A protected VM whose guest knows bit 33 alone, as Linux guests do.
    pub fn protected() -> Self {
        Self {
            vm: Vm::Protected,
            platform: Feature::ACCESS_PLATFORM.set(),
            messages: MessageFormat::V1,
            guest: GuestConfig::default(),
        }
    }

    /// A VM behind a vIOMMU: IOVAs scattered page by page.
    pub fn translated(seed: u64) -> Self {
        let mut spec = Self::protected();
        spec.vm = Vm::Viommu;
        spec.guest.addressing = guest_driver::bus::Addressing::paged(seed);
        spec
    }

    /// A guest whose rings and buffers all lie in the middle of its first region;
    /// the returned window shares exactly that.
    pub fn windowed() -> Result<(Self, Arc<Window>)> {
        let mut spec = Self::protected();
        let range = window_range(&spec)?;
        let within = driver_range(range);
        spec.guest.rings_from = Some(within.clone());
        spec.guest.buffers_from = Some(within);
        let window = Arc::new(Window::new());
        window.share(range)?;
        Ok((spec, window))
    }
}

/// The middle 16 MiB of the guest's first region.
pub fn window_range(spec: &Spec) -> Result<Range<Gpa>> {
    let first = spec.guest.memory.first().context("a region")?;
    Ok(Range::new(Gpa(first.gpa.0 + (4 << 20)), 16 << 20)?)
}

/// The same range in the guest driver's terms, whose end is exclusive.
pub fn driver_range(range: Range<Gpa>) -> guest_driver::memory::GpaRange {
    guest_driver::memory::Gpa(range.first().raw())
        ..guest_driver::memory::Gpa(range.last().raw() + 1)
}

/// A guest and its device.
pub struct Rig {
    /// The guest driver.
    pub guest: Guest,
    /// Its CID.
    pub cid: GuestCid,
    /// What it acknowledged.
    pub acked: FeatureSet,
    /// The kernel's interface, counted.
    pub kernel: Arc<Counting>,
    /// The device under test.
    pub device: VhostVsock,
    spec: Spec,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    stop: EventFd,
    failures: Receiver<Failure>,
    thread: JoinHandle<io::Result<()>>,
}

/// A CID that no earlier cell has used.
pub fn fresh_cid() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(3000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Rig {
    /// A guest that has acknowledged what it knows of what it was offered, and a
    /// device that is owned but not active.
    pub fn new(spec: Spec) -> Result<Self> {
        Self::with_cid(spec, fresh_cid())
    }

    /// A guest that fits `mode`, and the addressing that it wants.
    pub fn in_mode(mode: Mode) -> Result<(Self, Addressing)> {
        Ok(match mode {
            Mode::Off => (Self::new(Spec::protected())?, Addressing::Off),
            Mode::Identity => (Self::new(Spec::protected())?, Addressing::Identity),
            Mode::Restricted => {
                let (spec, window) = Spec::windowed()?;
                (Self::new(spec)?, Addressing::Restricted(window))
            }
            Mode::Translated => {
                let rig = Self::new(Spec::translated(1))?;
                let viommu = Viommu::of(&rig.guest);
                (rig, Addressing::Translated(viommu))
            }
        })
    }

    /// The same as [`new`](Self::new) with a CID of one's choice.
    pub fn with_cid(mut spec: Spec, cid: u64) -> Result<Self> {
        let kernel = Arc::new(Counting::open(Path::new(VhostVsock::PATH))?);
        let mut device = VhostVsock::with_kernel(kernel.clone())?;
        device.own()?;
        let offered = offer(
            spec.vm,
            IotlbBit::default(),
            device.features(),
            FeatureSet::EMPTY,
        );
        let unknown = IotlbBit::default().either() - spec.platform;
        let acked = offered - unknown;
        spec.guest.cid = cid;
        spec.guest.event_idx = acked.has(Feature::EVENT_IDX);
        spec.guest.indirect = acked.has(Feature::INDIRECT_DESC);
        spec.guest.timeout = crate::host::TIMEOUT;
        let guest = Guest::new(spec.guest.clone()).context("the guest driver")?;
        Ok(Self {
            guest,
            cid: GuestCid::new(cid)?,
            acked,
            kernel,
            device,
            spec,
            watch: None,
        })
    }

    /// Guest memory as the device is told.
    pub fn memory(&self) -> Result<MemoryMap> {
        let region =
            |r: &guest_driver::memory::Region| Region::new(Gpa(r.gpa.0), Hva(r.hva), r.size);
        let regions: Result<Vec<_>, _> = self.guest.memory().regions().iter().map(region).collect();
        Ok(MemoryMap::new(regions?)?)
    }

    /// Starts the device from scratch.
    pub fn activate(&mut self, addressing: Addressing) -> Result<(), Error> {
        self.activate_from(addressing, [0, 0])
    }

    /// Starts the device where an earlier activation stopped.
    pub fn activate_from(&mut self, addressing: Addressing, bases: [u16; 2]) -> Result<(), Error> {
        let memory = self.memory().expect("the guest driver's regions are valid");
        let [rx, tx, _events] = self.guest.queues();
        let queues = [queue_setup(&rx, bases[0]), queue_setup(&tx, bases[1])];
        let monitor = self.device.activate(&Activation {
            cid: self.cid,
            vm: self.spec.vm,
            acked: self.acked,
            iotlb_bit: IotlbBit::default(),
            addressing,
            messages: self.spec.messages,
            memory,
            queues,
        })?;
        let stop = EventFd::new().map_err(Error::Event)?;
        let stopped = stop.try_clone().map_err(Error::Event)?;
        let (send, failures) = channel();
        let thread = std::thread::spawn(move || {
            monitor.run(stopped.as_fd(), |failure| {
                // Nobody listens any more: the cell has ended.
                let _ = send.send(failure);
            })
        });
        self.watch = Some(Watch {
            stop,
            failures,
            thread,
        });
        Ok(())
    }

    /// Stops the device; returns where it was.
    pub fn stop(&mut self) -> Result<[u16; 2]> {
        let bases = self.device.stop()?;
        self.end_watch()?;
        Ok(bases)
    }

    /// Resets device and driver, as a guest's reboot does.
    pub fn reset(&mut self) -> Result<()> {
        self.device.reset()?;
        self.end_watch()?;
        self.guest.reset(0).context("the guest driver's reset")
    }

    /// The next failure that the device reports, within `limit`.
    pub fn failure(&self, limit: Duration) -> Option<Failure> {
        self.watch.as_ref()?.failures.recv_timeout(limit).ok()
    }

    /// What has gone wrong on either side without a cell asking for it.
    pub fn check_quiet(&self) -> Result<()> {
        if let Some(failure) = self.failure(Duration::ZERO) {
            return Err(anyhow!("the device reported: {failure}"));
        }
        if let Some(failure) = self.guest.failure() {
            return Err(anyhow!("the guest driver gave up: {failure}"));
        }
        match self.guest.take_violations().first() {
            Some(violation) => Err(anyhow!("the device broke a rule: {violation:?}")),
            None => Ok(()),
        }
    }

    fn end_watch(&mut self) -> Result<()> {
        let Some(watch) = self.watch.take() else {
            return Ok(());
        };
        watch.stop.signal()?;
        let ended = watch
            .thread
            .join()
            .map_err(|_| anyhow!("the monitor panicked"))?;
        Ok(ended?)
    }
}

/// A queue of the guest driver as a device is told of it.
pub fn queue_setup(queue: &guest_driver::QueueSetup, base: u16) -> QueueSetup<'_> {
    QueueSetup {
        size: queue.size,
        desc: BusAddr(queue.addresses.desc.0),
        avail: BusAddr(queue.addresses.avail.0),
        used: BusAddr(queue.addresses.used.0),
        base,
        kick: queue.kick.as_fd(),
        call: queue.call.as_fd(),
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // A cell that failed is reported by its own error.
        let _ = self.device.reset();
        let _ = self.end_watch();
    }
}

/// The guest's page table as a vIOMMU answers it, page by page.
#[derive(Debug)]
pub struct Viommu(pub Arc<AddressSpace>);

impl Viommu {
    /// For `guest`.
    pub fn of(guest: &Guest) -> Arc<Self> {
        Arc::new(Self(guest.space().clone()))
    }
}

impl Translator for Viommu {
    fn translate(&self, iova: Iova) -> Option<Translation> {
        let page = iova.raw() - iova.raw() % PAGE;
        let gpa = self.0.lookup(guest_driver::bus::BusAddr(page))?;
        Some(Translation {
            range: Range::new(Iova(page), PAGE).ok()?,
            gpa: Gpa(gpa.0),
            access: Access::ReadWrite,
        })
    }
}
