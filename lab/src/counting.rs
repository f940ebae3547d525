// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's interface with a counter and a clock: how many calls something
//! took, whether it touched the kernel at all, which features it was told, how fast a miss was answered.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::kernel::ioctl::{VhostFd, VringAddresses};
use crosvm_vsock::kernel::iotlb::message::MESSAGE_SIZE;
use crosvm_vsock::kernel::{QueueIndex, Vhost};
use crosvm_vsock::memory::MemoryMap;

/// A real vhost-vsock whose calls are counted.
#[derive(Debug)]
pub struct Counting {
    kernel: VhostFd,
    ioctls: AtomicU64,
    messages: AtomicU64,
    told: AtomicU64,
    timing: Mutex<Timing>,
}

/// When a miss was read, and how long until the next message went out.
#[derive(Debug, Default)]
struct Timing {
    miss: Option<Instant>,
    to_update: Vec<f64>,
}

impl Counting {
    /// Opens the device file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            kernel: VhostFd::open(path)?,
            ioctls: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            told: AtomicU64::new(0),
            timing: Mutex::default(),
        })
    }

    /// ioctls so far.
    pub fn ioctls(&self) -> u64 {
        self.ioctls.load(Ordering::Relaxed)
    }

    /// IOTLB messages written so far.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// The features that the kernel took last.
    pub fn told(&self) -> FeatureSet {
        FeatureSet::from_bits(self.told.load(Ordering::Relaxed))
    }

    /// Microseconds from each miss read to the message that answered it.
    pub fn miss_to_update(&self) -> Vec<f64> {
        self.timing().to_update.clone()
    }

    fn timing(&self) -> MutexGuard<'_, Timing> {
        self.timing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ioctl(&self) -> &VhostFd {
        self.ioctls.fetch_add(1, Ordering::Relaxed);
        &self.kernel
    }
}

impl Vhost for Counting {
    fn features(&self) -> io::Result<FeatureSet> {
        self.ioctl().features()
    }

    fn set_owner(&self) -> io::Result<()> {
        self.ioctl().set_owner()
    }

    fn set_features(&self, features: FeatureSet) -> io::Result<()> {
        self.ioctl().set_features(features)?;
        self.told.store(features.bits(), Ordering::Relaxed);
        Ok(())
    }

    fn backend_features(&self) -> io::Result<u64> {
        self.ioctl().backend_features()
    }

    fn set_backend_features(&self, features: u64) -> io::Result<()> {
        self.ioctl().set_backend_features(features)
    }

    fn set_mem_table(&self, memory: &MemoryMap) -> io::Result<()> {
        self.ioctl().set_mem_table(memory)
    }

    fn set_vring_num(&self, queue: QueueIndex, size: u16) -> io::Result<()> {
        self.ioctl().set_vring_num(queue, size)
    }

    fn set_vring_base(&self, queue: QueueIndex, base: u16) -> io::Result<()> {
        self.ioctl().set_vring_base(queue, base)
    }

    fn vring_base(&self, queue: QueueIndex) -> io::Result<u16> {
        self.ioctl().vring_base(queue)
    }

    fn set_vring_addr(&self, queue: QueueIndex, addresses: VringAddresses) -> io::Result<()> {
        self.ioctl().set_vring_addr(queue, addresses)
    }

    fn set_vring_kick(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.ioctl().set_vring_kick(queue, event)
    }

    fn set_vring_call(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.ioctl().set_vring_call(queue, event)
    }

    fn set_vring_err(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.ioctl().set_vring_err(queue, event)
    }

    fn set_guest_cid(&self, cid: u64) -> io::Result<()> {
        self.ioctl().set_guest_cid(cid)
    }

    fn set_running(&self, running: bool) -> io::Result<()> {
        self.ioctl().set_running(running)
    }

    fn send(&self, message: &[u8; MESSAGE_SIZE]) -> io::Result<()> {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.kernel.send(message)?;
        let mut timing = self.timing();
        if let Some(miss) = timing.miss.take() {
            timing.to_update.push(miss.elapsed().as_secs_f64() * 1e6);
        }
        Ok(())
    }

    fn receive(&self, message: &mut [u8; MESSAGE_SIZE]) -> io::Result<Option<usize>> {
        let received = self.kernel.receive(message)?;
        self.timing().miss = received.map(|_| Instant::now());
        Ok(received)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.kernel.descriptor()
    }
}
