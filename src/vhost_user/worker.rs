// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VM's thread: its vhost-user socket, the event loop, the data path's turns.
//!
//! Whoever connects to the socket is a candidate; the first one that speaks while there
//! is no front end becomes it. So a probe that connects and leaves takes nothing from
//! anybody, and a VMM that starts while the one before it is still ending waits its
//! turn. When a front end leaves, its guest's connections end, the host's sockets stay,
//! and the next one is served.
//!
//! A request is handled once all of it has arrived, so half a request delays nobody.
//! Replies are written as the front end reads them: one that does not read holds up its
//! own VM.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use log::{debug, error, info};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::BackendReqHandler;

use super::front::Front;
use crate::epoll::{Epoll, Events, Interest, Token};
use crate::event::EventFd;
use crate::path::{DataPath, PATH_KINDS};
use crate::userspace::listener::remove_stale_socket;
use crate::userspace::packet::SocketType;

const STOP: Token = Token::lasting(0, 0);
const LISTENER: Token = Token::lasting(1, 0);
const FRONT_END: Token = Token::lasting(2, 0);
/// A candidate; the slot is its place, the generation its number.
const CANDIDATE: u8 = 3;

/// Connections that may wait to become the front end.
const MOST_CANDIDATES: usize = 8;

/// Events taken at a wake-up.
const MOST_EVENTS: usize = 256;

/// Requests handled before the data path gets its turn.
const MOST_REQUESTS: usize = 64;

/// Size of a vhost-user message's header: request, flags, size of the rest.
const MESSAGE_HEADER: usize = 12;

/// The longest message of the protocol as `vhost` has it (`MAX_MSG_SIZE`).
const MOST_MESSAGE: usize = MESSAGE_HEADER + 0x1000;

/// A translation of a vIOMMU's (`VHOST_USER_IOTLB_MSG`), which `vhost` does not know.
const IOTLB_MSG: u32 = FrontendReq::IOTLB_MSG as u32;

struct FrontEnd<P: DataPath> {
    handler: BackendReqHandler<Mutex<Front<P>>>,
    socket: UnixStream,
    /// There may be requests that no event will announce.
    unread: bool,
}

/// A listening vhost-user socket; its file goes with it.
#[derive(Debug)]
struct Door {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Door {
    fn drop(&mut self) {
        // It may have been removed by somebody else.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A VM's device, ready to run.
pub struct Worker<P: DataPath> {
    front: Arc<Mutex<Front<P>>>,
    front_end: Option<FrontEnd<P>>,
    candidates: Vec<(u32, UnixStream)>,
    next_candidate: u32,
    door: Door,
    epoll: Arc<Epoll>,
    stop: Arc<EventFd>,
    name: String,
}

/// What of a message has arrived.
enum Arrival {
    /// All of it, with this request code.
    Complete(u32),
    Partial,
    Gone,
}

fn look(socket: &UnixStream) -> Arrival {
    let mut bytes = [0u8; MOST_MESSAGE];
    let len = match peek(socket, &mut bytes) {
        Ok(0) => return Arrival::Gone,
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Arrival::Partial,
        Err(_) => return Arrival::Gone,
    };
    if len < MESSAGE_HEADER {
        return Arrival::Partial;
    }
    let field = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
    let (request, rest) = (field(0), field(8) as usize);
    // A message that is too long is complete in the sense that it can be refused.
    if len >= MESSAGE_HEADER + rest || rest > MOST_MESSAGE - MESSAGE_HEADER {
        Arrival::Complete(request)
    } else {
        Arrival::Partial
    }
}

fn peek(socket: &UnixStream, out: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: `out` is valid for its length.
    let len = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            out.as_mut_ptr().cast(),
            out.len(),
            flags,
        )
    };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

impl<P: DataPath> Worker<P> {
    /// Listens at `path` for front ends of `data_path`. A file left behind by a process
    /// before this one is replaced.
    pub fn new(path: &Path, data_path: P) -> io::Result<Self> {
        remove_stale_socket(path, SocketType::Stream)?;
        let listener = UnixListener::bind(path).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("cannot listen at {}: {e}", path.display()),
            )
        })?;
        let door = Door {
            listener,
            path: path.to_owned(),
        };
        door.listener.set_nonblocking(true)?;
        let epoll = data_path.epoll().clone();
        let stop = Arc::new(EventFd::new()?);
        epoll.add(stop.as_ref(), STOP, Interest::READABLE)?;
        epoll.add(&door.listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            name: format!("vm {}", data_path.cid()),
            front: Arc::new(Mutex::new(Front::new(data_path))),
            front_end: None,
            candidates: Vec::new(),
            next_candidate: 0,
            door,
            epoll,
            stop,
        })
    }

    /// Signalled, it ends [`run`](Self::run).
    pub fn stop_event(&self) -> Arc<EventFd> {
        self.stop.clone()
    }

    fn front(&self) -> MutexGuard<'_, Front<P>> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves front ends until the stop event is signalled. An error means that the
    /// event loop itself has failed.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(MOST_EVENTS);
        let mut timeout = None;
        loop {
            self.epoll.wait(&mut events, timeout)?;
            let mut requests = self.front_end.as_ref().is_some_and(|f| f.unread);
            let mut accept = false;
            let mut heard = false;
            {
                let mut front = self.front();
                for (token, interest) in events.iter() {
                    match token {
                        STOP => {
                            front.disconnected();
                            return Ok(());
                        }
                        LISTENER => accept = true,
                        FRONT_END => requests = true,
                        Token {
                            kind: CANDIDATE, ..
                        } => heard = true,
                        Token { kind, .. } if kind >= PATH_KINDS => {
                            front.path.event(token, interest)
                        }
                        Token { .. } => {}
                    }
                }
            }
            if accept {
                self.accept();
            }
            if requests {
                self.requests();
            }
            if heard || self.front_end.is_none() {
                self.choose();
            }
            timeout = self.front().path.turn(Instant::now());
            if self.front_end.as_ref().is_some_and(|f| f.unread) {
                timeout = Some(std::time::Duration::ZERO);
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.door.listener.accept() {
            if self.candidates.len() == MOST_CANDIDATES {
                debug!(
                    "{}: {MOST_CANDIDATES} wait to be the front end: hung up on one",
                    self.name
                );
                continue;
            }
            let number = self.next_candidate;
            self.next_candidate = number.wrapping_add(1);
            let token = Token {
                kind: CANDIDATE,
                slot: 0,
                generation: number,
            };
            let added = self.epoll.add(&socket, token, Interest::READABLE_EDGE);
            match added {
                Ok(()) => self.candidates.push((number, socket)),
                Err(error) => error!("{}: cannot watch a front end: {error}", self.name),
            }
        }
    }

    /// Forgets candidates that have left, and makes one that speaks the front end.
    fn choose(&mut self) {
        self.candidates
            .retain(|(_, socket)| !matches!(look(socket), Arrival::Gone));
        if self.front_end.is_some() {
            return;
        }
        let speaks = |(_, socket): &(u32, UnixStream)| matches!(look(socket), Arrival::Complete(_));
        let Some(place) = self.candidates.iter().position(speaks) else {
            return;
        };
        let (_, socket) = self.candidates.remove(place);
        let made = socket.try_clone().and_then(|copy| {
            self.epoll
                .modify(&socket, FRONT_END, Interest::READABLE_EDGE)?;
            Ok(copy)
        });
        match made {
            Ok(copy) => {
                info!("{}: a front end has connected", self.name);
                let handler = BackendReqHandler::from_stream(copy, self.front.clone());
                self.front_end = Some(FrontEnd {
                    handler,
                    socket,
                    unread: true,
                });
                self.requests();
            }
            Err(error) => error!("{}: cannot serve a front end: {error}", self.name),
        }
    }

    /// Handles requests that have arrived.
    fn requests(&mut self) {
        let Some(front_end) = &mut self.front_end else {
            return;
        };
        front_end.unread = false;
        for _ in 0..MOST_REQUESTS {
            match look(&front_end.socket) {
                Arrival::Partial => return,
                Arrival::Gone => {
                    info!("{}: the front end has left", self.name);
                    return self.part();
                }
                Arrival::Complete(IOTLB_MSG) => {
                    error!(
                        "{}: the front end is hung up on: it sends IOTLB messages, so a vIOMMU \
                         translates for this device, which the daemon does not serve; keep the \
                         device out of it (QEMU: iommu_platform=off)",
                        self.name
                    );
                    return self.part();
                }
                Arrival::Complete(_) => {
                    if let Err(error) = front_end.handler.handle_request() {
                        error!("{}: the front end is hung up on: {error}", self.name);
                        return self.part();
                    }
                }
            }
        }
        front_end.unread = true;
    }

    fn part(&mut self) {
        if let Some(front_end) = self.front_end.take() {
            // The handler's copy keeps the registration alive until both are closed.
            let _ = self.epoll.remove(front_end.socket.as_fd());
        }
        self.front().disconnected();
    }
}
