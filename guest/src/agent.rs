// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Does what it is told, each command on a thread of its own.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use socket2::Socket;

use crate::machine;
use crate::pattern::{Pattern, Sum};
use crate::programs::Programs;
use crate::protocol::{Answer, Command, Failure, Handle, Kind, Reply, Request};
use crate::sockets::{accept, Place};

/// Bytes of a stream written or read at once; a multiple of eight, as [`Pattern`] wants.
const PIECE: usize = 256 << 10;
/// Longest message taken.
const LONGEST_MESSAGE: usize = 1 << 20;
/// Longest line of text taken.
const LONGEST_LINE: usize = 4096;
/// Enough for an echo, of which there may be a thousand.
const SMALL_STACK: usize = 128 << 10;

/// Takes replies, from any thread.
pub type ReplyTo = Arc<dyn Fn(Reply) + Send + Sync>;

/// One side of a conversation.
#[derive(Debug)]
pub struct Agent {
    place: Place,
    sockets: Mutex<HashMap<Handle, Arc<Socket>>>,
    next: AtomicU32,
    programs: Programs,
}

impl Agent {
    /// An agent at this place.
    pub fn new(place: Place) -> Arc<Self> {
        Arc::new(Self {
            place,
            sockets: Mutex::default(),
            next: AtomicU32::new(1),
            programs: Programs::default(),
        })
    }

    /// Does what the request says, and replies when it is done, from another thread.
    pub fn start(self: &Arc<Self>, request: Request, reply: &ReplyTo) {
        let Request { number, command } = request;
        let (agent, answer) = (self.clone(), reply.clone());
        let spawned = thread::Builder::new().spawn(move || {
            let result = agent.obey(command).map_err(Failure::from);
            answer(Reply { number, result });
        });
        if let Err(error) = spawned {
            let result = Err(Failure::from(error));
            reply(Reply { number, result });
        }
    }

    fn obey(&self, command: Command) -> io::Result<Answer> {
        match command {
            Command::About => machine::about().map(Answer::About),
            Command::Listen { port, kind } => Ok(self.keep(self.place.listen(port, kind)?)),
            Command::Accept { listener } => Ok(self.keep(accept(&*self.socket(listener)?)?)),
            Command::Connect { port, kind } => Ok(self.keep(self.place.connect(port, kind)?)),
            Command::Send {
                socket,
                bytes,
                seed,
            } => send(
                &*self.socket(socket)?,
                &mut PatternReader::new(seed).take(bytes),
            ),
            Command::Receive { socket, bytes } => {
                let socket = self.socket(socket)?;
                receive(&socket, bytes.unwrap_or(u64::MAX), &mut io::sink())
            }
            Command::Say { socket, text } => {
                let socket = self.socket(socket)?;
                (&*socket).write_all(format!("{text}\n").as_bytes())?;
                Ok(Answer::Done)
            }
            Command::Hear { socket } => hear(&*self.socket(socket)?),
            Command::SendFile { socket, path } => {
                send(&*self.socket(socket)?, &mut File::open(path)?)
            }
            Command::ReceiveFile { socket, path } => {
                receive(&*self.socket(socket)?, u64::MAX, &mut File::create(path)?)
            }
            Command::SendMessages {
                socket,
                sizes,
                seed,
            } => send_messages(&*self.socket(socket)?, sizes, seed),
            Command::ReceiveMessages { socket, count } => {
                receive_messages(&*self.socket(socket)?, count)
            }
            Command::Finish { socket } => {
                self.socket(socket)?.shutdown(Shutdown::Write)?;
                Ok(Answer::Done)
            }
            Command::Close { socket } => {
                self.sockets().remove(&socket).ok_or_else(no_socket)?;
                Ok(Answer::Done)
            }
            Command::Echo { port, kind } => {
                let listener = self.place.listen(port, kind)?;
                listener.set_read_timeout(None)?;
                small_thread(move || echo_all(&listener))?;
                Ok(Answer::Done)
            }
            Command::Crowd {
                port,
                connections,
                bytes,
            } => self.crowd(port, connections, bytes),
            Command::Run {
                program,
                arguments,
                input,
            } => ended(self.programs.run(&program, &arguments, &input)),
            Command::Start {
                name,
                program,
                arguments,
            } => {
                self.programs.start(&name, &program, &arguments)?;
                Ok(Answer::Done)
            }
            Command::Stop { name } => ended(self.programs.stop(&name)),
            Command::Log { name } => self.programs.log(&name).map(Answer::Text),
            Command::Reboot | Command::PowerOff => {
                Err(io::Error::other("this is no machine of mine"))
            }
        }
    }

    fn sockets(&self) -> MutexGuard<'_, HashMap<Handle, Arc<Socket>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, socket: Socket) -> Answer {
        let handle = Handle(self.next.fetch_add(1, Ordering::Relaxed));
        self.sockets().insert(handle, Arc::new(socket));
        Answer::Socket(handle)
    }

    fn socket(&self, handle: Handle) -> io::Result<Arc<Socket>> {
        self.sockets().get(&handle).cloned().ok_or_else(no_socket)
    }

    fn crowd(&self, port: u32, connections: u32, bytes: u32) -> io::Result<Answer> {
        let mut all = Vec::new();
        for number in 0..connections {
            let connected = self.place.connect(port, Kind::Stream);
            all.push(connected.map_err(|e| {
                let text = format!("connection {number} of {connections}: {e}");
                io::Error::new(e.kind(), text)
            })?);
        }
        let mut expected = vec![0; bytes as usize];
        let mut found = expected.clone();
        for (seed, mut socket) in (0..).zip(&all) {
            Pattern::new(seed).fill(&mut expected);
            socket.write_all(&expected)?;
        }
        for (seed, mut socket) in (0..).zip(&all) {
            Pattern::new(seed).fill(&mut expected);
            socket.read_exact(&mut found)?;
            if found != expected {
                let text = format!("the echo of connection {seed} is not what was sent");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(Answer::Done)
    }
}

fn no_socket() -> io::Error {
    io::Error::other("no such socket")
}

fn ended(end: io::Result<crate::programs::End>) -> io::Result<Answer> {
    end.map(|(code, output)| Answer::Ended { code, output })
}

/// The endless stream of a seed.
struct PatternReader(Pattern);

impl PatternReader {
    fn new(seed: u64) -> Self {
        Self(Pattern::new(seed))
    }
}

impl Read for PatternReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.fill(into);
        Ok(into.len())
    }
}

fn send(mut socket: &Socket, from: &mut dyn Read) -> io::Result<Answer> {
    let (mut piece, mut bytes, mut sum) = (vec![0; PIECE], 0, Sum::default());
    loop {
        let read = from.read(&mut piece)?;
        if read == 0 {
            let sum = sum.value();
            return Ok(Answer::Moved { bytes, sum });
        }
        sum.add(&piece[..read]);
        socket.write_all(&piece[..read])?;
        bytes += read as u64;
    }
}

fn receive(mut socket: &Socket, most: u64, to: &mut dyn Write) -> io::Result<Answer> {
    let (mut piece, mut bytes, mut sum) = (vec![0; PIECE], 0, Sum::default());
    while bytes < most {
        let wanted = usize::try_from(most - bytes).unwrap_or(PIECE).min(PIECE);
        let read = socket.read(&mut piece[..wanted])?;
        if read == 0 {
            break;
        }
        sum.add(&piece[..read]);
        to.write_all(&piece[..read])?;
        bytes += read as u64;
    }
    let sum = sum.value();
    Ok(Answer::Moved { bytes, sum })
}

/// Byte by byte: what follows the line is for another command.
fn hear(mut socket: &Socket) -> io::Result<Answer> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() < LONGEST_LINE && socket.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    Ok(Answer::Text(String::from_utf8_lossy(&line).into_owned()))
}

fn send_messages(socket: &Socket, sizes: Vec<u32>, seed: u64) -> io::Result<Answer> {
    let (mut pattern, mut sum) = (Pattern::new(seed), Sum::default());
    for size in &sizes {
        let mut message = vec![0; *size as usize];
        pattern.fill(&mut message);
        sum.add(&message);
        let sent = socket.send(&message)?;
        if sent != message.len() {
            let text = format!("{sent} of a message of {size} bytes were taken");
            return Err(io::Error::new(io::ErrorKind::WriteZero, text));
        }
    }
    let sum = sum.value();
    Ok(Answer::Messages { sizes, sum })
}

fn receive_messages(mut socket: &Socket, count: usize) -> io::Result<Answer> {
    let mut message = vec![0; LONGEST_MESSAGE];
    let (mut sizes, mut sum) = (Vec::new(), Sum::default());
    while sizes.len() < count {
        let read = socket.read(&mut message)?;
        if read == 0 {
            break;
        }
        sum.add(&message[..read]);
        sizes.push(u32::try_from(read).map_err(io::Error::other)?);
    }
    let sum = sum.value();
    Ok(Answer::Messages { sizes, sum })
}

fn small_thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .stack_size(SMALL_STACK)
        .spawn(work)
        .map(drop)
}

/// Until the listener fails, which is at the end of the machine or the process.
fn echo_all(listener: &Socket) {
    while let Ok((socket, _)) = listener.accept() {
        // Without a thread the connection is hung up on, which its other side sees.
        let _ = small_thread(move || {
            // Its other side ends it; whatever fails here, that one sees as well.
            let _ = echo(&socket);
        });
    }
}

fn echo(mut socket: &Socket) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = socket.read(&mut piece)?;
        if read == 0 {
            return Ok(());
        }
        socket.write_all(&piece[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// An agent whose other side is itself: what it listens on is what the daemon would
    /// connect to, and the test plays the daemon.
    fn agent(base: &Path) -> Arc<Agent> {
        Agent::new(Place::Hybrid(base.to_owned()))
    }

    fn socket(answer: io::Result<Answer>) -> Handle {
        match answer.unwrap() {
            Answer::Socket(handle) => handle,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bytes_arrive_with_their_sum_and_the_end_is_seen() {
        let place = tempfile::tempdir().unwrap();
        let agent = agent(&place.path().join("vm"));
        let kind = Kind::Stream;
        let listener = socket(agent.obey(Command::Listen { port: 7, kind }));
        let near = Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        let path = place.path().join("vm_7");
        near.connect(&socket2::SockAddr::unix(path).unwrap())
            .unwrap();
        let far = socket(agent.obey(Command::Accept { listener }));
        let Answer::Socket(near) = agent.keep(near) else {
            unreachable!()
        };
        let bytes = 3 * PIECE as u64 + 5;
        let other = agent.clone();
        let sent = thread::spawn(move || {
            let sent = other.obey(Command::Send {
                socket: far,
                bytes,
                seed: 9,
            });
            other.obey(Command::Finish { socket: far }).unwrap();
            sent
        });
        let received = agent.obey(Command::Receive {
            socket: near,
            bytes: None,
        });
        let received = received.unwrap();
        assert_eq!(received, sent.join().unwrap().unwrap());
        assert!(matches!(received, Answer::Moved { bytes: n, .. } if n == bytes));
        agent.obey(Command::Close { socket: near }).unwrap();
        assert!(agent.obey(Command::Close { socket: near }).is_err());
    }

    #[test]
    fn replies_carry_the_number_of_the_request() {
        let place = tempfile::tempdir().unwrap();
        let (sender, replies) = std::sync::mpsc::channel();
        let reply: ReplyTo = Arc::new(move |reply| sender.send(reply).unwrap());
        let command = Command::Connect {
            port: 1,
            kind: Kind::Stream,
        };
        agent(&place.path().join("vm")).start(Request { number: 5, command }, &reply);
        let reply = replies.recv().unwrap();
        assert_eq!(reply.number, 5);
        assert_eq!(reply.result.unwrap_err().errno, Some(libc::ENOENT));
    }
}
