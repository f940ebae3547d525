// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each IOTLB mode carries the whole conversation, or is refused before anything
//! is touched.

use std::sync::Arc;

use anyhow::{ensure, Result};
use crosvm_vsock::compat::{IotlbBit, Mode};
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::{Addressing, MessageFormat};

use super::{unavailable, Cell, Host, UNAVAILABLE, WORKS};
use crate::conversation;
use crate::rig::{Rig, Spec, Viommu};

pub(super) fn cells(host: &Host) -> Vec<Cell> {
    vec![
        host.cell("off, guest acks neither", Mode::Off, |host| {
            off(host, FeatureSet::EMPTY)
        }),
        host.cell("off, guest acks 33", Mode::Off, |host| {
            off(host, Feature::ACCESS_PLATFORM.set())
        }),
        host.cell("off, guest acks 63", Mode::Off, |host| {
            off(
                host,
                IotlbBit::default().either() - Feature::ACCESS_PLATFORM.set(),
            )
        }),
        host.cell("off, guest acks both", Mode::Off, |host| {
            off(host, IotlbBit::default().either())
        }),
        host.cell("identity", Mode::Identity, |host| {
            identity(host, MessageFormat::V1)
        }),
        host.cell("identity, messages v2", Mode::Identity, |host| {
            identity(host, MessageFormat::V2)
        }),
        host.cell("restricted", Mode::Restricted, restricted),
        host.cell("translated", Mode::Translated, translated),
    ]
}

/// Activates, holds the conversation, checks that nothing went wrong unasked.
fn converse(rig: &mut Rig, host: &Host, addressing: Addressing) -> Result<&'static str> {
    let before = (rig.kernel.ioctls(), rig.kernel.messages());
    match rig.activate(addressing) {
        Ok(()) => {}
        Err(error) if unavailable(&error) => {
            let after = (rig.kernel.ioctls(), rig.kernel.messages());
            ensure!(before == after, "the kernel was touched before the refusal");
            rig.activate(Addressing::Off)?;
            conversation::brief(&rig.guest, 1)?;
            return Ok(UNAVAILABLE);
        }
        Err(error) => return Err(error.into()),
    }
    conversation::hold(&rig.guest, host.seqpacket(), 11)?;
    rig.check_quiet()?;
    Ok(WORKS)
}

fn off(host: &Host, platform: FeatureSet) -> Result<&'static str> {
    let spec = Spec {
        platform,
        ..Spec::protected()
    };
    let mut rig = Rig::new(spec)?;
    let outcome = converse(&mut rig, host, Addressing::Off)?;
    // The device would serve an IOTLB that is on by mistake, and carry data.
    ensure!(
        rig.device.iotlb().is_none(),
        "the IOTLB is on, and nobody asked for it"
    );
    Ok(outcome)
}

/// One mapping a region is told in advance: a miss would mean a hole.
fn without_misses(rig: &Rig, outcome: &'static str) -> Result<&'static str> {
    if let Some(iotlb) = rig.device.iotlb() {
        let misses = iotlb.stats().misses;
        ensure!(misses == 0, "{misses} misses although all was mapped");
    }
    Ok(outcome)
}

fn identity(host: &Host, messages: MessageFormat) -> Result<&'static str> {
    let mut rig = Rig::new(Spec {
        messages,
        ..Spec::protected()
    })?;
    let outcome = converse(&mut rig, host, Addressing::Identity)?;
    without_misses(&rig, outcome)
}

fn restricted(host: &Host) -> Result<&'static str> {
    let (spec, window) = Spec::windowed()?;
    let mut rig = Rig::new(spec)?;
    let outcome = converse(&mut rig, host, Addressing::Restricted(window))?;
    without_misses(&rig, outcome)
}

fn translated(host: &Host) -> Result<&'static str> {
    let mut rig = Rig::new(Spec::translated(5))?;
    let viommu: Arc<Viommu> = Viommu::of(&rig.guest);
    match rig.activate(Addressing::Translated(viommu)) {
        Err(error) if unavailable(&error) => return Ok(UNAVAILABLE),
        result => result?,
    }
    conversation::hold(&rig.guest, host.seqpacket(), 12)?;
    rig.check_quiet()?;
    let misses = rig.device.iotlb().map_or(0, |iotlb| iotlb.stats().misses);
    ensure!(
        misses > 100,
        "only {misses} misses: the pages were not scattered"
    );
    Ok(WORKS)
}
