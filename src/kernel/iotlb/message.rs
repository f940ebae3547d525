// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The messages between vhost and its IOTLB service, on the wire and as types.
//!
//! Both versions are 72 bytes (`struct vhost_msg`, `struct vhost_msg_v2` of
//! `linux/vhost_types.h`) with the same body at offset 8. The kernel's side is
//! parsed checked, field by field: no byte pattern is undefined behaviour.

use crate::access::{Access, Miss};
use crate::address::{Address, Hva, Iova, Range};

/// Size of a message of either version, in bytes.
pub const MESSAGE_SIZE: usize = 72;

/// Which of the two layouts we write. What the kernel writes is told by its type
/// field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MessageFormat {
    /// `struct vhost_msg`: read(2) and write(2) alone, so that it works under
    /// crosvm's stock seccomp policy.
    #[default]
    V1,
    /// `struct vhost_msg_v2`: needs `VHOST_SET_BACKEND_FEATURES` for replies of
    /// the same version.
    V2,
}

/// `VHOST_IOTLB_MSG` and `VHOST_IOTLB_MSG_V2`.
const TYPE_V1: u32 = 1;
const TYPE_V2: u32 = 2;

/// `VHOST_IOTLB_*`, the body's type.
const MISS: u8 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

/// An entry of the IOTLB: `range` is found at `host` and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The I/O virtual addresses.
    pub range: Range<Iova>,
    /// Where the first of them is mapped in this process.
    pub host: Hva,
    /// What the kernel may do there.
    pub access: Access,
}

/// What we tell the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Add an entry, and wake the queues that wait for an address in it.
    Update(Mapping),
    /// Drop every entry that shares a byte with the range, whole.
    Invalidate(Range<Iova>),
}

impl Command {
    /// The message or messages to write, in order.
    ///
    /// Neither size 0 nor the full 64-bit range ever goes out: their meaning
    /// changed in 5.17 and again in 6.7. A [`Range`] is never empty, and the full
    /// one goes in two halves.
    pub fn encode(&self, format: MessageFormat) -> impl Iterator<Item = [u8; MESSAGE_SIZE]> {
        let (range, host, access, kind) = match *self {
            Self::Update(mapping) => (
                mapping.range,
                mapping.host.raw(),
                mapping.access as u8,
                UPDATE,
            ),
            Self::Invalidate(range) => (range, 0, 0, INVALIDATE),
        };
        halves(range).map(move |(part, size)| {
            let into = part.first().raw() - range.first().raw();
            let uaddr = if kind == UPDATE { host + into } else { 0 };
            message(format, part.first(), size, uaddr, access, kind)
        })
    }
}

/// `range` in pieces whose size fits a `u64`.
fn halves(range: Range<Iova>) -> impl Iterator<Item = (Range<Iova>, u64)> {
    const HALF: u64 = 1 << 63;
    let lower = Range::inclusive(range.first(), Iova(HALF - 1));
    let upper = Range::inclusive(Iova(HALF), range.last());
    let pieces = match (range.size(), lower, upper) {
        (None, Some(lower), Some(upper)) => [Some(lower), Some(upper)],
        _ => [Some(range), None],
    };
    pieces
        .into_iter()
        .flatten()
        .filter_map(|piece| Some((piece, piece.size()?.get())))
}

fn message(
    format: MessageFormat,
    iova: Iova,
    size: u64,
    uaddr: u64,
    access: u8,
    kind: u8,
) -> [u8; MESSAGE_SIZE] {
    let wire_type = match format {
        MessageFormat::V1 => TYPE_V1,
        MessageFormat::V2 => TYPE_V2,
    };
    let mut bytes = [0; MESSAGE_SIZE];
    bytes[0..4].copy_from_slice(&wire_type.to_ne_bytes());
    bytes[8..16].copy_from_slice(&iova.raw().to_ne_bytes());
    bytes[16..24].copy_from_slice(&size.to_ne_bytes());
    bytes[24..32].copy_from_slice(&uaddr.to_ne_bytes());
    bytes[32] = access;
    bytes[33] = kind;
    bytes
}

/// Reads the one thing the kernel asks, an address that it has no entry for, as read(2)
/// returned it.
pub fn parse_miss(bytes: &[u8]) -> Result<Miss, MessageError> {
    let bytes: &[u8; MESSAGE_SIZE] = bytes
        .try_into()
        .map_err(|_| MessageError::Short(bytes.len()))?;
    let [a, b, c, d, ..] = *bytes;
    match u32::from_ne_bytes([a, b, c, d]) {
        TYPE_V1 | TYPE_V2 => {}
        other => return Err(MessageError::Version(other)),
    }
    let mut iova = [0; 8];
    iova.copy_from_slice(&bytes[8..16]);
    match bytes[33] {
        MISS => Ok(Miss {
            iova: Iova(u64::from_ne_bytes(iova)),
            access: Access::from_wire(bytes[32]).ok_or(MessageError::Access(bytes[32]))?,
        }),
        other => Err(MessageError::Type(other)),
    }
}

/// A message from the kernel that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Too few bytes.
    #[error("an IOTLB message of {0} bytes: {MESSAGE_SIZE} were expected")]
    Short(usize),
    /// Neither version 1 nor 2.
    #[error("an IOTLB message of unknown version {0}")]
    Version(u32),
    /// Not a miss.
    #[error("an IOTLB message of type {0}: only misses (1) come from the kernel")]
    Type(u8),
    /// A miss for nothing.
    #[error("an IOTLB miss with the unknown access {0}")]
    Access(u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> Range<Iova> {
        Range::inclusive(Iova(first), Iova(last)).unwrap()
    }

    fn field(message: &[u8; MESSAGE_SIZE], offset: usize) -> u64 {
        u64::from_ne_bytes(message[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn an_update_is_laid_out_as_the_kernel_reads_it() {
        let update = Command::Update(Mapping {
            range: range(0x1000, 0x2fff),
            host: Hva(0x7000_0000),
            access: Access::ReadWrite,
        });
        for (format, wire_type) in [(MessageFormat::V1, 1), (MessageFormat::V2, 2)] {
            let messages: Vec<_> = update.encode(format).collect();
            let [message] = messages[..] else {
                panic!("one message")
            };
            assert_eq!(message[0..8], [wire_type, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(field(&message, 8), 0x1000);
            assert_eq!(field(&message, 16), 0x2000);
            assert_eq!(field(&message, 24), 0x7000_0000);
            assert_eq!(message[32..34], [3, UPDATE]);
        }
    }

    #[test]
    fn neither_size_zero_nor_the_full_range_goes_out() {
        let sizes = |first, last| -> Vec<_> {
            Command::Invalidate(range(first, last))
                .encode(MessageFormat::V1)
                .map(|message| (field(&message, 8), field(&message, 16)))
                .collect()
        };
        assert_eq!(sizes(0, u64::MAX), [(0, 1 << 63), (1 << 63, 1 << 63)]);
        assert_eq!(sizes(0, u64::MAX - 1), [(0, u64::MAX)]);
        assert_eq!(sizes(1, u64::MAX), [(1, u64::MAX)]);
        assert_eq!(sizes(5, 5), [(5, 1)]);
    }

    #[test]
    fn a_miss_is_parsed_checked() {
        let mut bytes = message(MessageFormat::V1, Iova(0xabc), 0, 0, 2, MISS);
        let expected = Miss {
            iova: Iova(0xabc),
            access: Access::Write,
        };
        assert_eq!(parse_miss(&bytes), Ok(expected));
        bytes[0] = 2;
        assert_eq!(parse_miss(&bytes), Ok(expected));
        for length in [0, 1, 71] {
            assert_eq!(
                parse_miss(&bytes[..length]),
                Err(MessageError::Short(length))
            );
        }
        for version in [0, 3, 255] {
            let mut bytes = bytes;
            bytes[0] = version;
            assert_eq!(
                parse_miss(&bytes),
                Err(MessageError::Version(version.into()))
            );
        }
        for kind in [0, UPDATE, INVALIDATE, 4, 7, 255] {
            let mut bytes = bytes;
            bytes[33] = kind;
            assert_eq!(parse_miss(&bytes), Err(MessageError::Type(kind)));
        }
        for access in [0, 4, 255] {
            let mut bytes = bytes;
            bytes[32] = access;
            assert_eq!(parse_miss(&bytes), Err(MessageError::Access(access)));
        }
    }
}
