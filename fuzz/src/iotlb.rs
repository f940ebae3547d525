// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! IOTLB messages in both directions. What the kernel may say is parsed, and held against
//! a second reading of `struct vhost_msg`. What the mirror of its table has written is
//! carried out on a list that does what the kernel does (`vhost_iotlb_add_range`,
//! `vhost_iotlb_del_range`): list and mirror must agree on every address, and with a map
//! that simply remembers what was wished.

use crosvm_vsock::access::Access;
use crosvm_vsock::address::{Address, Hva, Iova, Range};
use crosvm_vsock::kernel::iotlb::message::{parse_miss, Mapping, MessageFormat, MESSAGE_SIZE};
use crosvm_vsock::kernel::iotlb::table::Table;

use super::input::Input;

/// Plays one service.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.once_in(4) {
        return parse(&mut input);
    }
    mirror(&mut input);
}

fn parse(input: &mut Input<'_>) {
    let mut bytes = input.bytes(MESSAGE_SIZE + 1).to_vec();
    // Random bytes are rarely a miss: help most of them along.
    if bytes.len() >= MESSAGE_SIZE && !input.once_in(4) {
        bytes.truncate(MESSAGE_SIZE);
        bytes[0] &= 3;
        bytes[1..4].fill(0);
        bytes[32] &= 7;
        bytes[33] = 1 + bytes[33] % 2;
    }
    let wanted = (bytes.len() == MESSAGE_SIZE
        && matches!(&bytes[..4], [1 | 2, 0, 0, 0])
        && bytes[33] == 1
        && (1..=3).contains(&bytes[32]))
    .then(|| {
        bytes[8..16]
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u64::from(*byte))
    });
    let found = parse_miss(&bytes).ok();
    assert_eq!(found.map(|miss| miss.iova.raw()), wanted);
    assert!(found.is_none_or(|miss| miss.access as u8 == bytes[32]));
}

/// One entry: first and last address, where the first leads, access.
type Entry = (u64, u64, u64, u8);

fn resolve(entries: &[Entry], iova: u64) -> Vec<(u64, u8)> {
    let holds = entries
        .iter()
        .filter(|(first, last, ..)| (*first..=*last).contains(&iova));
    holds
        .map(|(first, _, host, access)| (host + (iova - first), *access))
        .collect()
}

/// The kernel's table.
struct Kernel {
    entries: Vec<Entry>,
    limit: usize,
    dropped: bool,
}

impl Kernel {
    fn write(&mut self, message: &[u8; MESSAGE_SIZE], format: MessageFormat) {
        let field = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&message[at..at + 8]);
            u64::from_ne_bytes(raw)
        };
        let version = match format {
            MessageFormat::V1 => 1,
            MessageFormat::V2 => 2,
        };
        assert_eq!(field(0), version, "message version");
        let (iova, size, host) = (field(8), field(16), field(24));
        let (access, kind) = (message[32], message[33]);
        assert_ne!(
            size, 0,
            "size 0 means different things to different kernels"
        );
        let last = iova.checked_add(size - 1).expect("a range that wraps");
        match kind {
            2 => {
                assert!(
                    !self
                        .entries
                        .iter()
                        .any(|(f, l, ..)| *f <= last && iova <= *l),
                    "an update beside an entry that it overlaps"
                );
                if self.entries.len() == self.limit {
                    self.entries.remove(0);
                    self.dropped = true;
                }
                self.entries.push((iova, last, host, access));
            }
            3 => self.entries.retain(|(f, l, ..)| *f > last || iova > *l),
            other => panic!("a message of type {other}"),
        }
    }
}

/// What was wished.
#[derive(Default)]
struct Wishes(Vec<Entry>);

impl Wishes {
    fn cut(&mut self, first: u64, last: u64) {
        let before = std::mem::take(&mut self.0);
        for (f, l, host, access) in before {
            if l < first || last < f {
                self.0.push((f, l, host, access));
                continue;
            }
            if f < first {
                self.0.push((f, first - 1, host, access));
            }
            if last < l {
                self.0.push((last + 1, l, host + (last + 1 - f), access));
            }
        }
    }
}

fn range(input: &mut Input<'_>) -> Range<Iova> {
    let near = input.pick(&[0, 0, 0, 0x1_0000, 1 << 40, u64::MAX - 0xff]);
    let first = near + u64::from(input.u8());
    let size = match input.u8() % 4 {
        0 => 1 + u64::from(input.u8() % 4),
        1 => 16,
        2 => 1 + u64::from(input.u8()),
        _ => 1 + u64::from(input.u32()),
    };
    let last = first.saturating_add(size - 1);
    Range::inclusive(Iova(first), Iova(last)).expect("the last is not before the first")
}

fn mirror(input: &mut Input<'_>) {
    let limit = 1 + usize::from(input.u8() % 24);
    let format = input.pick(&[MessageFormat::V1, MessageFormat::V2]);
    let mut table = Table::new(limit);
    let mut kernel = Kernel {
        entries: Vec::new(),
        limit,
        dropped: false,
    };
    let mut wishes = Wishes::default();
    for _ in 0..40 {
        if input.is_empty() {
            break;
        }
        let changed = range(input);
        let (first, last) = (changed.first().raw(), changed.last().raw());
        let mut commands = Vec::new();
        let mapped = match input.u8() % 4 {
            0 => {
                let whole = input.once_in(16);
                let gone = if whole { Range::everything() } else { changed };
                wishes.cut(gone.first().raw(), gone.last().raw());
                table.unmap(gone, &mut commands);
                None
            }
            how => {
                // Mostly one offset, so that neighbours continue each other.
                let offset =
                    [0x10_0000, 0x20_0000, 0x10_0000 + u64::from(input.u8())][how as usize - 1];
                let host = offset + (first & 0xff_ffff);
                let access = input.pick(&[Access::ReadWrite, Access::ReadWrite, Access::Read]);
                wishes.cut(first, last);
                wishes.0.push((first, last, host, access as u8));
                let mapping = Mapping {
                    range: changed,
                    host: Hva(host),
                    access,
                };
                table.map(mapping, &mut commands);
                Some(mapping)
            }
        };
        for message in commands.iter().flat_map(|command| command.encode(format)) {
            kernel.write(&message, format);
        }
        assert!(table.held() <= limit && table.held() == kernel.entries.len());
        let edges = wishes
            .0
            .iter()
            .chain(&kernel.entries)
            .flat_map(|(first, last, ..)| {
                [
                    first.saturating_sub(1),
                    *first,
                    *last,
                    last.saturating_add(1),
                ]
            });
        for iova in edges.chain([0, u64::MAX]).collect::<Vec<_>>() {
            let reached = resolve(&kernel.entries, iova);
            assert!(reached.len() <= 1, "two entries for {iova:#x}");
            let mirrored = table.covering(Iova(iova)).map(|mapping| {
                let into = iova - mapping.range.first().raw();
                (mapping.host.raw() + into, mapping.access as u8)
            });
            assert_eq!(mirrored.as_slice(), reached, "the mirror at {iova:#x}");
            let wished = resolve(&wishes.0, iova);
            let dropped = kernel.dropped && reached.is_empty();
            assert!(
                dropped || reached == wished,
                "{iova:#x}: {reached:?}, not {wished:?}"
            );
            if mapped.is_some_and(|mapping| mapping.range.contains(Iova(iova))) {
                assert!(!reached.is_empty(), "what was just mapped at {iova:#x}");
            }
        }
    }
}
