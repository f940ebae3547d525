// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Our types as the interface's, and its numbers as ours. AIDL has no unsigned numbers:
//! addresses and feature bits keep their 64 bits, counts stop at the largest.

use super::binder::{
    self, IVsockDevice as Errors, IotlbAccess, IotlbMode, KernelKind as AidlKind,
    Status as Failure, VsockConnection, VsockConnectionState, VsockDeviceState, VsockFeatures,
    VsockStatistics,
};
use super::Backend;
use crate::address::{Address, Gpa, Port, Range};
use crate::compat::{KernelKind, Mode};
use crate::kernel::Access;
use crate::management::{ConnectionInfo, Progress, Refusal, Statistics, Status};
use crate::userspace::packet::SocketType;
use crate::userspace::stats::Counter;
use crate::watchers::State;

pub(super) fn refusal(refusal: Refusal) -> Failure {
    let code = match &refusal {
        Refusal::Unsupported(_) => Errors::ERROR_UNSUPPORTED,
        Refusal::NotRunning => Errors::ERROR_NOT_RUNNING,
        Refusal::NotConnected(..) => Errors::ERROR_FAILED_TO_CONNECT,
        Refusal::PortInUse(_) => Errors::ERROR_PORT_IN_USE,
        Refusal::BadAcceptor(_) => Errors::ERROR_BAD_DESCRIPTOR,
        Refusal::BadRange(_) => Errors::ERROR_BAD_RANGE,
        Refusal::TooMany(_) => Errors::ERROR_TOO_MANY,
        Refusal::Busy(_) => Errors::ERROR_BUSY,
        Refusal::Failed(_) => Errors::ERROR_UNEXPECTED,
    };
    binder::refuse(code, &refusal.to_string())
}

pub(super) fn port(number: i64) -> binder::Result<Port> {
    match u32::try_from(number) {
        // VMADDR_PORT_ANY stands for whichever port is free.
        Ok(port) if port != u32::MAX => Ok(Port(port)),
        _ => {
            let why = format!("{number} is not a vsock port: choose one from 0 to 4294967294");
            Err(binder::refuse(Errors::ERROR_PORT_NUMBER_DENIED, &why))
        }
    }
}

pub(super) fn range(address: i64, size: i64) -> binder::Result<Range<Gpa>> {
    let (address, size) = (address as u64, size as u64);
    Range::new(Gpa(address), size).map_err(|error| refusal(Refusal::BadRange(error.to_string())))
}

pub(super) fn address(address: impl Address) -> i64 {
    address.raw() as i64
}

pub(super) fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn features(status: Status) -> VsockFeatures {
    let acknowledged = status.acknowledged.unwrap_or_default();
    VsockFeatures {
        offered: status.offered.bits() as i64,
        acknowledged: acknowledged.bits() as i64,
        acknowledgedNames: acknowledged.iter().map(|bit| bit.to_string()).collect(),
    }
}

pub(super) fn kernel_kind(backend: Backend) -> AidlKind {
    match backend {
        Backend::Userspace => AidlKind::NOT_APPLICABLE,
        Backend::Kernel(None) => AidlKind::UNKNOWN,
        Backend::Kernel(Some(KernelKind::NoIotlb)) => AidlKind::NO_IOTLB,
        Backend::Kernel(Some(KernelKind::Overloaded)) => AidlKind::OVERLOADED,
        Backend::Kernel(Some(KernelKind::Split)) => AidlKind::SPLIT,
        Backend::Kernel(Some(KernelKind::SplitCompat)) => AidlKind::SPLIT_COMPAT,
    }
}

pub(super) fn mode(mode: Mode) -> IotlbMode {
    match mode {
        Mode::Off => IotlbMode::OFF,
        Mode::Identity => IotlbMode::IDENTITY,
        Mode::Restricted => IotlbMode::RESTRICTED,
        Mode::Translated => IotlbMode::TRANSLATED,
    }
}

pub(super) fn access(access: Access) -> IotlbAccess {
    match access {
        Access::Read => IotlbAccess::READ,
        Access::Write => IotlbAccess::WRITE,
        Access::ReadWrite => IotlbAccess::READ_WRITE,
    }
}

pub(super) fn state(state: State) -> VsockDeviceState {
    match state {
        State::NoVmm => VsockDeviceState::NO_VMM,
        State::NoDriver => VsockDeviceState::NO_DRIVER,
        State::Running => VsockDeviceState::RUNNING,
        State::NeedsReset => VsockDeviceState::NEEDS_RESET,
    }
}

pub(super) fn connection(connection: &ConnectionInfo) -> VsockConnection {
    VsockConnection {
        guestPort: connection.guest_port.0.into(),
        peerCid: connection.peer.0.into(),
        peerPort: connection.peer_port.0.into(),
        seqpacket: connection.socket_type == SocketType::SeqPacket,
        state: match connection.progress {
            Progress::Opening => VsockConnectionState::OPENING,
            Progress::Established => VsockConnectionState::ESTABLISHED,
            Progress::Closing => VsockConnectionState::CLOSING,
        },
        pendingBytes: count(connection.pending as u64),
    }
}

/// What the data path knows; the rest is left as it is by default.
pub(super) fn statistics(from: &Statistics) -> VsockStatistics {
    let mut to = VsockStatistics {
        resets: count(from.resets),
        accessesDenied: count(from.denials),
        ..VsockStatistics::default()
    };
    if let Some(open) = from.open {
        to.connectionsOpen = count(open as u64);
    }
    if let Some((misses, entries)) = from.iotlb {
        to.iotlbMisses = count(misses);
        to.iotlbEntries = count(entries);
    }
    if let Some(traffic) = &from.traffic {
        let now = |counter: &Counter| count(counter.get());
        to.packetsFromGuest = now(&traffic.packets_from_guest);
        to.bytesFromGuest = now(&traffic.bytes_from_guest);
        to.packetsToGuest = now(&traffic.packets_to_guest);
        to.bytesToGuest = now(&traffic.bytes_to_guest);
        to.connectionsTotal = now(&traffic.connections);
        to.refused = now(&traffic.refused);
        to.refusedConnections = now(&traffic.limit_connections);
        to.refusedHalfOpen = now(&traffic.limit_half_open);
        to.refusedPendingBytes = now(&traffic.limit_pending_bytes);
        to.refusedPendingResets = now(&traffic.limit_pending_resets);
        to.refusedDescriptors = now(&traffic.out_of_descriptors);
        to.strayPackets = now(&traffic.stray_packets);
        to.wrongSource = now(&traffic.wrong_source);
        to.malformed = now(&traffic.malformed);
        to.violations = now(&traffic.violations);
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_port_is_a_port() {
        assert_eq!(port(0).unwrap(), Port(0));
        assert_eq!(port(0xffff_fffe).unwrap(), Port(0xffff_fffe));
        for number in [-1, 0xffff_ffff, 1 << 32, i64::MIN] {
            let refused = binder::refusal(&port(number).unwrap_err()).unwrap();
            assert_eq!(refused.0, Errors::ERROR_PORT_NUMBER_DENIED);
            assert!(refused.1.contains(&number.to_string()), "{}", refused.1);
        }
    }

    #[test]
    fn an_address_keeps_its_64_bits() {
        let high = range(i64::MIN, 0x1000).unwrap();
        assert_eq!(high.first(), Gpa(1 << 63));
        assert_eq!(address(high.first()), i64::MIN);
        assert!(range(0, 0).is_err());
        assert!(range(-1, 2).is_err());
    }
}
