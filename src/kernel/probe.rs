// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a host's vhost-vsock does with the two bits, found by trying.
//!
//! Each question gets a descriptor of its own, since the IOTLB of a used one may
//! stay on. No CID is taken, no queue started: the host's vsocks do not notice.

use std::sync::Arc;

use super::error::{CallError, Error, SET_FEATURES, SET_OWNER};
use super::ioctl::Vhost;
use super::iotlb::message::{Command, Mapping, MessageFormat};
use crate::access::Access;
use crate::address::{Address, Hva, Iova, Range};
use crate::compat::{negotiate, CompatError, IotlbBit, KernelKind, Mode, Plan, Request, Vm};
use crate::features::{Feature, FeatureSet};
use crate::memory::PAGE;

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// `VHOST_GET_FEATURES`.
    pub features: FeatureSet,
    /// `VHOST_GET_BACKEND_FEATURES`; any refusal counts as none.
    pub backend_features: u64,
    /// The separate bit that was looked for.
    pub iotlb_bit: IotlbBit,
    /// Whether bit 33 alone turned the IOTLB on.
    pub platform_alone: bool,
    /// Whether the separate bit alone did.
    pub separate_alone: bool,
    /// What these make of the kernel.
    pub kind: KernelKind,
}

impl Report {
    /// What `mode` would tell this kernel for a VM that fits the mode, with a
    /// guest that acknowledges all it is offered.
    pub fn mode(&self, mode: Mode) -> Result<Plan, CompatError> {
        if mode.wants_iotlb() && self.kind == KernelKind::NoIotlb {
            let iotlb_bit = self.iotlb_bit;
            return Err(CompatError::IotlbUnavailable { mode, iotlb_bit });
        }
        let vm = match mode {
            Mode::Translated => Vm::Viommu,
            _ => Vm::Protected,
        };
        let request = Request {
            vm,
            acked: self.features | self.iotlb_bit.either(),
            mode,
            iotlb_bit: self.iotlb_bit,
        };
        negotiate(&request, self.features)
    }
}

/// Asks the kernel through fresh descriptors from `open`.
pub fn probe(
    open: impl Fn() -> Result<Arc<dyn Vhost>, Error>,
    iotlb_bit: IotlbBit,
) -> Result<Report, Error> {
    let kernel = open()?;
    let features = kernel
        .features()
        .map_err(|_| Error::NotVhostVsock("it does not answer VHOST_GET_FEATURES"))?;
    own(&*kernel)?;
    let backend_features = kernel.backend_features().unwrap_or(0);
    drop(kernel);

    let alone = |bit: Option<Feature>| match bit {
        Some(bit) if features.has(bit) => turns_iotlb_on(&*open()?, features, bit),
        _ => Ok(false),
    };
    let platform_alone = alone(Some(Feature::ACCESS_PLATFORM))?;
    let separate_alone = alone(iotlb_bit.feature())?;
    let separate_offered = iotlb_bit.feature().is_some_and(|bit| features.has(bit));
    let kind = match (platform_alone, separate_alone) {
        (true, _) if separate_offered => KernelKind::SplitCompat,
        (true, _) => KernelKind::Overloaded,
        (false, true) => KernelKind::Split,
        (false, false) => KernelKind::NoIotlb,
    };
    Ok(Report {
        features,
        backend_features,
        iotlb_bit,
        platform_alone,
        separate_alone,
        kind,
    })
}

fn own(kernel: &dyn Vhost) -> Result<(), Error> {
    kernel
        .set_owner()
        .map_err(|error| CallError::new(SET_OWNER, None, error).into())
}

/// An update is taken exactly when the IOTLB is on. It names a page of this
/// process that no queue ever reaches: none is started.
fn turns_iotlb_on(kernel: &dyn Vhost, offered: FeatureSet, bit: Feature) -> Result<bool, Error> {
    own(kernel)?;
    let told = (offered & Feature::VERSION_1.set()) | bit.set();
    kernel
        .set_features(told)
        .map_err(|error| CallError::new(SET_FEATURES, None, error))?;
    let page = [0u8; 1];
    let here = std::ptr::from_ref(&page).addr() as u64;
    let Some(range) = Range::inclusive(Iova(0), Iova(PAGE - 1)) else {
        return Ok(false);
    };
    let update = Command::Update(Mapping {
        range,
        host: Hva::new(here & !(PAGE - 1)),
        access: Access::Read,
    });
    let taken = update
        .encode(MessageFormat::V1)
        .all(|message| kernel.send(&message).is_ok());
    Ok(taken)
}
