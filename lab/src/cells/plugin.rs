// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! crosvm's plugin in each mode it knows: created from its options, a whole
//! conversation, sleep and wake, a restore into a second device, a reset.

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use crosvm_vsock::compat::{CompatError, Mode};
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::Error;
use guest_driver::packet::Event;
use guest_driver::GuestConfig;

use super::{Cell, Host, UNAVAILABLE, WORKS};
use crate::conversation;
use crate::host::TIMEOUT;
use crate::plugin_rig::PluginRig;
use crate::rig::fresh_cid;

pub(super) fn cells(host: &Host) -> Vec<Cell> {
    const NEITHER: FeatureSet = FeatureSet::EMPTY;
    const LEGACY: FeatureSet = Feature::ACCESS_PLATFORM.set();
    vec![
        host.cell("plugin, off", Mode::Off, |host| life(host, "off", NEITHER)),
        host.cell("plugin, off, guest acks 33", Mode::Off, |host| {
            life(host, "off", LEGACY)
        }),
        host.cell("plugin, identity", Mode::Identity, |host| {
            life(host, "identity", NEITHER)
        }),
        host.cell("plugin, identity, guest acks 33", Mode::Identity, |host| {
            life(host, "identity", LEGACY)
        }),
        host.cell("plugin, restricted", Mode::Restricted, |host| {
            life(host, "restricted", NEITHER)
        }),
        host.cell(
            "plugin, restricted, guest acks 33",
            Mode::Restricted,
            |host| life(host, "restricted", LEGACY),
        ),
    ]
}

fn life(host: &Host, iotlb: &str, platform: FeatureSet) -> Result<&'static str> {
    let cid = fresh_cid();
    let mut config = GuestConfig {
        cid,
        timeout: TIMEOUT,
        ..GuestConfig::default()
    };
    let mut options = format!("cid={cid},iotlb={iotlb},platform-access=on");
    if iotlb == "restricted" {
        // The first region is the guest's pool; the second stays its own.
        let pool = &config.memory[0];
        let end = guest_driver::memory::Gpa(pool.gpa.0 + pool.size);
        options += &format!(",shared=[{:#x}+{:#x}]", pool.gpa.0, pool.size);
        config.rings_from = Some(pool.gpa..end);
        config.buffers_from = Some(pool.gpa..end);
    }
    let rig = PluginRig::new(config)?;
    let mut device = rig.device(&options)?;
    rig.ack(&mut *device, platform);
    match rig.activate(&mut *device) {
        Ok(()) => {}
        Err(error) => match error.downcast_ref::<Error>() {
            Some(Error::Compat(CompatError::IotlbUnavailable { .. })) => return Ok(UNAVAILABLE),
            _ => return Err(error),
        },
    }
    conversation::hold(&rig.guest, host.seqpacket(), 100)?;

    let queues = device
        .virtio_sleep()?
        .context("the queues of an active device")?;
    rig.wake(&mut *device, queues).context("waking")?;
    conversation::brief(&rig.guest, 101).context("after sleep and wake")?;

    let queues = device
        .virtio_sleep()?
        .context("the queues of an active device")?;
    let snapshot = device.virtio_snapshot()?;
    drop(device);
    let mut device = rig.device(&options)?;
    ensure!(
        device.virtio_sleep()?.is_none(),
        "a new device gave up queues"
    );
    device.virtio_restore(snapshot)?;
    rig.wake(&mut *device, queues)
        .context("waking the second device")?;
    let event = rig
        .guest
        .wait_event(Duration::from_secs(10))
        .context("the reset event")?;
    ensure!(event == Event::TRANSPORT_RESET, "the guest saw {event:?}");
    conversation::brief(&rig.guest, 102).context("after the restore")?;

    device.reset()?;
    rig.guest.reset(0)?;
    rig.ack(&mut *device, platform);
    rig.activate(&mut *device).context("after the reset")?;
    conversation::brief(&rig.guest, 103).context("after the reset")?;
    if let Some(violation) = rig.guest.take_violations().first() {
        anyhow::bail!("the device broke a rule: {violation:?}");
    }
    Ok(WORKS)
}
