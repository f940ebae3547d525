// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a running device needs done: IOTLB misses served, failures reported.
//!
//! A [`Monitor`] is a passive piece of whatever event loop the front end has:
//! poll its [`descriptors`](Monitor::descriptors), call
//! [`handle`](Monitor::handle) when one is readable. [`Monitor::run`] is such a
//! loop for those who have none. It never polls busily: an idle device costs
//! nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use log::error;

use super::ioctl::Vhost;
use super::iotlb::{Denial, Iotlb, IotlbError};
use super::queue::QueueIndex;
use crate::address::GuestCid;
use crate::event::{poll, EventFd};
use crate::rate_limit::RateLimit;

/// Something that the owner of the device must know: a queue has stopped, and the
/// driver is to be told by `DEVICE_NEEDS_RESET` (VIRTIO 1.2, 2.1.2).
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// vhost signalled the queue's error event: a ring or a descriptor that it
    /// cannot use.
    #[error("the kernel gave up on queue {0}: a ring or a descriptor in it is not valid")]
    Queue(QueueIndex),
    /// The kernel asked for an address that the guest has not shared or mapped.
    #[error("the guest's {} access to IOVA {} is outside of what it shared", .0.access, .0.iova)]
    Denied(Denial),
    /// The IOTLB can no longer be served.
    #[error("the IOTLB service failed: {0}")]
    Service(#[from] IotlbError),
}

/// Watches one activation of one device.
#[derive(Debug)]
pub struct Monitor {
    cid: GuestCid,
    kernel: Kernel,
    iotlb: Option<Arc<Iotlb>>,
    queues: [WatchedQueue; 2],
    /// A denial or a service failure has halted the device.
    halted: bool,
    complaints: RateLimit,
}

struct Kernel(Arc<dyn Vhost>);

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.descriptor().fmt(f)
    }
}

#[derive(Debug)]
struct WatchedQueue {
    index: QueueIndex,
    error: EventFd,
    kick: EventFd,
    /// Misses served when this queue's error event was last looked at.
    misses_seen: u64,
}

impl Monitor {
    pub(super) fn new(
        cid: GuestCid,
        kernel: Arc<dyn Vhost>,
        iotlb: Option<Arc<Iotlb>>,
        errors: &[EventFd; 2],
        kicks: [BorrowedFd<'_>; 2],
    ) -> io::Result<Self> {
        let watch = |index: QueueIndex| {
            let at = index.number() as usize;
            // An error from before this activation says nothing of it.
            errors[at].take()?;
            io::Result::Ok(WatchedQueue {
                index,
                error: errors[at].try_clone()?,
                kick: kicks[at].try_clone_to_owned()?.into(),
                misses_seen: 0,
            })
        };
        Ok(Self {
            cid,
            kernel: Kernel(kernel),
            iotlb,
            queues: [watch(QueueIndex::Rx)?, watch(QueueIndex::Tx)?],
            halted: false,
            complaints: RateLimit::default(),
        })
    }

    /// What to poll for reading: the queues' error events, and the vhost
    /// descriptor while there is an IOTLB to serve. After a [`Failure::Service`]
    /// there is none: a message that cannot be read would be polled busily.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let [rx, tx] = &self.queues;
        let mut descriptors = vec![rx.error.as_fd(), tx.error.as_fd()];
        if self.iotlb.is_some() {
            descriptors.push(self.kernel.0.descriptor());
        }
        descriptors
    }

    /// Does what is to be done now, without blocking, and says what has failed.
    /// Each failure is logged, at a limited rate. After [`Failure::Denied`] and
    /// [`Failure::Service`] the kernel runs no queue of the device any more.
    pub fn handle(&mut self) -> Vec<Failure> {
        let mut failures = Vec::new();
        // Misses first: they tell a queue that waits from one that is broken.
        if let Some(iotlb) = &self.iotlb {
            match iotlb.serve() {
                Ok(denials) => failures.extend(denials.into_iter().map(Failure::Denied)),
                Err(error) => failures.push(error.into()),
            }
        }
        self.halted |= !failures.is_empty();
        let misses = self.iotlb.as_ref().map_or(0, |iotlb| iotlb.stats().misses);
        if let Some(Failure::Service(_)) = failures.last() {
            self.iotlb = None;
        }
        for queue in &mut self.queues {
            match queue.error.take() {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    error!("vhost-vsock CID {}: {error}", self.cid);
                    continue;
                }
            }
            // What a queue says that is stopped for good tells nothing new.
            if self.halted {
                continue;
            }
            // The kernel signals an error also when an access merely misses. Such
            // a queue is woken, also by us; if it is broken besides, it says so
            // again, and then without a miss.
            let missed = std::mem::replace(&mut queue.misses_seen, misses) != misses;
            if !missed {
                failures.push(Failure::Queue(queue.index));
            } else if let Err(error) = queue.kick.signal() {
                error!("vhost-vsock CID {}: {error}", self.cid);
            }
        }
        for failure in &failures {
            if self.complaints.allow() {
                error!(
                    "vhost-vsock CID {}: {failure}; the device needs a reset",
                    self.cid
                );
            }
        }
        failures
    }

    /// Serves until `stop` is readable; hands each failure to `report`.
    pub fn run(mut self, stop: BorrowedFd<'_>, mut report: impl FnMut(Failure)) -> io::Result<()> {
        loop {
            let [stopped, ..] = {
                let [rx, tx] = &self.queues;
                let errors = [rx.error.as_fd(), tx.error.as_fd()];
                match self.iotlb {
                    Some(_) => {
                        let kernel = self.kernel.0.descriptor();
                        poll([stop, errors[0], errors[1], kernel], None)?
                    }
                    None => {
                        let [stopped, rx, tx] = poll([stop, errors[0], errors[1]], None)?;
                        [stopped, rx, tx, false]
                    }
                }
            };
            if stopped {
                return Ok(());
            }
            for failure in self.handle() {
                report(failure);
            }
        }
    }
}
