// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel path: the host kernel's vhost-vsock moves the data, this module
//! programs it and serves its IOTLB.
//!
//! Follow a feature bit: [`compat`](crate::compat) decides, `setup` tells the
//! kernel through [`ioctl`]. Follow a life: [`device`] has the states, `setup` starts,
//! `pause` stops. Follow an address: [`queue`] checks it, the
//! [`Plan`](crate::compat::Plan) says in which sense it is read, [`iotlb`] says
//! where it leads. Follow a failure: [`monitor`] hears of it, [`error`] words it.
//!
//! The descriptor stays in one process: host addresses in IOTLB messages are
//! resolved in the address space of its owner (`VHOST_SET_OWNER`), whoever writes
//! them.

pub mod device;
pub mod error;
pub mod ioctl;
pub mod iotlb;
pub mod monitor;
mod pause;
pub mod probe;
pub mod queue;
mod setup;

pub use crate::access::Access;
pub use device::{Activation, Addressing, VhostVsock};
pub use error::Error;
pub use ioctl::Vhost;
pub use iotlb::message::MessageFormat;
pub use iotlb::translator::{ShareError, Translation, Translator, Window};
pub use iotlb::{Denial, Iotlb};
pub use monitor::{Failure, Monitor};
pub use queue::{QueueIndex, QueueSetup};
