// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for crosvm's `base`, so that the plugin builds and is tested
//! without crosvm. Host tests only; never built by Soong.
//!
//! Paths and signatures are crosvm's; the code is this project's and holds only
//! what the plugin uses. Everything works on Linux: events are eventfds,
//! [`WaitContext`] is epoll, a [`Tube`] is a seqpacket socket pair.
//!
//! Limits: Linux only; a tube carries no file descriptors.

pub mod descriptor;
mod errno;
mod event;
mod file;
mod shm;
mod tube;
mod wait_context;
mod worker_thread;

pub use log::{debug, error, info, trace, warn};

pub use crate::descriptor::{
    AsRawDescriptor, AsRawDescriptors, Descriptor, FromRawDescriptor, IntoRawDescriptor,
    RawDescriptor, SafeDescriptor,
};
pub use crate::errno::{errno_result, Error, Result};
pub use crate::event::{Event, EventExt, EventWaitResult};
pub use crate::file::{open_file_or_duplicate, safe_descriptor_from_cmdline_fd};
pub use crate::shm::{pagesize, SharedMemory};
pub use crate::tube::{Error as TubeError, Result as TubeResult, Tube};
pub use crate::wait_context::{EventToken, EventType, TriggeredEvent, WaitContext};
pub use crate::worker_thread::WorkerThread;
