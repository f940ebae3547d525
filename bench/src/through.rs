// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The same measurements through a device, with a guest in place of the plain program.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use guest_driver::packet::{Header, Op};

use crate::device::{cpu_time, Device};
use crate::guest::{Guest, Stream, CID, MOST_PAYLOAD};
use crate::peer::{Part, Peer, Role};
use crate::strace::Strace;
use crate::window::{Measured, Window};

/// The port of the host's program, or of the guest's.
const PORT: u32 = 1234;

/// Packets shown to the device at once by a guest that has many.
const BATCH: usize = 16;

/// Packets taken in a row, a ring full, before buffers go back and the clock is looked at: a device
/// that is fast enough has always another one.
const TURN: usize = 256;

/// What a daemon came to, besides what was measured.
pub type Outcome = Result<Measured>;

/// A daemon that runs, and its guests.
struct Running {
    guest: Guest,
    _others: Vec<Guest>,
    strace: Option<Strace>,
    device: Device,
}

impl Running {
    fn finish(self, mut measured: Measured) -> Outcome {
        if let Some(strace) = self.strace {
            measured.packets = self.guest.packets;
            measured.calls = strace.calls()?;
        }
        Ok(measured)
    }
}

/// A daemon under measurement.
pub struct Through<'a> {
    program: &'a Path,
    window: Duration,
    /// Bytes of a receive buffer, header included.
    buffer: u32,
    /// VMs in the process: one is measured, the others do nothing.
    vms: usize,
    strace: bool,
}

impl<'a> Through<'a> {
    /// Measurements of `program` with windows of this length and receive buffers of
    /// `buffer` bytes.
    pub fn new(program: &'a Path, window: Duration, buffer: u32) -> Self {
        Self {
            program,
            window,
            buffer,
            vms: 1,
            strace: false,
        }
    }

    /// With `vms` VMs in the process: one is measured, the others do nothing.
    pub fn among(self, vms: usize) -> Self {
        Self { vms, ..self }
    }

    /// With system calls counted.
    pub fn counting(self, strace: bool) -> Self {
        Self { strace, ..self }
    }

    /// A daemon with its guests, of which the first has packets of up to `payload` bytes.
    fn start(&self, payload: u32) -> Result<Running> {
        let device = Device::start(self.program, self.vms)?;
        let boot = |vm: usize, payload| {
            let cid = CID + vm as u64;
            Guest::boot(&device.socket(vm), cid, self.buffer, payload)
        };
        let guest = boot(0, payload)?;
        let others: Result<Vec<Guest>> = (1..self.vms).map(|vm| boot(vm, 1)).collect();
        let strace = self.strace.then(|| Strace::attach(device.pid()));
        Ok(Running {
            guest,
            _others: others?,
            strace: strace.transpose()?,
            device,
        })
    }

    fn window(&self, device: &Device) -> Window {
        Window::new(self.window, Some(device.pid()))
    }

    /// Messages to the host's program.
    pub fn to_host(&self, size: usize) -> Outcome {
        let packet = u32::try_from(size)?.min(MOST_PAYLOAD);
        let mut running = self.start(packet)?;
        let (device, guest) = (&running.device, &mut running.guest);
        let part = Part::new(Role::Sink, device.port(0, PORT))
            .size(size)
            .window(self.window, Some(device.pid()));
        let mut peer = Peer::start(&part)?;
        let mut stream = guest.connect(PORT)?;
        let done = AtomicBool::new(false);
        let waker = guest.waker()?;
        let measured = std::thread::scope(|scope| {
            let result = scope.spawn(|| {
                let result = peer.result();
                done.store(true, Ordering::Release);
                // Whoever sleeps looks again.
                waker.write(1).map(|()| result)
            });
            while !done.load(Ordering::Acquire) {
                while let Some(header) = guest.receive()? {
                    answer(guest, &mut stream, &header)?;
                }
                let mut sent = 0;
                while sent < BATCH && stream.room() >= packet && guest.has_slot()? {
                    guest.send(&stream.header(Op::RW, packet))?;
                    sent += 1;
                }
                match sent {
                    0 => guest.wait()?,
                    _ => guest.flush()?,
                }
            }
            join(result)
        })?;
        running.finish(measured??)
    }

    /// Messages from the host's program.
    pub fn to_guest(&self, size: usize) -> Outcome {
        let mut running = self.start(1)?;
        let (device, guest) = (&running.device, &mut running.guest);
        let part = Part::new(Role::Source, device.host(0));
        let _peer = Peer::start(&part.size(size).port(Some(PORT)))?;
        let mut stream = guest.accept()?;
        let mut window = self.window(device);
        loop {
            let mut bytes = 0;
            for _ in 0..TURN {
                let Some(header) = guest.receive()? else {
                    break;
                };
                answer(guest, &mut stream, &header)?;
                bytes += u64::from(header.len);
            }
            if let Some(measured) = window.add(bytes)? {
                return running.finish(measured);
            }
            match bytes {
                0 => guest.wait()?,
                _ => guest.flush()?,
            }
        }
    }

    /// A byte there and back.
    pub fn ping(&self) -> Outcome {
        let mut running = self.start(1)?;
        let (device, guest) = (&running.device, &mut running.guest);
        let _peer = Peer::start(&Part::new(Role::Echo, device.port(0, PORT)))?;
        let mut stream = guest.connect(PORT)?;
        let mut window = self.window(device);
        let mut latencies = Vec::new();
        loop {
            let began = Instant::now();
            guest.send(&stream.header(Op::RW, 1))?;
            loop {
                let header = guest.receive_now()?;
                answer(guest, &mut stream, &header)?;
                if header.op == Op::RW {
                    break;
                }
            }
            if window.is_open() {
                latencies.push(began.elapsed().as_nanos() as u32);
            }
            if let Some(mut measured) = window.add(1)? {
                measured.latencies = latencies;
                return running.finish(measured);
            }
        }
    }

    /// Connections from the guest, one after the other: a byte each, then the host's
    /// program closes.
    pub fn connect_from_guest(&self) -> Outcome {
        let mut running = self.start(1)?;
        let (device, guest) = (&running.device, &mut running.guest);
        let _peer = Peer::start(&Part::new(Role::Acceptor, device.port(0, PORT)))?;
        let mut window = self.window(device);
        loop {
            let mut stream = guest.connect(PORT)?;
            guest.send(&stream.header(Op::RW, 1))?;
            // As Linux answers a SHUTDOWN of both directions when all is read.
            await_end(guest, &mut stream)?;
            if let Some(measured) = window.add(1)? {
                return running.finish(measured);
            }
        }
    }

    /// Connections from the host's program, one after the other: a byte each, then the
    /// guest closes.
    pub fn connect_from_host(&self) -> Outcome {
        let mut running = self.start(1)?;
        let (device, guest) = (&running.device, &mut running.guest);
        let part = Part::new(Role::Dialer, device.host(0))
            .window(self.window, Some(device.pid()))
            .port(Some(PORT));
        let mut peer = Peer::start(&part)?;
        let done = AtomicBool::new(false);
        let waker = guest.waker()?;
        let measured = std::thread::scope(|scope| {
            let result = scope.spawn(|| {
                let result = peer.result();
                done.store(true, Ordering::Release);
                // Whoever sleeps looks again.
                waker.write(1).map(|()| result)
            });
            let mut current: Option<Stream> = None;
            while !done.load(Ordering::Acquire) {
                let Some(header) = guest.receive()? else {
                    guest.wait()?;
                    continue;
                };
                match (&mut current, header.op) {
                    (_, Op::REQUEST) => current = Some(guest.accept_this(&header)?),
                    (Some(stream), Op::RW) if stream.is_for(&header) => {
                        guest.send(&stream.shutdown())?;
                    }
                    (Some(stream), Op::SHUTDOWN) if stream.is_for(&header) => {
                        guest.send(&stream.header(Op::RST, 0))?;
                    }
                    _ => {}
                }
            }
            join(result)
        })?;
        running.finish(measured??)
    }

    /// Small messages there and back on many connections at once.
    pub fn many(&self, connections: usize, size: u32) -> Outcome {
        let mut running = self.start(size)?;
        let (device, guest) = (&running.device, &mut running.guest);
        let _peer = Peer::start(&Part::new(Role::EchoMany, device.port(0, PORT)))?;
        let before = device.memory()?;
        let mut streams = Vec::new();
        for _ in 0..connections {
            streams.push(guest.connect(PORT)?);
        }
        let first = streams.first().map_or(0, |stream| stream.port);
        let idle = device.memory()?.saturating_sub(before);
        for stream in &mut streams {
            guest.send(&stream.header(Op::RW, size))?;
        }
        let mut window = self.window(device);
        loop {
            let mut count = 0;
            for _ in 0..TURN {
                let Some(header) = guest.receive()? else {
                    break;
                };
                let Some(stream) = streams.get_mut((header.dst_port - first) as usize) else {
                    continue;
                };
                ensure!(
                    !matches!(header.op, Op::RST | Op::SHUTDOWN),
                    "a connection ended: {header:?}"
                );
                answer(guest, stream, &header)?;
                if header.op == Op::RW {
                    // An echo may come in two parts where the host's socket was full.
                    guest.send(&stream.header(Op::RW, header.len))?;
                    count += 1;
                }
            }
            if let Some(mut measured) = window.add(count)? {
                measured.memory = idle;
                return running.finish(measured);
            }
            match count {
                0 => guest.wait()?,
                _ => guest.flush()?,
            }
        }
    }

    /// Many connections that say nothing: what they cost in memory, and in CPU time over
    /// the window.
    pub fn idle(&self, connections: usize) -> Outcome {
        let mut running = self.start(1)?;
        let (device, guest) = (&running.device, &mut running.guest);
        let _peer = Peer::start(&Part::new(Role::EchoMany, device.port(0, PORT)))?;
        // Past what the first one costs.
        guest.connect(PORT)?;
        let before = device.memory()?;
        for _ in 0..connections {
            guest.connect(PORT)?;
        }
        idle(device, before, connections, self.window)
    }

    /// Many VMs in one process that do nothing.
    pub fn vms(&self) -> Outcome {
        let one = Self { vms: 1, ..*self }.start(1)?.device.memory()?;
        let running = self.start(1)?;
        idle(&running.device, one, self.vms, self.window)
    }
}

/// Memory beyond `before`, and CPU time over the window.
fn idle(device: &Device, before: u64, count: usize, window: Duration) -> Outcome {
    std::thread::sleep(window / 4);
    let (began, cpu) = (Instant::now(), cpu_time(device.pid())?);
    std::thread::sleep(window);
    Ok(Measured {
        seconds: began.elapsed().as_secs_f64(),
        count: count as u64,
        cpu: cpu_time(device.pid())?.saturating_sub(cpu).as_secs_f64(),
        memory: device.memory()?.saturating_sub(before),
        ..Measured::default()
    })
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("a measuring thread panicked"))
}

/// Takes note of a packet and answers it, where it must be.
fn answer(guest: &mut Guest, stream: &mut Stream, header: &Header) -> Result<()> {
    if let Some(op) = stream.heard(header) {
        guest.send(&stream.header(op, 0))?;
    }
    Ok(())
}

/// Waits until the host has closed, and confirms it.
fn await_end(guest: &mut Guest, stream: &mut Stream) -> Result<()> {
    loop {
        let header = guest.receive_now()?;
        if !stream.is_for(&header) {
            continue;
        }
        match header.op {
            Op::SHUTDOWN => {
                guest.send(&stream.header(Op::RST, 0))?;
                return Ok(());
            }
            Op::RST => return Ok(()),
            _ => answer(guest, stream, &header)?,
        }
    }
}
