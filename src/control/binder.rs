// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The interface of `aidl/` under one set of names, whichever binder there is: AOSP's
//! (`libbinder_rs`, `librpcbinder_rs`) under Soong, `rsbinder` under Cargo. No other file
//! names either.
//!
//! Both speak AOSP's RPC binder (the wire of Android 13 and later) on a Unix socket, so a
//! client of the one can talk to a server of the other.
//!
//! Limits: `rsbinder` looks for new clients every 5 ms, which is all that an idle control
//! socket costs.

#[cfg(not(soong))]
pub use self::rs::*;
#[cfg(soong)]
pub use self::soong::*;

/// The interface, flattened: both compilers put each type into a module of its name.
macro_rules! flatten {
    ($($root:ident)::+) => {
        pub use $($root)::+::IVsockDevice;
        pub use $($root)::+::IVsockDevice::{BnVsockDevice, IVsockDevice as VsockDevice};
        pub use $($root)::+::IVsockDeviceCallback::{
            BnVsockDeviceCallback, IVsockDeviceCallback as VsockDeviceCallback,
        };
        pub use $($root)::+::IVsockService::{BnVsockService, IVsockService as VsockService};
        pub use $($root)::+::IotlbAccess::IotlbAccess;
        pub use $($root)::+::IotlbMode::IotlbMode;
        pub use $($root)::+::KernelKind::KernelKind;
        pub use $($root)::+::VsockBackend::VsockBackend;
        pub use $($root)::+::VsockConnection::VsockConnection;
        pub use $($root)::+::VsockConnectionState::VsockConnectionState;
        pub use $($root)::+::VsockDeviceState::VsockDeviceState;
        pub use $($root)::+::VsockFeatures::VsockFeatures;
        pub use $($root)::+::VsockStatistics::{VsockStatistics, UNKNOWN};
    };
}

/// The message in a description as AOSP's binder has it, which gives nothing else:
/// `Status(-8, EX_SERVICE_SPECIFIC): '5: message'`. All of it, if it has another form.
#[cfg(any(soong, test))]
fn message(description: &str, code: i32) -> &str {
    let quoted = || {
        let (_, rest) = description.split_once(&format!("): '{code}: "))?;
        rest.strip_suffix('\'')
    };
    quoted().unwrap_or(description)
}

#[cfg(not(soong))]
mod rs {
    use std::io;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::sync::{Arc, Mutex, PoisonError};
    use std::thread::JoinHandle;
    use std::time::Duration;

    use rsbinder::entry::WireVersion;
    use rsbinder::rpc::transport::UnixTransport;
    use rsbinder::rpc::{
        FileDescriptorTransportMode, RpcClientConfig, RpcServer, RpcSession, RpcTransport,
    };
    pub use rsbinder::{
        BinderResult as Result, Interface, ParcelFileDescriptor, Status, StatusCode, Strong,
    };
    use rsbinder::{DeathRecipient, ExceptionCode, FromIBinder, WIBinder};

    /// Clients at once, counting one for each connection that a client has.
    const MOST_CONNECTIONS: usize = 256;

    /// How long a client may leave what it is sent unread, callbacks included, before it is
    /// hung up on.
    const PATIENCE: Duration = Duration::from_secs(2);

    /// How long a server may take until it serves a client.
    const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);

    /// How long a server may take to answer a client: longer than any call takes.
    const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

    /// What the binder's log lines begin with, for a filter.
    pub const LOG_TARGET: &str = "rsbinder";

    #[allow(missing_docs)]
    mod generated {
        rsbinder::include_aidl!("android_system_vsock");
    }
    flatten!(generated::android::system::vsock);

    /// A service that clients can reach.
    pub fn service(inner: impl VsockService + Sync + 'static) -> Strong<dyn VsockService> {
        BnVsockService::new_binder(inner)
    }

    /// A device that clients can be given.
    pub fn device(inner: impl VsockDevice + Sync + 'static) -> Strong<dyn VsockDevice> {
        BnVsockDevice::new_binder(inner)
    }

    /// A callback that a device can be given.
    pub fn callback(
        inner: impl VsockDeviceCallback + Sync + 'static,
    ) -> Strong<dyn VsockDeviceCallback> {
        BnVsockDeviceCallback::new_binder(inner)
    }

    /// A refusal with a constant of the interface.
    pub fn refuse(code: i32, message: &str) -> Status {
        Status::new_service_specific_error(code, Some(message.to_owned()))
    }

    /// The constant of a refusal, and what it says; `None`: the call itself failed.
    pub fn refusal(status: &Status) -> Option<(i32, String)> {
        let message = || status.message().unwrap_or_default().to_owned();
        (status.exception_code() == ExceptionCode::ServiceSpecific)
            .then(|| (status.service_specific_error(), message()))
    }

    struct OnDeath<F>(F);

    impl<F: Fn() + Send + Sync> DeathRecipient for OnDeath<F> {
        fn binder_died(&self, _who: &WIBinder) {
            (self.0)();
        }
    }

    /// Keeps [`on_death`] in force.
    pub struct DeathLink(#[allow(dead_code)] Arc<dyn Send + Sync>);

    /// Runs `act` when the process behind `callback` is gone.
    pub fn on_death(
        callback: &Strong<dyn VsockDeviceCallback>,
        act: impl Fn() + Send + Sync + 'static,
    ) -> std::result::Result<DeathLink, StatusCode> {
        let recipient = Arc::new(OnDeath(act));
        callback.as_binder().link_to_death_arc(&recipient)?;
        Ok(DeathLink(recipient))
    }

    /// A server on a Unix socket; it ends when dropped, and so do its clients' sessions.
    pub struct Server {
        server: Arc<RpcServer>,
        accepting: Option<JoinHandle<()>>,
    }

    impl Server {
        /// Binds a socket to `path`; nobody is served yet.
        pub fn bind(path: &Path, service: &Strong<dyn VsockService>) -> io::Result<Self> {
            let server = RpcServer::setup_unix_server(path).map_err(failed)?;
            server.set_android13plus(WireVersion::MAX.get());
            let modes = [
                FileDescriptorTransportMode::None,
                FileDescriptorTransportMode::Unix,
            ];
            server.set_supported_fd_modes(&modes);
            server.set_max_connections(MOST_CONNECTIONS);
            server.set_reply_timeout(Some(PATIENCE));
            server.set_root(service.as_binder()).map_err(failed)?;
            Ok(Self {
                server,
                accepting: None,
            })
        }

        /// Begins to serve.
        pub fn start(&mut self) {
            self.accepting = Some(self.server.run_background());
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.server.stop_accepting();
            if let Some(thread) = self.accepting.take() {
                // It has nothing to say when it ends.
                let _ = thread.join();
            }
            self.server.terminate();
        }
    }

    fn failed(status: StatusCode) -> io::Error {
        match status {
            StatusCode::Errno(errno) => io::Error::from_raw_os_error(-errno),
            StatusCode::TimedOut => io::ErrorKind::TimedOut.into(),
            other => io::Error::other(other),
        }
    }

    /// A client's way to a server. It ends with the last object that came that way, but
    /// one for callbacks ends when this is dropped: its threads would hold it open.
    pub struct Session {
        callbacks: Option<RpcSession>,
        /// The server's root object.
        pub service: Strong<dyn VsockService>,
    }

    impl Session {
        /// Connects to the server at `path`; `callbacks`: it is to reach callbacks of ours.
        /// `TimedOut`: it listens, and does not serve.
        pub fn open(path: &Path, callbacks: bool) -> io::Result<Self> {
            let refused = Mutex::new(None);
            let connect = || match UnixStream::connect(path) {
                Ok(stream) => {
                    let transport = UnixTransport::from_stream(stream);
                    let boxed = |transport| Box::new(transport) as Box<dyn RpcTransport>;
                    transport.map(boxed).map_err(StatusCode::from)
                }
                Err(error) => {
                    let status = StatusCode::RpcError;
                    *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    Err(status)
                }
            };
            let config = RpcClientConfig::new(WireVersion::MAX.get(), connect)
                .fd_mode(FileDescriptorTransportMode::Unix)
                .incoming_connections(u32::from(callbacks))
                .timeout(HANDSHAKE_PATIENCE);
            let session = RpcSession::setup_client_android13plus_with_config(config);
            let refused = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
            let session = match (session, refused) {
                (_, Some(error)) => return Err(error),
                (session, None) => session.map_err(failed)?,
            };
            let service = session.get_root().and_then(FromIBinder::try_from);
            match service {
                Ok(service) => {
                    session.set_timeout(Some(CLIENT_PATIENCE));
                    Ok(Self {
                        callbacks: callbacks.then_some(session),
                        service,
                    })
                }
                Err(status) => {
                    session.close_session();
                    Err(failed(status))
                }
            }
        }
    }

    impl Drop for Session {
        fn drop(&mut self) {
            if let Some(session) = &self.callbacks {
                session.close_session();
            }
        }
    }
}

#[cfg(soong)]
mod soong {
    use std::io;
    use std::os::fd::{IntoRawFd, OwnedFd};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;

    use binder::{BinderFeatures, DeathRecipient, ExceptionCode, IBinder};
    pub use binder::{Interface, ParcelFileDescriptor, Result, Status, StatusCode, Strong};
    use rpcbinder::{FileDescriptorTransportMode, RpcServer, RpcSession};

    flatten!(android_system_vsock::aidl::android::system::vsock);

    /// What the binder's log lines begin with, for a filter.
    pub const LOG_TARGET: &str = "binder";

    /// A service that clients can reach.
    pub fn service(inner: impl VsockService + Sync + 'static) -> Strong<dyn VsockService> {
        BnVsockService::new_binder(inner, BinderFeatures::default())
    }

    /// A device that clients can be given.
    pub fn device(inner: impl VsockDevice + Sync + 'static) -> Strong<dyn VsockDevice> {
        BnVsockDevice::new_binder(inner, BinderFeatures::default())
    }

    /// A callback that a device can be given.
    pub fn callback(
        inner: impl VsockDeviceCallback + Sync + 'static,
    ) -> Strong<dyn VsockDeviceCallback> {
        BnVsockDeviceCallback::new_binder(inner, BinderFeatures::default())
    }

    /// A refusal with a constant of the interface.
    pub fn refuse(code: i32, message: &str) -> Status {
        Status::new_service_specific_error_str(code, Some(message))
    }

    /// The constant of a refusal, and what it says; `None`: the call itself failed.
    pub fn refusal(status: &Status) -> Option<(i32, String)> {
        (status.exception_code() == ExceptionCode::SERVICE_SPECIFIC).then(|| {
            let code = status.service_specific_error();
            (
                code,
                super::message(&status.get_description(), code).to_owned(),
            )
        })
    }

    /// Keeps [`on_death`] in force.
    pub struct DeathLink(#[allow(dead_code)] DeathRecipient);

    /// Runs `act` when the process behind `callback` is gone.
    pub fn on_death(
        callback: &Strong<dyn VsockDeviceCallback>,
        act: impl Fn() + Send + Sync + 'static,
    ) -> std::result::Result<DeathLink, StatusCode> {
        let mut recipient = DeathRecipient::new(act);
        callback.as_binder().link_to_death(&mut recipient)?;
        Ok(DeathLink(recipient))
    }

    /// A server on a Unix socket; it ends when dropped, and so do its clients' sessions.
    pub struct Server(RpcServer);

    impl Server {
        /// Binds a socket to `path`; nobody is served yet.
        pub fn bind(path: &Path, service: &Strong<dyn VsockService>) -> io::Result<Self> {
            let listener = OwnedFd::from(UnixListener::bind(path)?);
            let server = RpcServer::new_bound_socket(service.as_binder(), listener)?;
            let modes = [
                FileDescriptorTransportMode::None,
                FileDescriptorTransportMode::Unix,
            ];
            server.set_supported_file_descriptor_transport_modes(&modes);
            Ok(Self(server))
        }

        /// Begins to serve.
        pub fn start(&mut self) {
            self.0.start();
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            // It was not started, if that is what fails.
            let _ = self.0.shutdown();
        }
    }

    /// A client's way to a server. It ends with the last object that came that way.
    pub struct Session {
        /// The server's root object.
        pub service: Strong<dyn VsockService>,
    }

    impl Session {
        /// Connects to the server at `path`; `callbacks`: it is to reach callbacks of ours.
        pub fn open(path: &Path, callbacks: bool) -> io::Result<Self> {
            let session = RpcSession::new();
            session.set_file_descriptor_transport_mode(FileDescriptorTransportMode::Unix);
            session.set_max_incoming_threads(usize::from(callbacks));
            let mut refused = None;
            let connect = || match UnixStream::connect(path) {
                Ok(stream) => Some(stream.into_raw_fd()),
                Err(error) => {
                    refused = Some(error);
                    None
                }
            };
            let service = session.setup_preconnected_client(connect);
            match (service, refused) {
                (_, Some(error)) => Err(error),
                (Ok(service), None) => Ok(Self { service }),
                (Err(status), None) => Err(io::Error::other(format!("{status:?}"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::message;

    #[test]
    fn a_description_holds_a_message() {
        for (description, expected) in [
            ("Status(-8, EX_SERVICE_SPECIFIC): '5: no guest'", "no guest"),
            (
                "Status(-8, EX_SERVICE_SPECIFIC): '5: a 'b': '5: c''",
                "a 'b': '5: c'",
            ),
            ("Status(-8, EX_SERVICE_SPECIFIC): '5: '", ""),
            (
                "Status(-8, EX_SERVICE_SPECIFIC): '6: other'",
                "Status(-8, EX_SERVICE_SPECIFIC): '6: other'",
            ),
            ("something else", "something else"),
        ] {
            assert_eq!(message(description, 5), expected);
        }
    }
}
