// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for AOSP's `librpcbinder_rs`: what this project uses of it, as declared in
//! frameworks/native/libs/binder/rust/rpcbinder/src. For type-checks only; never built by
//! Soong. Nothing here runs.

use std::io::Error;
use std::os::fd::{OwnedFd, RawFd};

use binder::{FromIBinder, SpIBinder, StatusCode, Strong};

/// How descriptors travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileDescriptorTransportMode {
    /// Not at all.
    None,
    /// Over a Unix socket.
    Unix,
}

/// A server.
#[derive(Debug)]
pub struct RpcServer(());

impl RpcServer {
    /// Serves `service` at a socket that is bound.
    pub fn new_bound_socket(_service: SpIBinder, _socket_fd: OwnedFd) -> Result<Self, Error> {
        unimplemented!()
    }

    /// What clients may choose from.
    pub fn set_supported_file_descriptor_transport_modes(
        &self,
        _modes: &[FileDescriptorTransportMode],
    ) {
        unimplemented!()
    }

    /// Begins to serve, on a thread of its own.
    pub fn start(&self) {
        unimplemented!()
    }

    /// Ends, with all sessions.
    pub fn shutdown(&self) -> Result<(), Error> {
        unimplemented!()
    }
}

/// A client's way to a server.
#[derive(Debug)]
pub struct RpcSession(());

impl RpcSession {
    /// One that is not connected.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        unimplemented!()
    }

    /// How descriptors travel.
    pub fn set_file_descriptor_transport_mode(&self, _mode: FileDescriptorTransportMode) {
        unimplemented!()
    }

    /// Threads for the server's calls.
    pub fn set_max_incoming_threads(&self, _threads: usize) {
        unimplemented!()
    }

    /// Connects with the descriptors that `request_fd` makes, and takes them over.
    pub fn setup_preconnected_client<T: FromIBinder + ?Sized>(
        &self,
        _request_fd: impl FnMut() -> Option<RawFd>,
    ) -> Result<Strong<T>, StatusCode> {
        unimplemented!()
    }
}
