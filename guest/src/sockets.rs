// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sockets of one side: `AF_VSOCK`, or the Unix sockets of the hybrid protocol.
//!
//! `unsafe`: one `setsockopt`, for how long a vsock may take to connect, which no crate
//! here has a name for.

use std::io::{self, Read, Write};
use std::mem::{size_of, zeroed};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::protocol::Kind;

/// Every socket gives up after this long: a hang is a finding, not a way to end.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// `VMADDR_CID_ANY` (linux/vm_sockets.h).
const ANY: u32 = u32::MAX;
/// `VMADDR_CID_HOST`.
pub const HOST: u32 = 2;
/// `SO_VM_SOCKETS_CONNECT_TIMEOUT`, the one that takes a `struct timeval`.
const CONNECT_TIMEOUT: libc::c_int = 6;
/// Longest queue of connections not accepted yet.
const BACKLOG: i32 = 1024;

/// Where the other side is, and how this one is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On vsock; the other side has this CID.
    Vsock(u32),
    /// On Unix sockets around this path, as the daemon has them.
    Hybrid(PathBuf),
}

impl Place {
    /// Listens on `port` of this side.
    ///
    /// # Errors
    /// As the system calls have them.
    pub fn listen(&self, port: u32, kind: Kind) -> io::Result<Socket> {
        let socket = self.socket(kind)?;
        match self {
            Self::Vsock(_) => socket.bind(&SockAddr::vsock(ANY, port))?,
            Self::Hybrid(_) => {
                let path = self.path(&format!("_{port}"))?;
                if let Some(path) = path.as_pathname() {
                    // An earlier listener's file; the address is this side's to use.
                    let _ = std::fs::remove_file(path);
                }
                socket.bind(&path)?;
            }
        }
        socket.listen(BACKLOG)?;
        Ok(socket)
    }

    /// Connects to `port` of the other side. Nobody there is `ECONNRESET` in either place.
    ///
    /// # Errors
    /// As the system calls have them.
    pub fn connect(&self, port: u32, kind: Kind) -> io::Result<Socket> {
        let socket = self.socket(kind)?;
        match self {
            Self::Vsock(cid) => {
                set_connect_timeout(&socket)?;
                socket.connect(&SockAddr::vsock(*cid, port))?;
            }
            Self::Hybrid(_) => {
                let suffix = match kind {
                    Kind::Stream => "",
                    Kind::Seqpacket => "_seqpacket",
                };
                socket.connect(&self.path(suffix)?)?;
                introduce(&socket, port)?;
            }
        }
        Ok(socket)
    }

    fn socket(&self, kind: Kind) -> io::Result<Socket> {
        let domain = match self {
            Self::Vsock(_) => Domain::VSOCK,
            Self::Hybrid(_) => Domain::UNIX,
        };
        let kind = match kind {
            Kind::Stream => Type::STREAM,
            Kind::Seqpacket => Type::SEQPACKET,
        };
        let socket = Socket::new(domain, kind, None)?;
        limit(&socket)?;
        Ok(socket)
    }

    fn path(&self, suffix: &str) -> io::Result<SockAddr> {
        let Self::Hybrid(base) = self else {
            return Err(io::Error::other("vsock has no paths"));
        };
        let mut path = base.as_os_str().to_owned();
        path.push(suffix);
        SockAddr::unix(path)
    }
}

/// Accepts one connection, under the same limits as a connecting socket.
///
/// # Errors
/// As `accept`; `EAGAIN` when nobody came in time.
pub fn accept(listener: &Socket) -> io::Result<Socket> {
    let (socket, _) = listener.accept()?;
    limit(&socket)?;
    Ok(socket)
}

/// Reading and writing end in [`TIMEOUT`], `accept` as well.
fn limit(socket: &Socket) -> io::Result<()> {
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))
}

/// Says `CONNECT` and takes the answer, not a byte more.
fn introduce(mut socket: &Socket, port: u32) -> io::Result<()> {
    socket.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let expected = format!("OK {port}\n").into_bytes();
    let mut answer = vec![0; expected.len()];
    match socket.read_exact(&mut answer) {
        Ok(()) if answer == expected => Ok(()),
        Ok(()) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the daemon answers {:?}", String::from_utf8_lossy(&answer)),
        )),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(io::Error::from_raw_os_error(libc::ECONNRESET))
        }
        Err(error) => Err(error),
    }
}

/// Linux gives up after two seconds, which is short for an emulated machine.
fn set_connect_timeout(socket: &Socket) -> io::Result<()> {
    // SAFETY: a timeval is plain integers.
    let mut time: libc::timeval = unsafe { zeroed() };
    time.tv_sec = TIMEOUT.as_secs() as libc::time_t;
    // SAFETY: the descriptor is open, and `time` is valid for the size that is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            std::ptr::from_ref(&time).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
