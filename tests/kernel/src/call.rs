// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was called, in which order, with what.

use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::kernel::ioctl::VringAddresses;
use crosvm_vsock::kernel::QueueIndex;
use crosvm_vsock::memory::MemoryMap;

use crate::message::Message;

/// One call on the descriptor; recorded whether or not it succeeded.
#[allow(missing_docs)] // each is the request of its name
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    GetFeatures,
    SetOwner,
    SetFeatures(FeatureSet),
    GetBackendFeatures,
    SetBackendFeatures(u64),
    SetMemTable(MemoryMap),
    SetVringNum(QueueIndex, u16),
    SetVringBase(QueueIndex, u16),
    GetVringBase(QueueIndex),
    SetVringAddr(QueueIndex, VringAddresses),
    /// `true` binds an eventfd, `false` unbinds.
    SetVringKick(QueueIndex, bool),
    /// `true` binds an eventfd, `false` unbinds.
    SetVringCall(QueueIndex, bool),
    /// `true` binds an eventfd, `false` unbinds.
    SetVringErr(QueueIndex, bool),
    SetGuestCid(u64),
    SetRunning(bool),
    /// write(2).
    Write(Message),
    /// read(2).
    Read,
}

/// Names of calls, for faults and assertions.
#[allow(missing_docs)] // each is the request of its name
pub mod name {
    pub const GET_FEATURES: &str = "VHOST_GET_FEATURES";
    pub const SET_OWNER: &str = "VHOST_SET_OWNER";
    pub const SET_FEATURES: &str = "VHOST_SET_FEATURES";
    pub const GET_BACKEND_FEATURES: &str = "VHOST_GET_BACKEND_FEATURES";
    pub const SET_BACKEND_FEATURES: &str = "VHOST_SET_BACKEND_FEATURES";
    pub const SET_MEM_TABLE: &str = "VHOST_SET_MEM_TABLE";
    pub const SET_VRING_NUM: &str = "VHOST_SET_VRING_NUM";
    pub const SET_VRING_BASE: &str = "VHOST_SET_VRING_BASE";
    pub const GET_VRING_BASE: &str = "VHOST_GET_VRING_BASE";
    pub const SET_VRING_ADDR: &str = "VHOST_SET_VRING_ADDR";
    pub const SET_VRING_KICK: &str = "VHOST_SET_VRING_KICK";
    pub const SET_VRING_CALL: &str = "VHOST_SET_VRING_CALL";
    pub const SET_VRING_ERR: &str = "VHOST_SET_VRING_ERR";
    pub const SET_GUEST_CID: &str = "VHOST_VSOCK_SET_GUEST_CID";
    pub const SET_RUNNING: &str = "VHOST_VSOCK_SET_RUNNING";
    pub const WRITE: &str = "write";
    pub const READ: &str = "read";
}

impl Call {
    /// The request's name, one of [`name`].
    pub fn name(&self) -> &'static str {
        match self {
            Self::GetFeatures => name::GET_FEATURES,
            Self::SetOwner => name::SET_OWNER,
            Self::SetFeatures(_) => name::SET_FEATURES,
            Self::GetBackendFeatures => name::GET_BACKEND_FEATURES,
            Self::SetBackendFeatures(_) => name::SET_BACKEND_FEATURES,
            Self::SetMemTable(_) => name::SET_MEM_TABLE,
            Self::SetVringNum(..) => name::SET_VRING_NUM,
            Self::SetVringBase(..) => name::SET_VRING_BASE,
            Self::GetVringBase(_) => name::GET_VRING_BASE,
            Self::SetVringAddr(..) => name::SET_VRING_ADDR,
            Self::SetVringKick(..) => name::SET_VRING_KICK,
            Self::SetVringCall(..) => name::SET_VRING_CALL,
            Self::SetVringErr(..) => name::SET_VRING_ERR,
            Self::SetGuestCid(_) => name::SET_GUEST_CID,
            Self::SetRunning(_) => name::SET_RUNNING,
            Self::Write(_) => name::WRITE,
            Self::Read => name::READ,
        }
    }
}
