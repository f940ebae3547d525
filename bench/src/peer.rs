// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's program, in a process of its own: plain blocking sockets, as most
//! programs have, save for the one with many connections. Against a device and against
//! a plain socket it is the same program.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{anyhow, ensure, Context, Result};
use clap::{Args, ValueEnum};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::window::{Measured, Window};

/// What a peer says once it can be reached.
const READY: &str = "ready";

/// Bytes that a program asks for at least when it reads a stream.
const READ: usize = 64 << 10;

/// What the host's program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Listens, reads what comes and measures it.
    Sink,
    /// Connects and writes for ever.
    Source,
    /// Listens and sends everything back, on one connection.
    Echo,
    /// Listens and sends everything back, on any number of connections.
    EchoMany,
    /// Listens, takes a byte of each connection and closes it.
    Acceptor,
    /// Connects, writes a byte, waits for the end, and measures how often.
    Dialer,
}

/// A peer's command line.
#[derive(Args, Clone, Debug)]
pub struct Part {
    /// What it does.
    #[arg(value_enum)]
    role: Role,
    /// Where it listens or connects.
    #[arg(long)]
    path: PathBuf,
    /// Bytes of a message.
    #[arg(long, default_value_t = 1)]
    size: usize,
    /// Length of the window in milliseconds.
    #[arg(long, default_value_t = 0)]
    window: u64,
    /// The process whose CPU time is measured.
    #[arg(long)]
    device: Option<u32>,
    /// The port of the guest to ask for.
    #[arg(long)]
    port: Option<u32>,
}

impl Part {
    /// A part for a program that listens or connects at `path`.
    pub fn new(role: Role, path: PathBuf) -> Self {
        Self {
            role,
            path,
            size: 1,
            window: 0,
            device: None,
            port: None,
        }
    }

    /// With messages of `size` bytes.
    pub fn size(self, size: usize) -> Self {
        Self { size, ..self }
    }

    /// With a window of this `length`; `device` is whose CPU time counts.
    pub fn window(self, length: Duration, device: Option<u32>) -> Self {
        let window = length.as_millis() as u64;
        Self {
            window,
            device,
            ..self
        }
    }

    /// Asking for this port of the guest.
    pub fn port(self, port: Option<u32>) -> Self {
        Self { port, ..self }
    }

    fn arguments(&self) -> Vec<String> {
        let role = self.role.to_possible_value();
        let role = role.map_or_else(String::new, |role| role.get_name().to_owned());
        let mut words = vec!["peer".to_owned(), role];
        let mut say = |name: &str, value: String| words.extend([format!("--{name}"), value]);
        say("path", self.path.display().to_string());
        say("size", self.size.to_string());
        say("window", self.window.to_string());
        if let Some(device) = self.device {
            say("device", device.to_string());
        }
        if let Some(port) = self.port {
            say("port", port.to_string());
        }
        words
    }

    /// Plays it, in this process.
    pub fn play(&self) -> Result<()> {
        let window = Window::new(Duration::from_millis(self.window), self.device);
        let measured = match self.role {
            Role::Sink => Some(sink(&accept(&self.listen()?)?, self.size, window)?),
            Role::Source => {
                source(&self.connect()?, self.size)?;
                None
            }
            Role::Echo => {
                echo(&accept(&self.listen()?)?)?;
                None
            }
            Role::EchoMany => {
                echo_many(&self.listen()?)?;
                None
            }
            Role::Acceptor => {
                take_bytes(&self.listen()?)?;
                None
            }
            Role::Dialer => Some(dial(|| self.connect(), window)?),
        };
        if let Some(measured) = measured {
            println!("{}", serde_json::to_string(&measured)?);
        }
        Ok(())
    }

    fn listen(&self) -> Result<UnixListener> {
        let listener = UnixListener::bind(&self.path)
            .with_context(|| format!("cannot listen at {}", self.path.display()))?;
        println!("{READY}");
        Ok(listener)
    }

    fn connect(&self) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.path)
            .with_context(|| format!("cannot connect to {}", self.path.display()))?;
        if let Some(port) = self.port {
            stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
            let mut answer = [0; 32];
            let len = stream.read(&mut answer)?;
            ensure!(answer[..len].starts_with(b"OK "), "the guest is not there");
        }
        Ok(stream)
    }
}

/// A peer in a process of its own; it ends when dropped.
pub struct Peer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it; one that listens does so when this returns.
    pub fn start(part: &Part) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(part.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the host's program")?;
        let output = child.stdout.take().context("no output")?;
        let mut peer = Self {
            child,
            output: BufReader::new(output),
        };
        if !matches!(part.role, Role::Source | Role::Dialer) {
            let said = peer.line()?;
            ensure!(said == READY, "the host's program said `{said}`");
        }
        Ok(peer)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// What it has measured, waited for.
    pub fn result(&mut self) -> Result<Measured> {
        let line = self.line()?;
        serde_json::from_str(&line).map_err(|_| anyhow!("the host's program failed: `{line}`"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next connection.
pub fn accept(listener: &UnixListener) -> Result<UnixStream> {
    Ok(listener.accept()?.0)
}

/// Reads what is there until the window is over.
pub fn sink(mut stream: &UnixStream, size: usize, mut window: Window) -> Result<Measured> {
    let mut buffer = vec![0; size.max(READ)];
    loop {
        let len = stream.read(&mut buffer)?;
        ensure!(len > 0, "the stream ended before the window");
        if let Some(measured) = window.add(len as u64)? {
            return Ok(measured);
        }
    }
}

/// Writes until nobody reads any more.
pub fn source(mut stream: &UnixStream, size: usize) -> Result<()> {
    let message = vec![0x5a; size];
    loop {
        match stream.write_all(&message) {
            Err(error) if is_end(&error) => return Ok(()),
            result => result?,
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

/// Takes connections, a byte of each, and closes them.
pub fn take_bytes(listener: &UnixListener) -> Result<()> {
    loop {
        let mut stream = accept(listener)?;
        match stream.read(&mut [0]) {
            Err(error) if is_end(&error) => {}
            result => drop(result?),
        }
    }
}

/// Connects, writes a byte and waits for the end, until the window is over.
pub fn dial(connect: impl Fn() -> Result<UnixStream>, mut window: Window) -> Result<Measured> {
    loop {
        let mut stream = connect()?;
        stream.write_all(&[1])?;
        match stream.read(&mut [0]) {
            Err(error) if is_end(&error) => {}
            result => drop(result?),
        }
        if let Some(measured) = window.add(1)? {
            return Ok(measured);
        }
    }
}

/// Sends back all that comes on one connection.
fn echo(mut stream: &UnixStream) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => stream.write_all(&buffer[..len])?,
            Err(error) if is_end(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Many connections of one process, by number.
pub struct Crowd {
    epoll: Epoll,
    streams: Vec<UnixStream>,
    buffer: Vec<u8>,
}

/// The token of what is not a connection.
const LISTENER: u64 = u64::MAX;

impl Crowd {
    /// No connections yet.
    pub fn new() -> Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            streams: Vec::new(),
            buffer: vec![0; 64 << 10],
        })
    }

    fn watch(&self, fd: i32, token: u64) -> Result<()> {
        let event = EpollEvent::new(EventSet::IN, token);
        Ok(self.epoll.ctl(ControlOperation::Add, fd, event)?)
    }

    /// Adds a connection.
    pub fn add(&mut self, stream: UnixStream) -> Result<()> {
        self.watch(stream.as_raw_fd(), self.streams.len() as u64)?;
        self.streams.push(stream);
        Ok(())
    }

    /// Sends a message of `size` bytes on each.
    pub fn begin(&self, size: usize) -> Result<()> {
        let message = vec![0x5a; size];
        self.streams
            .iter()
            .try_for_each(|mut stream| Ok(stream.write_all(&message)?))
    }

    /// Waits for messages, sends each back; how many.
    pub fn turn(&mut self, listener: Option<&UnixListener>) -> Result<u64> {
        let mut events = [EpollEvent::default(); 256];
        let found = self.epoll.wait(-1, &mut events)?;
        let mut count = 0;
        for event in &events[..found] {
            let token = event.data();
            if let (LISTENER, Some(listener)) = (token, listener) {
                self.add(accept(listener)?)?;
                continue;
            }
            let mut stream = &self.streams[token as usize];
            match stream.read(&mut self.buffer) {
                Ok(0) => {
                    let fd = stream.as_raw_fd();
                    self.epoll
                        .ctl(ControlOperation::Delete, fd, EpollEvent::default())?;
                }
                Ok(len) => {
                    stream.write_all(&self.buffer[..len])?;
                    count += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(count)
    }
}

/// Sends back all that comes on any number of connections.
fn echo_many(listener: &UnixListener) -> Result<()> {
    let mut crowd = Crowd::new()?;
    crowd.watch(listener.as_raw_fd(), LISTENER)?;
    loop {
        crowd.turn(Some(listener))?;
    }
}
