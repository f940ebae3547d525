// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Host programs around two guests: they listen, connect, talk, read, and leave.

use std::io::IoSlice;
use std::path::PathBuf;

use crosvm_vsock::userspace::packet::SocketType;
use crosvm_vsock::userspace::socket::{Direction, Socket};
use tempfile::TempDir;

use super::input::Input;

/// The guests that they know.
pub const CIDS: [u64; 2] = [3, 4];

/// Ports at which a host program listens: streams, streams and messages.
const PORTS: [(u32, SocketType); 3] = [
    (1, SocketType::Stream),
    (2, SocketType::Stream),
    (3, SocketType::SeqPacket),
];

/// Programs around the guests.
pub struct Host {
    dir: TempDir,
    listeners: Vec<Socket>,
    /// Their ends of connections.
    pub peers: Vec<Socket>,
}

impl Host {
    /// Listening, and nothing else yet.
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let mut host = Self {
            dir,
            listeners: Vec::new(),
            peers: Vec::new(),
        };
        for cid in CIDS {
            for (port, socket_type) in PORTS {
                let mut path = host.base(cid).into_os_string();
                path.push(format!("_{port}"));
                let listener = Socket::listen_unix(&path, socket_type);
                host.listeners.push(listener.expect("a listener"));
            }
        }
        host
    }

    /// Where the names of a guest's sockets begin.
    pub fn base(&self, cid: u64) -> PathBuf {
        self.dir.path().join(format!("vm{cid}"))
    }

    /// One of them does something.
    pub fn act(&mut self, input: &mut Input<'_>) {
        let what = input.u8();
        let which = usize::from(what >> 3);
        if what % 8 < 2 {
            return self.arrive(what, which, input);
        }
        if self.peers.is_empty() {
            return;
        }
        let which = which % self.peers.len();
        let peer = &self.peers[which];
        match what % 8 {
            2 | 3 => {
                let len = usize::from(input.u8()) << (input.u8() % 10);
                // Full sockets and ended ones refuse: that is a host program's business.
                let _ = peer.send_bytes(&[IoSlice::new(&vec![7; len])]);
            }
            4 => drop(peer.receive_bytes(&mut vec![0; 1 << (input.u8() % 20)])),
            5 => peer.shutdown(input.pick(&[Direction::Read, Direction::Write])),
            6 => {
                let line = input.pick(&[&b"CONNECT 1\n"[..], b"connect 2\nmore", b"conn", b"x\n"]);
                let _ = peer.send_bytes(&[IoSlice::new(line)]);
            }
            _ => drop(self.peers.swap_remove(which)),
        }
    }

    /// A program connects, or takes a connection.
    fn arrive(&mut self, what: u8, which: usize, input: &mut Input<'_>) {
        let (base, seqpacket) = (self.base(CIDS[which % 2]), which & 2 != 0);
        let arrived = match what % 8 {
            0 if seqpacket => {
                let mut path = base.into_os_string();
                path.push("_seqpacket");
                Socket::connect_unix(&path, SocketType::SeqPacket)
            }
            0 => Socket::connect_unix(base.as_os_str(), SocketType::Stream),
            _ => self.listeners[which % self.listeners.len()].accept(),
        };
        let Ok(peer) = arrived else { return };
        if what % 8 == 0 {
            let line = format!("CONNECT {}\n", 1 + input.u8() % 4);
            let _ = peer.send_bytes(&[IoSlice::new(line.as_bytes())]);
        }
        self.peers.push(peer);
    }
}
