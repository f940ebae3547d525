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
//!   restore: asleep and not active -> asleep, active or not as the snapshot was
//! ```
//!
//! A call that the state has no arrow for is an error and changes nothing, except
//! that a reset before any activation is welcome. A failed activation leaves the
//! device where it was, to be activated again.
//!
//! An active device whose kernel side has failed stays active: it has the guest's
//! queues, tells the guest that its connections are gone, and can sleep, wake and
//! be reset as any other.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{bail, ensure, Context, Result};
use base::{error, warn, RawDescriptor, WorkerThread};
use crosvm_vsock::compat::offer;
use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::kernel::{Activation, Addressing, MessageFormat, Monitor, VhostVsock, Window};
use crosvm_vsock::rate_limit::RateLimit;
use devices::virtio::{copy_config, DeviceType, Interrupt, Queue, VirtioDevice};
use snapshot::AnySnapshot;
use vm_memory::GuestMemory;

use crate::config::{Config, Confinement};
use crate::features::Features;
use crate::guest_memory::{
    check_queues, memory_map, queue_setup, restricted_dma_pool, QUEUES, RX, TX,
};
use crate::interrupts::Calls;
use crate::snapshot::{Snapshot, VERSION};
use crate::worker::Worker;

/// Where the kernel's two queues are.
type Bases = [u16; 2];

enum State {
    New,
    Inactive,
    Active(Active),
    Asleep(Asleep),
}

/// What an active device runs on.
struct Active {
    worker: WorkerThread<Worker>,
    #[cfg(feature = "msix-status")]
    calls: Arc<Calls>,
    /// Where the kernel's queues were when the worker started, and still are if
    /// the kernel could not be started. None if the kernel has lost them.
    started_at: Option<Bases>,
}

/// Where a sleeping device was, and wakes to.
#[derive(Clone, Copy)]
enum Asleep {
    New,
    Inactive,
    Active {
        /// None if the kernel has lost them.
        bases: Option<Bases>,
        owes_reset: bool,
    },
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Inactive => "inactive",
            Self::Active(_) => "active",
            Self::Asleep(Asleep::New) => "asleep, and was new",
            Self::Asleep(Asleep::Inactive) => "asleep, and was inactive",
            Self::Asleep(Asleep::Active { .. }) => "asleep, and was active",
        }
    }
}

/// A vsock device of a crosvm VM.
pub struct Vsock {
    config: Config,
    device: VhostVsock,
    features: Features,
    window: Arc<Window>,
    state: State,
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
            features: Features::new(offered),
            window,
            state: State::New,
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

    /// Starts the kernel's queues at `bases`; the worker is not running yet.
    fn program(
        &mut self,
        memory: &GuestMemory,
        queues: &BTreeMap<usize, Queue>,
        bases: Bases,
        calls: &Calls,
    ) -> Result<Monitor> {
        let addressing = self.addressing(memory)?;
        let monitor = self.device.activate(&Activation {
            cid: self.config.cid,
            vm: self.config.vm,
            acked: self.features.acked(),
            iotlb_bit: self.config.iotlb_bit,
            addressing,
            messages: MessageFormat::V1,
            memory: memory_map(memory)?,
            queues: [
                queue_setup(queues, RX, bases[RX], calls.event(RX))?,
                queue_setup(queues, TX, bases[TX], calls.event(TX))?,
            ],
        })?;
        #[cfg(feature = "msix-status")]
        if let Err(error) = calls.follow(&self.device, devices::MsixStatus::Changed) {
            self.device.reset()?;
            return Err(error.into());
        }
        Ok(monitor)
    }

    /// Hands the queues to a thread of their own. Nothing can fail any more.
    fn run(&mut self, mut worker: Worker, started_at: Option<Bases>) {
        self.state = State::Active(Active {
            #[cfg(feature = "msix-status")]
            calls: worker.calls.clone(),
            worker: WorkerThread::start("vhost_vsock", move |kill| {
                worker.run(&kill);
                worker
            }),
            started_at,
        });
    }

    /// Takes the queues back from the kernel and the worker.
    fn suspend(&mut self, active: Active) -> Result<BTreeMap<usize, Queue>> {
        let stopped = match self.device.is_running() {
            true => self.device.stop().map(Some),
            false => Ok(active.started_at),
        };
        let mut worker = active.worker.stop();
        worker.calls.flush();
        match stopped {
            Ok(bases) => {
                self.state = State::Asleep(Asleep::Active {
                    bases,
                    owes_reset: worker.owes_reset,
                });
                Ok(worker.queues)
            }
            Err(error) => {
                // crosvm takes a device that does not sleep to be awake still.
                worker.give_up();
                self.run(worker, None);
                Err(error).context("vsock: the device does not sleep, and needs a reset")
            }
        }
    }

    /// Goes on with the queues of a sleeping device. crosvm gives up a VM whose
    /// device does not wake: one that the kernel does not start wakes all the same,
    /// says why, and works after a reset.
    fn resume(
        &mut self,
        bases: Option<Bases>,
        owes_reset: bool,
        memory: &GuestMemory,
        interrupt: Interrupt,
        queues: BTreeMap<usize, Queue>,
    ) -> Result<()> {
        check_queues(memory, &queues)?;
        let calls = Calls::new(&queues, &interrupt)?;
        let monitor = bases
            .context("where its queues were is lost")
            .and_then(|bases| self.program(memory, &queues, bases, &calls));
        if let Err(error) = &monitor {
            error!("vsock: the device cannot go on and needs a reset: {error:#}");
        }
        let worker = Worker {
            owes_reset: owes_reset || monitor.is_err(),
            queues,
            interrupt,
            calls: Arc::new(calls),
            monitor: monitor.ok(),
            complaints: RateLimit::default(),
        };
        self.run(worker, bases);
        Ok(())
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
        self.features.offered().bits()
    }

    fn ack_features(&mut self, value: u64) {
        match self.state {
            State::New | State::Inactive => self.features.ack(FeatureSet::from_bits(value)),
            State::Active(_) | State::Asleep(_) => {
                // VIRTIO 1.2, 3.1.1: features are settled before the queues are used.
                if self.complaints.allow() {
                    warn!("vsock: the guest acknowledged features of a running device: ignored");
                }
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
            State::Active(_) | State::Asleep(_) => return self.refuse("activate"),
        }
        check_queues(&mem, &queues)?;
        let calls = Calls::new(&queues, &interrupt)?;
        let start = Bases::default();
        let monitor = self.program(&mem, &queues, start, &calls)?;
        let worker = Worker {
            queues,
            interrupt,
            calls: Arc::new(calls),
            monitor: Some(monitor),
            owes_reset: false,
            complaints: RateLimit::default(),
        };
        self.run(worker, Some(start));
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        match self.state {
            State::New | State::Inactive => {}
            // The worker ends with the state that holds it.
            State::Active(_) => self.state = State::Inactive,
            State::Asleep(_) => return self.refuse("reset"),
        }
        self.features.forget();
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
        match &self.state {
            State::Active(active) if self.device.is_running() => {
                if let Err(error) = active.calls.follow(&self.device, status) {
                    error!("vsock: interrupts are not masked: {error}");
                }
            }
            // The next start looks at all masks.
            _ => {}
        }
    }

    fn virtio_sleep(&mut self) -> Result<Option<BTreeMap<usize, Queue>>> {
        if let State::Asleep(_) = self.state {
            return self.refuse("sleep");
        }
        match std::mem::replace(&mut self.state, State::Asleep(Asleep::Inactive)) {
            State::New => self.state = State::Asleep(Asleep::New),
            State::Active(active) => return self.suspend(active).map(Some),
            State::Inactive | State::Asleep(_) => {}
        }
        Ok(None)
    }

    fn virtio_wake(
        &mut self,
        queues_state: Option<(GuestMemory, Interrupt, BTreeMap<usize, Queue>)>,
    ) -> Result<()> {
        let State::Asleep(asleep) = self.state else {
            return self.refuse("wake");
        };
        match (asleep, queues_state) {
            (Asleep::New, None) => self.state = State::New,
            (Asleep::Inactive, None) => self.state = State::Inactive,
            (Asleep::Active { bases, owes_reset }, Some((memory, interrupt, queues))) => {
                self.resume(bases, owes_reset, &memory, interrupt, queues)?;
            }
            (Asleep::Active { .. }, None) => return self.refuse("wake without queues"),
            (Asleep::New | Asleep::Inactive, Some(_)) => return self.refuse("wake with queues"),
        }
        Ok(())
    }

    fn virtio_snapshot(&mut self) -> Result<AnySnapshot> {
        let vring_bases = match self.state {
            State::Asleep(Asleep::New | Asleep::Inactive) => None,
            State::Asleep(Asleep::Active { bases, .. }) => {
                Some(bases.context("vsock: snapshot is refused: the device needs a reset first")?)
            }
            _ => return self.refuse("snapshot"),
        };
        AnySnapshot::to_any(Snapshot {
            version: VERSION,
            cid: self.config.cid.raw(),
            offered: self.features.offered().bits(),
            acked: self.features.acked().bits(),
            queues: QUEUES,
            vring_bases,
        })
    }

    fn virtio_restore(&mut self, data: AnySnapshot) -> Result<()> {
        let State::Asleep(Asleep::New | Asleep::Inactive) = self.state else {
            return self.refuse("restore");
        };
        let snapshot: Snapshot =
            AnySnapshot::from_any(data).context("this is no snapshot of a vsock device")?;
        snapshot.check(self.config.cid, self.features.offered(), QUEUES)?;
        self.features.restore(FeatureSet::from_bits(snapshot.acked));
        self.state = State::Asleep(match snapshot.vring_bases {
            Some(bases) => Asleep::Active {
                bases: Some(bases),
                // The host's ends of the guest's connections did not come along.
                owes_reset: true,
            },
            None => Asleep::Inactive,
        });
        Ok(())
    }
}
