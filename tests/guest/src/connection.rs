// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state of one connection (VIRTIO 1.2, 5.10.6.5), and what it means to
//! those who read, write or wait for it. Sends nothing itself.

use std::io;
use std::sync::{Arc, Condvar};
use std::time::Instant;

use crate::credit::Credit;
use crate::inbox::Inbox;
use crate::packet::{shutdown_flags, Header, Op, SocketType};

/// What tells connections apart: the address tuple (5.10.6.2) and the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    pub(crate) local_port: u32,
    pub(crate) peer_cid: u64,
    pub(crate) peer_port: u32,
    pub(crate) socket_type: SocketType,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// RST in answer to REQUEST.
    Refused,
    /// RST out of the blue, or a broken rule.
    Reset,
    /// Both sides had said what they had to say.
    Clean,
    /// No RST came after SHUTDOWN.
    TimedOut,
    /// The transport was reset, or the whole driver failed.
    Transport,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// REQUEST is sent.
    Connecting,
    /// Data may flow.
    Established,
    /// Closed here, waiting for the peer's RST until then.
    Closing(Instant),
    /// Not known to the protocol any more.
    Ended(End),
}

/// Those who wait for a connection; used with the driver's lock.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// Something to read, or the phase changed.
    pub(crate) readable: Condvar,
    /// Credit to write, or the phase changed.
    pub(crate) writable: Condvar,
}

impl Signals {
    fn all(&self) {
        self.readable.notify_all();
        self.writable.notify_all();
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) route: Route,
    pub(crate) phase: Phase,
    pub(crate) credit: Credit,
    pub(crate) inbox: Inbox,
    pub(crate) local_shutdown: u32,
    pub(crate) peer_shutdown: u32,
    pub(crate) signals: Arc<Signals>,
    /// Nobody holds it any more: forget it as soon as it has ended.
    pub(crate) orphan: bool,
}

impl Connection {
    pub(crate) fn new(route: Route, phase: Phase, buf_alloc: u32) -> Self {
        Connection {
            route,
            phase,
            credit: Credit::new(buf_alloc),
            inbox: Inbox::default(),
            local_shutdown: 0,
            peer_shutdown: 0,
            signals: Arc::default(),
            orphan: false,
        }
    }

    /// A header of this connection, with its credit.
    pub(crate) fn header(&mut self, cid: u64, op: Op, flags: u32) -> Header {
        let mut header = Header {
            src_cid: cid,
            dst_cid: self.route.peer_cid,
            src_port: self.route.local_port,
            dst_port: self.route.peer_port,
            socket_type: self.route.socket_type,
            op,
            flags,
            ..Header::default()
        };
        self.credit.stamp(&mut header);
        header
    }

    /// Changes the phase and wakes everybody.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.signals.all();
    }

    /// What an RST from the peer means now.
    pub(crate) fn end_by_rst(&self) -> End {
        let said_all = self.peer_shutdown & shutdown_flags::SEND != 0;
        match self.phase {
            Phase::Connecting => End::Refused,
            Phase::Closing(_) => End::Clean,
            _ if said_all || self.local_shutdown == shutdown_flags::BOTH => End::Clean,
            _ => End::Reset,
        }
    }

    /// What a reader with nothing to read gets: `Some` end of file or error,
    /// `None` if it should wait.
    pub(crate) fn end_of_data(&self) -> Option<io::Result<()>> {
        match self.phase {
            Phase::Ended(End::Clean) | Phase::Closing(_) => Some(Ok(())),
            Phase::Ended(end) => Some(Err(end.error())),
            _ if self.peer_shutdown & shutdown_flags::SEND != 0 => Some(Ok(())),
            _ if self.local_shutdown & shutdown_flags::RECEIVE != 0 => Some(Ok(())),
            _ => None,
        }
    }

    /// Why nothing can be written any more, if so.
    pub(crate) fn write_error(&self) -> Option<io::Error> {
        let broken = |why| Some(io::Error::new(io::ErrorKind::BrokenPipe, why));
        match self.phase {
            Phase::Ended(End::Clean) => broken("the peer is gone"),
            Phase::Ended(end) => Some(end.error()),
            Phase::Closing(_) => broken("closed here"),
            _ if self.local_shutdown & shutdown_flags::SEND != 0 => broken("shut down here"),
            _ if self.peer_shutdown & shutdown_flags::RECEIVE != 0 => {
                broken("the peer receives no more")
            }
            _ => None,
        }
    }
}

impl End {
    pub(crate) fn error(self) -> io::Error {
        let (kind, why) = match self {
            End::Refused => (io::ErrorKind::ConnectionRefused, "RST in answer to REQUEST"),
            End::Reset => (io::ErrorKind::ConnectionReset, "reset by RST"),
            End::Clean => (io::ErrorKind::NotConnected, "the connection has ended"),
            End::TimedOut => (io::ErrorKind::TimedOut, "no RST in answer to SHUTDOWN"),
            End::Transport => (io::ErrorKind::ConnectionReset, "the transport was reset"),
        };
        io::Error::new(kind, why)
    }
}
