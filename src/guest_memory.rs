// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that this process reads and writes: a [`MemoryMap`] and the mapping
//! behind it.
//!
//! A [`Segment`] is a stretch of guest memory that lies in one piece in this
//! process. It borrows the [`GuestMemory`] it came from, so it cannot outlive the
//! mapping, and it has the layout of an `iovec`: a slice of segments goes straight
//! to `sendmsg` and `recvmsg`, with no copy of ours in between.
//!
//! Limits: no dirty log, no translation. The guest writes to this memory at any
//! moment, so nothing here hands out a reference to it: bytes are copied out once
//! and judged afterwards. Whoever shares a file as guest memory must not truncate
//! it (the access would raise SIGBUS): a front end is trusted with its own VM.
//!
//! `unsafe` here: raw copies to and from the mapping, and the constructor's contract.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::address::{Address, Gpa};
use crate::memory::MemoryMap;

/// All of a guest's memory, mapped in this process.
pub struct GuestMemory {
    map: MemoryMap,
    _mapping: Arc<dyn Any + Send + Sync>,
}

impl GuestMemory {
    /// Guest memory that lies as `map` says.
    ///
    /// # Safety
    /// Every region must be mapped readable and writable at its host address for
    /// as long as `mapping` lives, and this process must hold no reference into it.
    pub unsafe fn new(map: MemoryMap, mapping: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            map,
            _mapping: mapping,
        }
    }

    /// Where the regions lie.
    pub fn map(&self) -> &MemoryMap {
        &self.map
    }

    /// The longest piece of the `len` bytes at `start` that is mapped in one go:
    /// all of them, or the part up to the end of their region.
    /// `None` when `start` is not guest memory, or `len` is 0.
    pub fn piece(&self, start: Gpa, len: usize) -> Option<Segment<'_>> {
        let region = self.map.region(start)?;
        let left = region.gpa().last().raw() - start.raw();
        let len = len.min(usize::try_from(left).ok()?.saturating_add(1));
        let offset = start.offset_from(region.gpa().first())?;
        let host = region.hva().first().checked_add(offset)?;
        (len > 0).then_some(Segment {
            iovec: libc::iovec {
                iov_base: host.raw() as *mut libc::c_void,
                iov_len: len,
            },
            memory: PhantomData,
        })
    }

    /// The `len` bytes at `start`, which must lie in one region.
    pub fn whole(&self, start: Gpa, len: usize) -> Option<Segment<'_>> {
        self.piece(start, len).filter(|piece| piece.len() == len)
    }

    /// Cuts the `len` bytes at `start` into pieces, one per region, and appends
    /// them to `out`. `None`, and `out` as it was, when a byte is not guest memory.
    pub fn cut<'m>(&'m self, start: Gpa, len: usize, out: &mut Vec<Segment<'m>>) -> Option<()> {
        let before = out.len();
        let (mut start, mut len) = (start, len);
        while len > 0 {
            let Some(piece) = self.piece(start, len) else {
                out.truncate(before);
                return None;
            };
            out.push(piece);
            len -= piece.len();
            // The next byte's address: it exists unless this was the last one.
            if len > 0 {
                let Some(next) = start.checked_add(piece.len() as u64) else {
                    out.truncate(before);
                    return None;
                };
                start = next;
            }
        }
        Some(())
    }
}

impl fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.map.fmt(f)
    }
}

/// Bytes of guest memory in one piece; never empty unless split so.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Segment<'m> {
    iovec: libc::iovec,
    memory: PhantomData<&'m GuestMemory>,
}

impl<'m> Segment<'m> {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.iovec.iov_len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The host address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.iovec.iov_base.cast()
    }

    /// The first `at` bytes (all, if there are fewer) and the rest.
    pub fn split_at(&self, at: usize) -> (Self, Self) {
        let at = at.min(self.len());
        let part = |offset, len| Self {
            iovec: libc::iovec {
                iov_base: self.as_ptr().wrapping_add(offset).cast(),
                iov_len: len,
            },
            memory: PhantomData,
        };
        (part(0, at), part(at, self.len() - at))
    }

    /// Copies its first bytes into `out`; how many that were.
    pub fn read(&self, out: &mut [u8]) -> usize {
        let len = self.len().min(out.len());
        // SAFETY: the segment's bytes are mapped as long as the memory it borrows;
        // `out` is ours alone, so the two cannot overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr(), out.as_mut_ptr(), len) };
        len
    }

    /// Copies as much of `bytes` as fits to its beginning; how many that were.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let len = self.len().min(bytes.len());
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.as_ptr(), len) };
        len
    }
}

/// Copies the first bytes of `segments` into `out`; how many that were.
pub fn read_across(segments: &[Segment<'_>], out: &mut [u8]) -> usize {
    let mut done = 0;
    for segment in segments {
        done += segment.read(&mut out[done..]);
    }
    done
}

/// Copies as much of `bytes` as fits to the beginning of `segments`; how many that were.
pub fn write_across(segments: &[Segment<'_>], bytes: &[u8]) -> usize {
    let mut done = 0;
    for segment in segments {
        done += segment.write(&bytes[done..]);
    }
    done
}

/// Appends to `out` what is left of `segments` after their first `skip` bytes,
/// at most `len` bytes of it; how many that were.
pub fn slice_across<'m>(
    segments: &[Segment<'m>],
    mut skip: usize,
    len: usize,
    out: &mut Vec<Segment<'m>>,
) -> usize {
    let mut left = len;
    for segment in segments {
        let (skipped, rest) = segment.split_at(skip);
        skip -= skipped.len();
        let (part, _) = rest.split_at(left);
        if !part.is_empty() {
            out.push(part);
            left -= part.len();
        }
        if left == 0 {
            break;
        }
    }
    len - left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Hva;
    use crate::memory::{Region, PAGE};

    #[repr(align(4096))]
    struct Page([std::sync::atomic::AtomicU8; 4096]);

    /// Two regions that touch in guest addresses and nowhere else.
    fn memory() -> GuestMemory {
        let page = || Page([const { std::sync::atomic::AtomicU8::new(0) }; 4096]);
        let backing = Arc::new([page(), page()]);
        let region =
            |gpa, page: &Page| Region::new(Gpa(gpa), Hva(page.0.as_ptr() as u64), PAGE).unwrap();
        let regions = vec![region(0x2000, &backing[0]), region(0x1000, &backing[1])];
        let map = MemoryMap::new(regions).unwrap();
        // SAFETY: `backing` lives as long as the mapping handle; its bytes are only
        // reached through the memory.
        unsafe { GuestMemory::new(map, backing) }
    }

    #[test]
    fn a_range_over_two_regions_is_cut_in_two() {
        let memory = memory();
        let mut out = Vec::new();
        memory.cut(Gpa(0x1ffe), 4, &mut out).unwrap();
        assert_eq!(out.iter().map(Segment::len).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(write_across(&out, b"abcdef"), 4);
        let mut back = [0; 4];
        assert_eq!(read_across(&out, &mut back), 4);
        assert_eq!(&back, b"abcd");
        assert!(memory.whole(Gpa(0x1ffe), 4).is_none());
        assert!(memory.whole(Gpa(0x1ffe), 2).is_some());
    }

    #[test]
    fn what_is_not_guest_memory_is_refused_and_leaves_nothing_behind() {
        let memory = memory();
        let mut out = Vec::new();
        for (gpa, len) in [(0, 1), (0x2fff, 2), (u64::MAX, 1), (0x1000, usize::MAX)] {
            assert!(memory.cut(Gpa(gpa), len, &mut out).is_none(), "{gpa:#x}");
            assert!(out.is_empty());
        }
        assert!(memory.piece(Gpa(0x1000), 0).is_none());
    }

    #[test]
    fn slices_skip_and_stop_inside_segments() {
        let memory = memory();
        let mut all = Vec::new();
        memory.cut(Gpa(0x1000), 0x2000, &mut all).unwrap();
        let mut out = Vec::new();
        assert_eq!(slice_across(&all, 4090, 10, &mut out), 10);
        assert_eq!(out.iter().map(Segment::len).collect::<Vec<_>>(), [6, 4]);
        assert_eq!(slice_across(&all, 8190, 10, &mut out), 2);
        assert_eq!(slice_across(&all, 9000, 10, &mut out), 0);
    }
}
