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
//! It waits until its reply is sure to fit, so a front end that does not read delays only
//! itself. Those who only wait at the door are few: one
//! too many takes the place of the one that has been silent for longest.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{error, info};
use vhost::vhost_user::BackendReqHandler;

use super::front::Front;
use super::iotlb::{Request, HEADER, IOTLB_MSG, SET_BACKEND_REQ_FD};
use crate::epoll::{Epoll, Events, Interest, Token};
use crate::event::EventFd;
use crate::mailbox::{mailbox, Inbox, Mailbox};
use crate::path::{DataPath, PATH_KINDS};
use crate::rate_limit::{debug_within, RateLimit};
use crate::userspace::listener::remove_stale_socket;
use crate::userspace::packet::SocketType;
use crate::userspace::socket::is_out_of_descriptors;
use crate::watchers::{State, Watchers};

const STOP: Token = Token::lasting(0, 0);
const LISTENER: Token = Token::lasting(1, 0);
const FRONT_END: Token = Token::lasting(2, 0);
const INBOX: Token = Token::lasting(4, 0);
/// A candidate; the slot is its place, the generation its number.
const CANDIDATE: u8 = 3;

/// Connections that may wait to become the front end.
const MOST_CANDIDATES: usize = 8;

/// Candidates let in at a wake-up.
const ACCEPT_BURST: usize = 16;

/// How long nobody is let in when descriptors have run out.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);

/// Events taken at a wake-up.
const MOST_EVENTS: usize = 256;

/// Requests handled before the data path gets its turn.
const MOST_REQUESTS: usize = 64;

/// The longest message of the protocol as `vhost` has it (`MAX_MSG_SIZE`).
const MOST_MESSAGE: usize = HEADER + 0x1000;

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
    mailbox: Mailbox,
    inbox: Inbox,
    watchers: Arc<Watchers>,
    name: String,
    /// The door is closed until then, for want of descriptors.
    closed_until: Option<Instant>,
    /// Limits for what others can make us log: errors, and comings and goings.
    reports: RateLimit,
    notes: RateLimit,
}

/// What of a message has arrived.
enum Arrival {
    /// All of it, with this request code.
    Complete(u32),
    Partial,
    Gone,
}

fn look(socket: &UnixStream) -> Arrival {
    // Before the bytes: what is there when the other end has gone is all there will be.
    let over = has_left(socket);
    let incomplete = if over {
        Arrival::Gone
    } else {
        Arrival::Partial
    };
    let mut bytes = [0u8; MOST_MESSAGE];
    let len = match peek(socket, &mut bytes) {
        Ok(0) => return Arrival::Gone,
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return incomplete,
        Err(_) => return Arrival::Gone,
    };
    if len < HEADER {
        return incomplete;
    }
    let field = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
    let (request, rest) = (field(0), field(8) as usize);
    // A message that is too long is complete in the sense that it can be refused.
    if len >= HEADER + rest || rest > MOST_MESSAGE - HEADER {
        Arrival::Complete(request)
    } else {
        incomplete
    }
}

/// Handles a request of those that `vhost` does not know. What was wrong with it, if it
/// was refused.
fn iotlb_request<P: DataPath>(
    socket: &UnixStream,
    front: &Mutex<Front<P>>,
) -> io::Result<Option<String>> {
    let mut request = Request::receive(socket)?;
    let refused = match request.message() {
        Ok(message) => {
            let mut front = front.lock().unwrap_or_else(PoisonError::into_inner);
            front.iotlb_message(message).err().map(|e| e.to_string())
        }
        Err(error) => Some(error.to_string()),
    };
    request.reply(socket, refused.is_none())?;
    Ok(refused)
}

/// Whether a reply can be written at once: the kernel says so while three quarters of the
/// buffer are free, and no message is as long as that.
fn has_room(socket: &UnixStream) -> bool {
    has(socket, libc::POLLOUT)
}

/// Whether the other end will say no more.
fn has_left(socket: &UnixStream) -> bool {
    has(socket, libc::POLLRDHUP | libc::POLLHUP)
}

/// Whether one of `events`, an error or a hang-up is true of the socket now.
fn has(socket: &UnixStream, events: libc::c_short) -> bool {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: `poll` is one valid entry; the timeout is 0.
    unsafe { libc::poll(&mut poll, 1, 0) };
    poll.revents != 0
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
    pub fn new(path: &Path, mut data_path: P) -> io::Result<Self> {
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
        let (mailbox, inbox) = mailbox()?;
        epoll.add(&inbox, INBOX, Interest::READABLE)?;
        let watchers = Arc::<Watchers>::default();
        data_path.watch(watchers.clone());
        Ok(Self {
            name: format!("vm {}", data_path.cid()),
            front: Arc::new(Mutex::new(Front::new(data_path))),
            front_end: None,
            candidates: Vec::new(),
            next_candidate: 0,
            door,
            epoll,
            stop,
            closed_until: None,
            reports: RateLimit::default(),
            notes: RateLimit::default(),
            mailbox,
            inbox,
            watchers,
        })
    }

    /// Signalled, it ends [`run`](Self::run).
    pub fn stop_event(&self) -> Arc<EventFd> {
        self.stop.clone()
    }

    /// Where to ask the device, while it runs.
    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    /// Those who hear what happens to the device.
    pub fn watchers(&self) -> Arc<Watchers> {
        self.watchers.clone()
    }

    /// Notes where the device stands.
    fn note_state(&self, path: &P) {
        let state = if path.status().needs_reset {
            State::NeedsReset
        } else if path.is_active() {
            State::Running
        } else if self.front_end.is_some() {
            State::NoDriver
        } else {
            State::NoVmm
        };
        self.watchers.set_state(state);
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
                        INBOX => self.inbox.answer(&mut front.path),
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
            let now = Instant::now();
            timeout = {
                let mut front = self.front();
                let timeout = front.path.turn(now);
                front.ask();
                self.note_state(&front.path);
                timeout
            };
            if self.front_end.as_ref().is_some_and(|f| f.unread) {
                timeout = Some(Duration::ZERO);
            }
            if let Some(left) = self.door_opens_in(now) {
                timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPT_BURST {
            match self.door.listener.accept() {
                Ok((socket, _)) => self.add_candidate(socket),
                Err(error) if is_out_of_descriptors(&error) => {
                    self.report(format_args!("a front end has to wait: {error}"));
                    // It would wake us for ever.
                    self.watch_door(Interest::NONE);
                    self.closed_until = Some(Instant::now() + OUT_OF_DESCRIPTORS);
                    return;
                }
                // Nobody waits, or whoever did has left.
                Err(_) => return,
            }
        }
    }

    fn add_candidate(&mut self, socket: UnixStream) {
        if self.candidates.len() == MOST_CANDIDATES {
            self.forget_those_who_left();
        }
        if self.candidates.len() == MOST_CANDIDATES && !self.make_room() {
            debug_within!(
                self.notes,
                "{}: {MOST_CANDIDATES} wait to be the front end: hung up on one",
                self.name
            );
            return;
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
            Err(error) => self.report(format_args!("cannot watch a front end: {error}")),
        }
    }

    /// Hangs up on the candidate that has been silent for longest, if one is.
    fn make_room(&mut self) -> bool {
        let speaks = |socket| matches!(look(socket), Arrival::Complete(_));
        let silent = self.candidates.iter().position(|(_, s)| !speaks(s));
        silent.map(|place| self.candidates.remove(place)).is_some()
    }

    fn watch_door(&self, interest: Interest) {
        if let Err(error) = self.epoll.modify(&self.door.listener, LISTENER, interest) {
            error!("{}: cannot watch its socket: {error}", self.name);
        }
    }

    /// Opens a closed door when it is time; how long that is, if it is not.
    fn door_opens_in(&mut self, now: Instant) -> Option<Duration> {
        let left = self.closed_until?.saturating_duration_since(now);
        if left.is_zero() {
            self.closed_until = None;
            self.watch_door(Interest::READABLE);
            return None;
        }
        Some(left)
    }

    /// Logs what a front end has brought about, not too often.
    fn report(&self, what: std::fmt::Arguments<'_>) {
        if self.reports.allow() {
            error!("{}: {what}", self.name);
        }
    }

    fn forget_those_who_left(&mut self) {
        self.candidates.retain(|(_, socket)| !has_left(socket));
    }

    /// Forgets candidates that have left, and makes one that speaks the front end: the
    /// next one, if that leaves at once. What the others have said is not announced again.
    fn choose(&mut self) {
        self.forget_those_who_left();
        while self.front_end.is_none() {
            let speaks =
                |(_, socket): &(u32, UnixStream)| matches!(look(socket), Arrival::Complete(_));
            let Some(place) = self.candidates.iter().position(speaks) else {
                return;
            };
            let (_, socket) = self.candidates.remove(place);
            let made = socket.try_clone().and_then(|copy| {
                self.epoll.modify(&socket, FRONT_END, Interest::BOTH_EDGE)?;
                Ok(copy)
            });
            match made {
                Ok(copy) => {
                    self.note("a front end has connected");
                    let handler = BackendReqHandler::from_stream(copy, self.front.clone());
                    self.front_end = Some(FrontEnd {
                        handler,
                        socket,
                        unread: true,
                    });
                    self.requests();
                }
                Err(error) => self.report(format_args!("cannot serve a front end: {error}")),
            }
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
                    self.note("the front end has left");
                    return self.part();
                }
                // Its event will come once replies were read.
                Arrival::Complete(_) if !has_room(&front_end.socket) => return,
                Arrival::Complete(IOTLB_MSG | SET_BACKEND_REQ_FD) => {
                    match iotlb_request(&front_end.socket, &self.front) {
                        Ok(None) => {}
                        Ok(Some(refused)) => {
                            if self.reports.allow() {
                                error!("{}: {refused}", self.name);
                            }
                        }
                        Err(error) => {
                            self.report(format_args!("the front end is hung up on: {error}"));
                            return self.part();
                        }
                    }
                }
                Arrival::Complete(_) => {
                    if let Err(error) = front_end.handler.handle_request() {
                        self.report(format_args!("the front end is hung up on: {error}"));
                        return self.part();
                    }
                }
            }
        }
        front_end.unread = true;
    }

    fn note(&self, what: &str) {
        if self.notes.allow() {
            info!("{}: {what}", self.name);
        }
    }

    fn part(&mut self) {
        if let Some(front_end) = self.front_end.take() {
            // The handler's copy keeps the registration alive until both are closed.
            let _ = self.epoll.remove(front_end.socket.as_fd());
        }
        self.front().disconnected();
    }
}
