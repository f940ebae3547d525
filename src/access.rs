// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What may be done with an address, and an address that nothing is known of: the words
//! that both sides of an IOTLB use.

use std::fmt;

use crate::address::Iova;

/// What may be done, or is to be done, with an address (`VHOST_ACCESS_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read = 1,
    /// Write.
    Write = 2,
    /// Both.
    ReadWrite = 3,
}

impl Access {
    /// Whether a mapping with this access serves `wanted`.
    pub fn allows(self, wanted: Self) -> bool {
        self as u8 & wanted as u8 == wanted as u8
    }

    /// As the wire has it; `None` for what is no access.
    pub(crate) fn from_wire(raw: u8) -> Option<Self> {
        [Self::Read, Self::Write, Self::ReadWrite]
            .into_iter()
            .find(|access| *access as u8 == raw)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::ReadWrite => "read-write",
        })
    }
}

/// What an IOTLB is asked and does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The address.
    pub iova: Iova,
    /// What is to be done there.
    pub access: Access,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_a_set() {
        assert!(Access::ReadWrite.allows(Access::Read) && Access::ReadWrite.allows(Access::Write));
        assert!(!Access::Read.allows(Access::ReadWrite) && !Access::Read.allows(Access::Write));
    }
}
