// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Front ends that say anything, with any descriptors, whole or in parts, and leave in the
//! middle. The device's thread must end without an error when it is told to.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{mpsc, Arc};
use std::time::Duration;

use crosvm_vsock::address::GuestCid;
use crosvm_vsock::epoll::Epoll;
use crosvm_vsock::event::EventFd;
use crosvm_vsock::userspace::listener::HostPlace;
use crosvm_vsock::userspace::{Config, UserspacePath};
use crosvm_vsock::vhost_user::worker::Worker;
use tempfile::TempDir;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::input::Input;

/// Steps of a story at most.
const STEPS: usize = 100;
/// Longer than any thread takes to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Guest memory that is offered, in bytes.
const MEMORY: u64 = 0x1_0000;
/// Where the front end has it.
const FRONT_END: u64 = 0x7000_0000;

const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const IOTLB_MSG: u32 = 22;
const GET_CONFIG: u32 = 24;

thread_local! {
    static DIR: RefCell<TempDir> = RefCell::new(TempDir::new().expect("a directory"));
}

/// Plays one story.
pub fn run(data: &[u8]) {
    let base = DIR.with_borrow(|dir| dir.path().to_owned());
    let socket = base.join("vhost");
    let cid = GuestCid::new(3).expect("a guest's CID");
    let config = Config::new(cid, HostPlace::Unix(base.join("vm")));
    let epoll = Arc::new(Epoll::new().expect("an event loop"));
    let path = UserspacePath::new(config, &Arc::default(), epoll).expect("a device");
    let worker = Worker::new(&socket, path).expect("a front end's socket");
    let stop = worker.stop_event();
    let (ended, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = worker.run();
        // Nobody listens if this comes too late.
        let _ = ended.send(());
        result
    });
    let mut vmm = Vmm::new(socket);
    let mut input = Input::new(data);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        vmm.act(&mut input);
    }
    stop.signal().expect("an event");
    match wait.recv_timeout(PATIENCE) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the device's thread does not end"),
        // Also without a word, if it has panicked.
        _ => thread
            .join()
            .expect("the device's thread")
            .expect("its event loop"),
    }
}

/// A front end, and what it hands out.
struct Vmm {
    socket: PathBuf,
    stream: UnixStream,
    memory: File,
    event: EventFd,
}

fn connect(socket: &PathBuf) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("the device listens");
    stream.set_nonblocking(true).expect("a socket");
    stream
}

impl Vmm {
    fn new(socket: PathBuf) -> Self {
        let memory = tempfile::tempfile().expect("a file");
        memory.set_len(MEMORY).expect("a file");
        Self {
            stream: connect(&socket),
            socket,
            memory,
            event: EventFd::new().expect("an event"),
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0 => self.stream = connect(&self.socket),
            1 => drop(self.event.signal()),
            2 => {
                let at = u64::from(input.u16()) % (MEMORY - 256);
                let len = usize::from(input.u8());
                self.memory
                    .write_all_at(input.bytes(len), at)
                    .expect("a file");
            }
            3 => drop((&self.stream).read(&mut [0; 4096])),
            4 => self.set_up(input),
            _ => self.request(input),
        }
    }

    fn say(&self, code: u32, flags: u32, size: u32, body: &[u8], fds: &[RawFd]) {
        let mut message = Vec::new();
        for word in [code, flags, size] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(body);
        // A device that has hung up does not listen.
        let _ = match fds {
            [] => (&self.stream).write(&message).is_ok(),
            fds => self.stream.send_with_fds(&[&message[..]], fds).is_ok(),
        };
    }

    /// What every front end says, more or less.
    fn set_up(&mut self, input: &mut Input<'_>) {
        const REPLY_ACK: u64 = 1 << 3;
        let features: u64 = 1 << 32 | 1 << 30 | u64::from(input.u8() & 0x33) << 28 | 1 << 1;
        let number = |n: u64| n.to_ne_bytes();
        self.say(SET_FEATURES, 1, 8, &number(features), &[]);
        if input.once_in(2) {
            self.say(SET_PROTOCOL_FEATURES, 1, 8, &number(REPLY_ACK), &[]);
        }
        let region = [1, 0, MEMORY, FRONT_END, 0].map(number).concat();
        self.say(SET_MEM_TABLE, 1, 40, &region, &[self.memory.as_raw_fd()]);
        let sizes: u8 = input.u8();
        for queue in 0..3u32 {
            let state = |n: u32| [queue.to_ne_bytes(), n.to_ne_bytes()].concat();
            let at = FRONT_END + 0x2000 * u64::from(queue);
            let size = 1 << (sizes >> queue & 7);
            self.say(SET_VRING_NUM, 1, 8, &state(size), &[]);
            self.say(SET_VRING_BASE, 1, 8, &state(input.u8().into()), &[]);
            let places = [at, at + 0x1800, at + 0x1000, 0].map(number).concat();
            self.say(SET_VRING_ADDR, 1, 40, &[state(0), places].concat(), &[]);
            let event = self.event.try_clone().expect("an event");
            let fd = std::os::fd::AsFd::as_fd(&event).as_raw_fd();
            self.say(SET_VRING_CALL, 1, 8, &number(queue.into()), &[fd]);
            self.say(SET_VRING_KICK, 1, 8, &number(queue.into()), &[fd]);
            self.say(SET_VRING_ENABLE, 1, 8, &state(1), &[]);
        }
    }

    /// A request, well-formed or not.
    fn request(&mut self, input: &mut Input<'_>) {
        let code = match input.u8() {
            odd @ 0xf0.. => u32::from(odd) << 8,
            code => u32::from(code) % 46,
        };
        let index = u32::from(input.u8() % 4);
        let place = |input: &mut Input<'_>| match input.u8() {
            0 => input.u64(),
            page => FRONT_END + u64::from(page) * 0x100,
        };
        let small = |input: &mut Input<'_>| u32::from(input.u8()) << (input.u8() % 16);
        let mut body = match code {
            SET_MEM_TABLE => {
                let count = u32::from(input.u8() % 4);
                let mut body = [count.to_ne_bytes(), [0; 4]].concat();
                for _ in 0..count {
                    let size = input.pick(&[0, 1, 0x1000, MEMORY, MEMORY + 0x1000, u64::MAX]);
                    let offset = input.pick(&[0, 0, 1, 0x1000, u64::MAX - 0xfff]);
                    for word in [u64::from(small(input)) << 12, size, place(input), offset] {
                        body.extend(word.to_ne_bytes());
                    }
                }
                body
            }
            SET_VRING_ADDR => {
                let mut body = [index.to_ne_bytes(), [0; 4]].concat();
                (0..4).for_each(|_| body.extend(place(input).to_ne_bytes()));
                body
            }
            SET_VRING_NUM | SET_VRING_BASE | GET_VRING_BASE | SET_VRING_ENABLE => {
                [index.to_ne_bytes(), small(input).to_ne_bytes()].concat()
            }
            SET_VRING_KICK | SET_VRING_CALL => {
                let no_descriptor = u64::from(input.u8() & 1) << 8;
                (u64::from(index) | no_descriptor).to_ne_bytes().to_vec()
            }
            IOTLB_MSG => {
                let size = input.pick(&[0, 1, 0x1000, MEMORY, u64::MAX]);
                let mut body = Vec::new();
                for word in [u64::from(small(input)), size, place(input)] {
                    body.extend(word.to_ne_bytes());
                }
                body.extend([input.u8() % 5, input.u8() % 5]);
                body.resize(32, 0);
                body
            }
            GET_CONFIG => {
                let (offset, size) = (small(input), u32::from(input.u8()));
                let mut body = [offset, size, 0].map(u32::to_ne_bytes).concat();
                body.resize(12 + size as usize, 0);
                body
            }
            _ => {
                let len = input.pick(&[0, 8, 8, 8, 16, 40]);
                input.bytes(len).to_vec()
            }
        };
        let odd = input.u8();
        if odd & 0xf0 == 0x10 {
            let len = usize::from(input.u8());
            body = input.bytes(len).to_vec();
        }
        let size = match odd & 0xf0 {
            0x20 => input.u32(),
            0x30 => body.len() as u32 + 1,
            _ => body.len() as u32,
        };
        let flags = match odd & 0x0f {
            0 => input.u32(),
            1..=4 => 1 | 8,
            _ => 1,
        };
        let descriptors = self.descriptors(input);
        let fds: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        self.say(code, flags, size, &body, &fds);
    }

    /// Descriptors of any sort.
    fn descriptors(&self, input: &mut Input<'_>) -> Vec<OwnedFd> {
        let count = input.pick(&[0, 0, 0, 1, 1, 1, 2, 3, 9]);
        let mut fds = Vec::new();
        for _ in 0..count {
            fds.push(match input.u8() % 8 {
                0 => File::open("/dev/null").expect("a file").into(),
                1 => UnixStream::pair().expect("a pair of sockets").0.into(),
                2 => File::open("/proc/self/exe").expect("a file").into(),
                3 | 4 => std::os::fd::AsFd::as_fd(&self.event)
                    .try_clone_to_owned()
                    .expect("an event"),
                _ => self.memory.try_clone().expect("a file").into(),
            });
        }
        fds
    }
}
