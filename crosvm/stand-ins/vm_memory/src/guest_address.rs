// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`GuestAddress`]: an address as the guest sees it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A guest physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct GuestAddress(pub u64);

impl GuestAddress {
    /// The distance from `base`, which must not lie above.
    pub fn offset_from(self, base: GuestAddress) -> u64 {
        self.0 - base.0
    }

    /// The address as a number.
    pub fn offset(self) -> u64 {
        self.0
    }

    /// The address `other` bytes on; none past the end.
    pub fn checked_add(self, other: u64) -> Option<GuestAddress> {
        self.0.checked_add(other).map(GuestAddress)
    }

    /// The address `offset` bytes on, wrapping.
    pub fn unchecked_add(self, offset: u64) -> GuestAddress {
        GuestAddress(self.0.wrapping_add(offset))
    }

    /// The address `other` bytes back; none below zero.
    pub fn checked_sub(self, other: u64) -> Option<GuestAddress> {
        self.0.checked_sub(other).map(GuestAddress)
    }
}

impl fmt::Debug for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestAddress({:#018x})", self.0)
    }
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
