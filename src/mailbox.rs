// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way from any thread to the thread of a device.
//!
//! A question is a closure that runs on the device's thread between two turns of the data
//! path, and must not wait. The queue is bounded: who asks too much is told
//! [`Refusal::Busy`], and so is who is not answered within [`PATIENCE`], or never will be.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::Arc;
use std::time::Duration;

use log::warn;

use crate::event::EventFd;
use crate::management::{Managed, Refusal};

/// Questions that may wait, and those answered at a wake-up.
const MOST: usize = 64;

/// How long a question may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

const FULL: &str = "has as many questions waiting as it takes: ask again later";
const LATE: &str = "did not answer in time: what was asked for may still happen";
const ENDED: &str = "has ended";

type Question = Box<dyn FnOnce(&mut dyn Managed) + Send>;

/// Where questions are put. Clones lead to the same device.
#[derive(Clone)]
pub struct Mailbox {
    questions: SyncSender<Question>,
    wake: Arc<EventFd>,
}

/// Where the device's thread finds them: readable when there is one.
pub struct Inbox {
    questions: Receiver<Question>,
    wake: Arc<EventFd>,
}

/// Both ends.
pub fn mailbox() -> io::Result<(Mailbox, Inbox)> {
    let wake = Arc::new(EventFd::new()?);
    let (sender, receiver) = sync_channel(MOST);
    let mailbox = Mailbox {
        questions: sender,
        wake: wake.clone(),
    };
    let inbox = Inbox {
        questions: receiver,
        wake,
    };
    Ok((mailbox, inbox))
}

impl Mailbox {
    /// Has the device's thread answer a question.
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut dyn Managed) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (sender, answer) = sync_channel(1);
        let question: Question = Box::new(move |device| {
            // Whoever asked may have lost patience.
            let _ = sender.send(question(device));
        });
        self.questions.try_send(question).map_err(|error| {
            Refusal::Busy(match error {
                TrySendError::Full(_) => FULL,
                TrySendError::Disconnected(_) => ENDED,
            })
        })?;
        self.wake.signal()?;
        answer.recv_timeout(PATIENCE).map_err(|error| {
            Refusal::Busy(match error {
                RecvTimeoutError::Timeout => LATE,
                RecvTimeoutError::Disconnected => ENDED,
            })
        })
    }
}

impl Inbox {
    /// Answers what has been asked, a bounded number of questions.
    pub fn answer(&self, device: &mut dyn Managed) {
        if let Err(error) = self.wake.take() {
            warn!("a mailbox cannot be looked at: {error}");
        }
        for _ in 0..MOST {
            let Ok(question) = self.questions.try_recv() else {
                return;
            };
            question(device);
        }
        // There may be more, which no signal will announce.
        if let Err(error) = self.wake.signal() {
            warn!("a mailbox cannot be looked at again: {error}");
        }
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
