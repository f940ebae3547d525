// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host program: ordinary `AF_VSOCK` sockets, as any service of a host has them, or
//! Unix sockets, where the device is the daemon's userspace path.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use guest_driver::SocketType;
use socket2::{Domain, SockAddr, Socket, Type};

/// `VMADDR_CID_ANY`.
const ANY: u32 = u32::MAX;

/// Every socket gives up after this long: a hang is a finding, not a way to end.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Ports that no earlier cell has used: a lingering socket of an earlier cell
/// answers a reused port with silence or a reset for seconds.
pub fn fresh_port() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(10_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn domain_type(kind: SocketType) -> Type {
    match kind {
        SocketType::SEQPACKET => Type::SEQPACKET,
        _ => Type::STREAM,
    }
}

fn socket(domain: Domain, kind: SocketType) -> io::Result<Socket> {
    let socket = Socket::new(domain, domain_type(kind), None)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

/// Connects to `port` of the guest with `cid`.
pub fn connect(cid: u64, port: u32, kind: SocketType) -> io::Result<Socket> {
    let cid = u32::try_from(cid).map_err(io::Error::other)?;
    let socket = socket(Domain::VSOCK, kind)?;
    socket.connect(&SockAddr::vsock(cid, port))?;
    Ok(socket)
}

/// Listens on `port` of the host.
pub fn listen(port: u32, kind: SocketType) -> io::Result<Socket> {
    let socket = socket(Domain::VSOCK, kind)?;
    socket.bind(&SockAddr::vsock(ANY, port))?;
    socket.listen(64)?;
    Ok(socket)
}

/// Where host programs are.
#[derive(Clone, Copy, Debug)]
pub enum Programs<'a> {
    /// On the host's vsock.
    Vsock,
    /// On Unix sockets whose names begin with this path.
    Unix(&'a Path),
}

impl Programs<'_> {
    /// Connects to `port` of the guest with `cid`. A guest that refuses is
    /// `ECONNRESET` in either place.
    pub fn connect(self, cid: u64, port: u32, kind: SocketType) -> io::Result<Socket> {
        match self {
            Self::Vsock => connect(cid, port, kind),
            Self::Unix(base) => dial(base, port, kind),
        }
    }

    /// Listens on `port` of the host.
    pub fn listen(self, port: u32, kind: SocketType) -> io::Result<Socket> {
        match self {
            Self::Vsock => listen(port, kind),
            Self::Unix(base) => {
                let socket = socket(Domain::UNIX, kind)?;
                socket.bind(&named(base, &format!("_{port}"))?)?;
                socket.listen(64)?;
                Ok(socket)
            }
        }
    }
}

fn named(base: &Path, suffix: &str) -> io::Result<SockAddr> {
    let mut path = base.as_os_str().to_owned();
    path.push(suffix);
    SockAddr::unix(path)
}

/// Asks for `port` as the hybrid protocol has it.
fn dial(base: &Path, port: u32, kind: SocketType) -> io::Result<Socket> {
    let suffix = match kind {
        SocketType::SEQPACKET => "_seqpacket",
        _ => "",
    };
    let socket = socket(Domain::UNIX, kind)?;
    socket.connect(&named(base, suffix)?)?;
    (&socket).write_all(format!("CONNECT {port}\n").as_bytes())?;
    let expected = format!("OK {port}\n").into_bytes();
    // Not a byte more: what follows is the guest's.
    let mut answer = vec![0; expected.len()];
    match (&socket).read_exact(&mut answer) {
        Ok(()) if answer == expected => Ok(socket),
        Ok(()) => {
            let answer = String::from_utf8_lossy(&answer).into_owned();
            Err(io::Error::new(io::ErrorKind::InvalidData, answer))
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(io::Error::from_raw_os_error(libc::ECONNRESET))
        }
        Err(error) => Err(error),
    }
}

/// Accepts one connection, with the same limits as a connecting socket.
pub fn accept(listener: &Socket) -> io::Result<Socket> {
    let (socket, _) = listener.accept()?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    Ok(socket)
}
