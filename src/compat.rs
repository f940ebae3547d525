// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The shim: which feature bits go where, and in which sense addresses are read.
//!
//! One bit has two meanings. `ACCESS_PLATFORM` (33) tells a *guest* to hand out
//! addresses of the platform's DMA API; Linux's *vhost* takes it as "translate
//! every address through the device IOTLB". Upstream has been asked to split the
//! bit and has not, so this shim knows both the legacy bit and a separate one,
//! [`IotlbBit`], and is right whichever way a kernel reads them.
//!
//! Three questions, kept apart:
//!
//! 1. *What does the VM offer its guest?* [`offer`]. Both bits when the VM wants
//!    platform access, and that never depends on the host kernel.
//! 2. *How does the guest compute addresses?* Its acknowledgement says so:
//!    either bit acknowledged means the platform's DMA API. What such an address
//!    means is for the VM to say ([`Vm`]): behind a vIOMMU an [`Iova`], anywhere
//!    else a [`Gpa`] still.
//! 3. *What is the kernel told?* [`negotiate`]. Translation not wanted: neither
//!    bit. Wanted: both, as far as the kernel offers them. Any other bit only
//!    when it is in [`IMPLEMENTED`].
//!
//! Pure: no I/O, no unsafe. `tests/compat.rs` holds every cell of guest x kernel
//! x VM x mode against an independent model and renders `docs/compat.md`.

use std::fmt;
use std::str::FromStr;

use crate::address::{Address, BusAddr, Gpa, Iova};
use crate::features::{Feature, FeatureSet};

/// The bits whose meaning the data paths implement. A bit outside is never
/// offered, acknowledged or passed to the kernel, whoever offers it.
pub const IMPLEMENTED: FeatureSet = FeatureSet::of(&[
    Feature::SEQPACKET,
    Feature::INDIRECT_DESC,
    Feature::EVENT_IDX,
    Feature::VERSION_1,
]);

/// The bits that a VMM's own transport implements: offered to the guest when the
/// VMM asks for them, and never told to the kernel.
pub const TRANSPORT: FeatureSet = FeatureSet::of(&[Feature::SUSPEND]);

/// The bit that, on a kernel that separates the two meanings, asks for the
/// device IOTLB alone.
///
/// Upstream never assigned one; QEMU's `VHOST_F_DEVICE_IOTLB` is 63, hence the
/// default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IotlbBit(Option<Feature>);

impl IotlbBit {
    /// No separate bit: only the legacy one is known.
    pub const NONE: Self = Self(None);

    /// Takes any bit that has no other meaning.
    pub fn new(number: u8) -> Result<Self, IotlbBitError> {
        let bit = Feature::from_number(number).ok_or(IotlbBitError::Number(number.into()))?;
        match bit.name() {
            Some(name) => Err(IotlbBitError::Taken { number, name }),
            None => Ok(Self(Some(bit))),
        }
    }

    /// The bit, if one is configured.
    pub fn feature(self) -> Option<Feature> {
        self.0
    }

    /// Both bits that stand for the IOTLB or platform access on some kernel.
    pub fn either(self) -> FeatureSet {
        self.0.map_or(FeatureSet::EMPTY, Feature::set) | Feature::ACCESS_PLATFORM.set()
    }
}

impl Default for IotlbBit {
    fn default() -> Self {
        Self(Feature::from_number(63))
    }
}

impl fmt::Display for IotlbBit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bit) => write!(f, "{}", bit.number()),
            None => f.write_str("none"),
        }
    }
}

impl FromStr for IotlbBit {
    type Err = IotlbBitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self::NONE);
        }
        let number: u64 = text
            .parse()
            .map_err(|_| IotlbBitError::Text(text.to_owned()))?;
        Self::new(u8::try_from(number).map_err(|_| IotlbBitError::Number(number))?)
    }
}

/// A bit that cannot stand for the IOTLB.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IotlbBitError {
    /// Not a bit number.
    #[error("IOTLB bit {0} does not exist: choose an unused bit from 0 to 63, or none")]
    Number(u64),
    /// The bit means something else.
    #[error(
        "bit {number} is {name} and cannot stand for the IOTLB: choose an unused bit, or none"
    )]
    Taken {
        /// The bit that was asked for.
        number: u8,
        /// What it is.
        name: &'static str,
    },
    /// Neither a number nor `none`.
    #[error("IOTLB bit {0:?} is neither a number from 0 to 63 nor \"none\"")]
    Text(String),
}

/// How a host kernel reads the two bits. Found by behaviour
/// (`crosvm-vsock probe`), never by version number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelKind {
    /// No IOTLB to be had: Linux 5.11 and older.
    NoIotlb,
    /// Bit 33 turns the IOTLB on: every release since 5.12.
    Overloaded,
    /// Bit 33 does not, the separate bit does: what was asked of upstream.
    Split,
    /// Bit 33 still does, and the separate bit is known as well.
    SplitCompat,
}

impl KernelKind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::NoIotlb,
        Self::Overloaded,
        Self::Split,
        Self::SplitCompat,
    ];
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What stands between the guest's drivers and its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vm {
    /// Nothing: the device may touch all of guest memory at guest physical addresses.
    Plain,
    /// The device sees only what the guest shares (a protected VM's bounce pool),
    /// at guest physical addresses.
    Protected,
    /// A vIOMMU: addresses of the platform's DMA API are I/O virtual.
    Viommu,
}

impl Vm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Protected, Self::Viommu];

    /// Whether the guest is asked to use the platform's DMA API.
    pub fn wants_platform_access(self) -> bool {
        self != Self::Plain
    }
}

/// Which addresses the kernel may reach, and through what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// No IOTLB: all of guest memory.
    Off,
    /// IOTLB with all of guest memory, one mapping a region.
    Identity,
    /// IOTLB with only the ranges that the guest has shared.
    Restricted,
    /// IOTLB answered by a vIOMMU.
    Translated,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Off,
        Self::Identity,
        Self::Restricted,
        Self::Translated,
    ];

    /// Whether the mode needs the kernel's IOTLB.
    pub fn wants_iotlb(self) -> bool {
        self != Self::Off
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Identity => "identity",
            Self::Restricted => "restricted",
            Self::Translated => "translated",
        })
    }
}

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| ModeError(text.to_owned()))
    }
}

/// Not the name of a [`Mode`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no IOTLB mode: choose off, identity, restricted or translated")]
pub struct ModeError(String);

/// The bits to offer the guest.
///
/// `host` is what the data path offers, `transport` what the VMM's transport
/// implements itself (crosvm's base features).
pub fn offer(vm: Vm, iotlb_bit: IotlbBit, host: FeatureSet, transport: FeatureSet) -> FeatureSet {
    let platform = match vm.wants_platform_access() {
        true => iotlb_bit.either(),
        false => FeatureSet::EMPTY,
    };
    (host & IMPLEMENTED) | (transport & TRANSPORT) | platform
}

/// The guest's side and the operator's wish, for [`negotiate`].
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What stands between the guest and its memory.
    pub vm: Vm,
    /// The bits that the guest acknowledged.
    pub acked: FeatureSet,
    /// The addressing that is wanted.
    pub mode: Mode,
    /// The separate bit in use.
    pub iotlb_bit: IotlbBit,
}

/// The outcome: what the kernel is told, and how addresses are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The argument of `VHOST_SET_FEATURES`.
    pub features: FeatureSet,
    /// The addressing: its service must be there when it wants the IOTLB.
    pub mode: Mode,
}

impl Plan {
    /// Reads a driver's address as guest physical; `None` when a vIOMMU stands
    /// between, so that it is not.
    pub fn gpa(&self, address: BusAddr) -> Option<Gpa> {
        (self.mode != Mode::Translated).then(|| Gpa::new(address.raw()))
    }

    /// Reads a driver's address as the kernel looks it up in the IOTLB; `None`
    /// when the IOTLB is off. Identity and restricted mappings have the guest
    /// physical address as their I/O virtual one.
    pub fn iova(&self, address: BusAddr) -> Option<Iova> {
        self.mode.wants_iotlb().then(|| Iova::new(address.raw()))
    }
}

/// Decides what the kernel, which offers `host`, is told.
///
/// The rule is right under every reading of the two bits, so the kernel's kind
/// is not asked. After a mode that wants the IOTLB the caller still verifies by
/// behaviour that it is on.
pub fn negotiate(request: &Request, host: FeatureSet) -> Result<Plan, CompatError> {
    let Request { vm, mode, .. } = *request;
    let platform = request.iotlb_bit.either();
    let uses_dma_api = !(request.acked & platform).is_empty();
    let writes_iova = vm == Vm::Viommu && uses_dma_api;
    match (writes_iova, mode) {
        (false, Mode::Translated) if vm == Vm::Viommu => return Err(CompatError::GuestBypasses),
        (false, Mode::Translated) => return Err(CompatError::NothingToTranslate { vm }),
        (true, Mode::Off | Mode::Identity | Mode::Restricted) => {
            return Err(CompatError::TranslatorIgnored { mode })
        }
        _ => {}
    }

    let mut features = request.acked & host & IMPLEMENTED;
    if mode.wants_iotlb() {
        if (host & platform).is_empty() {
            return Err(CompatError::IotlbUnavailable {
                mode,
                iotlb_bit: request.iotlb_bit,
            });
        }
        features |= host & platform;
    }
    Ok(Plan { features, mode })
}

/// Why a wish cannot be met without reading an address in the wrong sense or
/// giving the kernel more access than was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompatError {
    /// The kernel has no IOTLB at all.
    #[error(
        "IOTLB mode {mode} is not available: this kernel is of kind NoIotlb (vhost-vsock offers neither \
         bit 33 nor the separate IOTLB bit, here {iotlb_bit}); use mode off, a kernel since 5.12, or the userspace path"
    )]
    IotlbUnavailable {
        /// What was wanted.
        mode: Mode,
        /// The separate bit in use.
        iotlb_bit: IotlbBit,
    },
    /// No vIOMMU, so nobody could say what an IOVA means.
    #[error(
        "IOTLB mode translated needs a VM behind a vIOMMU, and this one is {vm:?}: its guest writes \
         guest physical addresses; use mode off, identity or restricted"
    )]
    NothingToTranslate {
        /// The VM as configured.
        vm: Vm,
    },
    /// The driver computes IOVAs and the mode would read them as physical.
    #[error(
        "the guest acknowledged platform access behind a vIOMMU, so it writes I/O virtual addresses; \
         mode {mode} would read them as guest physical: use mode translated"
    )]
    TranslatorIgnored {
        /// What was wanted.
        mode: Mode,
    },
    /// The driver ignores the vIOMMU and the mode would translate.
    #[error(
        "the guest acknowledged neither platform-access bit and writes guest physical addresses past \
         its vIOMMU; mode translated would misread them: use a guest driver with ACCESS_PLATFORM"
    )]
    GuestBypasses,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: FeatureSet = FeatureSet::from_bits(0x33d000002);

    #[test]
    fn the_iotlb_bit_is_any_bit_without_a_name() {
        assert_eq!(IotlbBit::default().to_string(), "63");
        assert_eq!("none".parse(), Ok(IotlbBit::NONE));
        assert_eq!("50".parse::<IotlbBit>().unwrap().to_string(), "50");
        for bit in IMPLEMENTED.iter().chain([Feature::ACCESS_PLATFORM]) {
            let refused = IotlbBit::new(bit.number()).unwrap_err().to_string();
            assert!(refused.contains(bit.name().unwrap()), "{refused}");
        }
        for bad in ["64", "300", "-1", "x", ""] {
            assert!(bad.parse::<IotlbBit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_offered_depends_on_the_vm_and_not_on_the_kernels_bits() {
        let no_iotlb = KERNEL - Feature::ACCESS_PLATFORM.set();
        for vm in Vm::ALL {
            let bit = IotlbBit::default();
            let platform = |host| offer(vm, bit, host, FeatureSet::EMPTY) & bit.either();
            assert_eq!(platform(KERNEL), platform(no_iotlb));
            assert_eq!(platform(KERNEL).is_empty(), vm == Vm::Plain);
        }
    }

    #[test]
    fn an_unknown_bit_is_never_offered() {
        let all = FeatureSet::from_bits(u64::MAX);
        let offered = offer(Vm::Protected, IotlbBit::NONE, all, all);
        assert_eq!(
            offered,
            IMPLEMENTED | TRANSPORT | Feature::ACCESS_PLATFORM.set()
        );
    }

    #[test]
    fn names_of_modes_round_trip() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("Off".parse::<Mode>().is_err());
    }
}
