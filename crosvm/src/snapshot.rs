// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a snapshot of the device holds, and when one is accepted.

use anyhow::{ensure, Result};
use crosvm_vsock::address::GuestCid;
use crosvm_vsock::features::FeatureSet;
use serde::{Deserialize, Serialize};

/// The format written and read by this version.
pub const VERSION: u32 = 1;

/// The device's state while it is asleep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// [`VERSION`].
    pub version: u32,
    /// The guest's CID.
    pub cid: u64,
    /// The bits that were offered.
    pub offered: u64,
    /// The bits that the guest acknowledged.
    pub acked: u64,
    /// How many queues the device has.
    pub queues: usize,
    /// Where the kernel's queues were; none when the device was not active.
    pub vring_bases: Option<[u16; 2]>,
}

impl Snapshot {
    /// Accepts a snapshot for a device with `cid`, `offered` and `queues`.
    ///
    /// # Errors
    /// Says what does not fit; the device is to stay as it is.
    pub fn check(&self, cid: GuestCid, offered: FeatureSet, queues: usize) -> Result<()> {
        ensure!(
            self.version == VERSION,
            "a vsock snapshot of version {} cannot be read: this is version {VERSION}",
            self.version
        );
        ensure!(
            self.cid == cid.raw(),
            "the vsock snapshot is of CID {}, and this device has {cid}",
            self.cid
        );
        ensure!(
            self.queues == queues,
            "the vsock snapshot has {} queues, and this device {queues}",
            self.queues
        );
        let acked = FeatureSet::from_bits(self.acked);
        let promised = FeatureSet::from_bits(self.offered);
        ensure!(
            promised.contains(acked),
            "the vsock snapshot is damaged: the guest acknowledged {} without an offer",
            acked - promised
        );
        ensure!(
            offered.contains(acked),
            "the guest in the vsock snapshot uses {}, which this host does not offer",
            acked - offered
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: FeatureSet = FeatureSet::from_bits(1 << 32 | 1 << 29);

    fn check(change: impl FnOnce(&mut Snapshot)) -> Result<(), String> {
        let mut snapshot = Snapshot {
            version: VERSION,
            cid: 3,
            offered: OFFERED.bits(),
            acked: 1 << 32,
            queues: 3,
            vring_bases: Some([7, 8]),
        };
        change(&mut snapshot);
        let cid = GuestCid::new(3).unwrap();
        snapshot
            .check(cid, OFFERED, 3)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_fitting_snapshot_is_accepted_and_any_other_named() {
        assert_eq!(check(|_| {}), Ok(()));
        let refused = |change: fn(&mut Snapshot), word: &str| {
            let text = check(change).unwrap_err();
            assert!(text.contains(word), "{text}");
        };
        refused(|s| s.version = 2, "version 2");
        refused(|s| s.cid = 4, "CID 4");
        refused(|s| s.queues = 2, "2 queues");
        refused(|s| s.acked |= 1 << 1, "without an offer");
        refused(
            |s| {
                s.acked |= 1 << 1;
                s.offered |= 1 << 1;
            },
            "SEQPACKET",
        );
    }
}
