// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections that are not established yet: who has to say yes, and how many may wait.
//!
//! Those who wait for one do not count for those who wait for another: host programs that
//! do not accept keep nobody from asking the guest, and a guest that does not answer keeps
//! none of its own programs from connecting.

use super::connection::Connection;
use super::limits::Limits;
use crate::address::Cid;

/// Who has to say yes to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// A host program, on the guest's behalf.
    Host,
    /// A sibling, on the guest's behalf.
    Sibling,
    /// The guest, on a host client's behalf.
    Guest,
    /// The guest, on a sibling's behalf.
    GuestForSibling,
}

impl WaitsFor {
    /// The guest, on behalf of `peer`: the host or a sibling.
    pub fn guest(peer: Cid) -> Self {
        match peer {
            Cid::HOST => Self::Guest,
            _ => Self::GuestForSibling,
        }
    }

    /// How many may.
    pub fn most(self, limits: &Limits) -> usize {
        match self {
            Self::GuestForSibling => limits.half_open.min(limits.sibling_requests),
            Self::Host | Self::Sibling | Self::Guest => limits.half_open,
        }
    }
}

impl std::fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Host => "requests of the guest's wait for host programs",
            Self::Sibling => "requests of the guest's wait for siblings",
            Self::Guest => "clients wait for the guest",
            Self::GuestForSibling => "siblings' requests wait for the guest",
        })
    }
}

/// How many connections wait, for each of those they can wait for.
#[derive(Debug, Default)]
pub struct Waiting {
    counts: [usize; 4],
}

impl Waiting {
    /// How many wait for `whom`.
    pub fn at(&self, whom: WaitsFor) -> usize {
        self.counts[whom as usize]
    }

    /// Counts a connection as waiting for `whom`, and for nobody else any more.
    pub fn count(&mut self, connection: &mut Connection, whom: Option<WaitsFor>) {
        if let Some(before) = connection.counted_waiting {
            self.counts[before as usize] -= 1;
        }
        if let Some(now) = whom {
            self.counts[now as usize] += 1;
        }
        connection.counted_waiting = whom;
    }
}
