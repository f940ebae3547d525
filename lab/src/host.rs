// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host program: ordinary `AF_VSOCK` sockets, as any service of a host has them.

use std::io;
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

fn socket(kind: SocketType) -> io::Result<Socket> {
    let socket = Socket::new(Domain::VSOCK, domain_type(kind), None)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

/// Connects to `port` of the guest with `cid`.
pub fn connect(cid: u64, port: u32, kind: SocketType) -> io::Result<Socket> {
    let cid = u32::try_from(cid).map_err(io::Error::other)?;
    let socket = socket(kind)?;
    socket.connect(&SockAddr::vsock(cid, port))?;
    Ok(socket)
}

/// Listens on `port` of the host.
pub fn listen(port: u32, kind: SocketType) -> io::Result<Socket> {
    let socket = socket(kind)?;
    socket.bind(&SockAddr::vsock(ANY, port))?;
    socket.listen(64)?;
    Ok(socket)
}

/// Accepts one connection, with the same limits as a connecting socket.
pub fn accept(listener: &Socket) -> io::Result<Socket> {
    let (socket, _) = listener.accept()?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    Ok(socket)
}
