// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest: the driver's thread, and the handle by which a test makes
//! connections, pauses, resets and watches it.
//!
//! The thread looks at a ring only when its call eventfd is signalled: a
//! device that forgets to call is not helped along, its test times out.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bus::AddressSpace;
use crate::config::{GuestConfig, Stats, Violation};
use crate::connection::{Connection, Phase, Route};
use crate::engine::{ConnectionId, Engine, Mode};
use crate::eventfd::{wait_any, EventFd};
use crate::memory::{GpaRange, GuestMemory};
use crate::packet::{Event, Op, SocketType};
use crate::queues::{Chunking, Queue, QueueError, RxConfig, Split};
use crate::raw::Raw;
use crate::ring::{RingAddresses, RingState};
use crate::stream::{Listener, Stream};

/// How many packets are taken before other threads get the lock.
const RX_BUDGET: usize = 64;

/// What a device is told about one queue.
#[derive(Clone, Debug)]
pub struct QueueSetup {
    /// Its size.
    pub size: u16,
    /// The bus addresses of its areas.
    pub addresses: RingAddresses,
    /// The available index from which the device goes on (VRING_BASE), if it
    /// has consumed everything it was given; 0 for a new ring.
    pub base: u16,
    /// The driver signals it.
    pub kick: Arc<EventFd>,
    /// The device signals it.
    pub call: Arc<EventFd>,
}

/// The lock and those who wait for the driver's thread.
pub(crate) struct Inner {
    engine: Mutex<Engine>,
    wake: EventFd,
    pub(crate) timeout: Duration,
    calls: [Arc<EventFd>; 3],
}

pub(crate) type Guard<'a> = MutexGuard<'a, Engine>;

impl Inner {
    pub(crate) fn lock(&self) -> Guard<'_> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a signal, at most until `deadline`.
    pub(crate) fn wait<'a>(
        &self,
        engine: Guard<'a>,
        signal: &Condvar,
        deadline: Instant,
        what: &'static str,
    ) -> io::Result<Guard<'a>> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let why = format!("timed out: {what}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        let (engine, _) = signal
            .wait_timeout(engine, left)
            .unwrap_or_else(PoisonError::into_inner);
        engine.check()?;
        Ok(engine)
    }

    /// Makes the driver's thread look at its state again.
    pub(crate) fn wake(&self) {
        // The eventfd is ours and never closed while the guest lives.
        let _ = self.wake.signal();
    }

    /// A failed queue fails the driver; the caller gets the error.
    pub(crate) fn settle<T>(
        &self,
        engine: &mut Engine,
        result: Result<T, QueueError>,
    ) -> io::Result<T> {
        result.map_err(|error| {
            engine.fail(&error);
            io::Error::other(error)
        })
    }
}

/// A virtio-vsock guest. Dropping it stops its thread.
pub struct Guest {
    inner: Arc<Inner>,
    space: Arc<AddressSpace>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    /// Makes memory and rings, posts buffers and starts the driver's thread.
    /// The device may be started before or after.
    pub fn new(config: GuestConfig) -> io::Result<Guest> {
        let memory = GuestMemory::new(&config.memory).map_err(io::Error::other)?;
        Guest::with_memory(config, Arc::new(memory))
    }

    /// Like [`new`](Self::new), on memory that exists already and that no
    /// other guest uses any more: one that starts anew, for the same device.
    pub fn with_memory(config: GuestConfig, memory: Arc<GuestMemory>) -> io::Result<Guest> {
        let space = Arc::new(AddressSpace::new(memory, &config.addressing));
        let engine = Engine::new(space.clone(), &config).map_err(io::Error::other)?;
        let calls = [&engine.rx.ring, &engine.tx.ring, &engine.events.ring];
        let inner = Arc::new(Inner {
            calls: calls.map(|ring| ring.call_fd().clone()),
            engine: Mutex::new(engine),
            wake: EventFd::new()?,
            timeout: config.timeout,
        });
        let for_thread = inner.clone();
        let thread = std::thread::Builder::new()
            .name("guest".into())
            .spawn(move || drive(&for_thread))?;
        Ok(Guest {
            inner,
            space,
            thread: Some(thread),
        })
    }

    /// Its memory, to tell the device.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        self.space.memory()
    }

    /// How its bus addresses are to be read.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// The rx, tx and event queues, to tell the device.
    pub fn queues(&self) -> [QueueSetup; 3] {
        let mut engine = self.inner.lock();
        [Queue::Rx, Queue::Tx, Queue::Event].map(|queue| {
            let ring = engine.ring(queue);
            QueueSetup {
                size: ring.config().size,
                addresses: ring.addresses(),
                base: ring.state().last_used,
                kick: ring.kick_fd().clone(),
                call: ring.call_fd().clone(),
            }
        })
    }

    /// Where a ring stands.
    pub fn ring_state(&self, queue: Queue) -> RingState {
        self.inner.lock().ring(queue).state()
    }

    /// The CID it uses now.
    pub fn cid(&self) -> u64 {
        self.inner.lock().cid
    }

    /// Connects from a free port. `ConnectionRefused` if the device answers
    /// RST, `TimedOut` if it does not answer.
    pub fn connect(&self, cid: u64, port: u32, socket_type: SocketType) -> io::Result<Stream> {
        let timeout = self.inner.timeout;
        self.connect_from(None, cid, port, socket_type, timeout)
    }

    /// Connects, with a local port and a timeout of the caller's choice.
    pub fn connect_from(
        &self,
        local_port: Option<u32>,
        cid: u64,
        port: u32,
        socket_type: SocketType,
        timeout: Duration,
    ) -> io::Result<Stream> {
        let deadline = Instant::now() + timeout;
        let mut engine = self.inner.lock();
        engine.check()?;
        let route = Route {
            local_port: local_port.unwrap_or_else(|| engine.free_port()),
            peer_cid: cid,
            peer_port: port,
            socket_type,
        };
        if engine.routes.contains_key(&route) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let buf_alloc = engine.buf_alloc;
        let connection = Connection::new(route, Phase::Connecting, buf_alloc);
        let signals = connection.signals.clone();
        let id = engine.insert(connection);
        let sent = engine.send(id, Op::REQUEST, 0).and_then(|()| {
            if engine.mode == Mode::Driven {
                engine.kick(Queue::Tx)?;
            }
            Ok(())
        });
        self.inner.settle(&mut engine, sent)?;
        // From here on the stream's drop cleans up; it takes the lock.
        let stream = Stream::new(self.inner.clone(), id, route, signals.clone());
        loop {
            let phase = engine.connections.get(&id).map(|c| c.phase);
            match phase {
                Some(Phase::Connecting) => {}
                Some(Phase::Ended(end)) => {
                    drop(engine);
                    return Err(end.error());
                }
                _ => break,
            }
            let what = "no answer to REQUEST";
            engine = self.inner.wait(engine, &signals.readable, deadline, what)?;
        }
        drop(engine);
        Ok(stream)
    }

    /// Listens on a port for connections of one type.
    pub fn listen(&self, port: u32, socket_type: SocketType) -> io::Result<Listener> {
        let mut engine = self.inner.lock();
        engine.check()?;
        let key = (port, socket_type);
        if engine.listeners.contains_key(&key) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let signal = engine.listeners.entry(key).or_default().signal.clone();
        Ok(Listener::new(self.inner.clone(), key, signal))
    }

    /// The next event, waiting for it if need be.
    pub fn wait_event(&self, timeout: Duration) -> io::Result<Event> {
        let deadline = Instant::now() + timeout;
        let mut engine = self.inner.lock();
        let signal = engine.event_seen.clone();
        loop {
            if let Some(event) = engine.event_log.pop_front() {
                return Ok(event);
            }
            engine = self.inner.wait(engine, &signal, deadline, "no event")?;
        }
    }

    /// Stops touching the rings. When this returns the driver does not read
    /// or write one until [`resume`](Self::resume); writers wait.
    pub fn pause(&self) {
        self.set_mode(Mode::Paused);
    }

    /// Goes on after [`pause`](Self::pause), and looks at all rings. Kicks
    /// nobody for what the device was told before: that is the device's task
    /// (or [`kick_all`](Self::kick_all)'s).
    pub fn resume(&self) {
        self.set_mode(Mode::Driven);
    }

    fn set_mode(&self, mode: Mode) {
        let mut engine = self.inner.lock();
        engine.mode = mode;
        engine.rescan = mode == Mode::Driven;
        drop(engine);
        self.inner.wake();
    }

    /// Kicks all queues, wanted or not.
    pub fn kick_all(&self) -> io::Result<()> {
        let mut engine = self.inner.lock();
        for queue in [Queue::Rx, Queue::Tx, Queue::Event] {
            engine.ring(queue).kick_fd().signal()?;
        }
        Ok(())
    }

    /// Ends all connections and begins again with empty rings, both indices
    /// at `base` (0 after a device reset). The device must be stopped.
    /// Listeners stay; a driver that had failed works again.
    pub fn reset(&self, base: u16) -> io::Result<()> {
        let mut engine = self.inner.lock();
        for call in &self.inner.calls {
            call.take()?;
        }
        let done = engine.reset(base);
        self.inner.settle(&mut engine, done)?;
        engine.rescan = true;
        drop(engine);
        self.inner.wake();
        Ok(())
    }

    /// From now on allocates packet buffers inside `range` only, anywhere if
    /// `None`. Receive buffers move as the device returns them; `reset` moves
    /// all at once.
    pub fn buffers_from(&self, range: Option<GpaRange>) {
        self.inner.lock().set_buffers_from(range);
    }

    /// Posts receive buffers of another shape as the device returns them.
    pub fn configure_rx(&self, config: RxConfig) -> io::Result<()> {
        let mut engine = self.inner.lock();
        engine.rx.configure(config);
        if engine.mode != Mode::Driven {
            return Ok(());
        }
        let filled = engine.rx.fill().and_then(|()| engine.kick(Queue::Rx));
        self.inner.settle(&mut engine, filled)
    }

    /// Cuts packets to be sent in another way from now on.
    pub fn configure_tx(&self, chunking: Chunking, split: Split) {
        let mut engine = self.inner.lock();
        engine.tx.config.chunking = chunking;
        engine.tx.config.split = split;
    }

    /// The receive buffer of connections made from now on, in bytes.
    pub fn set_buf_alloc(&self, bytes: u32) {
        self.inner.lock().buf_alloc = bytes;
    }

    /// Takes the rings out of the driver's hands until the result is dropped.
    pub fn raw(&self) -> Raw {
        self.set_mode(Mode::Raw);
        Raw::new(self.inner.clone(), self.space.clone())
    }

    /// Fills guest memory with a pattern. Not over rings or buffers in use.
    pub fn fill_pattern(&self, range: GpaRange, seed: u64) -> io::Result<()> {
        let filled = self.memory().fill_pattern(range, seed);
        filled.map_err(io::Error::other)
    }

    /// An error that names the first address where the pattern is broken.
    pub fn check_pattern(&self, range: GpaRange, seed: u64) -> io::Result<()> {
        let broken = self.memory().check_pattern(range, seed);
        match broken.map_err(io::Error::other)? {
            None => Ok(()),
            Some(gpa) => Err(io::Error::other(format!("{gpa:?} was written"))),
        }
    }

    /// The rules that the device has broken since this was last asked.
    pub fn take_violations(&self) -> Vec<Violation> {
        std::mem::take(&mut self.inner.lock().violations)
    }

    /// Why the driver gave up, if it did.
    pub fn failure(&self) -> Option<String> {
        self.inner.lock().failure.clone()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.inner.lock().stats
    }

    /// Connections that the driver knows, closing ones included.
    pub fn open_connections(&self) -> usize {
        self.inner.lock().routes.len()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut engine = self.inner.lock();
        engine.stopping = true;
        if engine.failure.is_none() {
            engine.failure = Some("the guest was dropped".into());
        }
        engine.end_all(crate::connection::End::Transport);
        engine.tx_space.notify_all();
        drop(engine);
        self.inner.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there.
            let _ = thread.join();
        }
    }
}

/// The driver's thread.
fn drive(inner: &Inner) {
    let mut timeout = None;
    let mut driven = true;
    loop {
        let [rx, tx, events] = &inner.calls;
        // While others have the rings their calls are theirs, too.
        let ready = if driven {
            wait_any([rx, tx, events, &inner.wake], timeout)
        } else {
            wait_any([&inner.wake], None).map(|[wake]| [false, false, false, wake])
        };
        let mut engine = inner.lock();
        if engine.stopping {
            return;
        }
        driven = engine.mode == Mode::Driven && engine.failure.is_none();
        let step = match ready {
            Ok(ready) => step(inner, &mut engine, ready),
            Err(e) => {
                engine.failure = Some(format!("cannot wait for the device: {e}"));
                Ok(None)
            }
        };
        match step {
            Ok(next) => timeout = next.map(|at| at.saturating_duration_since(Instant::now())),
            Err(error) => engine.fail(&error),
        }
    }
}

/// Handles what was signalled; returns when to wake up anyway.
fn step(
    inner: &Inner,
    engine: &mut Engine,
    ready: [bool; 4],
) -> Result<Option<Instant>, QueueError> {
    let [mut rx, mut tx, mut events, wake] = ready;
    if wake {
        // Cannot fail: the eventfd is ours, and not blocking.
        let _ = inner.wake.take();
    }
    if engine.mode != Mode::Driven || engine.failure.is_some() {
        return Ok(None);
    }
    for (i, called) in [rx, tx, events].into_iter().enumerate() {
        if called {
            engine.stats.calls[i] += 1;
            // As above.
            let _ = inner.calls[i].take();
        }
    }
    if std::mem::take(&mut engine.rescan) {
        (rx, tx, events) = (true, true, true);
    }
    if events {
        engine.event_batch()?;
    }
    if tx {
        engine.tx_done()?;
    }
    // Room in the transmit queue may be what receiving waited for (5.10.6.1).
    if (rx || tx) && engine.rx_batch(RX_BUDGET)? {
        engine.rescan = true;
        inner.wake();
    }
    engine.expire(Instant::now())
}

/// Forgets a connection on behalf of a stream that was dropped.
pub(crate) fn forget(inner: &Inner, id: ConnectionId) {
    let mut engine = inner.lock();
    let forgotten = engine.forget(id);
    // The driver has failed then, which everybody else is told.
    let settled = inner.settle(&mut engine, forgotten);
    if settled.is_ok() && engine.mode == Mode::Driven {
        let kicked = engine.kick(Queue::Tx);
        let _ = inner.settle(&mut engine, kicked);
    }
    drop(engine);
    inner.wake();
}
