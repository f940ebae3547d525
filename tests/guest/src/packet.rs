// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The packet header of the socket device (VIRTIO 1.2, 5.10.6) and its
//! constants. Any value can be held and printed, also one that the standard
//! does not know: tests send such values.

use std::fmt;

/// Bytes of a header.
pub const HEADER_SIZE: usize = 44;

/// The CID of the host (5.10.4).
pub const HOST_CID: u64 = 2;

/// Defines a number with named values that prints the name it has.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident($int:ty) { $($(#[$vdoc:meta])* $value:ident = $n:expr;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$vdoc])* pub const $value: $name = $name($n);)*
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$value => f.write_str(stringify!($value)),)*
                    $name(other) => write!(f, concat!(stringify!($name), "({})"), other),
                }
            }
        }
    };
}

named! {
    /// What a packet is for (5.10.6).
    Op(u16) {
        /// Never valid.
        INVALID = 0;
        /// Asks for a connection.
        REQUEST = 1;
        /// Grants it.
        RESPONSE = 2;
        /// Refuses it, or ends it by force, or answers a clean disconnect.
        RST = 3;
        /// No more data will be received, or sent, or both.
        SHUTDOWN = 4;
        /// Carries data.
        RW = 5;
        /// Tells how much buffer space there is.
        CREDIT_UPDATE = 6;
        /// Asks for a CREDIT_UPDATE.
        CREDIT_REQUEST = 7;
    }
}

named! {
    /// The type of a socket (5.10.6.2).
    SocketType(u16) {
        /// A stream of bytes.
        STREAM = 1;
        /// Messages and records.
        SEQPACKET = 2;
    }
}

named! {
    /// An event on the event queue (5.10.6.7).
    Event(u32) {
        /// Communication was interrupted: all connections are gone.
        TRANSPORT_RESET = 0;
    }
}

/// Flags of a SHUTDOWN packet (5.10.6.5).
pub mod shutdown_flags {
    /// The sender will not receive any more data.
    pub const RECEIVE: u32 = 1;
    /// The sender will not send any more data.
    pub const SEND: u32 = 2;
    /// Both.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// Flags of a seqpacket RW packet (5.10.6.6).
pub mod seq_flags {
    /// The last packet of a message.
    pub const EOM: u32 = 1;
    /// The last packet of a record.
    pub const EOR: u32 = 2;
}

/// The header of a packet, in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Who sends it.
    pub src_cid: u64,
    /// Who shall receive it.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// The type of the socket.
    pub socket_type: SocketType,
    /// What it is for.
    pub op: Op,
    /// See [`shutdown_flags`] and [`seq_flags`].
    pub flags: u32,
    /// The sender's receive buffer, in bytes.
    pub buf_alloc: u32,
    /// The bytes the sender has taken out of its receive buffer, wrapping.
    pub fwd_cnt: u32,
}

impl Header {
    /// The header as it lies in memory: little-endian, no padding.
    pub fn to_bytes(&self) -> [u8; HEADER_SIZE] {
        let mut out = [0; HEADER_SIZE];
        out[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        out[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        out[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        out[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        out[24..28].copy_from_slice(&self.len.to_le_bytes());
        out[28..30].copy_from_slice(&self.socket_type.0.to_le_bytes());
        out[30..32].copy_from_slice(&self.op.0.to_le_bytes());
        out[32..36].copy_from_slice(&self.flags.to_le_bytes());
        out[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        out[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        out
    }

    /// Reads a header from memory.
    pub fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Self {
        let u64_at = |i| u64::from_le_bytes(array(bytes, i));
        let u32_at = |i| u32::from_le_bytes(array(bytes, i));
        let u16_at = |i| u16::from_le_bytes(array(bytes, i));
        Header {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            socket_type: SocketType(u16_at(28)),
            op: Op(u16_at(30)),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// The header of an answer: addresses turned round, same type, no
    /// payload, no flags, no credit.
    pub fn reply(&self, op: Op) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            socket_type: self.socket_type,
            op,
            ..Header::default()
        }
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_SIZE], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_round_trip() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 0x1112_1314_1516_1718,
            src_port: 0x2122_2324,
            dst_port: 0x3132_3334,
            len: 0x4142_4344,
            socket_type: SocketType(0x5152),
            op: Op(0x6162),
            flags: 0x7172_7374,
            buf_alloc: 0x8182_8384,
            fwd_cnt: 0x9192_9394,
        };
        assert_eq!(Header::from_bytes(&header.to_bytes()), header);
        // Offsets of struct virtio_vsock_hdr, counted by hand.
        let bytes = header.to_bytes();
        for (at, first) in [
            (0, 0x08),
            (8, 0x18),
            (16, 0x24),
            (20, 0x34),
            (24, 0x44),
            (28, 0x52),
            (30, 0x62),
            (32, 0x74),
            (36, 0x84),
            (40, 0x94),
        ] {
            assert_eq!(bytes[at], first, "offset {at}");
        }
    }

    #[test]
    fn names_and_numbers_are_printed() {
        assert_eq!(format!("{:?}", Op::CREDIT_UPDATE), "CREDIT_UPDATE");
        assert_eq!(format!("{:?}", Op(9)), "Op(9)");
        assert_eq!(format!("{:?}", SocketType::SEQPACKET), "SEQPACKET");
    }
}
