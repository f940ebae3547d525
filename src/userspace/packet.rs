// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The packet header on the wire and what it can mean (VIRTIO 1.2, 5.10.6).
//!
//! [`Header`] is the 44 bytes as they are. [`Header::parse`] judges them once, at
//! the edge: behind it there are only [`Op`]s and [`SocketType`]s that exist.
//! Bounds of lengths are the transport's matter, addresses the muxer's.

use crate::address::{Cid, Port};

/// Size of the header in bytes.
pub const HEADER_LEN: usize = 44;

/// The sort of a socket (VIRTIO 1.2, 5.10.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketType {
    /// `VIRTIO_VSOCK_TYPE_STREAM`: bytes in order.
    Stream,
    /// `VIRTIO_VSOCK_TYPE_SEQPACKET`: messages in order.
    SeqPacket,
}

impl SocketType {
    const fn wire(self) -> u16 {
        match self {
            Self::Stream => 1,
            Self::SeqPacket => 2,
        }
    }
}

/// Which directions a peer has closed: the flags of `VIRTIO_VSOCK_OP_SHUTDOWN`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shutdown {
    /// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: it receives no more.
    pub receive: bool,
    /// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: it sends no more.
    pub send: bool,
}

impl Shutdown {
    /// Both directions.
    pub const BOTH: Self = Self {
        receive: true,
        send: true,
    };

    const fn from_wire(flags: u32) -> Self {
        Self {
            receive: flags & 1 != 0,
            send: flags & 2 != 0,
        }
    }

    const fn wire(self) -> u32 {
        self.receive as u32 | (self.send as u32) << 1
    }

    /// What either of the two has closed.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            receive: self.receive || other.receive,
            send: self.send || other.send,
        }
    }

    /// Whether both directions are closed.
    pub const fn is_both(self) -> bool {
        self.receive && self.send
    }
}

/// The flags of `VIRTIO_VSOCK_OP_RW` on a sequenced-packet socket (VIRTIO 1.2, 5.10.6.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageEnd {
    /// `VIRTIO_VSOCK_SEQ_EOM`: the message ends here.
    pub message: bool,
    /// `VIRTIO_VSOCK_SEQ_EOR`: and so does the record.
    pub record: bool,
}

/// What a packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `VIRTIO_VSOCK_OP_REQUEST`: connect.
    Request,
    /// `VIRTIO_VSOCK_OP_RESPONSE`: connected.
    Response,
    /// `VIRTIO_VSOCK_OP_RST`: there is no such connection (any more).
    Reset,
    /// `VIRTIO_VSOCK_OP_SHUTDOWN`: no more in these directions.
    Shutdown(Shutdown),
    /// `VIRTIO_VSOCK_OP_RW`: data.
    Data(MessageEnd),
    /// `VIRTIO_VSOCK_OP_CREDIT_UPDATE`: only the credit fields matter.
    CreditUpdate,
    /// `VIRTIO_VSOCK_OP_CREDIT_REQUEST`: send me yours.
    CreditRequest,
}

impl Op {
    const fn wire(self) -> (u16, u32) {
        match self {
            Self::Request => (1, 0),
            Self::Response => (2, 0),
            Self::Reset => (3, 0),
            Self::Shutdown(which) => (4, which.wire()),
            Self::Data(end) => (5, end.message as u32 | (end.record as u32) << 1),
            Self::CreditUpdate => (6, 0),
            Self::CreditRequest => (7, 0),
        }
    }
}

/// A packet header as it is on the wire, numbers unjudged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Sender's CID; the upper 32 bits are reserved.
    pub src_cid: u64,
    /// Receiver's CID.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Payload bytes after the header.
    pub len: u32,
    /// The socket's type.
    pub socket_type: u16,
    /// The operation.
    pub op: u16,
    /// The operation's flags.
    pub flags: u32,
    /// Size of the sender's receive buffer in bytes.
    pub buf_alloc: u32,
    /// Bytes that have left that buffer, counted modulo 2^32.
    pub fwd_cnt: u32,
}

/// A number in a header that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// Neither stream nor sequenced packets.
    #[error("socket type {0} does not exist")]
    SocketType(u16),
    /// No such operation.
    #[error("operation {0} does not exist")]
    Op(u16),
}

impl Header {
    /// From the wire.
    pub fn from_bytes(raw: &[u8; HEADER_LEN]) -> Self {
        let u64_at = |at: usize| u64::from(u32_at(raw, at)) | u64::from(u32_at(raw, at + 4)) << 32;
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(raw, 16),
            dst_port: u32_at(raw, 20),
            len: u32_at(raw, 24),
            socket_type: u16_at(raw, 28),
            op: u16_at(raw, 30),
            flags: u32_at(raw, 32),
            buf_alloc: u32_at(raw, 36),
            fwd_cnt: u32_at(raw, 40),
        }
    }

    /// To the wire.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut raw = [0; HEADER_LEN];
        raw[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        raw[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        raw[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        raw[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        raw[24..28].copy_from_slice(&self.len.to_le_bytes());
        raw[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        raw[30..32].copy_from_slice(&self.op.to_le_bytes());
        raw[32..36].copy_from_slice(&self.flags.to_le_bytes());
        raw[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        raw[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        raw
    }

    /// A header that says `op` on a connection from `from` to `to`; no payload and
    /// no credit yet.
    pub fn new(op: Op, socket_type: SocketType, from: (Cid, Port), to: (Cid, Port)) -> Self {
        let (op, flags) = op.wire();
        Self {
            src_cid: from.0 .0.into(),
            dst_cid: to.0 .0.into(),
            src_port: from.1 .0,
            dst_port: to.1 .0,
            socket_type: socket_type.wire(),
            op,
            flags,
            ..Self::default()
        }
    }

    /// Whether it announces data, well-formed or not.
    pub fn is_data(&self) -> bool {
        self.op == Op::Data(MessageEnd::default()).wire().0
    }

    /// What it means.
    pub fn parse(&self) -> Result<(SocketType, Op), BadHeader> {
        let socket_type = match self.socket_type {
            1 => SocketType::Stream,
            2 => SocketType::SeqPacket,
            other => return Err(BadHeader::SocketType(other)),
        };
        let op = match self.op {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Reset,
            4 => Op::Shutdown(Shutdown::from_wire(self.flags)),
            5 => Op::Data(MessageEnd {
                message: self.flags & 1 != 0,
                record: self.flags & 2 != 0,
            }),
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            other => return Err(BadHeader::Op(other)),
        };
        Ok((socket_type, op))
    }

    /// The RST that answers this packet, or `None` if it is one itself
    /// (`virtio_transport_reset_no_sock`). The type goes back as it came, so that
    /// the sender of an unknown one recognises the answer (5.10.6.4.2).
    pub fn reset(&self) -> Option<Self> {
        let (reset, flags) = Op::Reset.wire();
        (self.op != reset).then_some(Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            socket_type: self.socket_type,
            op: reset,
            flags,
            ..Self::default()
        })
    }
}

fn u16_at(raw: &[u8; HEADER_LEN], at: usize) -> u16 {
    u16::from_le_bytes([raw[at], raw[at + 1]])
}

fn u32_at(raw: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_place() {
        let raw: [u8; HEADER_LEN] = std::array::from_fn(|i| i as u8 + 1);
        let header = Header::from_bytes(&raw);
        assert_eq!(header.src_cid, 0x0807_0605_0403_0201);
        assert_eq!(header.dst_port, 0x1817_1615);
        assert_eq!(header.op, 0x201f);
        assert_eq!(header.fwd_cnt, 0x2c2b_2a29);
        assert_eq!(header.to_bytes(), raw);
    }

    #[test]
    fn operations_survive_the_wire() {
        let end = MessageEnd {
            message: true,
            record: true,
        };
        let half = Shutdown {
            receive: true,
            send: false,
        };
        for op in [
            Op::Request,
            Op::Response,
            Op::Reset,
            Op::Shutdown(half),
            Op::Shutdown(Shutdown::BOTH),
            Op::Data(end),
            Op::CreditUpdate,
            Op::CreditRequest,
        ] {
            let address = (Cid(3), Port(4));
            let header = Header::new(op, SocketType::SeqPacket, address, address);
            let back = Header::from_bytes(&header.to_bytes());
            assert_eq!(back.parse(), Ok((SocketType::SeqPacket, op)));
        }
    }

    #[test]
    fn what_means_nothing_is_named() {
        let header = Header {
            socket_type: 1,
            op: 0,
            ..Header::default()
        };
        assert_eq!(header.parse(), Err(BadHeader::Op(0)));
        let header = Header {
            socket_type: 3,
            op: 1,
            ..Header::default()
        };
        assert_eq!(header.parse(), Err(BadHeader::SocketType(3)));
    }

    #[test]
    fn a_reset_is_never_answered_with_a_reset() {
        let header = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 10,
            dst_port: 20,
            socket_type: 9,
            op: 1,
            ..Header::default()
        };
        let reset = header.reset().unwrap();
        assert_eq!((reset.src_cid, reset.dst_cid), (2, 3));
        assert_eq!((reset.src_port, reset.dst_port), (20, 10));
        assert_eq!((reset.op, reset.socket_type), (3, 9));
        assert_eq!(reset.reset(), None);
    }
}
