// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What one VM may use. Each limit is reported when it is hit ([`super::stats`]).

use std::time::Duration;

/// Bounds for one VM; [`Default`] suits a VM that is not out to do harm and still
/// holds one that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, of either origin. Beyond: the guest gets RST, a host
    /// client is hung up on.
    pub connections: usize,
    /// Connections that wait for the guest's answer, for host programs with a full backlog,
    /// for siblings, each; beyond: as above. Host clients that have not said `CONNECT` yet;
    /// beyond: the one that has been silent for longest is hung up on.
    pub half_open: usize,
    /// Bytes held over all connections: from the guest, refused by full host sockets, with
    /// what it takes to tell messages apart; and messages to the guest on their way in
    /// pieces. Beyond: a connection that has many of them, and of those the one that has
    /// got rid of none for longest, is reset.
    pub pending_bytes: usize,
    /// RSTs for connections that do not exist, while the guest posts no buffers.
    /// Beyond: they are dropped.
    pub pending_resets: usize,
    /// Connection requests from siblings that wait for this VM's thread, and those that
    /// wait for its guest's answer. Beyond: refused.
    pub sibling_requests: usize,
    /// Size of the buffer that each connection grants the guest, in bytes.
    pub buf_alloc: u32,
    /// How long a host client may take to say `CONNECT`, and a guest to answer a request.
    pub handshake: Duration,
    /// How long a guest's request waits for room in a full backlog.
    pub dial: Duration,
    /// How long a guest may take to answer the end of a connection
    /// (`VSOCK_CLOSE_TIMEOUT`), and a host reader to take the rest of one that the
    /// guest has closed.
    pub close: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            half_open: 512,
            pending_bytes: 256 << 20,
            pending_resets: 1024,
            sibling_requests: 128,
            buf_alloc: 1 << 20,
            handshake: Duration::from_secs(5),
            dial: Duration::from_millis(1500),
            close: Duration::from_secs(8),
        }
    }
}
