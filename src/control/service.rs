// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The root object: devices by CID.

use std::collections::BTreeMap;

use super::binder::{self, IVsockDevice, Interface, Strong, VsockDevice, VsockService};
use super::device::{Device, Handle};

/// The devices of a process.
#[derive(Default)]
pub struct Service(BTreeMap<i64, Strong<dyn VsockDevice>>);

impl Service {
    /// Makes `devices` available.
    pub fn new(devices: impl IntoIterator<Item = Device>) -> Self {
        let named = |device: Device| {
            let cid = i64::from(device.cid.cid().0);
            (cid, binder::device(Handle::new(device)))
        };
        Self(devices.into_iter().map(named).collect())
    }
}

impl Interface for Service {}

impl VsockService for Service {
    fn getGuestCids(&self) -> binder::Result<Vec<i64>> {
        Ok(self.0.keys().copied().collect())
    }

    fn getDevice(&self, cid: i64) -> binder::Result<Strong<dyn VsockDevice>> {
        self.0.get(&cid).cloned().ok_or_else(|| {
            let served: Vec<_> = self.0.keys().map(i64::to_string).collect();
            let why = format!(
                "no guest has CID {cid} here; there are: {}",
                served.join(", ")
            );
            binder::refuse(IVsockDevice::ERROR_NO_SUCH_DEVICE, &why)
        })
    }
}
