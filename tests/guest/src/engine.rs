// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's state behind its lock: queues, connections, listeners, and
//! what is waiting to be sent. How packets are sent is here; what received
//! ones mean is in `dispatch`. Never blocks.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use crate::bus::AddressSpace;
use crate::config::{Direction, FetchCid, GuestConfig, Observer, Rule, Stats, Violation};
use crate::connection::{Connection, End, Phase, Route};
use crate::memory::GpaRange;
use crate::packet::{seq_flags, shutdown_flags, Header, Op, SocketType};
use crate::queues::{EventQueue, Queue, QueueError, RxQueue, TxQueue};
use crate::ring::{Ring, RingConfig, RingError};

/// Violations kept; later ones are lost, the first are what matters.
const MAX_VIOLATIONS: usize = 1000;

/// Names a connection for as long as anybody refers to it.
pub(crate) type ConnectionId = u64;

/// Who may touch the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The driver.
    Driven,
    /// Nobody.
    Paused,
    /// A test, by hand.
    Raw,
}

/// What a listener has not handed out yet.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    pub(crate) waiting: VecDeque<ConnectionId>,
    pub(crate) signal: Arc<Condvar>,
}

/// How far a write got.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Everything is queued.
    All,
    /// So many bytes, then the peer's credit ran out.
    Credit(usize),
    /// So many bytes, then the transmit queue was full.
    Space(usize),
}

/// Everything behind the lock.
pub(crate) struct Engine {
    pub(crate) cid: u64,
    pub(crate) fetch_cid: Option<FetchCid>,
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) rx: RxQueue,
    pub(crate) tx: TxQueue,
    pub(crate) events: EventQueue,
    pub(crate) mode: Mode,
    /// Look at all rings, called or not: somebody else had them.
    pub(crate) rescan: bool,
    pub(crate) stopping: bool,
    /// Why the driver gave up, if it did.
    pub(crate) failure: Option<String>,
    pub(crate) connections: HashMap<ConnectionId, Connection>,
    pub(crate) routes: HashMap<Route, ConnectionId>,
    pub(crate) listeners: HashMap<(u32, SocketType), Backlog>,
    /// Connections in `Phase::Closing`.
    pub(crate) closing: Vec<ConnectionId>,
    /// Control packets the transmit queue had no room for ("additional
    /// resources outside the virtqueue", 5.10.6.1).
    pub(crate) pending: VecDeque<Header>,
    /// Signalled when the transmit queue has room.
    pub(crate) tx_space: Arc<Condvar>,
    pub(crate) tx_wanted: bool,
    pub(crate) event_log: VecDeque<crate::packet::Event>,
    pub(crate) event_seen: Arc<Condvar>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) stats: Stats,
    pub(crate) buf_alloc: u32,
    pub(crate) backlog: usize,
    pub(crate) close_timeout: Duration,
    observer: Option<Observer>,
    next_id: ConnectionId,
    next_port: u32,
}

impl Engine {
    pub(crate) fn new(space: Arc<AddressSpace>, config: &GuestConfig) -> Result<Self, QueueError> {
        let ring = |queue: Queue| RingConfig {
            size: config.ring_sizes[queue as usize],
            event_idx: config.event_idx,
            indirect: config.indirect,
            within: config.rings_from.clone(),
        };
        let from = || config.buffers_from.clone();
        let seed = config.seed;
        let (rx_config, tx_config) = (config.rx.clone(), config.tx.clone());
        let mut engine = Engine {
            cid: config.cid,
            fetch_cid: config.fetch_cid.clone(),
            rx: RxQueue::new(&space, ring(Queue::Rx), rx_config, from(), seed)?,
            tx: TxQueue::new(&space, ring(Queue::Tx), tx_config, from(), seed ^ 1)?,
            events: EventQueue::new(&space, ring(Queue::Event), from())?,
            space,
            mode: Mode::Driven,
            rescan: false,
            stopping: false,
            failure: None,
            connections: HashMap::new(),
            routes: HashMap::new(),
            listeners: HashMap::new(),
            closing: Vec::new(),
            pending: VecDeque::new(),
            tx_space: Arc::default(),
            tx_wanted: false,
            event_log: VecDeque::new(),
            event_seen: Arc::default(),
            violations: Vec::new(),
            stats: Stats::default(),
            buf_alloc: config.buf_alloc,
            backlog: config.backlog,
            close_timeout: config.close_timeout,
            observer: config.observer.clone(),
            next_id: 1,
            next_port: config.first_port.unwrap_or_else(fresh_port),
        };
        engine.post_buffers()?;
        Ok(engine)
    }

    /// Posts receive and event buffers, as initialization does (5.10.5).
    fn post_buffers(&mut self) -> Result<(), QueueError> {
        self.tx.ring.disable_call().map_err(in_queue(Queue::Tx))?;
        self.events.fill()?;
        self.rx.fill()?;
        self.kick(Queue::Event)?;
        self.kick(Queue::Rx)
    }

    pub(crate) fn ring(&mut self, queue: Queue) -> &mut Ring {
        match queue {
            Queue::Rx => &mut self.rx.ring,
            Queue::Tx => &mut self.tx.ring,
            Queue::Event => &mut self.events.ring,
        }
    }

    pub(crate) fn kick(&mut self, queue: Queue) -> Result<(), QueueError> {
        let kicked = self.ring(queue).publish_and_kick();
        if kicked.map_err(in_queue(queue))? {
            self.stats.kicks[queue as usize] += 1;
        }
        Ok(())
    }

    /// Begins again with empty rings at `base`, after the device was reset.
    pub(crate) fn reset(&mut self, base: u16) -> Result<(), QueueError> {
        self.end_all(End::Transport);
        self.failure = None;
        self.rx.reset(base)?;
        self.tx.reset(base)?;
        self.events.reset(base)?;
        self.post_buffers()?;
        self.tx_space.notify_all();
        Ok(())
    }

    pub(crate) fn set_buffers_from(&mut self, within: Option<GpaRange>) {
        self.rx.set_within(within.clone());
        self.tx.set_within(within.clone());
        self.events.set_within(within);
    }

    /// Gives up: every connection ends, every call fails from now on.
    pub(crate) fn fail(&mut self, error: &QueueError) {
        if self.failure.is_none() {
            self.failure = Some(error.to_string());
        }
        self.end_all(End::Transport);
        self.tx_space.notify_all();
        self.event_seen.notify_all();
        for backlog in self.listeners.values() {
            backlog.signal.notify_all();
        }
    }

    /// The error of every call after [`fail`](Self::fail).
    pub(crate) fn check(&self) -> io::Result<()> {
        match &self.failure {
            None => Ok(()),
            Some(why) => Err(io::Error::other(why.clone())),
        }
    }

    // Connections.

    pub(crate) fn insert(&mut self, connection: Connection) -> ConnectionId {
        let id = self.next_id;
        self.next_id += 1;
        self.routes.insert(connection.route, id);
        self.connections.insert(id, connection);
        id
    }

    /// A port that no connection and no listener uses.
    pub(crate) fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            // Ports below 1024 are for listeners, u32::MAX means "any".
            self.next_port = if port >= u32::MAX - 1 { 1024 } else { port + 1 };
            let used = self.routes.keys().any(|r| r.local_port == port)
                || self.listeners.keys().any(|l| l.0 == port);
            if !used {
                return port;
            }
        }
    }

    /// Ends a connection for the protocol; its reader may still read.
    pub(crate) fn end(&mut self, id: ConnectionId, end: End) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if matches!(connection.phase, Phase::Closing(_)) {
            self.closing.retain(|c| *c != id);
        }
        connection.enter(Phase::Ended(end));
        if self.routes.get(&connection.route) == Some(&id) {
            self.routes.remove(&connection.route);
        }
        if connection.orphan {
            self.connections.remove(&id);
        }
    }

    /// Ends all connections, and drops what was to be sent for them.
    pub(crate) fn end_all(&mut self, end: End) {
        let open: Vec<_> = self.routes.values().copied().collect();
        for id in open {
            self.end(id, end);
        }
        for backlog in self.listeners.values_mut() {
            for id in backlog.waiting.drain(..) {
                self.connections.remove(&id);
            }
        }
        self.pending.clear();
    }

    /// Ends a connection and tells the peer so by RST.
    pub(crate) fn abort(&mut self, id: ConnectionId, end: End) -> Result<(), QueueError> {
        let sent = self.send(id, Op::RST, 0);
        self.end(id, end);
        sent
    }

    /// The clean disconnect of 5.10.6.5, as far as it goes at once.
    pub(crate) fn close(&mut self, id: ConnectionId) -> Result<(), QueueError> {
        let deadline = Instant::now() + self.close_timeout;
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        match connection.phase {
            Phase::Connecting => return self.abort(id, End::Reset),
            Phase::Closing(_) | Phase::Ended(_) => return Ok(()),
            Phase::Established => {}
        }
        let told = std::mem::replace(&mut connection.local_shutdown, shutdown_flags::BOTH);
        connection.enter(Phase::Closing(deadline));
        self.closing.push(id);
        if told == shutdown_flags::BOTH {
            return Ok(());
        }
        self.send(id, Op::SHUTDOWN, shutdown_flags::BOTH)
    }

    /// Nobody holds the connection any more.
    pub(crate) fn forget(&mut self, id: ConnectionId) -> Result<(), QueueError> {
        let closed = self.close(id);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.orphan = true;
            if matches!(connection.phase, Phase::Ended(_)) {
                self.connections.remove(&id);
            }
        }
        closed
    }

    /// Resets connections whose peer did not answer SHUTDOWN in time. Returns
    /// when to look again.
    pub(crate) fn expire(&mut self, now: Instant) -> Result<Option<Instant>, QueueError> {
        let mut next = None;
        for id in self.closing.clone() {
            match self.connections.get(&id).map(|c| c.phase) {
                Some(Phase::Closing(at)) if at <= now => self.abort(id, End::TimedOut)?,
                Some(Phase::Closing(at)) => next = Some(next.map_or(at, |n: Instant| n.min(at))),
                _ => {}
            }
        }
        self.kick(Queue::Tx)?;
        Ok(next)
    }

    // Sending.

    /// Sends a control packet of a connection, now or as soon as there is
    /// room. The caller kicks.
    pub(crate) fn send(&mut self, id: ConnectionId, op: Op, flags: u32) -> Result<(), QueueError> {
        let cid = self.cid;
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        let header = connection.header(cid, op, flags);
        self.send_header(header)
    }

    /// Sends a packet without payload, now or as soon as there is room.
    pub(crate) fn send_header(&mut self, header: Header) -> Result<(), QueueError> {
        self.pending.push_back(header);
        self.flush()
    }

    /// Sends what is pending, as far as there is room.
    pub(crate) fn flush(&mut self) -> Result<(), QueueError> {
        if self.mode != Mode::Driven {
            return Ok(());
        }
        while let Some(header) = self.pending.front().copied() {
            if self.transmit(header, &[], 0)?.is_none() {
                return self.want_tx();
            }
            self.pending.pop_front();
        }
        Ok(())
    }

    /// Queues one packet; returns how much of `data` went into it, `None` if
    /// there is no room. `last_flags` are set if that is all of it.
    fn transmit(
        &mut self,
        mut header: Header,
        data: &[u8],
        last_flags: u32,
    ) -> Result<Option<usize>, QueueError> {
        let mut slot = self.tx.reserve(data.len())?;
        if slot.is_none() && self.tx.reclaim()? > 0 {
            slot = self.tx.reserve(data.len())?;
        }
        let Some(slot) = slot else {
            return Ok(None);
        };
        let n = slot.room;
        header.len = n as u32;
        header.flags |= if n == data.len() { last_flags } else { 0 };
        self.tx.submit(slot, &header, &data[..n])?;
        self.observe(Direction::Sent, &header);
        self.stats.sent[op_index(header.op)] += 1;
        self.stats.sent_bytes += n as u64;
        Ok(Some(n))
    }

    /// Asks for a call when the device has consumed packets.
    fn want_tx(&mut self) -> Result<(), QueueError> {
        self.tx_wanted = true;
        let used = self.tx.ring.enable_call().map_err(in_queue(Queue::Tx))?;
        if used {
            // No call will come for what is used already: the driver's thread
            // has to look, and is woken by the call eventfd.
            let signalled = self.tx.ring.call_fd().signal();
            signalled.map_err(|e| QueueError::Ring(Queue::Tx, RingError::Kick(e)))?;
        }
        Ok(())
    }

    /// Sends data as far as credit and the queue allow, and kicks. For a
    /// seqpacket connection `data` is (the rest of) a message.
    pub(crate) fn write(
        &mut self,
        id: ConnectionId,
        data: &[u8],
        eor: bool,
    ) -> Result<Progress, QueueError> {
        let (cid, mut sent) = (self.cid, 0);
        let progress = loop {
            let Some(connection) = self.connections.get_mut(&id) else {
                break Progress::Credit(sent);
            };
            let message = connection.route.socket_type == SocketType::SEQPACKET;
            let left = data.len() - sent;
            if left == 0 && (sent > 0 || !message) {
                break Progress::All;
            }
            let room = left.min(connection.credit.peer_free() as usize);
            if room == 0 && left > 0 {
                if connection.credit.should_ask(Instant::now()) {
                    self.send(id, Op::CREDIT_REQUEST, 0)?;
                }
                break Progress::Credit(sent);
            }
            if self.mode != Mode::Driven || !self.pending.is_empty() {
                self.tx_wanted = true;
                break Progress::Space(sent);
            }
            let n = self.tx.chunk(room);
            let header = connection.header(cid, Op::RW, 0);
            let last = message && n == left;
            let flags = seq_flags::EOM | if eor { seq_flags::EOR } else { 0 };
            let chunk = &data[sent..sent + n];
            let Some(n) = self.transmit(header, chunk, if last { flags } else { 0 })? else {
                self.want_tx()?;
                break Progress::Space(sent);
            };
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.credit.send(n as u32);
            }
            sent += n;
            if left == 0 {
                break Progress::All;
            }
        };
        if self.mode == Mode::Driven {
            self.kick(Queue::Tx)?;
        }
        Ok(progress)
    }

    /// The device has consumed packets.
    pub(crate) fn tx_done(&mut self) -> Result<(), QueueError> {
        self.tx.reclaim()?;
        self.tx_wanted = false;
        self.flush()?;
        if !self.tx_wanted {
            self.tx.ring.disable_call().map_err(in_queue(Queue::Tx))?;
        }
        self.kick(Queue::Tx)?;
        self.tx_space.notify_all();
        Ok(())
    }

    // Reports.

    pub(crate) fn observe(&self, direction: Direction, header: &Header) {
        if let Some(observer) = &self.observer {
            observer(direction, header);
        }
    }

    pub(crate) fn violation(&mut self, rule: Rule, header: Header, used_len: u32) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(Violation {
                rule,
                header,
                used_len,
            });
        }
    }
}

pub(crate) fn in_queue(queue: Queue) -> impl Fn(RingError) -> QueueError {
    move |e| QueueError::Ring(queue, e)
}

/// The place of an op in the counters.
pub(crate) fn op_index(op: Op) -> usize {
    if op <= Op::CREDIT_REQUEST {
        usize::from(op.0)
    } else {
        0
    }
}

/// A port far from those of other runs at about this time.
fn fresh_port() -> u32 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let mixed = crate::rng::word_at(now.as_nanos() as u64, u64::from(std::process::id()));
    0x1_0000 + (mixed as u32) % 0x7fff_0000
}
