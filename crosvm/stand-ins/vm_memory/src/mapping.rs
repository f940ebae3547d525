// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A piece of a file, mapped shared.
//!
//! `unsafe`: mmap(2), munmap(2), and copies to and from memory that others may
//! change at any time, so no reference to it is ever made.

use std::ptr::{null_mut, NonNull};

use base::{errno_result, AsRawDescriptor, Result};
use zerocopy::{FromBytes, IntoBytes};

/// A mapping; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    size: usize,
    writable: bool,
}

// SAFETY: the mapping belongs to the process, not to the thread that made it.
unsafe impl Send for Mapping {}
// SAFETY: it is only ever accessed by raw copies and volatile accesses.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `size` bytes of `file` from `offset` on, a multiple of the page size.
    pub fn new(
        file: &dyn AsRawDescriptor,
        offset: u64,
        size: usize,
        writable: bool,
    ) -> Result<Self> {
        let protection = match writable {
            true => libc::PROT_READ | libc::PROT_WRITE,
            false => libc::PROT_READ,
        };
        let fd = file.as_raw_descriptor();
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice harms nobody.
        let start = unsafe {
            libc::mmap(
                null_mut(),
                size,
                protection,
                flags,
                fd,
                offset as libc::off_t,
            )
        };
        match NonNull::new(start.cast()) {
            Some(start) if start.as_ptr() as isize != -1 => Ok(Self {
                start,
                size,
                writable,
            }),
            _ => errno_result(),
        }
    }

    /// The size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The first byte, for as long as the mapping lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Copies out what lies at `offset`, as far as the mapping goes.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) -> usize {
        let length = self.size.saturating_sub(offset).min(buffer.len());
        if length > 0 {
            // SAFETY: the source is within the mapping, the target a buffer of ours.
            unsafe {
                let source = self.as_ptr().add(offset);
                source.copy_to_nonoverlapping(buffer.as_mut_ptr(), length);
            }
        }
        length
    }

    /// Copies `buffer` to `offset`, as far as the mapping goes; nothing when it is
    /// read-only.
    pub fn write(&self, offset: usize, buffer: &[u8]) -> usize {
        let length = self.size.saturating_sub(offset).min(buffer.len());
        if !self.writable || length == 0 {
            return 0;
        }
        // SAFETY: the target is within the mapping, the source a buffer of ours.
        unsafe {
            let target = self.as_ptr().add(offset);
            target.copy_from_nonoverlapping(buffer.as_ptr(), length);
        }
        length
    }

    /// Reads the aligned value at `offset` in one access where its size allows.
    pub fn read_volatile<T: FromBytes>(&self, offset: usize) -> Option<T> {
        // SAFETY: `pointer` checks the bounds and the alignment, and every pattern
        // of bits is a `T`.
        Some(unsafe { self.pointer::<T>(offset)?.read_volatile() })
    }

    /// Writes an aligned value to `offset` in one access where its size allows.
    pub fn write_volatile<T: IntoBytes>(&self, offset: usize, value: T) -> Option<()> {
        let target = self.pointer::<T>(offset).filter(|_| self.writable)?;
        // SAFETY: `pointer` checks the bounds and the alignment.
        unsafe { target.write_volatile(value) };
        Some(())
    }

    /// The place of a `T` at `offset`, if it lies within the mapping and is aligned.
    fn pointer<T>(&self, offset: usize) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>())?;
        let pointer: *mut T = self.as_ptr().wrapping_add(offset).cast();
        (end <= self.size && pointer.is_aligned()).then_some(pointer)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is our mapping, and nobody can hold a reference into it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}
