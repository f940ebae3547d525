// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device of a few lines for the tests of the driver: it echoes. It reads
//! the rings by itself and shares no code with the driver but the header and
//! the memory. It checks what the guest owes it and collects complaints.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use guest_driver::bus::{AddressSpace, BusAddr};
use guest_driver::eventfd::{wait_any, EventFd};
use guest_driver::packet::{shutdown_flags, Header, Op, SocketType, HEADER_SIZE, HOST_CID};
use guest_driver::{Guest, QueueSetup};

/// Echoes whatever comes.
pub const ECHO: u32 = 7;
/// Never answers a REQUEST.
pub const SILENT: u32 = 8;
/// Consumes what comes.
pub const SINK: u32 = 9;
/// Takes a connection and then not a byte.
pub const STUCK: u32 = 10;
/// Answers no SHUTDOWN.
pub const DEAF: u32 = 11;

/// Features, and what the device does with them.
#[derive(Clone, Copy)]
pub struct Options {
    pub event_idx: bool,
    pub buf_alloc: u32,
    /// Where the rings go on.
    pub bases: [u16; 3],
}

impl Default for Options {
    fn default() -> Self {
        Options {
            event_idx: true,
            buf_alloc: 64 << 10,
            bases: [0; 3],
        }
    }
}

enum Command {
    Dial(u32, SocketType),
    Inject(Header, Vec<u8>),
    Event(u32),
    Stop,
}

/// The running device.
pub struct Device {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    complaints: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<[u16; 3]>>,
}

impl Device {
    pub fn start(guest: &Guest, options: Options) -> Device {
        let (commands, receiver) = channel();
        let wake = Arc::new(EventFd::new().unwrap());
        let complaints = Arc::<Mutex<Vec<String>>>::default();
        let [rx, tx, event] = guest.queues();
        let [rx, tx, event] = [(rx, 0), (tx, 1), (event, 2)]
            .map(|(queue, i)| Side::new(guest.space(), queue, &options, options.bases[i]));
        let mut worker = Worker {
            cid: guest.cid(),
            rx,
            tx,
            event,
            options,
            peers: HashMap::new(),
            control: VecDeque::new(),
            events: VecDeque::new(),
            complaints: complaints.clone(),
            next_port: 50_000,
        };
        let for_thread = wake.clone();
        let thread = std::thread::spawn(move || worker.run(&receiver, &for_thread));
        Device {
            commands,
            wake,
            complaints,
            thread: Some(thread),
        }
    }

    fn command(&self, command: Command) {
        self.commands.send(command).unwrap();
        self.wake.signal().unwrap();
    }

    /// Connects to a port of the guest, and echoes.
    pub fn dial(&self, port: u32, socket_type: SocketType) {
        self.command(Command::Dial(port, socket_type));
    }

    /// Sends a packet as it is.
    pub fn inject(&self, header: Header, payload: &[u8]) {
        self.command(Command::Inject(header, payload.to_vec()));
    }

    pub fn event(&self, id: u32) {
        self.command(Command::Event(id));
    }

    /// What the guest did wrong.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap().clone()
    }

    /// Stops; returns the available indices it has come to.
    pub fn stop(mut self) -> [u16; 3] {
        self.command(Command::Stop);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.command(Command::Stop);
            thread.join().unwrap();
        }
    }
}

/// One ring, from the device's side.
struct Side {
    space: Arc<AddressSpace>,
    setup: QueueSetup,
    event_idx: bool,
    last_avail: u16,
    used: u16,
    called: u16,
}

/// A buffer: (address, length, device writes).
struct Chain {
    head: u16,
    parts: Vec<(BusAddr, u32, bool)>,
}

impl Side {
    fn new(space: &Arc<AddressSpace>, setup: QueueSetup, options: &Options, base: u16) -> Side {
        Side {
            space: space.clone(),
            setup,
            event_idx: options.event_idx,
            last_avail: base,
            used: base,
            called: base,
        }
    }

    fn u16(&self, addr: BusAddr) -> u16 {
        self.space.load_u16(addr, SeqCst).unwrap()
    }

    fn store(&self, addr: BusAddr, value: u16) {
        self.space.store_u16(addr, value, SeqCst).unwrap();
    }

    fn next(&mut self) -> Option<Chain> {
        let a = self.setup.addresses;
        if self.u16(a.avail.at(2)) == self.last_avail {
            // Ask for a kick, then look again: it may have come meanwhile.
            if self.event_idx {
                let at = a.used.at(4 + 8 * u64::from(self.setup.size));
                self.store(at, self.last_avail);
            }
            if self.u16(a.avail.at(2)) == self.last_avail {
                return None;
            }
        }
        let entry = u64::from(self.last_avail % self.setup.size);
        let head = self.u16(a.avail.at(4 + 2 * entry));
        self.last_avail = self.last_avail.wrapping_add(1);
        let (mut parts, mut table, mut index) = (Vec::new(), a.desc, head);
        loop {
            let mut d = [0; 16];
            self.space
                .read(table.at(16 * u64::from(index)), &mut d)
                .unwrap();
            let addr = BusAddr(u64::from_le_bytes(d[..8].try_into().unwrap()));
            let len = u32::from_le_bytes(d[8..12].try_into().unwrap());
            let flags = u16::from_le_bytes([d[12], d[13]]);
            if flags & 4 != 0 {
                (table, index) = (addr, 0);
                continue;
            }
            parts.push((addr, len, flags & 2 != 0));
            assert!(parts.len() <= usize::from(self.setup.size));
            if flags & 1 == 0 {
                return Some(Chain { head, parts });
            }
            index = u16::from_le_bytes([d[14], d[15]]);
        }
    }

    fn use_chain(&mut self, head: u16, len: usize) {
        let a = self.setup.addresses;
        let entry = u64::from(self.used % self.setup.size);
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&(len as u32).to_le_bytes());
        self.space
            .write(a.used.at(4 + 8 * entry), &element)
            .unwrap();
        self.used = self.used.wrapping_add(1);
        self.store(a.used.at(2), self.used);
    }

    fn call(&mut self) {
        let (old, new) = (self.called, self.used);
        if old == new {
            return;
        }
        self.called = new;
        let a = self.setup.addresses;
        let wanted = if self.event_idx {
            let event = self.u16(a.avail.at(4 + 2 * u64::from(self.setup.size)));
            // Entries old..new were added; the guest waits for `event`.
            event.wrapping_sub(old) < new.wrapping_sub(old)
        } else {
            self.u16(a.avail) & 1 == 0
        };
        if wanted {
            self.setup.call.signal().unwrap();
        }
    }

    /// Writes bytes into the writable parts.
    fn put(&self, chain: &Chain, mut bytes: &[u8]) {
        for &(addr, len, writable) in &chain.parts {
            assert!(writable);
            let n = bytes.len().min(len as usize);
            self.space.write(addr, &bytes[..n]).unwrap();
            bytes = &bytes[n..];
        }
        assert!(bytes.is_empty(), "the buffer is too small");
    }
}

#[derive(Default)]
struct Peer {
    established: bool,
    /// To be echoed: data, flags, whether anything of it was sent.
    out: VecDeque<(Vec<u8>, u32)>,
    guest_alloc: u32,
    guest_fwd: u32,
    tx_cnt: u32,
    rx_cnt: u32,
    fwd_cnt: u32,
    told: u32,
    guest_shutdown: u32,
    finished: bool,
}

type Key = (u32, u32, SocketType);

struct Worker {
    cid: u64,
    rx: Side,
    tx: Side,
    event: Side,
    options: Options,
    peers: HashMap<Key, Peer>,
    control: VecDeque<(Header, Vec<u8>)>,
    events: VecDeque<u32>,
    complaints: Arc<Mutex<Vec<String>>>,
    next_port: u32,
}

impl Worker {
    fn run(&mut self, commands: &Receiver<Command>, wake: &EventFd) -> [u16; 3] {
        let kicks = [&self.rx, &self.tx, &self.event].map(|s| s.setup.kick.clone());
        loop {
            while let Ok(command) = commands.try_recv() {
                match command {
                    Command::Stop => {
                        return [&self.rx, &self.tx, &self.event].map(|s| s.last_avail)
                    }
                    Command::Inject(header, payload) => self.control.push_back((header, payload)),
                    Command::Event(id) => self.events.push_back(id),
                    Command::Dial(port, socket_type) => {
                        self.next_port += 1;
                        let key = (port, self.next_port, socket_type);
                        self.peers.insert(key, Peer::default());
                        self.send(key, Op::REQUEST, 0);
                    }
                }
            }
            while let Some(chain) = self.tx.next() {
                self.on_chain(&chain);
                self.tx.use_chain(chain.head, 0);
            }
            self.tx.call();
            while !self.events.is_empty() {
                let Some(chain) = self.event.next() else {
                    break;
                };
                let id = self.events.pop_front().unwrap();
                self.event.put(&chain, &id.to_le_bytes());
                self.event.use_chain(chain.head, 4);
            }
            self.event.call();
            self.deliver();
            self.rx.call();
            let [rx, tx, event] = &kicks;
            // No timeout: a kick that the driver forgets shall be missed.
            wait_any([rx, tx, event, wake], None::<Duration>).unwrap();
            for fd in [rx, tx, event, wake] {
                fd.take().unwrap();
            }
        }
    }

    fn complain(&self, what: String) {
        self.complaints.lock().unwrap().push(what);
    }

    fn send(&mut self, key: Key, op: Op, flags: u32) {
        let header = self.header(key, op, flags);
        self.control.push_back((header, Vec::new()));
    }

    fn header(&mut self, key: Key, op: Op, flags: u32) -> Header {
        let mut header = Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: key.1,
            dst_port: key.0,
            socket_type: key.2,
            op,
            flags,
            ..Header::default()
        };
        if let Some(peer) = self.peers.get_mut(&key) {
            header.buf_alloc = self.options.buf_alloc;
            header.fwd_cnt = peer.fwd_cnt;
            peer.told = peer.fwd_cnt;
        }
        header
    }

    fn on_chain(&mut self, chain: &Chain) {
        let mut bytes = Vec::new();
        for &(addr, len, writable) in &chain.parts {
            assert!(!writable);
            let at = bytes.len();
            bytes.resize(at + len as usize, 0);
            self.tx.space.read(addr, &mut bytes[at..]).unwrap();
        }
        let header = Header::from_bytes(bytes[..HEADER_SIZE].try_into().unwrap());
        let payload = &bytes[HEADER_SIZE..];
        if payload.len() != header.len as usize {
            self.complain(format!("{} bytes of payload in {header:?}", payload.len()));
        }
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            self.complain(format!("wrong CID in {header:?}"));
        }
        self.on_packet(header, payload);
    }

    fn on_packet(&mut self, header: Header, payload: &[u8]) {
        let key = (header.src_port, header.dst_port, header.socket_type);
        if header.op == Op::REQUEST {
            let known = [ECHO, SINK, STUCK, DEAF].contains(&key.1);
            let peer = Peer {
                established: true,
                guest_alloc: header.buf_alloc,
                ..Peer::default()
            };
            if known && self.peers.insert(key, peer).is_some() {
                self.complain(format!("{header:?} for a connection that exists"));
            } else if known {
                self.send(key, Op::RESPONSE, 0);
            } else if key.1 != SILENT {
                self.send(key, Op::RST, 0);
            }
            return;
        }
        let Some(peer) = self.peers.get_mut(&key) else {
            if header.op != Op::RST {
                self.send(key, Op::RST, 0);
            }
            return;
        };
        (peer.guest_alloc, peer.guest_fwd) = (header.buf_alloc, header.fwd_cnt);
        match header.op {
            Op::RESPONSE => peer.established = true,
            Op::RST => {
                self.peers.remove(&key);
            }
            Op::SHUTDOWN => {
                peer.guest_shutdown |= header.flags;
                if peer.guest_shutdown == shutdown_flags::BOTH && key.1 != DEAF {
                    self.send(key, Op::RST, 0);
                    self.peers.remove(&key);
                }
            }
            Op::CREDIT_REQUEST => self.send(key, Op::CREDIT_UPDATE, 0),
            Op::RW => {
                peer.rx_cnt = peer.rx_cnt.wrapping_add(header.len);
                let over = peer.rx_cnt.wrapping_sub(peer.told) > self.options.buf_alloc;
                let after = peer.guest_shutdown & shutdown_flags::SEND != 0;
                match key.1 {
                    STUCK => {}
                    SINK => peer.fwd_cnt = peer.rx_cnt,
                    _ => peer.out.push_back((payload.to_vec(), header.flags)),
                }
                if over {
                    self.complain(format!("more than the credit in {header:?}"));
                }
                if after {
                    self.complain(format!("data after shutdown in {header:?}"));
                }
                self.tell(key);
            }
            _ => {}
        }
    }

    /// Tells the guest of a quarter buffer of new space.
    fn tell(&mut self, key: Key) {
        let news = self.peers.get(&key).map(|p| p.fwd_cnt.wrapping_sub(p.told));
        if news.is_some_and(|n| n >= self.options.buf_alloc / 4) {
            self.send(key, Op::CREDIT_UPDATE, 0);
        }
    }

    /// Fills receive buffers with what there is to say.
    fn deliver(&mut self) {
        loop {
            let data = self.peers.iter().find(|(_, p)| p.has_work()).map(|p| *p.0);
            if self.control.is_empty() && data.is_none() {
                return;
            }
            let Some(chain) = self.rx.next() else { return };
            if let Some((header, payload)) = self.control.pop_front() {
                self.put_packet(&chain, header, &payload);
            } else if let Some(key) = data {
                self.echo(&chain, key);
            }
        }
    }

    fn echo(&mut self, chain: &Chain, key: Key) {
        let capacity: usize = chain.parts.iter().map(|p| p.1 as usize).sum();
        let peer = self.peers.get_mut(&key).unwrap();
        let Some((data, flags)) = peer.out.front_mut() else {
            peer.finished = true;
            let header = self.header(key, Op::SHUTDOWN, shutdown_flags::SEND);
            return self.put_packet(chain, header, &[]);
        };
        let in_flight = peer.tx_cnt.wrapping_sub(peer.guest_fwd);
        let free = peer.guest_alloc.saturating_sub(in_flight) as usize;
        let n = data.len().min(free).min(capacity - HEADER_SIZE);
        let rest = data.split_off(n);
        let payload = std::mem::replace(data, rest);
        let flags = if data.is_empty() { *flags } else { 0 };
        if data.is_empty() {
            peer.out.pop_front();
        }
        peer.tx_cnt = peer.tx_cnt.wrapping_add(n as u32);
        peer.fwd_cnt = peer.fwd_cnt.wrapping_add(n as u32);
        let header = self.header(key, Op::RW, flags);
        self.put_packet(chain, header, &payload);
    }

    fn put_packet(&mut self, chain: &Chain, mut header: Header, payload: &[u8]) {
        // Injected packets may say what they like about their length.
        if header.len == 0 {
            header.len = payload.len() as u32;
        }
        self.rx
            .put(chain, &[&header.to_bytes()[..], payload].concat());
        self.rx.use_chain(chain.head, HEADER_SIZE + payload.len());
    }
}

impl Peer {
    fn has_work(&self) -> bool {
        let credit = self.guest_alloc > self.tx_cnt.wrapping_sub(self.guest_fwd);
        let done = self.guest_shutdown & shutdown_flags::SEND != 0 && !self.finished;
        match self.out.front() {
            Some((data, _)) => self.established && (credit || data.is_empty()),
            None => self.established && done,
        }
    }
}
