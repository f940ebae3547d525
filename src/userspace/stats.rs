// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Counters of one VM, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Its value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! stats {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// What has happened on one VM's device since it was made.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: Counter,)*
        }

        impl Stats {
            /// Every counter with its name.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

stats! {
    /// Packets taken from the guest.
    packets_from_guest,
    /// Payload bytes taken from the guest.
    bytes_from_guest,
    /// Packets given to the guest.
    packets_to_guest,
    /// Payload bytes given to the guest.
    bytes_to_guest,
    /// Connections that were established.
    connections,
    /// Requests refused: nobody listens, or a limit.
    refused,
    /// RSTs sent for packets that belong to no connection.
    stray_packets,
    /// Packets with a source that is not the guest's.
    wrong_source,
    /// Chains and headers that made no sense.
    malformed,
    /// Connections ended because the guest broke the protocol.
    violations,
    /// Refusals because of the limit on connections.
    limit_connections,
    /// Refusals because of the limit on half-open connections.
    limit_half_open,
    /// Connections reset because of the limit on pending bytes.
    limit_pending_bytes,
    /// RSTs dropped because of the limit on pending ones.
    limit_pending_resets,
    /// Connections that could not be made for want of descriptors.
    out_of_descriptors,
    /// How often connections were ended all at once: their guest was gone, or an operator
    /// said so.
    resets,
}
