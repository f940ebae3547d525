// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can go wrong on the kernel path, each with what it means and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::device::VhostVsock;
use super::iotlb::translator::ShareError;
use super::iotlb::{Denial, IotlbError};
use super::queue::{QueueError, QueueIndex};
use crate::address::GuestCid;
use crate::compat::CompatError;
use crate::features::FeatureSet;

/// A failure of the kernel path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device file cannot be opened.
    #[error("cannot open {}: {}", path.display(), open_advice(path, source))]
    Open {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The descriptor does not behave as a vhost-vsock.
    #[error("the descriptor is not a vhost-vsock device ({0}): open /dev/vhost-vsock, read-write")]
    NotVhostVsock(&'static str),
    /// Another process has called `VHOST_SET_OWNER` on the descriptor.
    #[error("the vhost-vsock descriptor is owned by another process: open one for each process")]
    OwnedElsewhere,
    /// A call came in a state in which it has no meaning.
    #[error("{call} is refused: the device is {state}")]
    State {
        /// The call.
        call: &'static str,
        /// The state.
        state: &'static str,
    },
    /// The wish cannot be met by this kernel for this guest.
    #[error(transparent)]
    Compat(#[from] CompatError),
    /// A queue that cannot be run.
    #[error("queue {queue} cannot be started: {source}")]
    Queue {
        /// Which.
        queue: QueueIndex,
        /// Why.
        source: QueueError,
    },
    /// Mode restricted, and a shared range is not guest memory.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The bits were taken, but the IOTLB does not answer.
    #[error(
        "the kernel took the feature bits {told} but its IOTLB is off: it may know the IOTLB by another \
         bit than the one configured; `crosvm-vsock probe` tells its kind"
    )]
    IotlbOff {
        /// What was passed in `VHOST_SET_FEATURES`.
        told: FeatureSet,
        /// The refused message.
        source: IotlbError,
    },
    /// The IOTLB service failed.
    #[error(transparent)]
    Iotlb(#[from] IotlbError),
    /// A queue that was stopped waits for an address that it may not have.
    #[error("a queue cannot go on: the guest's {} access to IOVA {} is outside of what it shared", .0.access, .0.iova)]
    Denied(Denial),
    /// Another device has the CID.
    #[error("CID {0} is in use by another vsock device of this host: choose another")]
    CidInUse(GuestCid),
    /// A call that has no meaning of its own here failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Address space for a stopped device's rings could not be reserved.
    #[error("the queues cannot be stopped: no address space is left to move their rings to")]
    Reserve(#[source] io::Error),
    /// An eventfd could not be made, cloned or signalled.
    #[error("an event descriptor failed: {0}")]
    Event(#[source] io::Error),
}

fn open_advice(path: &Path, error: &io::Error) -> String {
    match error.raw_os_error() {
        // Another path than the kernel's own is more likely mistyped than without its module.
        Some(libc::ENOENT) if path != Path::new(VhostVsock::PATH) => {
            format!("there is no such file; the kernel's device is {}", VhostVsock::PATH)
        }
        Some(libc::ENOENT) => {
            "there is no such device; load the module with `modprobe vhost_vsock`, or use the userspace path \
             where the kernel has none"
                .into()
        }
        Some(libc::ENODEV) | Some(libc::ENXIO) => {
            "the device file is there but its driver is not; load the module with `modprobe vhost_vsock`".into()
        }
        Some(libc::EACCES) | Some(libc::EPERM) => {
            "permission denied; run as root, or join the group that owns the device (often `kvm`: \
             `usermod -aG kvm $USER`, then log in again)"
                .into()
        }
        _ => error.to_string(),
    }
}

/// A refused ioctl: which, on which queue, and what the answer means.
#[derive(Debug)]
pub struct CallError {
    /// The request's name.
    pub call: &'static str,
    /// The queue that it was about.
    pub queue: Option<QueueIndex>,
    /// The kernel's answer.
    pub source: io::Error,
    /// What that means here.
    pub meaning: Option<&'static str>,
}

impl CallError {
    pub(super) fn new(call: &'static str, queue: Option<QueueIndex>, source: io::Error) -> Self {
        let meaning = meaning(call, source.raw_os_error());
        Self {
            call,
            queue,
            source,
            meaning,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.call)?;
        if let Some(queue) = self.queue {
            write!(f, " for queue {queue}")?;
        }
        match self.meaning {
            Some(meaning) => write!(f, " failed: {meaning} ({})", self.source),
            None => write!(f, " failed: {}", self.source),
        }
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// What an answer of vhost-vsock means, from `drivers/vhost/vhost.c` and `vsock.c`.
fn meaning(call: &str, errno: Option<i32>) -> Option<&'static str> {
    Some(match (call, errno?) {
        (_, libc::EPERM) => "the descriptor has no owner yet, or another process owns it",
        (SET_OWNER, libc::EBUSY) => "the descriptor has an owner already",
        (SET_FEATURES, libc::EOPNOTSUPP) => "a feature bit that this kernel does not offer",
        (SET_MEM_TABLE, libc::E2BIG) => {
            "more memory regions than the vhost module's max_mem_regions"
        }
        (SET_RUNNING_IOTLB, libc::EFAULT) => "the IOTLB is on and the used ring is not mapped",
        (SET_RUNNING, libc::EFAULT) => {
            "a used ring is not mapped at the address given; if the IOTLB is on although nobody asked for it, \
             the descriptor keeps it from an earlier use"
        }
        (_, libc::EBUSY) => "the queue is running",
        (_, libc::ENOMEM) => "the kernel is out of memory",
        (_, libc::EBADF) => "an event descriptor is not open",
        _ => return None,
    })
}

pub(super) const SET_OWNER: &str = "VHOST_SET_OWNER";
pub(super) const SET_FEATURES: &str = "VHOST_SET_FEATURES";
pub(super) const SET_MEM_TABLE: &str = "VHOST_SET_MEM_TABLE";
pub(super) const SET_RUNNING: &str = "VHOST_VSOCK_SET_RUNNING";
pub(super) const SET_RUNNING_IOTLB: &str = "VHOST_VSOCK_SET_RUNNING (IOTLB on)";

#[cfg(test)]
mod tests {
    use super::*;

    fn call(call: &'static str, queue: Option<QueueIndex>, errno: i32) -> String {
        CallError::new(call, queue, io::Error::from_raw_os_error(errno)).to_string()
    }

    #[test]
    fn a_refused_call_says_which_on_what_and_why() {
        let text = call("VHOST_SET_VRING_NUM", Some(QueueIndex::Tx), libc::EBUSY);
        assert!(
            text.contains("VHOST_SET_VRING_NUM for queue 1 (transmit)"),
            "{text}"
        );
        assert!(text.contains("is running"), "{text}");
        let text = call(SET_RUNNING_IOTLB, None, libc::EFAULT);
        assert!(
            text.contains("the IOTLB is on and the used ring is not mapped"),
            "{text}"
        );
        let text = call("VHOST_SET_VRING_CALL", None, libc::EIO);
        assert!(
            text.ends_with(&io::Error::from_raw_os_error(libc::EIO).to_string()),
            "{text}"
        );
    }

    #[test]
    fn a_missing_device_and_a_missing_permission_say_what_to_type() {
        let open = |errno| Error::Open {
            path: "/dev/vhost-vsock".into(),
            source: io::Error::from_raw_os_error(errno),
        };
        assert!(open(libc::ENOENT)
            .to_string()
            .contains("modprobe vhost_vsock"));
        assert!(open(libc::ENODEV)
            .to_string()
            .contains("modprobe vhost_vsock"));
        assert!(open(libc::EACCES).to_string().contains("usermod"));
    }

    #[test]
    fn a_mistyped_path_is_not_a_missing_module() {
        let error = Error::Open {
            path: "/dev/vhost-vsok".into(),
            source: io::Error::from_raw_os_error(libc::ENOENT),
        };
        let text = error.to_string();
        assert!(
            text.contains("no such file") && !text.contains("modprobe"),
            "{text}"
        );
    }
}
