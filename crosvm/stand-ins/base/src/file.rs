// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Opening what a command line names: a path, or a descriptor inherited from
//! the parent process.
//!
//! `unsafe`: fcntl(2) on a number that the command line gave.

use std::fs::{File, OpenOptions};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::{Error, Result, SafeDescriptor};

/// A close-on-exec duplicate of the inherited descriptor `fd`.
///
/// # Errors
/// `EBADF` when `fd` is not open or is close-on-exec: then it was not inherited
/// but opened by this process.
pub fn safe_descriptor_from_cmdline_fd(fd: &RawFd) -> Result<SafeDescriptor> {
    // SAFETY: F_GETFD only reads flags.
    let flags = unsafe { libc::fcntl(*fd, libc::F_GETFD) };
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return Err(Error::new(libc::EBADF));
    }
    // SAFETY: F_DUPFD_CLOEXEC touches no memory.
    let duplicate = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 0) };
    if duplicate < 0 {
        return Err(Error::last());
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) }.into())
}

/// Opens `path`, or duplicates N when it is `/proc/self/fd/N`.
pub fn open_file_or_duplicate<P: AsRef<Path>>(path: P, options: &OpenOptions) -> Result<File> {
    let path = path.as_ref();
    if path.parent() != Some(Path::new("/proc/self/fd")) {
        return Ok(options.open(path)?);
    }
    let fd: RawFd = path
        .file_name()
        .and_then(|name| name.to_str()?.parse().ok())
        .ok_or(Error::new(libc::EINVAL))?;
    Ok(safe_descriptor_from_cmdline_fd(&fd)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AsRawDescriptor, Event};

    #[test]
    fn inherited_descriptors_only() {
        let read = OpenOptions::new().read(true).clone();
        open_file_or_duplicate("/dev/null", &read).unwrap();
        // An event's descriptor is not close-on-exec, an opened file's is.
        let event = Event::new().unwrap();
        let ours = File::open("/dev/null").unwrap();
        let open = |fd: RawFd| open_file_or_duplicate(format!("/proc/self/fd/{fd}"), &read);
        open(event.as_raw_descriptor()).unwrap();
        let refused = open(ours.as_raw_descriptor()).unwrap_err();
        assert_eq!(refused.errno(), libc::EBADF);
        let no_number = open_file_or_duplicate("/proc/self/fd/x", &read).unwrap_err();
        assert_eq!(no_number.errno(), libc::EINVAL);
    }
}
