// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the host's programs are, and the sockets at which they find the guest. A socket's
//! file goes with its listener.

use std::io;
use std::path::{Path, PathBuf};

use super::hybrid;
use super::packet::SocketType;
use super::socket::Socket;
use crate::address::{Cid, Port};

/// Where the guest's requests for the host go, and where host programs find the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPlace {
    /// Unix sockets, the names beginning with this path.
    Unix(PathBuf),
    /// The host's own vsock.
    Vsock {
        /// Who gets the guest's requests.
        cid: Cid,
        /// Ports of the host that are the same ports of the guest.
        listen: Vec<Port>,
    },
}

/// Something that host programs connect to.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: Socket,
    pub(super) socket_type: SocketType,
    pub(super) kind: ListenerKind,
}

#[derive(Clone, Debug)]
pub(super) enum ListenerKind {
    /// Clients say which port they want; the file goes with the listener.
    Hybrid(PathBuf),
    /// Clients want this port.
    Port(Port),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let ListenerKind::Hybrid(path) = &self.kind {
            // It may have been removed by somebody else.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Opened listeners and the place they belong to.
#[derive(Debug)]
pub(super) struct HostSide {
    pub(super) place: HostPlace,
    pub(super) listeners: Vec<Listener>,
}

/// Removes the socket that a process before this one has left at `path`. An error:
/// somebody listens there, or it is no socket.
pub fn remove_stale_socket(path: &Path, socket_type: SocketType) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let in_the_way = |what| {
        let why = format!("{} {what}", path.display());
        Err(io::Error::new(io::ErrorKind::AddrInUse, why))
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return in_the_way("is there and is not a socket: remove it or choose another path");
        }
        Ok(_) => {}
    }
    match Socket::connect_unix(path.as_os_str(), socket_type) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => in_the_way("is in use: another process listens there"),
    }
}

impl HostSide {
    /// Opens the listeners of `place`.
    pub(super) fn open(place: HostPlace) -> io::Result<Self> {
        let mut listeners = Vec::new();
        match &place {
            HostPlace::Unix(base) => {
                let paths = [
                    (base.clone(), SocketType::Stream),
                    (
                        PathBuf::from(hybrid::seqpacket_path(base)),
                        SocketType::SeqPacket,
                    ),
                ];
                for (path, socket_type) in paths {
                    remove_stale_socket(&path, socket_type)?;
                    listeners.push(Listener {
                        socket: Socket::listen_unix(path.as_os_str(), socket_type).map_err(
                            |e| {
                                io::Error::new(
                                    e.kind(),
                                    format!("cannot listen at {}: {e}", path.display()),
                                )
                            },
                        )?,
                        socket_type,
                        kind: ListenerKind::Hybrid(path),
                    });
                }
            }
            HostPlace::Vsock { listen, .. } => {
                for port in listen {
                    let socket_type = SocketType::Stream;
                    listeners.push(Listener {
                        socket: Socket::listen_vsock(*port, socket_type).map_err(|e| {
                            io::Error::new(
                                e.kind(),
                                format!("cannot listen on vsock port {port}: {e}"),
                            )
                        })?,
                        socket_type,
                        kind: ListenerKind::Port(*port),
                    });
                }
            }
        }
        Ok(Self { place, listeners })
    }
}
