// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The messages of vhost-user that a vIOMMU needs, which the `vhost` crate does not carry:
//! `VHOST_USER_SET_BACKEND_REQ_FD`, `VHOST_USER_IOTLB_MSG`, `VHOST_USER_BACKEND_IOTLB_MSG`.
//!
//! A miss goes to the front end over the channel that it has opened for requests of the
//! back end; its answer, an update, comes over the vhost-user socket, as do invalidations.
//! Each is a header of 12 bytes and a `struct vhost_iotlb_msg` of `linux/vhost_types.h`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{BackendReq, FrontendReq};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::access::{Access, Miss};
use crate::address::{Address, Hva, Iova, Range};

/// Size of a vhost-user message's header: request, flags, size of the rest.
pub(super) const HEADER: usize = 12;

/// A translation of a vIOMMU's (`VHOST_USER_IOTLB_MSG`).
pub(super) const IOTLB_MSG: u32 = FrontendReq::IOTLB_MSG as u32;
/// The channel for requests of the back end (`VHOST_USER_SET_BACKEND_REQ_FD`).
pub(super) const SET_BACKEND_REQ_FD: u32 = FrontendReq::SET_BACKEND_REQ_FD as u32;

/// Bits of a header's flags: the version, "this is a reply", "answer this".
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// `struct vhost_iotlb_msg`: iova, size, uaddr (8 bytes each), perm, type, padding.
const IOTLB_BODY: usize = 32;
/// The part of it before the padding.
const IOTLB_FIELDS: usize = 26;

/// `VHOST_IOTLB_*`.
const MISS: u8 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

/// A request of one of the two kinds, as it has arrived.
#[derive(Debug)]
pub(super) struct Request {
    code: u32,
    wants_reply: bool,
    body: Vec<u8>,
    file: Option<File>,
}

/// What such a request says.
#[derive(Debug)]
pub(super) enum Message {
    /// Misses are to be sent here.
    Channel(Channel),
    /// `range` leads to `host` and up, an address of the front end's.
    Update {
        range: Range<Iova>,
        host: Hva,
        access: Access,
    },
    /// Nothing leads anywhere in this range any more.
    Invalidate(Range<Iova>),
}

/// A request that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MessageError {
    #[error("a channel for requests without a descriptor")]
    NoDescriptor,
    #[error("an IOTLB message of {0} bytes: {IOTLB_BODY} were expected")]
    Size(usize),
    #[error("an IOTLB message of type {0}: a front end sends updates (2) and invalidations (3)")]
    Type(u8),
    #[error("an IOTLB update with the unknown access {0}")]
    Access(u8),
    #[error("an IOTLB update of {size:#x} bytes at {iova:#x}")]
    Range { iova: u64, size: u64 },
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]))
}

impl Request {
    /// Takes a request, all of which has arrived, off the socket.
    pub(super) fn receive(mut socket: &UnixStream) -> io::Result<Self> {
        let mut header = [0; HEADER];
        let (len, file) = socket.recv_with_fd(&mut header).map_err(io::Error::from)?;
        if len != HEADER {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let size = u32_at(&header, 8) as usize;
        if size > IOTLB_BODY {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                MessageError::Size(size),
            ));
        }
        let mut body = vec![0; size];
        socket.read_exact(&mut body)?;
        Ok(Self {
            code: u32_at(&header, 0),
            wants_reply: u32_at(&header, 4) & NEED_REPLY != 0,
            body,
            file,
        })
    }

    /// What it says.
    pub(super) fn message(&mut self) -> Result<Message, MessageError> {
        if self.code == SET_BACKEND_REQ_FD {
            let file = self.file.take().ok_or(MessageError::NoDescriptor)?;
            return Ok(Message::Channel(Channel(OwnedFd::from(file).into())));
        }
        let body: &[u8; IOTLB_FIELDS] = self
            .body
            .first_chunk()
            .ok_or(MessageError::Size(self.body.len()))?;
        let field = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| body[at + i]));
        let (iova, size, host) = (field(0), field(8), field(16));
        let range = Range::new(Iova(iova), size);
        match body[25] {
            UPDATE => Ok(Message::Update {
                range: range.map_err(|_| MessageError::Range { iova, size })?,
                host: Hva(host),
                access: Access::from_wire(body[24]).ok_or(MessageError::Access(body[24]))?,
            }),
            // To forget too much is always right.
            INVALIDATE => Ok(Message::Invalidate(
                range.unwrap_or_else(|_| Range::everything()),
            )),
            other => Err(MessageError::Type(other)),
        }
    }

    /// Answers it, if an answer is wanted.
    pub(super) fn reply(&self, mut socket: &UnixStream, accepted: bool) -> io::Result<()> {
        if !self.wants_reply {
            return Ok(());
        }
        let mut reply = header(self.code, VERSION | REPLY, 8);
        reply.extend_from_slice(&u64::from(!accepted).to_ne_bytes());
        socket.write_all(&reply)
    }
}

fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

/// The way to a front end's ear.
#[derive(Debug)]
pub(super) struct Channel(UnixStream);

impl Channel {
    /// Asks where an address leads. Never waits: a front end that does not read its own
    /// channel gets no more of them.
    pub(super) fn ask(&mut self, miss: Miss) -> io::Result<()> {
        self.0.set_nonblocking(true)?;
        let mut message = header(
            BackendReq::IOTLB_MSG as u32,
            VERSION,
            u32::try_from(IOTLB_BODY).unwrap_or_default(),
        );
        let mut body = [0; IOTLB_BODY];
        body[..8].copy_from_slice(&miss.iova.raw().to_ne_bytes());
        body[24] = miss.access as u8;
        body[25] = MISS;
        message.extend_from_slice(&body);
        self.0.write_all(&message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(code: u32, body: &[u8]) -> Request {
        Request {
            code,
            wants_reply: true,
            body: body.to_vec(),
            file: None,
        }
    }

    fn iotlb(iova: u64, size: u64, host: u64, access: u8, kind: u8) -> [u8; IOTLB_BODY] {
        let mut body = [0; IOTLB_BODY];
        for (place, value) in body.chunks_mut(8).zip([iova, size, host]) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
        body[24] = access;
        body[25] = kind;
        body
    }

    #[test]
    fn updates_and_invalidations_are_parsed_checked() {
        let parse = |body: &[u8]| request(IOTLB_MSG, body).message();
        let Ok(Message::Update {
            range,
            host,
            access,
        }) = parse(&iotlb(0x1000, 0x2000, 0x7f00, 1, UPDATE))
        else {
            panic!("no update")
        };
        let expected = Range::new(Iova(0x1000), 0x2000).unwrap();
        assert_eq!((range, host, access), (expected, Hva(0x7f00), Access::Read));
        for (body, expected) in [
            (iotlb(0, 1, 0, 0, UPDATE), MessageError::Access(0)),
            (iotlb(0, 1, 0, 4, UPDATE), MessageError::Access(4)),
            (iotlb(0, 1, 0, 3, MISS), MessageError::Type(MISS)),
            (iotlb(0, 1, 0, 3, 9), MessageError::Type(9)),
            (
                iotlb(5, 0, 0, 3, UPDATE),
                MessageError::Range { iova: 5, size: 0 },
            ),
            (
                iotlb(2, u64::MAX, 0, 3, UPDATE),
                MessageError::Range {
                    iova: 2,
                    size: u64::MAX,
                },
            ),
        ] {
            assert_eq!(parse(&body).unwrap_err(), expected);
        }
        assert_eq!(parse(&[0; 25]).unwrap_err(), MessageError::Size(25));
    }

    #[test]
    fn an_invalidation_that_is_too_large_forgets_everything() {
        for (iova, size) in [(0, 0), (2, u64::MAX)] {
            let mut request = request(IOTLB_MSG, &iotlb(iova, size, 0, 0, INVALIDATE));
            let Ok(Message::Invalidate(range)) = request.message() else {
                panic!("no invalidation")
            };
            assert_eq!(range, Range::everything());
        }
    }

    #[test]
    fn a_miss_on_the_wire_and_a_reply() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let miss = Miss {
            iova: Iova(0xabc000),
            access: Access::Write,
        };
        Channel(ours.try_clone().unwrap()).ask(miss).unwrap();
        let mut message = [0; HEADER + IOTLB_BODY];
        theirs.read_exact(&mut message).unwrap();
        assert_eq!(&message[..12], &[1, 0, 0, 0, 1, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(message[12..], iotlb(0xabc000, 0, 0, 2, MISS));
        request(IOTLB_MSG, &[]).reply(&ours, false).unwrap();
        let mut reply = [0; HEADER + 8];
        theirs.read_exact(&mut reply).unwrap();
        assert_eq!(
            &reply[..],
            &[22, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn a_request_that_is_too_long_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&header(IOTLB_MSG, VERSION, 33)).unwrap();
        theirs.write_all(&[0; 33]).unwrap();
        let error = Request::receive(&ours).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
