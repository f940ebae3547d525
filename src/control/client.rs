// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client of the control socket, with errors that say what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::binder::{self, Session, Status, Strong, VsockDevice};

/// Why a client does not get what it asks for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no daemon listens at {path} ({source}): start crosvm-vsock with --control {path}, or say where it listens",
        path = path.display()
    )]
    NoDaemon {
        /// Where it should.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The socket is another user's.
    #[error(
        "no permission for the control socket {path}: only the user that runs the daemon, and root, may use it",
        path = path.display()
    )]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// Whoever listens says nothing.
    #[error(
        "{path} did not answer in {seconds} s: is the daemon overloaded, or is this not crosvm-vsock's control socket?",
        path = path.display()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long that was waited for.
        seconds: u64,
    },
    /// Whoever listens is not our daemon.
    #[error("no answer that makes sense from {path}: is it crosvm-vsock's control socket? ({source})", path = path.display())]
    Nonsense {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The daemon says no.
    #[error("{message}")]
    Refused {
        /// A constant of the interface.
        code: i32,
        /// What it says.
        message: String,
    },
    /// The daemon is gone.
    #[error("the daemon has ended, or hung up ({0})")]
    Gone(String),
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        match binder::refusal(&status) {
            Some((code, message)) => Self::Refused { code, message },
            None => Self::Gone(status.to_string()),
        }
    }
}

/// A client. One that is to be called back hangs up when dropped.
pub struct Client(Session);

impl Client {
    /// Connects to the daemon at `path`. `callbacks`: it is to reach callbacks of ours.
    pub fn open(path: &Path, callbacks: bool) -> Result<Self, ClientError> {
        let path = path.to_owned();
        let asked = Instant::now();
        match Session::open(&path, callbacks) {
            Ok(session) => Ok(Self(session)),
            Err(source) => Err(match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NoDaemon { path, source }
                }
                io::ErrorKind::TimedOut => ClientError::Silent {
                    path,
                    seconds: asked.elapsed().as_secs(),
                },
                io::ErrorKind::PermissionDenied => ClientError::Permission { path },
                _ => ClientError::Nonsense { path, source },
            }),
        }
    }

    /// The CIDs of all guests, in ascending order.
    pub fn guest_cids(&self) -> Result<Vec<i64>, ClientError> {
        Ok(self.0.service.getGuestCids()?)
    }

    /// The device of a guest.
    pub fn device(&self, cid: i64) -> Result<Strong<dyn VsockDevice>, ClientError> {
        Ok(self.0.service.getDevice(cid)?)
    }
}
