// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`Tube`]: messages between threads or processes, over a seqpacket socket.
//!
//! `unsafe`: socketpair(2) and recv(2) with MSG_TRUNC, which the standard
//! library does not wrap.

use std::io;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{de::DeserializeOwned, Serialize};

use crate::{AsRawDescriptor, RawDescriptor};

/// What can go wrong with a tube.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other end is closed.
    #[error("tube was disconnected")]
    Disconnected,
    /// A message is no valid value.
    #[error("failed to serialize/deserialize json from packet: {0}")]
    Json(serde_json::Error),
    /// No pair could be made.
    #[error("failed to create tube pair: {0}")]
    Pair(io::Error),
    /// Receiving failed.
    #[error("failed to receive packet: {0}")]
    Recv(io::Error),
    /// Sending failed.
    #[error("failed to send packet: {0}")]
    Send(io::Error),
    /// The limit of receiving could not be set.
    #[error("failed to set recv timeout: {0}")]
    SetRecvTimeout(io::Error),
    /// The limit of sending could not be set.
    #[error("failed to set send timeout: {0}")]
    SetSendTimeout(io::Error),
}

/// The result of using a tube.
pub type Result<T> = std::result::Result<T, Error>;

/// One end: what one end sends, the other receives, whole and in order.
pub struct Tube(UnixStream);

impl Tube {
    /// Two connected ends.
    pub fn pair() -> Result<(Tube, Tube)> {
        let mut fds = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: the pointer is to two descriptors, which is what is written.
        if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) } < 0 {
            return Err(Error::Pair(io::Error::last_os_error()));
        }
        // SAFETY: the kernel just gave us these descriptors.
        let [one, other] = fds.map(|fd| Tube(unsafe { OwnedFd::from_raw_fd(fd) }.into()));
        Ok((one, other))
    }

    /// Sends `msg`.
    pub fn send<T: Serialize>(&self, msg: &T) -> Result<()> {
        let packet = serde_json::to_vec(msg).map_err(Error::Json)?;
        (&self.0).write_all(&packet).map_err(Error::Send)
    }

    /// Waits for a message.
    pub fn recv<T: DeserializeOwned>(&self) -> Result<T> {
        // MSG_PEEK | MSG_TRUNC tells the length and leaves the packet.
        let length = self.receive(&mut [], libc::MSG_PEEK | libc::MSG_TRUNC)?;
        let mut packet = vec![0; length];
        match self.receive(&mut packet, 0)? {
            0 => Err(Error::Disconnected),
            length => serde_json::from_slice(&packet[..length]).map_err(Error::Json),
        }
    }

    /// Limits how long `send` may block; `None` is without limit.
    pub fn set_send_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        let set = self.0.set_write_timeout(timeout);
        set.map_err(Error::SetSendTimeout)
    }

    /// Limits how long `recv` may block; `None` is without limit.
    pub fn set_recv_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        let set = self.0.set_read_timeout(timeout);
        set.map_err(Error::SetRecvTimeout)
    }

    fn receive(&self, buffer: &mut [u8], flags: i32) -> Result<usize> {
        loop {
            let fd = self.0.as_raw_fd();
            // SAFETY: the pointer and length are the buffer's.
            let n = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags) };
            match usize::try_from(n) {
                Ok(n) => return Ok(n),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(Error::Recv(error));
                    }
                }
            }
        }
    }
}

impl AsRawDescriptor for Tube {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (one, other) = Tube::pair().unwrap();
        let long = "x".repeat(50_000);
        one.send(&long).unwrap();
        one.send(&(1u8, true)).unwrap();
        assert_eq!(other.recv::<String>().unwrap(), long);
        assert_eq!(other.recv::<(u8, bool)>().unwrap(), (1, true));
        other.send(&Some(3)).unwrap();
        assert!(matches!(one.recv::<String>(), Err(Error::Json(_))));
    }

    #[test]
    fn a_limit_and_an_end() {
        let (one, other) = Tube::pair().unwrap();
        one.set_recv_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        assert!(matches!(one.recv::<u8>(), Err(Error::Recv(_))));
        drop(other);
        assert!(matches!(one.recv::<u8>(), Err(Error::Disconnected)));
        assert!(matches!(one.send(&1), Err(Error::Send(_))));
    }
}
