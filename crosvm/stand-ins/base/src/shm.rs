// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`SharedMemory`]: a memfd.
//!
//! `unsafe`: memfd_create(2) and sysconf(3).

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use crate::{errno_result, AsRawDescriptor, Error, RawDescriptor, Result};

/// The size of a page in bytes.
pub fn pagesize() -> usize {
    // SAFETY: sysconf takes no pointers.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Memory that can be mapped, by this process and by those it is sent to.
#[derive(Debug)]
pub struct SharedMemory {
    file: File,
    size: u64,
}

impl SharedMemory {
    /// `size` bytes of zeroes under a name for debugging.
    pub fn new<T: Into<Vec<u8>>>(debug_name: T, size: u64) -> Result<SharedMemory> {
        let name = CString::new(debug_name).map_err(|_| Error::new(libc::EINVAL))?;
        // SAFETY: the name is a string ended by zero.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return errno_result();
        }
        // SAFETY: the kernel just gave us this descriptor.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(size)?;
        Ok(SharedMemory { file, size })
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl AsRawDescriptor for SharedMemory {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_size_asked_for() {
        let shm = SharedMemory::new("test", 3 * pagesize() as u64).unwrap();
        assert_eq!(shm.file.metadata().unwrap().len(), shm.size());
        assert!(SharedMemory::new("a\0b", 1).is_err());
    }
}
