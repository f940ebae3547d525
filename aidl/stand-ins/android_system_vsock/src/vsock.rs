// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The package `android.system.vsock`. Defaults are not those of `aidl/`: no value counts here.

pub mod IVsockService {
    use binder::Strong;

    use super::IVsockDevice::IVsockDevice;

    interface!(IVsockService, BnVsockService {
        fn getGuestCids(&self) -> binder::Result<Vec<i64>>;
        fn getDevice(&self, cid: i64) -> binder::Result<Strong<dyn IVsockDevice>>;
    });
}

pub mod IVsockDevice {
    use binder::Strong;

    use super::IVsockDeviceCallback::IVsockDeviceCallback;
    use super::IotlbMode::IotlbMode;
    use super::KernelKind::KernelKind;
    use super::VsockBackend::VsockBackend;
    use super::VsockConnection::VsockConnection;
    use super::VsockDeviceState::VsockDeviceState;
    use super::VsockFeatures::VsockFeatures;
    use super::VsockStatistics::VsockStatistics;

    pub const ERROR_UNEXPECTED: i32 = 0;
    pub const ERROR_NOT_RUNNING: i32 = 1;
    pub const ERROR_PORT_NUMBER_DENIED: i32 = 2;
    pub const ERROR_FAILED_TO_CONNECT: i32 = 3;
    pub const ERROR_UNSUPPORTED: i32 = 4;
    pub const ERROR_NO_SUCH_DEVICE: i32 = 5;
    pub const ERROR_PORT_IN_USE: i32 = 6;
    pub const ERROR_BAD_DESCRIPTOR: i32 = 7;
    pub const ERROR_BAD_RANGE: i32 = 8;
    pub const ERROR_TOO_MANY: i32 = 9;
    pub const ERROR_BUSY: i32 = 10;

    interface!(IVsockDevice, BnVsockDevice {
        fn getCid(&self) -> binder::Result<i64>;
        fn getBackend(&self) -> binder::Result<VsockBackend>;
        fn getBackendReason(&self) -> binder::Result<String>;
        fn getFeatures(&self) -> binder::Result<VsockFeatures>;
        fn getKernelKind(&self) -> binder::Result<KernelKind>;
        fn getIotlbMode(&self) -> binder::Result<IotlbMode>;
        fn getState(&self) -> binder::Result<VsockDeviceState>;
        fn getStatistics(&self) -> binder::Result<VsockStatistics>;
        fn getConnections(&self, limit: i32) -> binder::Result<Vec<VsockConnection>>;
        fn connect(&self, port: i64) -> binder::Result<binder::ParcelFileDescriptor>;
        fn listen(&self, port: i64, acceptor: &binder::ParcelFileDescriptor) -> binder::Result<()>;
        fn unlisten(&self, port: i64) -> binder::Result<()>;
        fn share(&self, address: i64, size: i64) -> binder::Result<()>;
        fn unshare(&self, address: i64, size: i64) -> binder::Result<()>;
        fn reset(&self) -> binder::Result<()>;
        fn registerCallback(&self, callback: &Strong<dyn IVsockDeviceCallback>) -> binder::Result<()>;
        fn unregisterCallback(&self, callback: &Strong<dyn IVsockDeviceCallback>) -> binder::Result<()>;
    });
}

pub mod IVsockDeviceCallback {
    use super::IotlbAccess::IotlbAccess;
    use super::VsockConnection::VsockConnection;
    use super::VsockDeviceState::VsockDeviceState;

    interface!(IVsockDeviceCallback, BnVsockDeviceCallback {
        fn onStateChanged(&self, cid: i64, state: VsockDeviceState) -> binder::Result<()>;
        fn onIotlbFault(&self, cid: i64, iova: i64, access: IotlbAccess) -> binder::Result<()>;
        fn onConnected(&self, cid: i64, connection: &VsockConnection) -> binder::Result<()>;
        fn onDisconnected(&self, cid: i64, connection: &VsockConnection) -> binder::Result<()>;
    });
}

pub mod VsockFeatures {
    #[derive(Clone, Debug, Default, PartialEq)]
    pub struct VsockFeatures {
        pub offered: i64,
        pub acknowledged: i64,
        pub acknowledgedNames: Vec<String>,
    }
}

pub mod VsockConnection {
    use super::VsockConnectionState::VsockConnectionState;

    #[derive(Clone, Debug, Default, PartialEq)]
    pub struct VsockConnection {
        pub guestPort: i64,
        pub peerCid: i64,
        pub peerPort: i64,
        pub seqpacket: bool,
        pub state: VsockConnectionState,
        pub pendingBytes: i64,
    }
}

pub mod VsockStatistics {
    pub const UNKNOWN: i64 = -1;

    #[derive(Clone, Debug, Default, PartialEq)]
    pub struct VsockStatistics {
        pub sinceMillis: i64,
        pub packetsFromGuest: i64,
        pub bytesFromGuest: i64,
        pub packetsToGuest: i64,
        pub bytesToGuest: i64,
        pub connectionsOpen: i64,
        pub connectionsTotal: i64,
        pub refused: i64,
        pub refusedConnections: i64,
        pub refusedHalfOpen: i64,
        pub refusedPendingBytes: i64,
        pub refusedPendingResets: i64,
        pub refusedDescriptors: i64,
        pub strayPackets: i64,
        pub wrongSource: i64,
        pub malformed: i64,
        pub violations: i64,
        pub resets: i64,
        pub accessesDenied: i64,
        pub iotlbMisses: i64,
        pub iotlbEntries: i64,
        pub callbacks: i64,
        pub callbacksDropped: i64,
    }
}

numbers!(IotlbAccess { READ = 1, WRITE = 2, READ_WRITE = 3 });
numbers!(IotlbMode { OFF = 0, IDENTITY = 1, RESTRICTED = 2, TRANSLATED = 3 });
numbers!(KernelKind {
    NOT_APPLICABLE = 0, UNKNOWN = 1, NO_IOTLB = 2, OVERLOADED = 3, SPLIT = 4, SPLIT_COMPAT = 5
});
numbers!(VsockBackend { USERSPACE = 0, KERNEL = 1 });
numbers!(VsockConnectionState { OPENING = 0, ESTABLISHED = 1, CLOSING = 2 });
numbers!(VsockDeviceState { NO_VMM = 0, NO_DRIVER = 1, RUNNING = 2, NEEDS_RESET = 3 });
