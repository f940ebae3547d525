// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest is made of, and the names under which its doings are reported.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::bus::Addressing;
use crate::memory::{default_layout, GpaRange, RegionLayout};
use crate::packet::Header;
use crate::queues::{RxConfig, TxConfig};

/// Reads `guest_cid` from the device's configuration space.
pub type FetchCid = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Sees every packet that the driver sends or receives. Called with the
/// driver's lock held: it must not call back.
pub type Observer = Arc<dyn Fn(Direction, &Header) + Send + Sync>;

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device.
    Received,
    /// To the device.
    Sent,
}

/// How to make a [`Guest`](crate::Guest).
#[derive(Clone)]
pub struct GuestConfig {
    /// The guest's CID, `guest_cid` of the configuration space.
    pub cid: u64,
    /// How it is fetched again after a transport reset (5.10.6.7); without,
    /// it stays.
    pub fetch_cid: Option<FetchCid>,
    /// The regions of memory.
    pub memory: Vec<RegionLayout>,
    /// How bus addresses are computed.
    pub addressing: Addressing,
    /// Sizes of the rx, tx and event rings.
    pub ring_sizes: [u16; 3],
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// Where the rings must lie, if anywhere.
    pub rings_from: Option<GpaRange>,
    /// Where packet buffers must lie, if anywhere.
    pub buffers_from: Option<GpaRange>,
    /// Receive buffers.
    pub rx: RxConfig,
    /// Transmission.
    pub tx: TxConfig,
    /// The receive buffer of each new connection, in bytes.
    pub buf_alloc: u32,
    /// How many connections a listener keeps that were not accepted yet.
    pub backlog: usize,
    /// How long anything waits before it returns `TimedOut`.
    pub timeout: Duration,
    /// How long a clean disconnect waits for the peer's RST (5.10.6.5).
    pub close_timeout: Duration,
    /// The first port of connections made here. Without, one that a run a
    /// moment ago has not used: hosts remember.
    pub first_port: Option<u32>,
    /// For everything random.
    pub seed: u64,
    /// Sees every packet.
    pub observer: Option<Observer>,
}

impl Default for GuestConfig {
    fn default() -> Self {
        GuestConfig {
            cid: 3,
            fetch_cid: None,
            memory: default_layout(),
            addressing: Addressing::Physical,
            ring_sizes: [256, 256, 16],
            event_idx: true,
            indirect: false,
            rings_from: None,
            buffers_from: None,
            rx: RxConfig::default(),
            tx: TxConfig::default(),
            buf_alloc: 256 << 10,
            backlog: 128,
            timeout: Duration::from_secs(20),
            close_timeout: Duration::from_secs(8),
            first_port: None,
            seed: 1,
            observer: None,
        }
    }
}

impl fmt::Debug for GuestConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestConfig")
            .field("cid", &self.cid)
            .field("addressing", &self.addressing)
            .field("ring_sizes", &self.ring_sizes)
            .field("event_idx", &self.event_idx)
            .field("indirect", &self.indirect)
            .field("rx", &self.rx)
            .field("tx", &self.tx)
            .field("buf_alloc", &self.buf_alloc)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// A rule that the device broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It wrote less than a header.
    ShortHeader,
    /// The bytes it wrote are not the header and `len` bytes of payload.
    WrongLength,
    /// The packet is not for this guest, or a CID has its upper half set.
    WrongCid,
    /// An operation that does not exist, 0 included.
    UnknownOp,
    /// A payload in a packet that is not RW.
    PayloadOnControl,
    /// A REQUEST for a connection that exists.
    DuplicateRequest,
    /// A RESPONSE that nobody waited for.
    StrayResponse,
    /// Data or SHUTDOWN before the connection was established.
    TooEarly,
    /// Data after the device said it would send no more.
    DataAfterShutdown,
    /// More data than there was credit for.
    CreditOverrun,
    /// A SHUTDOWN with no flag or an unknown one.
    ShutdownFlags,
    /// An event of less than four bytes.
    ShortEvent,
}

/// A rule that the device broke, and the packet that did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The packet, all zero if there was none.
    pub header: Header,
    /// How many bytes the device said it wrote.
    pub used_len: u32,
}

/// Counters since the guest was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets received, by op; unknown ones count as 0.
    pub received: [u64; 8],
    /// Packets sent, by op.
    pub sent: [u64; 8],
    /// Payload received, in bytes.
    pub received_bytes: u64,
    /// Payload sent, in bytes.
    pub sent_bytes: u64,
    /// Kicks given, by queue.
    pub kicks: [u64; 3],
    /// Wake-ups by a call, by queue.
    pub calls: [u64; 3],
}
