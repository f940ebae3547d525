// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! crosvm's `VirtioDevice`, by its state diagram (`virtio_device.rs`):
//!
//! ```text
//!           activate            reset             activate
//!    new ------------> active --------> inactive ---------> active
//!     |sleep             |sleep            |sleep
//!     v                  v                 v
//!   asleep            asleep            asleep     wake: back where it was
//!
//!   restore: any asleep state -> asleep, active or not as the snapshot was
//! ```
//!
//! A call that the state has no arrow for is an error and changes nothing. A
//! failed activation leaves the device where it was, to be activated again.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{bail, ensure, Context, Result};
use base::{error, warn, RawDescriptor, WorkerThread};
use crosvm_vsock::address::{Gpa, GuestCid, Range};
use crosvm_vsock::compat::{offer, IotlbBit, Vm};
use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::kernel::{Activation, Addressing, MessageFormat, Monitor, VhostVsock, Window};
use crosvm_vsock::rate_limit::RateLimit;
use devices::virtio::{copy_config, DeviceType, Interrupt, Queue, VirtioDevice};
use snapshot::AnySnapshot;
use vm_memory::GuestMemory;

use crate::guest_memory::{
    check_event_queue, memory_map, queue_setup, restricted_dma_pool, RX, TX,
};
use crate::interrupts::Calls;
use crate::snapshot::{Snapshot, VERSION};
use crate::worker::Worker;

/// Receive, transmit and event queue.
const QUEUES: usize = 3;

/// A device's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The guest's CID.
    pub cid: GuestCid,
    /// What stands between the guest and its memory.
    pub vm: Vm,
    /// crosvm's base features for the VM.
    pub base_features: FeatureSet,
    /// The bit that stands for the IOTLB on a split kernel.
    pub iotlb_bit: IotlbBit,
    /// How the kernel is confined.
    pub confinement: Confinement,
    /// The most descriptors of each queue.
    pub queue_sizes: [u16; QUEUES],
}

/// What the kernel may reach of guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// All of it, without an IOTLB.
    None,
    /// All of it, through the IOTLB.
    Identity,
    /// The restricted-DMA pool that crosvm has laid out, and these ranges.
    Restricted(Vec<Range<Gpa>>),
}

enum State {
    New,
    Inactive,
    Active(WorkerThread<Worker>, Calls),
    Asleep(Asleep),
}

/// Where a sleeping device was, and wakes to.
#[derive(Clone, Copy)]
enum Asleep {
    New,
    Inactive,
    Active([u16; 2]),
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Inactive => "inactive",
            Self::Active(..) => "active",
            Self::Asleep(_) => "asleep",
        }
    }
}

/// A vsock device of a crosvm VM.
pub struct Vsock {
    config: Config,
    device: VhostVsock,
    offered: FeatureSet,
    acked: FeatureSet,
    window: Arc<Window>,
    state: State,
    /// Where the queues of a device that did not wake have stayed.
    broken_at: [u16; 2],
    owes_reset: bool,
    complaints: RateLimit,
}

impl Vsock {
    /// A new device over an open vhost-vsock.
    ///
    /// # Errors
    /// When the ranges to share are not whole pages.
    pub fn new(device: VhostVsock, config: Config) -> Result<Self> {
        let offered = offer(
            config.vm,
            config.iotlb_bit,
            device.features(),
            config.base_features,
        );
        let window = Arc::new(Window::new());
        if let Confinement::Restricted(ranges) = &config.confinement {
            for range in ranges {
                window.share(*range).context("vsock option shared")?;
            }
        }
        Ok(Self {
            config,
            device,
            offered,
            acked: FeatureSet::EMPTY,
            window,
            state: State::New,
            broken_at: [0, 0],
            owes_reset: false,
            complaints: RateLimit::default(),
        })
    }

    /// What the guest shares in restricted mode; open to changes at any time.
    pub fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// The kernel path underneath.
    pub fn kernel(&self) -> &VhostVsock {
        &self.device
    }

    fn addressing(&self, memory: &GuestMemory) -> Result<Addressing> {
        Ok(match &self.config.confinement {
            Confinement::None => Addressing::Off,
            Confinement::Identity => Addressing::Identity,
            Confinement::Restricted(_) => {
                for range in restricted_dma_pool(memory)? {
                    self.window.share(range)?;
                }
                ensure!(
                    !self.window.shared().is_empty(),
                    "iotlb=restricted finds nothing that the guest shares: crosvm has laid out no \
                     restricted-DMA pool for this VM; name the ranges with shared=[ADDRESS+SIZE,...]"
                );
                Addressing::Restricted(self.window.clone())
            }
        })
    }

    /// Programs the kernel; the worker is not running yet.
    fn program(
        &mut self,
        memory: &GuestMemory,
        queues: &BTreeMap<usize, Queue>,
        bases: [u16; 2],
        calls: &Calls,
    ) -> Result<Monitor> {
        ensure!(
            queues.keys().copied().eq(0..QUEUES),
            "vsock needs its {QUEUES} queues, and the driver made ready {:?}",
            queues.keys().collect::<Vec<_>>()
        );
        check_event_queue(memory, queues)?;
        let addressing = self.addressing(memory)?;
        Ok(self.device.activate(&Activation {
            cid: self.config.cid,
            vm: self.config.vm,
            acked: self.acked,
            iotlb_bit: self.config.iotlb_bit,
            addressing,
            messages: MessageFormat::V1,
            memory: memory_map(memory)?,
            queues: [
                queue_setup(queues, RX, bases[RX], calls.event(RX))?,
                queue_setup(queues, TX, bases[TX], calls.event(TX))?,
            ],
        })?)
    }

    fn run(
        &mut self,
        queues: BTreeMap<usize, Queue>,
        interrupt: Interrupt,
        calls: Calls,
        monitor: Option<Monitor>,
    ) -> Result<()> {
        #[cfg(feature = "msix-status")]
        calls.follow(&self.device, devices::MsixStatus::Changed)?;
        let mut worker = Worker {
            queues,
            interrupt,
            calls: calls.try_clone()?,
            monitor,
            owes_reset: self.owes_reset,
            complaints: RateLimit::default(),
        };
        let thread = WorkerThread::start("vhost_vsock", move |kill| {
            worker.run(&kill);
            worker
        });
        self.state = State::Active(thread, calls);
        Ok(())
    }

    /// Ends the worker of an active device and takes its state back.
    fn stop(&mut self, thread: WorkerThread<Worker>) -> Worker {
        let worker = thread.stop();
        self.owes_reset = worker.owes_reset;
        worker
    }

    fn calls(queues: &BTreeMap<usize, Queue>, interrupt: &Interrupt) -> Result<Calls> {
        let vector = |index| queues.get(&index).map_or(0, Queue::vector);
        Calls::new([vector(RX), vector(TX)], interrupt.clone())
    }

    fn refuse<T>(&self, call: &str) -> Result<T> {
        bail!(
            "vsock: {call} is refused: the device is {}",
            self.state.name()
        )
    }
}

impl VirtioDevice for Vsock {
    fn keep_rds(&self) -> Vec<RawDescriptor> {
        self.device
            .descriptors()
            .iter()
            .map(|fd| fd.as_raw_fd())
            .collect()
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.config.queue_sizes
    }

    fn features(&self) -> u64 {
        self.offered.bits()
    }

    fn ack_features(&mut self, value: u64) {
        let value = FeatureSet::from_bits(value);
        let strange = value - self.offered;
        if !strange.is_empty() && self.complaints.allow() {
            warn!("vsock: the guest acknowledged {strange}, which was not offered: ignored");
        }
        // The transport hands over 32 bits at a time, and does not tell of a reset
        // before the activation: a half that comes again replaces the last one.
        for half in [
            FeatureSet::from_bits(u64::MAX >> 32),
            FeatureSet::from_bits(u64::MAX << 32),
        ] {
            if !(value & half).is_empty() {
                self.acked = (self.acked - half) | (value & half & self.offered);
            }
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(data, 0, &self.config.cid.raw().to_le_bytes(), offset);
    }

    fn activate(
        &mut self,
        mem: GuestMemory,
        interrupt: Interrupt,
        queues: BTreeMap<usize, Queue>,
    ) -> Result<()> {
        match self.state {
            State::New | State::Inactive => {}
            _ => return self.refuse("activate"),
        }
        let calls = Self::calls(&queues, &interrupt)?;
        let monitor = self.program(&mem, &queues, [0, 0], &calls)?;
        self.run(queues, interrupt, calls, Some(monitor))
            .inspect_err(|_| drop(self.device.reset()))
    }

    fn reset(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Inactive) {
            State::Active(thread, _) => drop(self.stop(thread)),
            State::Asleep(asleep) => {
                self.state = State::Asleep(asleep);
                return self.refuse("reset");
            }
            State::New | State::Inactive => {}
        }
        self.acked = FeatureSet::EMPTY;
        self.owes_reset = false;
        self.device.reset().context("vsock: resetting")
    }

    fn on_device_sandboxed(&mut self) {
        // Without an owner every activation fails and says so.
        if let Err(error) = self.device.own() {
            error!("vsock: {error}");
        }
    }

    #[cfg(feature = "msix-status")]
    fn control_notify(&self, status: devices::MsixStatus) {
        if let State::Active(_, calls) = &self.state {
            if let Err(error) = calls.follow(&self.device, status) {
                error!("vsock: interrupts are not masked: {error}");
            }
        }
    }

    fn virtio_sleep(&mut self) -> Result<Option<BTreeMap<usize, Queue>>> {
        match std::mem::replace(&mut self.state, State::Inactive) {
            State::New => self.state = State::Asleep(Asleep::New),
            State::Inactive => self.state = State::Asleep(Asleep::Inactive),
            State::Asleep(asleep) => {
                self.state = State::Asleep(asleep);
                return self.refuse("sleep");
            }
            State::Active(thread, calls) => {
                let broken = !self.device.is_running();
                let bases = match broken {
                    true => Ok(self.broken_at),
                    false => self.device.stop(),
                };
                let worker = self.stop(thread);
                // crosvm flushes interrupts next: none may be left with us.
                for queue in [RX, TX] {
                    calls.relay(queue)?;
                }
                self.state = State::Asleep(Asleep::Active(bases.context("vsock: stopping")?));
                return Ok(Some(worker.queues));
            }
        }
        Ok(None)
    }

    fn virtio_wake(
        &mut self,
        queues_state: Option<(GuestMemory, Interrupt, BTreeMap<usize, Queue>)>,
    ) -> Result<()> {
        match (&self.state, queues_state) {
            (State::Asleep(Asleep::New), None) => self.state = State::New,
            (State::Asleep(Asleep::Inactive), None) => self.state = State::Inactive,
            (State::Asleep(Asleep::Active(bases)), Some((memory, interrupt, queues))) => {
                let bases = *bases;
                let calls = Self::calls(&queues, &interrupt)?;
                // crosvm gives up a VM whose device does not wake. One that cannot
                // run wakes all the same, says why, and works after a reset.
                let monitor = self.program(&memory, &queues, bases, &calls);
                if let Err(error) = &monitor {
                    error!("vsock: the device cannot go on and needs a reset: {error:#}");
                    self.owes_reset = true;
                    self.broken_at = bases;
                }
                self.run(queues, interrupt, calls, monitor.ok())?;
            }
            (State::Asleep(Asleep::Active(_)), None) => {
                bail!("vsock: wake is refused: the device was active, and its queues are missing")
            }
            (State::Asleep(_), Some(_)) => {
                bail!(
                    "vsock: wake is refused: the device was not active, and has no use for queues"
                )
            }
            _ => return self.refuse("wake"),
        }
        Ok(())
    }

    fn virtio_snapshot(&mut self) -> Result<AnySnapshot> {
        let State::Asleep(asleep) = self.state else {
            return self.refuse("snapshot");
        };
        AnySnapshot::to_any(Snapshot {
            version: VERSION,
            cid: self.config.cid.raw(),
            offered: self.offered.bits(),
            acked: self.acked.bits(),
            queues: QUEUES,
            vring_bases: match asleep {
                Asleep::Active(bases) => Some(bases),
                Asleep::New | Asleep::Inactive => None,
            },
        })
    }

    fn virtio_restore(&mut self, data: AnySnapshot) -> Result<()> {
        let State::Asleep(_) = self.state else {
            return self.refuse("restore");
        };
        let snapshot: Snapshot =
            AnySnapshot::from_any(data).context("this is no snapshot of a vsock device")?;
        snapshot.check(self.config.cid, self.offered, QUEUES)?;
        self.acked = FeatureSet::from_bits(snapshot.acked);
        // The host's ends of the guest's connections did not come along.
        self.owes_reset = snapshot.vring_bases.is_some();
        self.state = State::Asleep(match snapshot.vring_bases {
            Some(bases) => Asleep::Active(bases),
            None => Asleep::Inactive,
        });
        Ok(())
    }
}
