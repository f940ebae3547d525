// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One device as its clients see it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::binder::{
    self, Interface, IotlbMode, KernelKind as AidlKind, ParcelFileDescriptor, Strong, VsockBackend,
    VsockConnection, VsockDevice, VsockDeviceCallback, VsockDeviceState, VsockFeatures,
    VsockStatistics,
};
use super::callbacks::Callbacks;
use super::convert;
use crate::address::GuestCid;
use crate::compat::KernelKind;
use crate::mailbox::Mailbox;
use crate::management::{Managed, Refusal};
use crate::userspace::acceptor::Acceptor;
use crate::watchers::Watchers;

/// Connections that fit a reply, with room to spare: RPC binder takes 100 kB.
const MOST_LISTED: usize = 1000;

/// How long a guest may take to answer a connection request. The data path has a limit of
/// its own, which is shorter unless somebody has set it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);

/// What moves a device's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// This process.
    Userspace,
    /// The host kernel's vhost-vsock, and how it reads the two bits if that was found out.
    Kernel(Option<KernelKind>),
}

/// A device that can be controlled.
pub struct Device {
    /// The guest.
    pub cid: GuestCid,
    /// What moves its data.
    pub backend: Backend,
    /// Why it is that backend, if nobody said so.
    pub reason: Option<String>,
    /// The way to its thread.
    pub mailbox: Mailbox,
    /// Those who hear of it.
    pub watchers: Arc<Watchers>,
    /// When it was made.
    pub since: SystemTime,
}

/// A device with its clients.
pub(super) struct Handle {
    device: Device,
    callbacks: Callbacks,
}

impl Handle {
    pub(super) fn new(device: Device) -> Self {
        let callbacks = Callbacks::new(device.cid, device.watchers.clone());
        Self { device, callbacks }
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut dyn Managed) -> T + Send + 'static,
    ) -> binder::Result<T> {
        self.device.mailbox.ask(question).map_err(convert::refusal)
    }

    /// As [`ask`](Self::ask), for a question that may be refused.
    fn try_ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut dyn Managed) -> Result<T, Refusal> + Send + 'static,
    ) -> binder::Result<T> {
        self.ask(question)?.map_err(convert::refusal)
    }
}

impl Interface for Handle {}

impl VsockDevice for Handle {
    fn getCid(&self) -> binder::Result<i64> {
        Ok(self.device.cid.cid().0.into())
    }

    fn getBackend(&self) -> binder::Result<VsockBackend> {
        Ok(match self.device.backend {
            Backend::Userspace => VsockBackend::USERSPACE,
            Backend::Kernel(_) => VsockBackend::KERNEL,
        })
    }

    fn getBackendReason(&self) -> binder::Result<String> {
        Ok(self.device.reason.clone().unwrap_or_default())
    }

    fn getFeatures(&self) -> binder::Result<VsockFeatures> {
        self.ask(|device| convert::features(device.status()))
    }

    fn getKernelKind(&self) -> binder::Result<AidlKind> {
        Ok(convert::kernel_kind(self.device.backend))
    }

    fn getIotlbMode(&self) -> binder::Result<IotlbMode> {
        self.ask(|device| convert::mode(device.status().mode))
    }

    fn getState(&self) -> binder::Result<VsockDeviceState> {
        Ok(convert::state(self.device.watchers.state()))
    }

    fn getStatistics(&self) -> binder::Result<VsockStatistics> {
        let statistics = self.ask(|device| device.statistics())?;
        let since = self.device.since.duration_since(UNIX_EPOCH);
        let millis = since.map_or(0, |since| since.as_millis());
        Ok(VsockStatistics {
            sinceMillis: i64::try_from(millis).unwrap_or(i64::MAX),
            callbacks: convert::count(self.device.watchers.count() as u64),
            callbacksDropped: convert::count(self.device.watchers.dropped()),
            ..convert::statistics(&statistics)
        })
    }

    fn getConnections(&self, limit: i32) -> binder::Result<Vec<VsockConnection>> {
        let most = match usize::try_from(limit) {
            Ok(0) | Err(_) => MOST_LISTED,
            Ok(limit) => limit.min(MOST_LISTED),
        };
        let connections = self.try_ask(move |device| device.connections(most))?;
        Ok(connections.iter().map(convert::connection).collect())
    }

    fn connect(&self, port: i64) -> binder::Result<ParcelFileDescriptor> {
        let port = convert::port(port)?;
        let call = self.try_ask(move |device| device.connect(port))?;
        let socket = call.wait(CONNECT_PATIENCE).map_err(convert::refusal)?;
        Ok(ParcelFileDescriptor::new(socket))
    }

    fn listen(&self, port: i64, acceptor: &ParcelFileDescriptor) -> binder::Result<()> {
        let port = convert::port(port)?;
        let acceptor = acceptor.as_ref().try_clone();
        let acceptor = acceptor.map_err(Refusal::from).and_then(Acceptor::new);
        let acceptor = acceptor.map_err(convert::refusal)?;
        self.try_ask(move |device| device.listen(port, acceptor))
    }

    fn unlisten(&self, port: i64) -> binder::Result<()> {
        let port = convert::port(port)?;
        self.try_ask(move |device| device.unlisten(port))
    }

    fn share(&self, address: i64, size: i64) -> binder::Result<()> {
        let range = convert::range(address, size)?;
        self.try_ask(move |device| device.share(range))
    }

    fn unshare(&self, address: i64, size: i64) -> binder::Result<()> {
        let range = convert::range(address, size)?;
        self.try_ask(move |device| device.unshare(range))
    }

    fn reset(&self) -> binder::Result<()> {
        self.try_ask(|device| device.reset())
    }

    fn registerCallback(&self, callback: &Strong<dyn VsockDeviceCallback>) -> binder::Result<()> {
        self.callbacks.add(callback).map_err(convert::refusal)
    }

    fn unregisterCallback(&self, callback: &Strong<dyn VsockDeviceCallback>) -> binder::Result<()> {
        self.callbacks.remove(callback);
        Ok(())
    }
}
