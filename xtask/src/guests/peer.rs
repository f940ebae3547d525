// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Talking to an agent, whether it is in a machine or in this process.
//!
//! A command can be started on one side, then another on the other side, and then both be
//! waited for. No wait is without a deadline.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use guest_agent::agent::{Agent, ReplyTo};
use guest_agent::protocol::{About, Answer, Command, Handle, Kind, Line, Reply, Request};
use guest_agent::sockets::Place;

/// Longer than any wait of an agent, so that its own answer comes first.
const PATIENCE: Duration = Duration::from_secs(150);

/// An agent that takes commands.
pub struct Peer {
    name: String,
    way: Way,
    lines: Receiver<Line>,
    early: HashMap<u64, Reply>,
    next: u64,
}

/// How commands reach it.
enum Way {
    Port(Box<dyn Write + Send>),
    Here(Arc<Agent>, ReplyTo),
}

/// A command that was given and not answered yet.
#[must_use]
#[derive(Debug)]
pub struct Ticket {
    number: u64,
    what: String,
}

/// Bytes that were moved, and their sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// How many.
    pub bytes: u64,
    /// Their sum.
    pub sum: u64,
}

impl Peer {
    /// The agent of a machine, behind a port.
    pub fn behind(
        name: &str,
        read: impl Read + Send + 'static,
        write: impl Write + Send + 'static,
    ) -> Self {
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(read);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line);
                let parsed = match Line::parse(&text) {
                    Ok(parsed) => parsed,
                    Err(error) => Some(Line::Fatal(format!("{error}: {text}"))),
                };
                if parsed.is_some_and(|line| sender.send(line).is_err()) {
                    return;
                }
                line.clear();
            }
        });
        Self::new(name, Way::Port(Box::new(write)), lines)
    }

    /// An agent in this process.
    pub fn here(name: &str, place: Place) -> Self {
        let (sender, lines) = mpsc::channel();
        let reply: ReplyTo = Arc::new(move |reply| {
            // Nobody asks any more.
            let _ = sender.send(Line::Reply(reply));
        });
        Self::new(name, Way::Here(Agent::new(place), reply), lines)
    }

    fn new(name: &str, way: Way, lines: Receiver<Line>) -> Self {
        Self {
            name: name.to_owned(),
            way,
            lines,
            early: HashMap::new(),
            next: 1,
        }
    }

    /// Waits until the machine is up and says what it is.
    pub fn hello(&mut self, patience: Duration) -> Result<About> {
        let deadline = Instant::now() + patience;
        loop {
            match self.line(deadline).context("waiting for it to boot")? {
                Line::Hello(about) => {
                    self.early.clear();
                    return Ok(about);
                }
                // Of a command from before it was booted again.
                Line::Reply(_) => {}
                Line::Fatal(text) => bail!("{} gave up: {text}", self.name),
            }
        }
    }

    /// Gives a command.
    pub fn start(&mut self, command: Command) -> Result<Ticket> {
        let number = self.next;
        self.next += 1;
        let ticket = Ticket {
            number,
            what: format!("{command:?}"),
        };
        let request = Request { number, command };
        match &mut self.way {
            Way::Here(agent, reply) => agent.start(request, reply),
            Way::Port(port) => {
                let mut line = serde_json::to_string(&request)?;
                line.push('\n');
                let written = port.write_all(line.as_bytes()).and_then(|()| port.flush());
                written.with_context(|| format!("{} takes no commands any more", self.name))?;
            }
        }
        Ok(ticket)
    }

    /// Waits for the answer to a command.
    pub fn finish(&mut self, ticket: Ticket) -> Result<Answer> {
        self.finish_within(ticket, PATIENCE)
    }

    fn finish_within(&mut self, ticket: Ticket, patience: Duration) -> Result<Answer> {
        let Ticket { number, what } = ticket;
        let deadline = Instant::now() + patience;
        let reply = loop {
            if let Some(reply) = self.early.remove(&number) {
                break reply;
            }
            let line = self.line(deadline);
            match line.with_context(|| format!("{}: no answer to {what}", self.name))? {
                Line::Reply(reply) => {
                    self.early.insert(reply.number, reply);
                }
                Line::Hello(_) => bail!("{} has booted again by itself during {what}", self.name),
                Line::Fatal(text) => bail!("{} gave up: {text}", self.name),
            }
        };
        let answer = reply.result.map_err(anyhow::Error::from);
        answer.with_context(|| format!("{}: {what}", self.name))
    }

    /// Gives a command and waits for its answer.
    pub fn call(&mut self, command: Command) -> Result<Answer> {
        let ticket = self.start(command)?;
        self.finish(ticket)
    }

    /// Gives a command that answers with a socket.
    pub fn socket(&mut self, command: Command) -> Result<Handle> {
        let ticket = self.start(command)?;
        self.finish_socket(ticket)
    }

    /// Waits for a socket.
    pub fn finish_socket(&mut self, ticket: Ticket) -> Result<Handle> {
        match self.finish(ticket)? {
            Answer::Socket(handle) => Ok(handle),
            other => bail!("{} answers {other:?}, not with a socket", self.name),
        }
    }

    /// Waits for bytes to be moved.
    pub fn finish_moved(&mut self, ticket: Ticket) -> Result<Moved> {
        match self.finish(ticket)? {
            Answer::Moved { bytes, sum } => Ok(Moved { bytes, sum }),
            other => bail!("{} answers {other:?}, not with bytes", self.name),
        }
    }

    /// Listens on a port.
    pub fn listen(&mut self, port: u32, kind: Kind) -> Result<Handle> {
        self.socket(Command::Listen { port, kind })
    }

    /// Closes a socket.
    pub fn close(&mut self, socket: Handle) -> Result<()> {
        self.call(Command::Close { socket }).map(drop)
    }

    /// Closes the sending half of a socket.
    pub fn close_half(&mut self, socket: Handle) -> Result<()> {
        self.call(Command::Finish { socket }).map(drop)
    }

    /// Sends the pattern of a seed.
    pub fn send(&mut self, socket: Handle, bytes: u64, seed: u64) -> Result<Moved> {
        let ticket = self.start(Command::Send {
            socket,
            bytes,
            seed,
        })?;
        self.finish_moved(ticket)
    }

    /// Receives so many bytes, or all there are.
    pub fn receive(&mut self, socket: Handle, bytes: Option<u64>) -> Result<Moved> {
        let ticket = self.start(Command::Receive { socket, bytes })?;
        self.finish_moved(ticket)
    }

    /// Where it is, and what it sees of the device.
    pub fn about(&mut self) -> Result<About> {
        let ticket = self.start(Command::About)?;
        match self.finish_within(ticket, Duration::from_secs(30))? {
            Answer::About(about) => Ok(about),
            other => bail!("{} answers {other:?}, not where it is", self.name),
        }
    }

    /// Gives a command that is not answered.
    pub fn tell(&mut self, command: Command) -> Result<()> {
        self.start(command).map(drop)
    }

    fn line(&mut self, deadline: Instant) -> Result<Line> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("{} says nothing", self.name),
            Err(RecvTimeoutError::Disconnected) => bail!("{} is gone", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(said: &'static str) -> Peer {
        Peer::behind("the guest", said.as_bytes(), std::io::sink())
    }

    #[test]
    fn replies_find_their_commands_in_any_order() {
        let done = r#"{"Ok":"Done"}"#;
        let second = format!("noise\n@reply {{\"number\":2,\"result\":{done}}}\n");
        let first = r#"@reply {"number":1,"result":{"Err":{"errno":104,"text":"reset"}}}"#;
        let mut peer = peer(Box::leak(format!("{second}{first}\n").into_boxed_str()));
        let one = peer.start(Command::About).unwrap();
        let two = peer.start(Command::About).unwrap();
        let error = peer.finish(one).unwrap_err();
        let failure = error.root_cause().downcast_ref();
        let failure: &guest_agent::protocol::Failure = failure.unwrap();
        assert_eq!(failure.errno, Some(104));
        assert_eq!(peer.finish(two).unwrap(), Answer::Done);
    }

    #[test]
    fn a_guest_that_ends_or_boots_again_is_not_waited_for() {
        for (said, expected) in [
            ("", "is gone"),
            ("@fatal no module\n", "no module"),
            ("@hello {\"kernel\":\"6.1\"}\n", "booted again"),
            ("@reply {\n", "gave up"),
        ] {
            let error = peer(said).call(Command::About).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}
