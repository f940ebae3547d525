// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that does as Linux's driver does and no more: header and payload in a
//! descriptor each, a receive buffer a packet, interrupts asked for before sleeping,
//! credit told when 64 KiB are left (`virtio_transport_stream_do_dequeue`). It never
//! looks at payload, so what is measured is the device.

use std::path::Path;
use std::sync::Arc;

use anyhow::{bail, ensure, Result};
use guest_driver::memory::{Gpa, GuestMemory, RegionLayout, PAGE_SIZE};
use guest_driver::packet::{shutdown_flags, Header, Op, SocketType, HEADER_SIZE, HOST_CID};
use vhost::vhost_user::Frontend;
use vmm_sys_util::eventfd::{EventFd, EFD_CLOEXEC};

use crate::front_end;
use crate::ring::{Ring, NEXT, WRITE};

/// The guest's CID.
pub const CID: u64 = 42;
/// Entries of the receive and the transmit queue: crosvm's.
const ENTRIES: u16 = 256;
/// The longest payload (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub const MOST_PAYLOAD: u32 = 64 << 10;
/// A connection's receive buffer in bytes (`VSOCK_DEFAULT_BUFFER_SIZE`).
const BUF_ALLOC: u32 = 256 << 10;
/// Where memory begins.
const BASE: u64 = 0x1000_0000;

/// A guest whose device runs.
pub struct Guest {
    memory: Arc<GuestMemory>,
    cid: u64,
    rx: Ring,
    tx: Ring,
    kick_rx: EventFd,
    kick_tx: EventFd,
    call: EventFd,
    /// The receive buffer of each descriptor.
    buffers: Vec<Gpa>,
    /// The header of each transmit slot; its payload is in the descriptor after.
    headers: Vec<Gpa>,
    payloads: Vec<Gpa>,
    /// Transmit slots that the device does not have, the warmest last.
    free: Vec<u16>,
    /// Packets sent and received.
    pub packets: u64,
    next_port: u32,
    _front_end: Frontend,
}

/// Hands out zeroed pages of memory.
struct Pages {
    next: u64,
}

impl Pages {
    fn take(&mut self, bytes: u64) -> Gpa {
        let at = self.next;
        self.next += bytes.next_multiple_of(PAGE_SIZE);
        Gpa(at)
    }
}

impl Guest {
    /// Boots a guest behind the vhost-user `socket`, whose receive buffers have
    /// `buffer` bytes each, header included, and whose longest packet carries
    /// `payload` bytes.
    pub fn boot(socket: &Path, cid: u64, buffer: u32, payload: u32) -> Result<Self> {
        let slots = ENTRIES / 2;
        let payload_room = u64::from(payload.max(1)).next_multiple_of(PAGE_SIZE);
        let buffer_room = u64::from(buffer).next_multiple_of(PAGE_SIZE);
        let rings = 3 * Ring::bytes(ENTRIES).next_multiple_of(PAGE_SIZE);
        let size = rings
            + u64::from(ENTRIES) * buffer_room
            + u64::from(slots) * (PAGE_SIZE + payload_room);
        let memory = Arc::new(GuestMemory::new(&[RegionLayout {
            gpa: Gpa(BASE),
            size,
            fd_offset: 0,
        }])?);
        let mut pages = Pages { next: BASE };
        let mut ring = || Ring::new(&memory, pages.take(Ring::bytes(ENTRIES)), ENTRIES);
        let (mut rx, tx, event) = (ring(), ring(), ring());
        let mut buffers = Vec::new();
        for head in 0..ENTRIES {
            let at = pages.take(buffer_room);
            // Touched, as memory that a guest has used before.
            for page in (0..buffer_room).step_by(PAGE_SIZE as usize) {
                memory.write(Gpa(at.0 + page), &[1])?;
            }
            rx.describe(head, at, buffer, WRITE, 0)?;
            rx.offer(head)?;
            buffers.push(at);
        }
        let (mut headers, mut payloads) = (Vec::new(), Vec::new());
        for _ in 0..slots {
            headers.push(pages.take(HEADER_SIZE as u64));
            let at = pages.take(payload_room);
            for page in (0..payload_room).step_by(PAGE_SIZE as usize) {
                memory.write(Gpa(at.0 + page), &[1])?;
            }
            payloads.push(at);
        }
        rx.publish()?;
        let (kick_rx, kick_tx, kick_event) = (event_fd()?, event_fd()?, event_fd()?);
        let call = event_fd()?;
        let rings = [(&rx, &kick_rx), (&tx, &kick_tx), (&event, &kick_event)];
        let front_end = front_end::start(socket, &memory, &rings, &call)?;
        kick_rx.write(1)?;
        Ok(Self {
            memory,
            cid,
            rx,
            tx,
            kick_rx,
            kick_tx,
            call,
            buffers,
            headers,
            payloads,
            free: (0..slots).rev().collect(),
            packets: 0,
            next_port: 10_000,
            _front_end: front_end,
        })
    }

    /// Ends a [`wait`](Self::wait) from another thread.
    pub fn waker(&self) -> Result<EventFd> {
        Ok(self.call.try_clone()?)
    }

    /// The next packet from the device; its buffer goes back with the next
    /// [`flush`](Self::flush).
    pub fn receive(&mut self) -> Result<Option<Header>> {
        let Some(head) = self.rx.take_used()? else {
            return Ok(None);
        };
        let mut raw = [0; HEADER_SIZE];
        self.memory
            .read(self.buffers[usize::from(head)], &mut raw)?;
        self.rx.offer(head)?;
        self.packets += 1;
        let header = Header::from_bytes(&raw);
        ensure!(
            header.dst_cid == self.cid,
            "a packet for another guest: {header:?}"
        );
        Ok(Some(header))
    }

    /// Whether there is a transmit slot that the device does not have.
    pub fn has_slot(&mut self) -> Result<bool> {
        if self.free.is_empty() {
            self.reclaim()?;
        }
        Ok(!self.free.is_empty())
    }

    /// Sends a packet with whatever payload, with the next [`flush`](Self::flush); waits
    /// for a slot where there is none.
    pub fn send(&mut self, header: &Header) -> Result<()> {
        while !self.has_slot()? {
            self.wait()?;
        }
        let Some(slot) = self.free.pop() else {
            bail!("a slot that was free is gone");
        };
        let (at, payload) = (
            self.headers[usize::from(slot)],
            self.payloads[usize::from(slot)],
        );
        self.memory.write(at, &header.to_bytes())?;
        let head = 2 * slot;
        let flags = if header.len > 0 { NEXT } else { 0 };
        self.tx
            .describe(head, at, HEADER_SIZE as u32, flags, head + 1)?;
        if header.len > 0 {
            self.tx.describe(head + 1, payload, header.len, 0, 0)?;
        }
        self.tx.offer(head)?;
        self.packets += 1;
        Ok(())
    }

    /// Takes back what the device has sent.
    fn reclaim(&mut self) -> Result<()> {
        while let Some(head) = self.tx.take_used()? {
            self.free.push(head / 2);
        }
        Ok(())
    }

    /// Shows the device what there is, and kicks it where it wants that.
    pub fn flush(&mut self) -> Result<()> {
        if self.rx.publish()? {
            self.kick_rx.write(1)?;
        }
        if self.tx.publish()? {
            self.kick_tx.write(1)?;
        }
        Ok(())
    }

    /// Flushes and sleeps until the device calls, unless it has used something.
    pub fn wait(&mut self) -> Result<()> {
        self.flush()?;
        let was_full = self.free.is_empty();
        self.reclaim()?;
        if was_full && !self.free.is_empty() {
            return Ok(());
        }
        if !self.rx.enable_call()? && !self.tx.enable_call()? {
            self.call.read()?;
        }
        Ok(())
    }

    /// The next packet, waited for.
    pub fn receive_now(&mut self) -> Result<Header> {
        loop {
            if let Some(header) = self.receive()? {
                return Ok(header);
            }
            self.wait()?;
        }
    }

    /// Connects to a port of the host.
    pub fn connect(&mut self, port: u32) -> Result<Stream> {
        let mut stream = Stream::new(self.cid, self.next_port, port);
        self.next_port += 1;
        let request = stream.header(Op::REQUEST, 0);
        self.send(&request)?;
        loop {
            let answer = self.receive_now()?;
            if !stream.is_for(&answer) {
                continue;
            }
            match answer.op {
                Op::RESPONSE => {
                    stream.heard(&answer);
                    return Ok(stream);
                }
                _ => bail!("no connection to port {port}: {answer:?}"),
            }
        }
    }

    /// Accepts the next connection from the host.
    pub fn accept(&mut self) -> Result<Stream> {
        loop {
            let request = self.receive_now()?;
            if request.op == Op::REQUEST {
                return self.accept_this(&request);
            }
        }
    }

    /// Accepts the connection that `request` asks for.
    pub fn accept_this(&mut self, request: &Header) -> Result<Stream> {
        let mut stream = Stream::new(self.cid, request.dst_port, request.src_port);
        stream.heard(request);
        let response = stream.header(Op::RESPONSE, 0);
        self.send(&response)?;
        self.flush()?;
        Ok(stream)
    }
}

fn event_fd() -> Result<EventFd> {
    Ok(EventFd::new(EFD_CLOEXEC)?)
}

/// The guest's end of a connection.
#[derive(Debug)]
pub struct Stream {
    cid: u64,
    /// The guest's port.
    pub port: u32,
    host_port: u32,
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    fwd_cnt: u32,
    told: u32,
}

impl Stream {
    fn new(cid: u64, port: u32, host_port: u32) -> Self {
        Self {
            cid,
            port,
            host_port,
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            fwd_cnt: 0,
            told: 0,
        }
    }

    /// Whether a packet is for this connection.
    pub fn is_for(&self, header: &Header) -> bool {
        header.dst_port == self.port && header.src_port == self.host_port
    }

    /// Takes a packet's credit fields, and its payload as read. What must be answered, if
    /// anything.
    pub fn heard(&mut self, header: &Header) -> Option<Op> {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        if header.op == Op::RW {
            self.fwd_cnt = self.fwd_cnt.wrapping_add(header.len);
            let unheard = self.fwd_cnt.wrapping_sub(self.told);
            return (unheard > BUF_ALLOC - MOST_PAYLOAD).then_some(Op::CREDIT_UPDATE);
        }
        (header.op == Op::CREDIT_REQUEST).then_some(Op::CREDIT_UPDATE)
    }

    /// Bytes that the device has room for.
    pub fn room(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(on_the_way)
    }

    /// The header of a packet with `len` bytes of payload, which counts as sent.
    pub fn header(&mut self, op: Op, len: u32) -> Header {
        self.sent = self.sent.wrapping_add(len);
        self.told = self.fwd_cnt;
        Header {
            src_cid: self.cid,
            dst_cid: HOST_CID,
            src_port: self.port,
            dst_port: self.host_port,
            len,
            socket_type: SocketType::STREAM,
            op,
            flags: 0,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.fwd_cnt,
        }
    }

    /// The packet that closes both directions.
    pub fn shutdown(&mut self) -> Header {
        Header {
            flags: shutdown_flags::RECEIVE | shutdown_flags::SEND,
            ..self.header(Op::SHUTDOWN, 0)
        }
    }
}
