// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Feature bits: their numbers, names and what the specification says of them.
//!
//! A [`Feature`] is one bit, a [`FeatureSet`] any 64 of them: unknown bits are
//! kept and print as numbers, so that nothing is hidden from whoever reads a
//! log. Which bits may be offered or passed on is not decided here but by the
//! allowlists of [`compat`](crate::compat).

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Sub};

/// One feature bit, 0 to 63.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Feature(u8);

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $meaning:literal;)*) => {
        impl Feature {
            $(#[doc = $meaning] $(#[$doc])* pub const $name: Self = Self($bit);)*

            /// Every bit with a name, in order.
            pub const NAMED: &'static [Self] = &[$(Self($bit)),*];

            /// The bit's name in the field's usual spelling, if it has one.
            pub fn name(self) -> Option<&'static str> {
                match self.0 { $($bit => Some(stringify!($name)),)* _ => None }
            }

            /// What the bit means, in one sentence.
            pub fn meaning(self) -> Option<&'static str> {
                match self.0 { $($bit => Some($meaning),)* _ => None }
            }
        }
    };
}

features! {
    /// VIRTIO 1.2, 5.10.3.
    STREAM = 0, "Stream socket type is supported.";
    /// VIRTIO 1.2, 5.10.3.
    SEQPACKET = 1, "Seqpacket socket type is supported.";
    /// VIRTIO 1.3, 5.10.3.
    NO_IMPLIED_STREAM = 2, "Stream socket type is not implied by the absence of the STREAM bit.";
    /// VIRTIO 1.2, 6.3 (legacy).
    NOTIFY_ON_EMPTY = 24, "The device notifies when it runs out of available buffers (legacy).";
    /// `VHOST_F_LOG_ALL`, `linux/vhost_types.h`: a vhost bit, never a guest's.
    LOG_ALL = 26, "vhost logs all writes to guest memory.";
    /// VIRTIO 1.2, 6.3 (legacy).
    ANY_LAYOUT = 27, "The device accepts arbitrary descriptor layouts (legacy; implied by VERSION_1).";
    /// VIRTIO 1.2, 6.
    INDIRECT_DESC = 28, "The driver can use descriptors with the VIRTQ_DESC_F_INDIRECT flag set.";
    /// VIRTIO 1.2, 6.
    EVENT_IDX = 29, "This feature enables the used_event and the avail_event fields.";
    /// `VHOST_USER_F_PROTOCOL_FEATURES`: between a vhost-user front end and back end, never a guest's.
    PROTOCOL_FEATURES = 30, "vhost-user protocol features can be negotiated.";
    /// VIRTIO 1.2, 6.1.
    VERSION_1 = 32, "This indicates compliance with the specification (a modern device).";
    /// VIRTIO 1.2, 6. Linux's vhost reads the same bit as "translate through the device IOTLB".
    ACCESS_PLATFORM = 33, "The device can be used on a platform where device access to data in memory is limited or translated.";
    /// VIRTIO 1.2, 6.
    RING_PACKED = 34, "Support for the packed virtqueue layout.";
    /// VIRTIO 1.2, 6.
    IN_ORDER = 35, "All buffers are used by the device in the same order in which they have been made available.";
    /// VIRTIO 1.2, 6.
    ORDER_PLATFORM = 36, "Memory accesses by the driver and the device are ordered in a way described by the platform.";
    /// VIRTIO 1.2, 6.
    SR_IOV = 37, "The device supports Single Root I/O Virtualization.";
    /// VIRTIO 1.2, 6.
    NOTIFICATION_DATA = 38, "The driver passes extra data in its device notifications.";
    /// VIRTIO 1.2, 6.
    NOTIF_CONFIG_DATA = 39, "The driver uses the data provided by the device as a virtqueue identifier in notifications.";
    /// VIRTIO 1.2, 6.
    RING_RESET = 40, "The driver can reset a queue individually.";
    /// VIRTIO 1.3, 6.
    ADMIN_VQ = 41, "The device exposes one or more administration virtqueues.";
    /// A transport's bit: crosvm offers it for its own transports.
    SUSPEND = 42, "The driver can suspend the device.";
}

impl Feature {
    /// Bit `number`; `None` above 63.
    pub const fn from_number(number: u8) -> Option<Self> {
        if number < 64 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The bit's number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The set that holds this bit alone.
    pub const fn set(self) -> FeatureSet {
        FeatureSet(1 << self.0)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "bit {}", self.0),
        }
    }
}

impl fmt::Debug for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}({})", self.0)
    }
}

/// Any set of feature bits, known or not.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FeatureSet(u64);

impl FeatureSet {
    /// No bit.
    pub const EMPTY: Self = Self(0);

    /// The set as it crosses an interface.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As [`from_bits`](Self::from_bits) took it.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The set of all of `features`.
    pub const fn of(features: &[Feature]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < features.len() {
            bits |= 1 << features[i].0;
            i += 1;
        }
        Self(bits)
    }

    /// Whether `feature` is in the set.
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & (1 << feature.0) != 0
    }

    /// Whether every bit of `other` is in the set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set holds no bit.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The bits, lowest first.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        (0..64).map(Feature).filter(move |bit| self.has(*bit))
    }
}

impl BitOr for FeatureSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for FeatureSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for FeatureSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for FeatureSet {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Display for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (i, feature) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            feature.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} ({self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_print_as_numbers() {
        let set = FeatureSet::from_bits(1 << 33 | 1 << 63 | 1 << 1 | 1 << 50);
        assert_eq!(
            set.to_string(),
            "SEQPACKET, ACCESS_PLATFORM, bit 50, bit 63"
        );
        assert_eq!(
            format!("{set:?}"),
            "0x8004000200000002 (SEQPACKET, ACCESS_PLATFORM, bit 50, bit 63)"
        );
        assert_eq!(FeatureSet::EMPTY.to_string(), "none");
    }

    #[test]
    fn set_algebra() {
        let a = FeatureSet::of(&[Feature::VERSION_1, Feature::EVENT_IDX]);
        assert_eq!(a.bits(), 1 << 32 | 1 << 29);
        assert!(a.has(Feature::EVENT_IDX) && !a.has(Feature::SEQPACKET));
        assert_eq!(a - Feature::VERSION_1.set(), Feature::EVENT_IDX.set());
        assert!(a.contains(Feature::VERSION_1.set()));
        assert!(!Feature::VERSION_1.set().contains(a));
    }

    #[test]
    fn every_named_bit_says_what_it_means_and_numbers_end_at_63() {
        for feature in Feature::NAMED {
            assert!(feature.name().is_some() && feature.meaning().is_some());
        }
        assert!(Feature::from_number(64).is_none());
        assert_eq!(Feature::from_number(63).unwrap().to_string(), "bit 63");
    }
}
