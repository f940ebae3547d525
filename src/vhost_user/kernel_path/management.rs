// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What may be asked of the kernel path beside moving data: what the host kernel does not
//! keep to itself.

use std::io;
use std::sync::Arc;

use super::{opened, KernelPath};
use crate::address::{Gpa, Port, Range};
use crate::kernel::{Addressing, Error, ShareError, Window};
use crate::management::{Answer, Call, ConnectionInfo, Managed, Refusal, Statistics, Status};
use crate::path::DataPath;
use crate::userspace::acceptor::Acceptor;
use crate::userspace::packet::SocketType;
use crate::userspace::socket::Socket;
use crate::watchers::Watchers;

const NO_LISTENERS: Refusal = Refusal::Unsupported(
    "behind the kernel path the guest's connections go to programs that listen on AF_VSOCK",
);

impl Managed for KernelPath {
    fn status(&self) -> Status {
        let activation = self.activation.as_ref().filter(|_| self.is_active());
        Status {
            mode: self.addressing.mode(),
            offered: self.offered,
            acknowledged: activation.map(|activation| activation.features),
            needs_reset: self.broken,
        }
    }

    fn statistics(&self) -> Statistics {
        let iotlb = self.device.iotlb().map(|iotlb| iotlb.stats());
        Statistics {
            resets: self.resets,
            denials: self.denials,
            iotlb: iotlb.map(|stats| (stats.misses, stats.entries)),
            ..Statistics::default()
        }
    }

    fn connections(&mut self, _most: usize) -> Result<Vec<ConnectionInfo>, Refusal> {
        Err(Refusal::Unsupported(
            "the host kernel keeps the connections: `ss --vsock` lists them",
        ))
    }

    fn connect(&mut self, port: Port) -> Result<Call, Refusal> {
        if !self.is_active() {
            return Err(Refusal::NotRunning);
        }
        let socket = Socket::connect_vsock(self.cid.cid(), port, SocketType::Stream)
            .map_err(|error| not_connected(port, error))?;
        Ok(Call {
            socket,
            port,
            answer: Answer::Connected,
        })
    }

    fn listen(&mut self, _port: Port, _acceptor: Acceptor) -> Result<(), Refusal> {
        Err(NO_LISTENERS)
    }

    fn unlisten(&mut self, _port: Port) -> Result<(), Refusal> {
        Err(NO_LISTENERS)
    }

    fn share(&mut self, range: Range<Gpa>) -> Result<(), Refusal> {
        self.window()?.share(range).map_err(refused_range)
    }

    fn unshare(&mut self, range: Range<Gpa>) -> Result<(), Refusal> {
        self.window()?.unshare(range).map_err(refused_range)
    }

    /// A device that is opened anew knows no connections; the queues go on where they are.
    fn reset(&mut self) -> Result<(), Refusal> {
        if !self.is_active() {
            return Err(Refusal::NotRunning);
        }
        let failed = |error: Error| Refusal::Failed(error.to_string());
        let device = opened(&self.open).map_err(failed)?;
        let bases = self.stop();
        let (Some(mut activation), Some(bases)) = (self.activation.take(), bases) else {
            return Err(Refusal::NotRunning);
        };
        for (place, base) in activation.queues.iter_mut().zip(bases) {
            if let (Some(place), Some(base)) = (place, base) {
                place.base = base;
            }
        }
        activation.resumed = true;
        self.device = device;
        self.resets += 1;
        self.reset_event = true;
        Ok(self.activate(activation)?)
    }

    fn watch(&mut self, watchers: Arc<Watchers>) {
        self.watchers = watchers;
    }
}

impl KernelPath {
    fn window(&self) -> Result<&Window, Refusal> {
        match &self.addressing {
            Addressing::Restricted(window) => Ok(window),
            _ => Err(Refusal::Unsupported(
                "only in IOTLB mode restricted is memory shared range by range",
            )),
        }
    }
}

fn refused_range(error: ShareError) -> Refusal {
    match error {
        ShareError::Alignment(_) | ShareError::OutsideMemory(_) => {
            Refusal::BadRange(error.to_string())
        }
        ShareError::TooMany => Refusal::TooMany(error.to_string()),
        ShareError::InUse | ShareError::Kernel { .. } => Refusal::Failed(error.to_string()),
    }
}

/// What connect(2) says of the guest is no failure of ours.
fn not_connected(port: Port, error: io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(
            libc::ENODEV
            | libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ECONNREFUSED
            | libc::ECONNRESET
            | libc::ETIMEDOUT,
        ) => Refusal::NotConnected(port, "the host kernel does not reach the guest"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_is_not_reached_is_not_connected() {
        for (errno, expected) in [
            (libc::ENODEV, true),
            (libc::EHOSTUNREACH, true),
            (libc::EMFILE, false),
            (libc::EAFNOSUPPORT, false),
        ] {
            let refusal = not_connected(Port(5), io::Error::from_raw_os_error(errno));
            let is_not_connected = matches!(refusal, Refusal::NotConnected(..));
            assert_eq!(is_not_connected, expected, "{refusal}");
        }
    }

    #[test]
    fn a_window_that_is_full_is_too_many() {
        let refusal = refused_range(ShareError::TooMany);
        assert!(matches!(refusal, Refusal::TooMany(_)), "{refusal}");
    }
}
