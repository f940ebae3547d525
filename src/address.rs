// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Addresses, ranges and vsock names as types.
//!
//! The failure of 2022 was one number read in two senses. Here each sense is a
//! type of its own, and only the code that knows the sense may name it:
//!
//! | type | whose address | who makes one |
//! |---|---|---|
//! | [`BusAddr`] | as the driver wrote it, sense not yet decided | the transport |
//! | [`Gpa`] | guest physical | the memory map, or the shim for an untranslated [`BusAddr`] |
//! | [`Iova`] | I/O virtual, what vhost looks up in its IOTLB | the shim, a translator |
//! | [`Hva`] | host virtual, in the process that owns the device | the memory map |
//!
//! Pure arithmetic, no I/O. A [`Range`] is never empty and never wraps.

use std::fmt;
use std::num::NonZeroU64;

/// A kind of address: a `u64` whose sense the type names.
pub trait Address: Copy + Ord + fmt::Debug + fmt::Display {
    /// Gives the number the sense `Self`.
    fn new(raw: u64) -> Self;
    /// The bare number.
    fn raw(self) -> u64;
    /// The address `bytes` further on; `None` past the last 64-bit address.
    fn checked_add(self, bytes: u64) -> Option<Self> {
        self.raw().checked_add(bytes).map(Self::new)
    }
    /// The distance from `base` in bytes; `None` when `self` lies before it.
    fn offset_from(self, base: Self) -> Option<u64> {
        self.raw().checked_sub(base.raw())
    }
}

macro_rules! address {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl Address for $name {
            fn new(raw: u64) -> Self {
                Self(raw)
            }
            fn raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    )*};
}

address! {
    /// An address as the driver wrote it into a ring, a descriptor or a queue
    /// register. Whether it is a [`Gpa`] or an [`Iova`] depends on what was
    /// negotiated: [`compat::Plan`](crate::compat::Plan) decides.
    BusAddr;
    /// A guest physical address.
    Gpa;
    /// An I/O virtual address: what vhost looks up in its device IOTLB.
    Iova;
    /// A host virtual address, valid in the process that owns the device.
    Hva;
}

/// A range of addresses: at least one byte, at most up to the last 64-bit
/// address, never wrapping.
///
/// The full 64-bit space is a valid range, and the reason why [`size`](Self::size)
/// may be `None`: its size does not fit a `u64`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range<A> {
    first: A,
    last: A,
}

impl<A: Address> Range<A> {
    /// `size` bytes from `first`.
    pub fn new(first: A, size: u64) -> Result<Self, RangeError> {
        let error = |reason| RangeError {
            first: first.raw(),
            size,
            reason,
        };
        let past_first = size.checked_sub(1).ok_or(error("its size is 0"))?;
        let last = first
            .checked_add(past_first)
            .ok_or(error("it runs past the last 64-bit address"))?;
        Ok(Self { first, last })
    }

    /// The full 64-bit space.
    pub fn everything() -> Self {
        Self {
            first: A::new(0),
            last: A::new(u64::MAX),
        }
    }

    /// Both ends included; `None` when `last` lies before `first`.
    pub fn inclusive(first: A, last: A) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest address.
    pub fn first(&self) -> A {
        self.first
    }

    /// The highest address.
    pub fn last(&self) -> A {
        self.last
    }

    /// Size in bytes; `None` for the full 64-bit space.
    pub fn size(&self) -> Option<NonZeroU64> {
        (self.last.raw() - self.first.raw())
            .checked_add(1)
            .and_then(NonZeroU64::new)
    }

    /// Whether `address` lies inside.
    pub fn contains(&self, address: A) -> bool {
        self.first <= address && address <= self.last
    }

    /// Whether all of `other` lies inside.
    pub fn covers(&self, other: &Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether a byte is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The bytes in both.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::inclusive(self.first.max(other.first), self.last.min(other.last))
    }

    /// Whether `next` begins where `self` ends.
    pub fn touches(&self, next: &Self) -> bool {
        self.last.checked_add(1) == Some(next.first)
    }

    /// What is left of `self` before and after the bytes of `hole`.
    pub fn without(&self, hole: &Self) -> impl Iterator<Item = Self> {
        let before = hole.first.raw().checked_sub(1).map(A::new);
        let after = hole.last.checked_add(1);
        let before = before.and_then(|end| Self::inclusive(self.first, end.min(self.last)));
        let after = after.and_then(|start| Self::inclusive(start.max(self.first), self.last));
        before.into_iter().chain(after)
    }

    /// The same bytes seen from another address space, `self.first()` being at `first`.
    /// `None` when the result would wrap.
    pub fn at<B: Address>(&self, first: B) -> Option<Range<B>> {
        let last = first.checked_add(self.last.raw() - self.first.raw())?;
        Some(Range { first, last })
    }
}

impl<A: Address> fmt::Debug for Range<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}..={}", self.first, self.last)
    }
}

impl<A: Address> fmt::Display for Range<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.first, self.last)
    }
}

/// A range that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the range of {size:#x} bytes at {first:#x} is refused: {reason}")]
pub struct RangeError {
    first: u64,
    size: u64,
    reason: &'static str,
}

/// A context identifier: who is meant on a vsock (VIRTIO 1.2, 5.10.4).
///
/// The wire has 64 bits; the upper 32 are reserved and zero, so 32 are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cid(pub u32);

impl Cid {
    /// The hypervisor (reserved, 0).
    pub const HYPERVISOR: Self = Self(0);
    /// This very machine (`VMADDR_CID_LOCAL`, 1).
    pub const LOCAL: Self = Self(1);
    /// The host (2).
    pub const HOST: Self = Self(2);
    /// Whoever (`VMADDR_CID_ANY`).
    pub const ANY: Self = Self(u32::MAX);
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A [`Cid`] that a guest may have: above the reserved 0 to 2, below
/// `VMADDR_CID_ANY` (VIRTIO 1.2, 5.10.4; `vhost_vsock_set_cid` refuses the rest).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestCid(Cid);

impl GuestCid {
    /// The lowest one.
    pub const MIN: u64 = 3;
    /// The highest one.
    pub const MAX: u64 = u32::MAX as u64 - 1;

    /// Checks a number from outside.
    pub fn new(raw: u64) -> Result<Self, CidError> {
        match raw {
            Self::MIN..=Self::MAX => Ok(Self(Cid(raw as u32))),
            _ => Err(CidError(raw)),
        }
    }

    /// As a plain [`Cid`].
    pub fn cid(self) -> Cid {
        self.0
    }

    /// The number, as config space and the kernel take it.
    pub fn raw(self) -> u64 {
        self.0 .0.into()
    }
}

impl fmt::Display for GuestCid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A CID no guest may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "CID {0} cannot be a guest's: choose one from {min} to {max} (0 to 2 and {any:#x} are reserved)",
    min = GuestCid::MIN, max = GuestCid::MAX, any = u32::MAX
)]
pub struct CidError(pub u64);

/// A vsock port: 32 bits, no reserved values on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u32);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> Range<Gpa> {
        Range::inclusive(Gpa(first), Gpa(last)).unwrap()
    }

    #[test]
    fn a_range_is_never_empty_and_never_wraps() {
        assert!(Range::new(Gpa(7), 0).is_err());
        assert!(Range::new(Gpa(u64::MAX), 2).is_err());
        assert_eq!(
            Range::new(Gpa(u64::MAX), 1).unwrap(),
            range(u64::MAX, u64::MAX)
        );
        assert_eq!(Range::<Gpa>::everything().size(), None);
        assert_eq!(Range::everything(), range(0, u64::MAX));
        assert_eq!(range(0, u64::MAX - 1).size().unwrap().get(), u64::MAX);
        let text = Range::new(Gpa(0x1000), 0).unwrap_err().to_string();
        assert!(
            text.contains("0x1000") && text.contains("size is 0"),
            "{text}"
        );
    }

    #[test]
    fn the_rest_around_a_hole() {
        let rest = |hole| range(10, 19).without(&hole).collect::<Vec<_>>();
        assert_eq!(rest(range(12, 13)), [range(10, 11), range(14, 19)]);
        assert_eq!(rest(range(0, 13)), [range(14, 19)]);
        assert_eq!(rest(range(12, u64::MAX)), [range(10, 11)]);
        assert_eq!(rest(range(0, u64::MAX)), []);
        assert_eq!(rest(range(30, 40)), [range(10, 19)]);
        assert_eq!(rest(range(0, 5)), [range(10, 19)]);
    }

    #[test]
    fn neighbours_and_views() {
        assert!(range(0, 9).touches(&range(10, 11)));
        assert!(!range(0, 9).touches(&range(11, 11)));
        assert!(!range(0, u64::MAX).touches(&range(0, 0)));
        assert_eq!(
            range(0x1000, 0x1fff).at(Hva(0x7000)).unwrap().last(),
            Hva(0x7fff)
        );
        assert!(range(0, 9).at(Hva(u64::MAX - 8)).is_none());
    }

    #[test]
    fn reserved_cids_are_refused_by_number() {
        for bad in [0, 1, 2, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            let text = GuestCid::new(bad).unwrap_err().to_string();
            assert!(text.contains(&bad.to_string()), "{text}");
        }
        assert_eq!(GuestCid::new(3).unwrap().raw(), 3);
        assert_eq!(GuestCid::new(GuestCid::MAX).unwrap().raw(), GuestCid::MAX);
    }

    #[test]
    fn addresses_say_what_they_are() {
        assert_eq!(format!("{:?}", Iova(0x1f)), "Iova(0x1f)");
        assert_eq!(Gpa(5).offset_from(Gpa(6)), None);
        assert_eq!(Gpa(u64::MAX).checked_add(1), None);
    }
}
