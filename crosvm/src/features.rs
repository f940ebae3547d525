// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest was offered and what it acknowledged, in the pieces in which
//! crosvm's transports hand it over.

use base::warn;
use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::rate_limit::RateLimit;

const LOW: FeatureSet = FeatureSet::from_bits(u64::MAX >> 32);
const HIGH: FeatureSet = FeatureSet::from_bits(u64::MAX << 32);

/// Feature bits between a device and its driver.
pub struct Features {
    offered: FeatureSet,
    acked: FeatureSet,
    complaints: RateLimit,
}

impl Features {
    /// Offers `offered`; nothing is acknowledged yet.
    pub fn new(offered: FeatureSet) -> Self {
        Self {
            offered,
            acked: FeatureSet::EMPTY,
            complaints: RateLimit::default(),
        }
    }

    /// What the driver may choose from.
    pub fn offered(&self) -> FeatureSet {
        self.offered
    }

    /// What it chose.
    pub fn acked(&self) -> FeatureSet {
        self.acked
    }

    /// Takes one write of the driver's. What was not offered is dropped.
    ///
    /// A write brings the lower or the upper 32 bits, in any order, and the device
    /// is not told of a reset before its activation: a half that comes again
    /// replaces the last one. Nothing at all counts as the lower half, since no
    /// driver of crosvm's transports can do without VERSION_1 of the upper one.
    pub fn ack(&mut self, value: FeatureSet) {
        let strange = value - self.offered;
        if !strange.is_empty() && self.complaints.allow() {
            warn!("vsock: the guest acknowledged {strange}, which was not offered: ignored");
        }
        let mut halves = FeatureSet::EMPTY;
        for half in [LOW, HIGH] {
            if !(value & half).is_empty() {
                halves |= half;
            }
        }
        if halves.is_empty() {
            halves = LOW;
        }
        self.acked = (self.acked - halves) | (value & self.offered);
    }

    /// Takes over what was acknowledged to another device, which offered no more.
    pub fn restore(&mut self, acked: FeatureSet) {
        self.acked = acked;
    }

    /// The driver starts anew.
    pub fn forget(&mut self) {
        self.acked = FeatureSet::EMPTY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: u64 = 1 << 63 | 1 << 33 | 1 << 32 | 1 << 29 | 1 << 1;

    fn acked(writes: &[u64]) -> u64 {
        let mut features = Features::new(FeatureSet::from_bits(OFFERED));
        for value in writes {
            features.ack(FeatureSet::from_bits(*value));
        }
        features.acked().bits()
    }

    #[test]
    fn halves_come_in_any_order_or_together() {
        let (low, high) = (1 << 29 | 1 << 1, 1 << 63 | 1 << 32);
        for writes in [
            &[low, high][..],
            &[high, low],
            &[low | high],
            &[high, low, high],
        ] {
            assert_eq!(acked(writes), low | high, "{writes:x?}");
        }
    }

    #[test]
    fn a_half_that_comes_again_replaces_itself_alone() {
        assert_eq!(
            acked(&[1 << 29 | 1 << 1, 1 << 32, 1 << 1]),
            1 << 32 | 1 << 1
        );
        assert_eq!(
            acked(&[1 << 1, 1 << 33 | 1 << 32, 1 << 32]),
            1 << 32 | 1 << 1
        );
        assert_eq!(acked(&[1 << 29, 1 << 32, 0]), 1 << 32);
        assert_eq!(acked(&[1 << 29, 1 << 32, 0, 1 << 32]), 1 << 32);
    }

    #[test]
    fn what_was_not_offered_is_dropped_and_takes_its_half_along() {
        assert_eq!(acked(&[u64::MAX]), OFFERED);
        assert_eq!(acked(&[1 << 29, 1 << 32, 1 << 5]), 1 << 32);
        assert_eq!(acked(&[1 << 40]), 0);
    }

    #[test]
    fn a_reset_forgets_and_a_restore_takes_over() {
        let mut features = Features::new(FeatureSet::from_bits(OFFERED));
        features.ack(FeatureSet::from_bits(1 << 29));
        features.forget();
        assert!(features.acked().is_empty());
        features.restore(FeatureSet::from_bits(1 << 32));
        assert_eq!(features.acked().bits(), 1 << 32);
        assert_eq!(features.offered().bits(), OFFERED);
    }
}
