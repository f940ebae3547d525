// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What received packets and events mean (VIRTIO 1.2, 5.10.6.4 to 5.10.6.7).
//! A packet that breaks a rule is recorded as a violation, so that a test
//! sees it even where the connection survives.

use crate::config::{Direction, Rule};
use crate::connection::{Connection, End, Phase, Route};
use crate::engine::{in_queue, op_index, ConnectionId, Engine};
use crate::packet::{shutdown_flags, Event, Header, Op, SocketType, HEADER_SIZE};
use crate::queues::{Queue, QueueError, Received};

/// Replies that may wait for room in the transmit queue before the receive
/// queue is left alone (5.10.6.1).
const MAX_PENDING: usize = 4096;

/// What is left to do after a packet.
enum Verdict {
    Done,
    Reply(Op),
    /// Answer RST, and that is the end.
    Abort(End),
    /// The peer ended it.
    End(End),
    /// Record it, and reset the connection.
    Broken(Rule),
}

impl Engine {
    /// Takes up to `budget` packets. True if there is more to do now.
    pub(crate) fn rx_batch(&mut self, budget: usize) -> Result<bool, QueueError> {
        self.rx.ring.disable_call().map_err(in_queue(Queue::Rx))?;
        let mut more = true;
        for _ in 0..budget {
            if self.pending.len() >= MAX_PENDING {
                // Goes on when the device has consumed some: see the caller.
                more = false;
                break;
            }
            let Some(received) = self.rx.pop()? else {
                more = false;
                break;
            };
            let handled = self.on_received(&received);
            self.rx.recycle(received);
            handled?;
        }
        self.rx.fill()?;
        self.kick(Queue::Rx)?;
        self.kick(Queue::Tx)?;
        if more || self.pending.len() >= MAX_PENDING {
            return Ok(more);
        }
        self.rx.ring.enable_call().map_err(in_queue(Queue::Rx))
    }

    fn on_received(&mut self, received: &Received) -> Result<(), QueueError> {
        let used_len = received.used_len;
        let segments = received.pooled.buffer.segments();
        if (used_len as usize) < HEADER_SIZE {
            self.violation(Rule::ShortHeader, Header::default(), used_len);
            return Ok(());
        }
        let bus_error = |e| QueueError::Bus(Queue::Rx, e);
        let mut bytes = [0; HEADER_SIZE];
        let space = self.space.clone();
        space.gather(segments, 0, &mut bytes).map_err(bus_error)?;
        let header = Header::from_bytes(&bytes);
        self.observe(Direction::Received, &header);
        self.stats.received[op_index(header.op)] += 1;

        let payload = used_len - HEADER_SIZE as u32;
        if payload != header.len {
            self.violation(Rule::WrongLength, header, used_len);
            if payload < header.len {
                return self.reject(&header);
            }
        }
        self.stats.received_bytes += u64::from(header.len);
        if header.dst_cid != self.cid || header.src_cid > u64::from(u32::MAX) {
            self.violation(Rule::WrongCid, header, used_len);
            return Ok(());
        }
        if header.op == Op::INVALID || header.op > Op::CREDIT_REQUEST {
            self.violation(Rule::UnknownOp, header, used_len);
            return self.reject(&header);
        }
        if header.len > 0 && header.op != Op::RW {
            self.violation(Rule::PayloadOnControl, header, used_len);
        }
        let Some(&id) = self.routes.get(&route_of(&header)) else {
            return self.on_unknown(&header);
        };
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        if connection.credit.learn(&header) {
            connection.signals.writable.notify_all();
        }
        let verdict = if header.op == Op::RW {
            on_data(connection, &header, |at, place| {
                space.gather(segments, HEADER_SIZE + at, place)
            })
            .map_err(bus_error)?
        } else {
            on_control(connection, &header)
        };
        self.carry_out(id, verdict, header, used_len)
    }

    fn carry_out(
        &mut self,
        id: ConnectionId,
        verdict: Verdict,
        header: Header,
        used_len: u32,
    ) -> Result<(), QueueError> {
        match verdict {
            Verdict::Done => Ok(()),
            Verdict::Reply(op) => self.send(id, op, 0),
            Verdict::Abort(end) => self.abort(id, end),
            Verdict::End(end) => {
                self.end(id, end);
                Ok(())
            }
            Verdict::Broken(rule) => {
                self.violation(rule, header, used_len);
                // A hint only; the connection can do without.
                if rule == Rule::ShutdownFlags {
                    return Ok(());
                }
                self.abort(id, End::Reset)
            }
        }
    }

    /// A packet that makes no sense: its connection ends, if there is one.
    fn reject(&mut self, header: &Header) -> Result<(), QueueError> {
        match self.routes.get(&route_of(header)) {
            Some(&id) => self.abort(id, End::Reset),
            None => self.on_unknown(header),
        }
    }

    /// A packet for no connection: a REQUEST that a listener takes, or RST.
    fn on_unknown(&mut self, header: &Header) -> Result<(), QueueError> {
        if header.op == Op::RST {
            return Ok(());
        }
        let listener = (header.dst_port, header.socket_type);
        let room = self
            .listeners
            .get(&listener)
            .is_some_and(|l| l.waiting.len() < self.backlog);
        if header.op != Op::REQUEST || !room {
            return self.send_header(header.reply(Op::RST));
        }
        let mut connection = Connection::new(route_of(header), Phase::Established, self.buf_alloc);
        connection.credit.learn(header);
        let id = self.insert(connection);
        self.send(id, Op::RESPONSE, 0)?;
        if let Some(backlog) = self.listeners.get_mut(&listener) {
            backlog.waiting.push_back(id);
            backlog.signal.notify_one();
        }
        Ok(())
    }

    /// Takes all events.
    pub(crate) fn event_batch(&mut self) -> Result<(), QueueError> {
        loop {
            while let Some(event) = self.events.pop()? {
                match event {
                    None => self.violation(Rule::ShortEvent, Header::default(), 0),
                    Some(event) => self.on_event(event),
                }
            }
            self.events.fill()?;
            self.kick(Queue::Event)?;
            let more = self.events.ring.enable_call();
            if !more.map_err(in_queue(Queue::Event))? {
                return Ok(());
            }
        }
    }

    /// 5.10.6.7: connections are shut down, the CID is fetched again,
    /// listeners stay.
    fn on_event(&mut self, event: Event) {
        if event == Event::TRANSPORT_RESET {
            self.end_all(End::Transport);
            if let Some(fetch) = &self.fetch_cid {
                self.cid = fetch();
            }
        }
        self.event_log.push_back(event);
        self.event_seen.notify_all();
    }
}

fn route_of(header: &Header) -> Route {
    Route {
        local_port: header.dst_port,
        peer_cid: header.src_cid,
        peer_port: header.src_port,
        socket_type: header.socket_type,
    }
}

fn on_data<E>(
    connection: &mut Connection,
    header: &Header,
    fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<Verdict, E> {
    if connection.phase == Phase::Connecting {
        return Ok(Verdict::Broken(Rule::TooEarly));
    }
    if connection.peer_shutdown & shutdown_flags::SEND != 0 {
        return Ok(Verdict::Broken(Rule::DataAfterShutdown));
    }
    if connection.credit.receive(header.len).is_err() {
        return Ok(Verdict::Broken(Rule::CreditOverrun));
    }
    let unwanted = connection.local_shutdown & shutdown_flags::RECEIVE != 0;
    if unwanted {
        // It was under way when we said so; its buffer is free again.
        let tell = connection.credit.consume(header.len);
        let reply = tell && connection.phase == Phase::Established;
        return Ok(if reply {
            Verdict::Reply(Op::CREDIT_UPDATE)
        } else {
            Verdict::Done
        });
    }
    let len = header.len as usize;
    connection.inbox.append(len, fill)?;
    if header.socket_type == SocketType::SEQPACKET {
        connection.inbox.mark(len, header.flags);
    }
    connection.signals.readable.notify_all();
    Ok(Verdict::Done)
}

fn on_control(connection: &mut Connection, header: &Header) -> Verdict {
    let connecting = connection.phase == Phase::Connecting;
    match header.op {
        Op::RST => Verdict::End(connection.end_by_rst()),
        Op::REQUEST => Verdict::Broken(Rule::DuplicateRequest),
        Op::RESPONSE if connecting => {
            connection.enter(Phase::Established);
            Verdict::Done
        }
        Op::RESPONSE => Verdict::Broken(Rule::StrayResponse),
        Op::SHUTDOWN if connecting => Verdict::Broken(Rule::TooEarly),
        Op::SHUTDOWN => {
            connection.peer_shutdown |= header.flags & shutdown_flags::BOTH;
            connection.signals.readable.notify_all();
            connection.signals.writable.notify_all();
            if connection.peer_shutdown == shutdown_flags::BOTH {
                // Nothing more will come, and nothing would be heard: the
                // clean disconnect ends with our RST (5.10.6.5).
                return Verdict::Abort(End::Clean);
            }
            if header.flags == 0 || header.flags & !shutdown_flags::BOTH != 0 {
                return Verdict::Broken(Rule::ShutdownFlags);
            }
            Verdict::Done
        }
        Op::CREDIT_REQUEST if !connecting => Verdict::Reply(Op::CREDIT_UPDATE),
        _ => Verdict::Done,
    }
}
