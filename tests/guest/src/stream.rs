// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sockets in the style of std: blocking, but never longer than the guest's
//! timeout, after which they return `TimedOut`.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::connection::{Connection, End, Phase, Route, Signals};
use crate::driver::{forget, Guard, Inner};
use crate::engine::{ConnectionId, Mode, Progress};
use crate::inbox::Message;
use crate::packet::{shutdown_flags, Op, SocketType};
use crate::queues::{Queue, QueueError};

/// Waits for connections on a port.
pub struct Listener {
    inner: Arc<Inner>,
    key: (u32, SocketType),
    signal: Arc<Condvar>,
}

impl Listener {
    pub(crate) fn new(inner: Arc<Inner>, key: (u32, SocketType), signal: Arc<Condvar>) -> Self {
        Listener { inner, key, signal }
    }

    /// The port it listens on.
    pub fn port(&self) -> u32 {
        self.key.0
    }

    /// The next connection; `TimedOut` if none comes.
    pub fn accept(&self) -> io::Result<Stream> {
        let deadline = Instant::now() + self.inner.timeout;
        let mut engine = self.inner.lock();
        loop {
            engine.check()?;
            let backlog = engine.listeners.get_mut(&self.key);
            if let Some(id) = backlog.and_then(|b| b.waiting.pop_front()) {
                if let Some(c) = engine.connections.get(&id) {
                    let (route, signals) = (c.route, c.signals.clone());
                    return Ok(Stream::new(self.inner.clone(), id, route, signals));
                }
                continue;
            }
            let what = "nobody connected";
            engine = self.inner.wait(engine, &self.signal, deadline, what)?;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut engine = self.inner.lock();
        let backlog = engine.listeners.remove(&self.key).unwrap_or_default();
        drop(engine);
        for id in backlog.waiting {
            forget(&self.inner, id);
        }
    }
}

/// A connection. Clones share it; when the last is dropped it is closed
/// without waiting.
#[derive(Clone)]
pub struct Stream(Arc<Handle>);

struct Handle {
    inner: Arc<Inner>,
    id: ConnectionId,
    route: Route,
    signals: Arc<Signals>,
    /// Keeps the packets of one message together.
    sender: Mutex<()>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        forget(&self.inner, self.id);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.0.route).finish()
    }
}

impl Stream {
    pub(crate) fn new(
        inner: Arc<Inner>,
        id: ConnectionId,
        route: Route,
        signals: Arc<Signals>,
    ) -> Self {
        Stream(Arc::new(Handle {
            inner,
            id,
            route,
            signals,
            sender: Mutex::new(()),
        }))
    }

    /// The port on this side.
    pub fn local_port(&self) -> u32 {
        self.0.route.local_port
    }

    /// CID and port of the other side.
    pub fn peer(&self) -> (u64, u32) {
        (self.0.route.peer_cid, self.0.route.peer_port)
    }

    /// Sends the next message of a seqpacket connection, `eor` if it is the
    /// last of a record. `InvalidInput` if it is larger than the peer's buffer.
    pub fn send_msg(&self, message: &[u8], eor: bool) -> io::Result<()> {
        let _order = self.0.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = self.deadline();
        let mut sent = 0;
        let mut engine = self.0.inner.lock();
        if let Some(connection) = self.connection(&mut engine)? {
            if message.len() > connection.credit.peer_buf_alloc() as usize {
                let why = "the message is larger than the peer's buffer";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        }
        loop {
            let (next, n, done) = self.push(engine, &message[sent..], eor, deadline)?;
            sent += n;
            if done {
                return Ok(());
            }
            engine = next;
        }
    }

    /// Receives the next whole message into `out`; `None` at the end.
    pub fn recv_msg(&self, out: &mut Vec<u8>) -> io::Result<Option<Message>> {
        let deadline = self.deadline();
        let mut engine = self.0.inner.lock();
        loop {
            let Some(connection) = self.connection(&mut engine)? else {
                return Ok(None);
            };
            if let Some(message) = connection.inbox.read_message(out) {
                self.consumed(&mut engine, message.len)?;
                return Ok(Some(message));
            }
            if let Some(end) = connection.end_of_data() {
                return end.map(|()| None);
            }
            engine = self.wait_readable(engine, deadline)?;
        }
    }

    /// Says that no more will be read, or written, or both.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let flags = match how {
            Shutdown::Read => shutdown_flags::RECEIVE,
            Shutdown::Write => shutdown_flags::SEND,
            Shutdown::Both => shutdown_flags::BOTH,
        };
        let mut engine = self.0.inner.lock();
        let Some(connection) = self.connection(&mut engine)? else {
            return Ok(());
        };
        if connection.phase != Phase::Established {
            return Err(io::ErrorKind::NotConnected.into());
        }
        connection.local_shutdown |= flags;
        self.0.signals.readable.notify_all();
        self.0.signals.writable.notify_all();
        self.send(&mut engine, Op::SHUTDOWN, flags)
    }

    /// The clean disconnect: SHUTDOWN of both directions, then waits for the
    /// peer's RST. `TimedOut` if it does not come; the connection is reset then.
    pub fn close(self) -> io::Result<()> {
        let deadline = self.deadline();
        let mut engine = self.0.inner.lock();
        let closed = engine.close(self.0.id);
        self.0.inner.settle(&mut engine, closed)?;
        self.kick(&mut engine)?;
        self.0.inner.wake();
        loop {
            let phase = engine.connections.get(&self.0.id).map(|c| c.phase);
            match phase {
                Some(Phase::Ended(end @ End::TimedOut)) => return Err(end.error()),
                None | Some(Phase::Ended(_)) => return Ok(()),
                _ => {}
            }
            engine = self.wait_readable(engine, deadline)?;
        }
    }

    /// Waits until the connection has ended; at most the guest's timeout.
    pub fn wait_ended(&self) -> io::Result<()> {
        let deadline = self.deadline();
        let mut engine = self.0.inner.lock();
        while self
            .connection(&mut engine)?
            .is_some_and(|c| !matches!(c.phase, Phase::Ended(_)))
        {
            engine = self.wait_readable(engine, deadline)?;
        }
        Ok(())
    }

    /// While held, the peer is told of no more space than it knows of now.
    /// Letting go sends what it missed.
    pub fn hold_credit(&self, held: bool) -> io::Result<()> {
        let mut engine = self.0.inner.lock();
        match self.connection(&mut engine)? {
            Some(connection) => connection.credit.hold(held),
            None => return Ok(()),
        }
        if held {
            return Ok(());
        }
        self.send(&mut engine, Op::CREDIT_UPDATE, 0)
    }

    /// Changes the receive buffer, in bytes, and tells the peer.
    pub fn set_buf_alloc(&self, bytes: u32) -> io::Result<()> {
        let mut engine = self.0.inner.lock();
        match self.connection(&mut engine)? {
            Some(connection) => connection.credit.set_buf_alloc(bytes),
            None => return Ok(()),
        }
        self.send(&mut engine, Op::CREDIT_UPDATE, 0)
    }

    /// Asks the peer for its credit.
    pub fn request_credit(&self) -> io::Result<()> {
        let mut engine = self.0.inner.lock();
        self.send(&mut engine, Op::CREDIT_REQUEST, 0)
    }

    /// How many bytes the peer has room for, as far as is known.
    pub fn peer_free(&self) -> io::Result<u32> {
        let mut engine = self.0.inner.lock();
        Ok(self
            .connection(&mut engine)?
            .map_or(0, |c| c.credit.peer_free()))
    }

    /// How many bytes were received and not read yet.
    pub fn unread(&self) -> io::Result<usize> {
        let mut engine = self.0.inner.lock();
        Ok(self.connection(&mut engine)?.map_or(0, |c| c.inbox.len()))
    }

    /// Waits until something can be read: data, a message, the end.
    /// False if that takes longer than `timeout`.
    pub fn wait_data(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        let mut engine = self.0.inner.lock();
        loop {
            match self.connection(&mut engine)? {
                Some(c) if c.inbox.len() == 0 && c.end_of_data().is_none() => {}
                _ => return Ok(true),
            }
            match self.wait_readable(engine, deadline) {
                Ok(next) => engine = next,
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(false),
                Err(e) => return Err(e),
            }
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.0.inner.timeout
    }

    fn connection<'a>(&self, engine: &'a mut Guard<'_>) -> io::Result<Option<&'a mut Connection>> {
        engine.check()?;
        Ok(engine.connections.get_mut(&self.0.id))
    }

    fn wait_readable<'a>(&self, engine: Guard<'a>, deadline: Instant) -> io::Result<Guard<'a>> {
        let signal = &self.0.signals.readable;
        self.0.inner.wait(engine, signal, deadline, "no data")
    }

    fn send(&self, engine: &mut Guard<'_>, op: Op, flags: u32) -> io::Result<()> {
        let sent = engine.send(self.0.id, op, flags);
        self.0.inner.settle(engine, sent)?;
        self.kick(engine)
    }

    fn kick(&self, engine: &mut Guard<'_>) -> io::Result<()> {
        if engine.mode != Mode::Driven {
            return Ok(());
        }
        let kicked: Result<(), QueueError> = engine.kick(Queue::Tx);
        self.0.inner.settle(engine, kicked)
    }

    /// `len` bytes have left the inbox.
    fn consumed(&self, engine: &mut Guard<'_>, len: usize) -> io::Result<()> {
        let tell = match engine.connections.get_mut(&self.0.id) {
            Some(c) => c.credit.consume(len as u32) && c.phase == Phase::Established,
            None => false,
        };
        if tell {
            return self.send(engine, Op::CREDIT_UPDATE, 0);
        }
        Ok(())
    }

    /// Sends some of `data`, at least a byte of it, waiting if it must.
    fn push<'a>(
        &'a self,
        mut engine: Guard<'a>,
        data: &[u8],
        eor: bool,
        deadline: Instant,
    ) -> io::Result<(Guard<'a>, usize, bool)> {
        loop {
            let Some(connection) = self.connection(&mut engine)? else {
                return Err(End::Clean.error());
            };
            if let Some(error) = connection.write_error() {
                return Err(error);
            }
            let written = engine.write(self.0.id, data, eor);
            let progress = self.0.inner.settle(&mut engine, written)?;
            let tx_space = engine.tx_space.clone();
            let (signal, what) = match progress {
                Progress::All => return Ok((engine, data.len(), true)),
                Progress::Credit(n) | Progress::Space(n) if n > 0 => return Ok((engine, n, false)),
                Progress::Credit(_) => (&self.0.signals.writable, "the peer gives no credit"),
                Progress::Space(_) => (&*tx_space, "the transmit queue is full"),
            };
            // Wakes now and then to ask for credit again.
            let until = deadline.min(Instant::now() + Duration::from_secs(1));
            engine = match self.0.inner.wait(engine, signal, until, what) {
                Ok(engine) => engine,
                Err(e) if e.kind() == io::ErrorKind::TimedOut && until < deadline => {
                    self.0.inner.lock()
                }
                Err(e) => return Err(e),
            };
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let deadline = self.deadline();
        let mut engine = self.0.inner.lock();
        loop {
            let Some(connection) = self.connection(&mut engine)? else {
                return Ok(0);
            };
            let n = connection.inbox.read(out);
            if n > 0 || out.is_empty() {
                self.consumed(&mut engine, n)?;
                return Ok(n);
            }
            if let Some(end) = connection.end_of_data() {
                return end.map(|()| 0);
            }
            engine = self.wait_readable(engine, deadline)?;
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let deadline = self.deadline();
        let engine = self.0.inner.lock();
        if data.is_empty() {
            return Ok(0);
        }
        self.push(engine, data, false, deadline).map(|(_, n, _)| n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        (&*self).read(out)
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        (&*self).write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
