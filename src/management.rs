// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What may be asked of a running device beside moving data: how it is, who is connected,
//! a connection to a port, a reset.
//!
//! A data path is [`Managed`] on its own thread; others reach it through a
//! [`Mailbox`](crate::mailbox::Mailbox), and hear of what happens through
//! [`Watchers`]. Nothing here knows how an operator asks: that
//! is the module `control`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::address::{Cid, Gpa, Port, Range};
use crate::compat::Mode;
use crate::event::{wait_for, Readiness};
use crate::features::FeatureSet;
use crate::userspace::acceptor::Acceptor;
use crate::userspace::packet::SocketType;
use crate::userspace::sibling::YES;
use crate::userspace::socket::Socket;
use crate::userspace::stats::Stats;
use crate::watchers::Watchers;

/// What a data path does with a device at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Which part of guest memory it can reach.
    pub mode: Mode,
    /// What the driver is offered.
    pub offered: FeatureSet,
    /// What the driver has acknowledged, while there is one.
    pub acknowledged: Option<FeatureSet>,
    /// The queues were given up and are not served until a reset.
    pub needs_reset: bool,
}

/// What has happened on a device, as far as its data path knows.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Counters of a path that moves the data itself.
    pub traffic: Option<Arc<Stats>>,
    /// Connections at present, if the path knows them.
    pub open: Option<usize>,
    /// How often all connections were ended at once.
    pub resets: u64,
    /// Accesses denied by the IOTLB.
    pub denials: u64,
    /// Misses and mappings of the IOTLB, if there is one.
    pub iotlb: Option<(u64, u64)>,
}

/// How far a connection has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Asked for, not answered yet.
    Opening,
    /// Both sides have said yes.
    Established,
    /// Over for one side, not for the other.
    Closing,
}

/// A guest's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// The guest's port.
    pub guest_port: Port,
    /// The host, or another guest.
    pub peer: Cid,
    /// Its port.
    pub peer_port: Port,
    /// Bytes or messages.
    pub socket_type: SocketType,
    /// How far it has got.
    pub progress: Progress,
    /// Bytes from the guest that the other end has not taken yet.
    pub pending: usize,
}

/// Why a device does not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The data path or its mode has no such thing.
    #[error("not on this device: {0}")]
    Unsupported(&'static str),
    /// No driver has set the queues up.
    #[error("no driver in the guest has set the device up: is the guest running, with its virtio-vsock driver?")]
    NotRunning,
    /// The guest said no, or nothing.
    #[error("guest port {0}: {1}")]
    NotConnected(Port, &'static str),
    /// Somebody listens there already.
    #[error("port {0} has a listener already: unlisten it, or let its owner close the acceptor")]
    PortInUse(Port),
    /// Not a descriptor to send connections to.
    #[error("the acceptor is {0}: hand over one end of socketpair(AF_UNIX, SOCK_SEQPACKET)")]
    BadAcceptor(&'static str),
    /// Not a range to share.
    #[error("{0}")]
    BadRange(String),
    /// A bound is reached.
    #[error("{0}")]
    TooMany(String),
    /// The device's thread does not answer, and why.
    #[error("the device's thread {0}")]
    Busy(&'static str),
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// A connection to the guest that has been asked for and not been answered yet.
#[derive(Debug)]
pub struct Call {
    /// Our end.
    pub socket: Socket,
    /// The guest's port.
    pub port: Port,
    /// How the answer will show.
    pub answer: Answer,
}

/// How one sees that a guest has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A byte arrives: [`YES`].
    Byte,
    /// The socket's connection is made (connect(2), EINPROGRESS).
    Connected,
}

impl Call {
    /// Waits for the guest's answer, `patience` at most. The socket is blocking afterwards.
    pub fn wait(self, patience: Duration) -> Result<OwnedFd, Refusal> {
        let Self {
            socket,
            port,
            answer,
        } = self;
        let readiness = match answer {
            Answer::Byte => Readiness::Readable,
            Answer::Connected => Readiness::Writable,
        };
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if wait_for(socket.as_fd(), readiness, left)? {
                break;
            }
            if left.is_zero() {
                return Err(Refusal::NotConnected(port, "the guest does not answer"));
            }
        }
        let accepted = match answer {
            Answer::Byte => {
                let mut byte = [0];
                matches!(socket.receive_bytes(&mut byte), Ok(1)) && byte[0] == YES
            }
            Answer::Connected => socket.connect_result().is_ok(),
        };
        if !accepted {
            let why = "the guest refused the connection: nobody listens there, or it is overloaded";
            return Err(Refusal::NotConnected(port, why));
        }
        Ok(socket.into_blocking()?)
    }
}

/// A device that can be asked how it is and told what to do. Called on its own thread:
/// nothing here may wait.
pub trait Managed {
    /// How it is.
    fn status(&self) -> Status;

    /// What has happened.
    fn statistics(&self) -> Statistics;

    /// The guest's connections, `most` at most.
    fn connections(&mut self, most: usize) -> Result<Vec<ConnectionInfo>, Refusal>;

    /// Asks the guest for a connection from the host to `port`.
    fn connect(&mut self, port: Port) -> Result<Call, Refusal>;

    /// Sends the guest's connections to the host's `port` to `acceptor`, each as a
    /// descriptor in a message.
    fn listen(&mut self, port: Port, acceptor: Acceptor) -> Result<(), Refusal>;

    /// Undoes [`listen`](Self::listen).
    fn unlisten(&mut self, port: Port) -> Result<(), Refusal>;

    /// Lets the data path reach `range`.
    fn share(&mut self, range: Range<Gpa>) -> Result<(), Refusal>;

    /// Undoes [`share`](Self::share).
    fn unshare(&mut self, range: Range<Gpa>) -> Result<(), Refusal>;

    /// Ends all connections and has the guest told. Queues that were given up are
    /// served again.
    fn reset(&mut self) -> Result<(), Refusal>;

    /// Tells `watchers` what happens from now on.
    fn watch(&mut self, watchers: Arc<Watchers>);
}
