// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How packets are cut into descriptors. A device has to take any cut
//! (VIRTIO 1.2, 2.7.4), so tests try many. Knows lengths and addresses only.

use std::fmt;
use std::sync::Arc;

use crate::bus::Segment;
use crate::packet::HEADER_SIZE;
use crate::rng::Rng;

/// Where packets are cut into descriptors, beside where pages force it to.
#[derive(Clone, Default)]
pub enum Split {
    /// Nowhere.
    #[default]
    Whole,
    /// At these offsets from the beginning of the header, ascending.
    At(Vec<usize>),
    /// Every so many bytes.
    Every(usize),
    /// After 1 to this many bytes, by the guest's seed.
    Random(usize),
    /// At what the function returns for each cut: the next one.
    Custom(Arc<dyn Fn(usize) -> usize + Send + Sync>),
}

impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Split::Whole => f.write_str("Whole"),
            Split::At(cuts) => write!(f, "At({cuts:?})"),
            Split::Every(n) => write!(f, "Every({n})"),
            Split::Random(max) => write!(f, "Random({max})"),
            Split::Custom(_) => f.write_str("Custom"),
        }
    }
}

impl Split {
    /// Header and payload in descriptors of their own.
    pub fn header_apart() -> Split {
        Split::At(vec![HEADER_SIZE])
    }

    fn next_cut(&self, at: usize, rng: &mut Rng) -> usize {
        let next = match self {
            Split::Whole => usize::MAX,
            Split::At(cuts) => cuts.iter().copied().find(|&c| c > at).unwrap_or(usize::MAX),
            Split::Every(n) => at + n,
            Split::Random(max) => at + rng.up_to(*max),
            Split::Custom(next) => next(at),
        };
        next.max(at + 1)
    }

    /// Cuts the first `len` bytes of `segments` into at most `max` pieces.
    /// Returns how many bytes they cover: fewer where `max` is too small,
    /// but always more than a header, which is then cut nowhere.
    pub fn cut(
        &self,
        segments: &[Segment],
        len: usize,
        max: usize,
        rng: &mut Rng,
        out: &mut Vec<Segment>,
    ) -> usize {
        let covered = self.cut_all(segments, len, max, rng, out);
        if covered > HEADER_SIZE || covered == len {
            return covered;
        }
        Split::Whole.cut_all(segments, len, max, rng, out)
    }

    fn cut_all(
        &self,
        segments: &[Segment],
        len: usize,
        max: usize,
        rng: &mut Rng,
        out: &mut Vec<Segment>,
    ) -> usize {
        out.clear();
        let (mut at, mut cut) = (0, self.next_cut(0, rng));
        for segment in segments {
            let (mut offset, size) = (0, segment.len as usize);
            while offset < size && at < len && out.len() < max {
                let n = (size - offset).min(cut - at).min(len - at);
                out.push(Segment {
                    addr: segment.addr.at(offset as u64),
                    len: n as u32,
                });
                offset += n;
                at += n;
                if at == cut {
                    cut = self.next_cut(at, rng);
                }
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusAddr;

    fn pieces(split: &Split, segments: &[u32], len: usize, max: usize) -> (Vec<u32>, usize) {
        let segments: Vec<_> = segments
            .iter()
            .enumerate()
            .map(|(i, &len)| Segment {
                addr: BusAddr(i as u64 * 0x10_0000),
                len,
            })
            .collect();
        let mut out = Vec::new();
        let covered = split.cut(&segments, len, max, &mut Rng::new(1), &mut out);
        (out.iter().map(|s| s.len).collect(), covered)
    }

    #[test]
    fn packets_are_cut_where_asked_and_at_pages() {
        let page = [4096, 4096];
        assert_eq!(pieces(&Split::Whole, &page, 100, 9), (vec![100], 100));
        assert_eq!(
            pieces(&Split::Whole, &page, 5000, 9),
            (vec![4096, 904], 5000)
        );
        assert_eq!(
            pieces(&Split::header_apart(), &page, 100, 9),
            (vec![44, 56], 100)
        );
        assert_eq!(
            pieces(&Split::At(vec![20, 44]), &page, 44, 9),
            (vec![20, 24], 44)
        );
        assert_eq!(
            pieces(&Split::Every(3000), &page, 8192, 9),
            (vec![3000, 1096, 1904, 2192], 8192)
        );
    }

    #[test]
    fn a_chain_never_grows_longer_than_the_ring() {
        // What does not fit stays out, but never the header.
        assert_eq!(
            pieces(&Split::Every(30), &[4096], 4096, 3),
            (vec![30, 30, 30], 90)
        );
        assert_eq!(
            pieces(&Split::Every(10), &[4096], 4096, 3),
            (vec![4096], 4096)
        );
        assert_eq!(pieces(&Split::Every(10), &[4096], 44, 2), (vec![44], 44));
        let (cuts, covered) = pieces(&Split::Random(9), &[100, 4000], 4100, 4096);
        assert_eq!(covered, 4100);
        assert_eq!(cuts.iter().sum::<u32>(), 4100);
        assert!(cuts.iter().all(|&n| (1..=9).contains(&n)));
    }
}
