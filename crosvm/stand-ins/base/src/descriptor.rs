// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors: crosvm's names for file descriptors, owned and borrowed.
//!
//! `unsafe`: taking ownership of a number is unsafe by its nature; the only
//! unsafe code is what hands such numbers on to the standard library.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;

use crate::{EventToken, Result};

/// A file descriptor's number.
pub type RawDescriptor = RawFd;

/// What has a descriptor.
pub trait AsRawDescriptor {
    /// The number. It is borrowed: valid while `self` lives.
    fn as_raw_descriptor(&self) -> RawDescriptor;
}

/// What has any number of descriptors.
pub trait AsRawDescriptors {
    /// The numbers, borrowed.
    fn as_raw_descriptors(&self) -> Vec<RawDescriptor>;
}

impl<T: AsRawDescriptor> AsRawDescriptors for T {
    fn as_raw_descriptors(&self) -> Vec<RawDescriptor> {
        vec![self.as_raw_descriptor()]
    }
}

impl<T: AsRawDescriptor> AsRawDescriptor for Arc<T> {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.as_ref().as_raw_descriptor()
    }
}

/// What gives its descriptor away.
pub trait IntoRawDescriptor {
    /// The number, now the caller's to close.
    fn into_raw_descriptor(self) -> RawDescriptor;
}

/// What can own a descriptor.
pub trait FromRawDescriptor {
    /// Takes ownership of `descriptor`.
    ///
    /// # Safety
    /// `descriptor` must be open, and nothing else may own it.
    unsafe fn from_raw_descriptor(descriptor: RawDescriptor) -> Self;
}

/// A descriptor that is closed when dropped.
#[derive(Debug)]
pub struct SafeDescriptor(OwnedFd);

impl SafeDescriptor {
    /// A new close-on-exec descriptor of the same open file.
    pub fn try_clone(&self) -> Result<SafeDescriptor> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl PartialEq for SafeDescriptor {
    fn eq(&self, other: &Self) -> bool {
        self.as_raw_descriptor() == other.as_raw_descriptor()
    }
}

impl Eq for SafeDescriptor {}

impl TryFrom<&dyn AsRawDescriptor> for SafeDescriptor {
    type Error = io::Error;

    fn try_from(descriptor: &dyn AsRawDescriptor) -> io::Result<Self> {
        // SAFETY: the reference keeps the descriptor open during this call.
        let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor.as_raw_descriptor()) };
        Ok(Self(borrowed.try_clone_to_owned()?))
    }
}

impl AsRawFd for SafeDescriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl IntoRawFd for SafeDescriptor {
    fn into_raw_fd(self) -> RawFd {
        self.0.into_raw_fd()
    }
}

impl FromRawFd for SafeDescriptor {
    unsafe fn from_raw_fd(fd: RawFd) -> Self {
        // SAFETY: the caller's promise is the same.
        Self(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl From<OwnedFd> for SafeDescriptor {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<SafeDescriptor> for OwnedFd {
    fn from(descriptor: SafeDescriptor) -> Self {
        descriptor.0
    }
}

impl From<File> for SafeDescriptor {
    fn from(file: File) -> Self {
        Self(file.into())
    }
}

impl From<SafeDescriptor> for File {
    fn from(descriptor: SafeDescriptor) -> Self {
        descriptor.0.into()
    }
}

impl From<SafeDescriptor> for UnixStream {
    fn from(descriptor: SafeDescriptor) -> Self {
        descriptor.0.into()
    }
}

/// A borrowed descriptor's number as a value of its own. It closes nothing.
#[derive(Copy, Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Descriptor(pub RawDescriptor);

impl AsRawDescriptor for Descriptor {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.0
    }
}

impl FromRawDescriptor for Descriptor {
    unsafe fn from_raw_descriptor(descriptor: RawDescriptor) -> Self {
        Descriptor(descriptor)
    }
}

impl EventToken for Descriptor {
    fn as_raw_token(&self) -> u64 {
        self.0 as u64
    }

    fn from_raw_token(data: u64) -> Self {
        Descriptor(data as RawDescriptor)
    }
}

macro_rules! borrowed {
    ($($name:ty),*) => {
        $(impl AsRawDescriptor for $name {
            fn as_raw_descriptor(&self) -> RawDescriptor {
                self.as_raw_fd()
            }
        })*
    };
}

macro_rules! owned {
    ($($name:ty),*) => {
        $(
            impl IntoRawDescriptor for $name {
                fn into_raw_descriptor(self) -> RawDescriptor {
                    self.into_raw_fd()
                }
            }

            impl FromRawDescriptor for $name {
                unsafe fn from_raw_descriptor(descriptor: RawDescriptor) -> Self {
                    // SAFETY: the caller's promise is the same.
                    unsafe { <$name>::from_raw_fd(descriptor) }
                }
            }
        )*
    };
}

borrowed!(
    SafeDescriptor,
    File,
    OwnedFd,
    UnixDatagram,
    UnixListener,
    UnixStream
);
owned!(SafeDescriptor, File, OwnedFd, UnixDatagram, UnixStream);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_another_number_of_the_same_file() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let first = SafeDescriptor::from(OwnedFd::from(ours));
        let second = SafeDescriptor::try_from(&first as &dyn AsRawDescriptor).unwrap();
        assert_ne!(first.as_raw_descriptor(), second.as_raw_descriptor());
        drop(first);
        io::Write::write_all(&mut UnixStream::from(second), b"x").unwrap();
        let mut byte = [0];
        io::Read::read_exact(&mut theirs, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
