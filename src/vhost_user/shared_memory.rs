// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory as a front end shares it: files, mapped into this process.
//!
//! Whoever reads a mapping beyond the end of its file gets SIGBUS, which would end every
//! VM of this process. So a region must lie within its file, and the file is sealed
//! against shrinking, unless it is so already: crosvm and QEMU seal their memfds
//! themselves. What cannot be sealed (a file on disk or in /dev/shm, a memfd made without
//! `MFD_ALLOW_SEALING`) is taken all the same, and the log says that the front end is
//! trusted not to shrink it.
//!
//! There is no handler for SIGBUS beside that. It would have to put zero pages under all
//! threads alike, from within a signal, to save the neighbours of a VMM that destroys its
//! own guest's memory; who does not trust a VMM as far as that gives it a daemon of its own.
//!
//! `unsafe` here: fcntl(2).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};
use vm_memory::mmap::MmapRegion;

/// Whether a file's size may still go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// Not any more.
    Sealed,
    /// Whenever whoever shares it wishes.
    Loose,
}

/// Maps a region, and sees to it that it stays there as far as that is possible.
pub(super) fn map(region: &VhostUserMemoryRegion, file: File) -> Result<(MmapRegion, Size)> {
    let sealed = seal(file.as_fd());
    let (offset, size) = (region.mmap_offset, region.memory_size);
    let len = file.metadata().map_err(Error::ReqHandlerError)?.len();
    if offset.checked_add(size).is_none_or(|end| end > len) {
        let why = format!(
            "a memory region of {size:#x} bytes at offset {offset:#x} of a file of {len:#x} bytes: \
             it must lie within the file"
        );
        return Err(Error::ReqHandlerError(io::Error::other(why)));
    }
    Ok((region.mmap_region(file)?, sealed))
}

fn seal(file: BorrowedFd<'_>) -> Size {
    // SAFETY: F_ADD_SEALS takes a number, no pointer; the descriptor is open.
    let added = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
    // SAFETY: F_GET_SEALS takes nothing.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    // A file whose seals are complete refuses more, and may have this one.
    if added == 0 || (seals >= 0 && seals & libc::F_SEAL_SHRINK != 0) {
        Size::Sealed
    } else {
        Size::Loose
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, OwnedFd};

    use super::*;

    const LEN: u64 = 0x4000;

    fn memfd(flags: libc::c_uint) -> File {
        // SAFETY: the name is a C string; the result is checked before it is owned.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), flags) };
        assert!(fd >= 0);
        // SAFETY: just opened, nobody else's.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len(LEN).unwrap();
        file
    }

    fn region(offset: u64, size: u64) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion::new(0, size, 0, offset)
    }

    #[test]
    fn a_memfd_that_may_be_sealed_cannot_shrink_any_more() {
        let file = memfd(libc::MFD_ALLOW_SEALING);
        let (_mapping, size) = map(&region(0, LEN), file.try_clone().unwrap()).unwrap();
        assert_eq!(size, Size::Sealed);
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn seals_that_are_complete_are_looked_at() {
        for (seals, expected) in [
            (libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL, Size::Sealed),
            (libc::F_SEAL_SEAL, Size::Loose),
        ] {
            let file = memfd(libc::MFD_ALLOW_SEALING);
            // SAFETY: as in `seal`.
            let added = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
            assert_eq!(added, 0);
            assert_eq!(seal(file.as_fd()), expected);
        }
    }

    #[test]
    fn what_cannot_be_sealed_is_taken_and_known_to_be_loose() {
        let on_disk = tempfile::tempfile().unwrap();
        on_disk.set_len(LEN).unwrap();
        for file in [memfd(0), on_disk] {
            let (_mapping, size) = map(&region(0, LEN), file).unwrap();
            assert_eq!(size, Size::Loose);
        }
    }

    #[test]
    fn a_region_beyond_the_end_of_its_file_is_refused() {
        let file = memfd(libc::MFD_ALLOW_SEALING);
        for (offset, size) in [(0, LEN + 1), (LEN, 1), (0x1000, LEN), (u64::MAX, 2)] {
            let error = map(&region(offset, size), file.try_clone().unwrap()).unwrap_err();
            assert!(error.to_string().contains("within the file"), "{error}");
        }
    }
}
