// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The baseline: the same host's program with a plain Unix socket to this process in
//! place of a device and a guest.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use tempfile::TempDir;

use crate::peer::{accept, dial, sink, source, take_bytes, Crowd, Part, Peer, Role};
use crate::window::{Measured, Window};

/// A place for a socket.
pub struct Plain {
    directory: TempDir,
    window: Duration,
}

impl Plain {
    /// Measurements with windows of this length.
    pub fn new(window: Duration) -> Result<Self> {
        let directory = TempDir::new()?;
        Ok(Self { directory, window })
    }

    fn part(&self, role: Role) -> Part {
        Part::new(role, self.directory.path().join("socket"))
    }

    fn connect(&self) -> Result<UnixStream> {
        Ok(UnixStream::connect(self.directory.path().join("socket"))?)
    }

    fn listen(&self) -> Result<UnixListener> {
        Ok(UnixListener::bind(self.directory.path().join("socket"))?)
    }

    /// Messages to the host's program.
    pub fn to_host(&self, size: usize) -> Result<Measured> {
        let part = self.part(Role::Sink).size(size).window(self.window, None);
        let mut peer = Peer::start(&part)?;
        source(&self.connect()?, size)?;
        peer.result()
    }

    /// Messages from the host's program.
    pub fn to_guest(&self, size: usize) -> Result<Measured> {
        let listener = self.listen()?;
        let _peer = Peer::start(&self.part(Role::Source).size(size))?;
        sink(&accept(&listener)?, size, Window::new(self.window, None))
    }

    /// A byte there and back.
    pub fn ping(&self) -> Result<Measured> {
        let _peer = Peer::start(&self.part(Role::Echo))?;
        let mut stream = self.connect()?;
        let mut window = Window::new(self.window, None);
        let mut latencies = Vec::new();
        loop {
            let began = Instant::now();
            stream.write_all(&[1])?;
            stream.read_exact(&mut [0])?;
            if window.is_open() {
                latencies.push(began.elapsed().as_nanos() as u32);
            }
            if let Some(mut measured) = window.add(1)? {
                measured.latencies = latencies;
                return Ok(measured);
            }
        }
    }

    /// Connections to the host's program, one after the other.
    pub fn connect_from_guest(&self) -> Result<Measured> {
        let _peer = Peer::start(&self.part(Role::Acceptor))?;
        dial(|| self.connect(), Window::new(self.window, None))
    }

    /// Connections from the host's program.
    pub fn connect_from_host(&self) -> Result<Measured> {
        let listener = self.listen()?;
        let mut peer = Peer::start(&self.part(Role::Dialer).window(self.window, None))?;
        std::thread::spawn(move || take_bytes(&listener));
        peer.result()
    }

    /// Small messages there and back on many connections at once.
    pub fn many(&self, connections: usize, size: usize) -> Result<Measured> {
        let _peer = Peer::start(&self.part(Role::EchoMany))?;
        let mut crowd = Crowd::new()?;
        for _ in 0..connections {
            crowd.add(self.connect()?)?;
        }
        crowd.begin(size)?;
        let mut window = Window::new(self.window, None);
        loop {
            let count = crowd.turn(None)?;
            if let Some(measured) = window.add(count)? {
                return Ok(measured);
            }
        }
    }
}
