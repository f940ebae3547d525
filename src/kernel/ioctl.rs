// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's vhost-vsock interface, call by call.
//!
//! [`Vhost`] is the interface as a trait, so that a model can stand in for the
//! kernel in tests; [`VhostFd`] is the real one. Numbers and layouts are those of
//! `linux/vhost.h` and `linux/vhost_types.h`: AOSP's build of the `vhost` crate has
//! no kernel half, and this table is short.
//!
//! `unsafe` is here because ioctls are: each call passes a pointer to a local of
//! exactly the layout that the request number encodes, and the kernel keeps none
//! of these pointers. Addresses of guest memory are passed as numbers; that they
//! stay mapped is the promise of whoever made the [`MemoryMap`].

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use libc::{c_int, c_ulong, c_void};

use super::iotlb::message::MESSAGE_SIZE;
use super::queue::QueueIndex;
use crate::address::Address;
use crate::features::FeatureSet;
use crate::memory::MemoryMap;

/// Where the rings of one queue lie, in the sense that the kernel reads them:
/// I/O virtual with the IOTLB on, host virtual without (`struct vhost_vring_addr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddresses {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

/// `VHOST_GET_BACKEND_FEATURES`, bit *number* 1: IOTLB messages may be of version 2.
pub const BACKEND_F_IOTLB_MSG_V2: u64 = 1 << 1;

/// The calls that a vhost-vsock descriptor answers. Errors are the kernel's own.
///
/// Most calls need [`set_owner`](Self::set_owner) first and answer `EPERM` without.
pub trait Vhost: Send + Sync {
    /// `VHOST_GET_FEATURES`: needs no owner.
    fn features(&self) -> io::Result<FeatureSet>;
    /// `VHOST_SET_OWNER`: ties the descriptor to this process' memory.
    fn set_owner(&self) -> io::Result<()>;
    /// `VHOST_SET_FEATURES`: `EOPNOTSUPP` for a bit that is not offered.
    fn set_features(&self, features: FeatureSet) -> io::Result<()>;
    /// `VHOST_GET_BACKEND_FEATURES`.
    fn backend_features(&self) -> io::Result<u64>;
    /// `VHOST_SET_BACKEND_FEATURES`.
    fn set_backend_features(&self, features: u64) -> io::Result<()>;
    /// `VHOST_SET_MEM_TABLE`: needed in every mode.
    fn set_mem_table(&self, memory: &MemoryMap) -> io::Result<()>;
    /// `VHOST_SET_VRING_NUM`.
    fn set_vring_num(&self, queue: QueueIndex, size: u16) -> io::Result<()>;
    /// `VHOST_SET_VRING_BASE`: the next available index to take.
    fn set_vring_base(&self, queue: QueueIndex, base: u16) -> io::Result<()>;
    /// `VHOST_GET_VRING_BASE`.
    fn vring_base(&self, queue: QueueIndex) -> io::Result<u16>;
    /// `VHOST_SET_VRING_ADDR`.
    fn set_vring_addr(&self, queue: QueueIndex, addresses: VringAddresses) -> io::Result<()>;
    /// `VHOST_SET_VRING_KICK`; `None` unbinds.
    fn set_vring_kick(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()>;
    /// `VHOST_SET_VRING_CALL`; `None` unbinds.
    fn set_vring_call(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()>;
    /// `VHOST_SET_VRING_ERR`; `None` unbinds.
    fn set_vring_err(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()>;
    /// `VHOST_VSOCK_SET_GUEST_CID`: needs no owner. `EADDRINUSE` when another device has it.
    fn set_guest_cid(&self, cid: u64) -> io::Result<()>;
    /// `VHOST_VSOCK_SET_RUNNING`.
    fn set_running(&self, running: bool) -> io::Result<()>;
    /// write(2): one IOTLB message, a synchronous barrier (`vhost_chr_write_iter`).
    fn send(&self, message: &[u8; MESSAGE_SIZE]) -> io::Result<()>;
    /// read(2): one IOTLB message, `None` when none waits (`vhost_chr_read_iter`).
    /// Returns the bytes that the kernel filled in.
    fn receive(&self, message: &mut [u8; MESSAGE_SIZE]) -> io::Result<Option<usize>>;
    /// What to poll for messages.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

const READ: c_ulong = 2;
const WRITE: c_ulong = 1;

/// `_IOC(direction, 0xAF, number, size)` of `asm-generic/ioctl.h`.
const fn request(direction: c_ulong, number: c_ulong, size: usize) -> c_ulong {
    direction << 30 | (size as c_ulong) << 16 | 0xaf << 8 | number
}

const fn write<T>(number: c_ulong) -> c_ulong {
    request(WRITE, number, size_of::<T>())
}

const fn read<T>(number: c_ulong) -> c_ulong {
    request(READ, number, size_of::<T>())
}

const GET_FEATURES: c_ulong = read::<u64>(0x00);
const SET_FEATURES: c_ulong = write::<u64>(0x00);
const SET_OWNER: c_ulong = request(0, 0x01, 0);
const SET_MEM_TABLE: c_ulong = write::<MemoryTableHeader>(0x03);
const SET_VRING_NUM: c_ulong = write::<VringState>(0x10);
const SET_VRING_ADDR: c_ulong = write::<VringAddr>(0x11);
const SET_VRING_BASE: c_ulong = write::<VringState>(0x12);
const GET_VRING_BASE: c_ulong = request(READ | WRITE, 0x12, size_of::<VringState>());
const SET_VRING_KICK: c_ulong = write::<VringFile>(0x20);
const SET_VRING_CALL: c_ulong = write::<VringFile>(0x21);
const SET_VRING_ERR: c_ulong = write::<VringFile>(0x22);
const SET_BACKEND_FEATURES: c_ulong = write::<u64>(0x25);
const GET_BACKEND_FEATURES: c_ulong = read::<u64>(0x26);
const SET_GUEST_CID: c_ulong = write::<u64>(0x60);
const SET_RUNNING: c_ulong = write::<c_int>(0x61);

/// `struct vhost_vring_state`.
#[repr(C)]
struct VringState {
    index: u32,
    num: u32,
}

/// `struct vhost_vring_file`; -1 unbinds.
#[repr(C)]
struct VringFile {
    index: u32,
    fd: c_int,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
struct VringAddr {
    index: u32,
    flags: u32,
    desc: u64,
    used: u64,
    avail: u64,
    log: u64,
}

/// `struct vhost_memory` without its regions.
#[repr(C)]
struct MemoryTableHeader {
    regions: u32,
    padding: u32,
}

/// `struct vhost_memory_region`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct MemoryTableRegion {
    gpa: u64,
    size: u64,
    hva: u64,
    flags: u64,
}

/// `struct vhost_memory` with room for all regions.
#[repr(C)]
struct MemoryTable {
    header: MemoryTableHeader,
    regions: [MemoryTableRegion; MemoryMap::MAX_REGIONS],
}

/// An open `/dev/vhost-vsock`, or a descriptor that somebody else opened.
#[derive(Debug)]
pub struct VhostFd(File);

impl VhostFd {
    /// Opens the device, non-blocking: a read finds no message rather than waits.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map(Self)
    }

    /// Takes over a descriptor and makes it non-blocking. Whether it is a
    /// vhost-vsock is not checked here.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: F_GETFL takes no argument and fd is open.
        let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
        // SAFETY: F_SETFL takes an int and fd is open.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
        Ok(Self(fd.into()))
    }

    /// # Safety
    /// `argument` is what `request` takes: a pointer valid for the request's
    /// direction and size for the time of the call, or ignored.
    unsafe fn call(&self, request: c_ulong, argument: *mut c_void) -> io::Result<c_int> {
        // The request is c_int on Android and c_ulong elsewhere: the same 32 bits.
        // SAFETY: the descriptor is open; the argument is the caller's promise.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, argument) })
    }

    fn write<T>(&self, request: c_ulong, argument: &T) -> io::Result<()> {
        let argument = std::ptr::from_ref(argument).cast_mut().cast();
        // SAFETY: a _IOW request only reads, and its size is that of T: each
        // constant is used with the type it is made of.
        unsafe { self.call(request, argument) }.map(drop)
    }

    fn read_u64(&self, request: c_ulong) -> io::Result<u64> {
        let mut value = 0u64;
        // SAFETY: a _IOR request of 8 bytes writes the u64 it is given.
        unsafe { self.call(request, std::ptr::from_mut(&mut value).cast()) }?;
        Ok(value)
    }

    fn set_file(
        &self,
        request: c_ulong,
        queue: QueueIndex,
        event: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let fd = event.map_or(-1, |event| event.as_raw_fd());
        let index = queue.number();
        self.write(request, &VringFile { index, fd })
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

impl Vhost for VhostFd {
    fn features(&self) -> io::Result<FeatureSet> {
        self.read_u64(GET_FEATURES).map(FeatureSet::from_bits)
    }

    fn set_owner(&self) -> io::Result<()> {
        // SAFETY: the request takes no argument.
        unsafe { self.call(SET_OWNER, std::ptr::null_mut()) }.map(drop)
    }

    fn set_features(&self, features: FeatureSet) -> io::Result<()> {
        self.write(SET_FEATURES, &features.bits())
    }

    fn backend_features(&self) -> io::Result<u64> {
        self.read_u64(GET_BACKEND_FEATURES)
    }

    fn set_backend_features(&self, features: u64) -> io::Result<()> {
        self.write(SET_BACKEND_FEATURES, &features)
    }

    fn set_mem_table(&self, memory: &MemoryMap) -> io::Result<()> {
        let mut table = MemoryTable {
            header: MemoryTableHeader {
                regions: memory.regions().len() as u32,
                padding: 0,
            },
            regions: [MemoryTableRegion::default(); MemoryMap::MAX_REGIONS],
        };
        for (slot, region) in table.regions.iter_mut().zip(memory.regions()) {
            *slot = MemoryTableRegion {
                gpa: region.gpa().first().raw(),
                size: region.gpa().size().map_or(u64::MAX, |size| size.get()),
                hva: region.hva().first().raw(),
                flags: 0,
            };
        }
        let argument = std::ptr::from_mut(&mut table).cast();
        // SAFETY: the request's size is the header's; the kernel reads as many
        // regions behind it as the header says, at most MAX_REGIONS, all in table.
        unsafe { self.call(SET_MEM_TABLE, argument) }.map(drop)
    }

    fn set_vring_num(&self, queue: QueueIndex, size: u16) -> io::Result<()> {
        let (index, num) = (queue.number(), size.into());
        self.write(SET_VRING_NUM, &VringState { index, num })
    }

    fn set_vring_base(&self, queue: QueueIndex, base: u16) -> io::Result<()> {
        let (index, num) = (queue.number(), base.into());
        self.write(SET_VRING_BASE, &VringState { index, num })
    }

    fn vring_base(&self, queue: QueueIndex) -> io::Result<u16> {
        let index = queue.number();
        let mut state = VringState { index, num: 0 };
        let argument = std::ptr::from_mut(&mut state).cast();
        // SAFETY: a _IOWR request of the size of VringState reads and writes it.
        unsafe { self.call(GET_VRING_BASE, argument) }?;
        // The upper half belongs to packed rings, which are never negotiated.
        Ok(state.num as u16)
    }

    fn set_vring_addr(&self, queue: QueueIndex, addresses: VringAddresses) -> io::Result<()> {
        let VringAddresses { desc, avail, used } = addresses;
        self.write(
            SET_VRING_ADDR,
            &VringAddr {
                index: queue.number(),
                flags: 0,
                desc,
                used,
                avail,
                log: 0,
            },
        )
    }

    fn set_vring_kick(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.set_file(SET_VRING_KICK, queue, event)
    }

    fn set_vring_call(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.set_file(SET_VRING_CALL, queue, event)
    }

    fn set_vring_err(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.set_file(SET_VRING_ERR, queue, event)
    }

    fn set_guest_cid(&self, cid: u64) -> io::Result<()> {
        self.write(SET_GUEST_CID, &cid)
    }

    fn set_running(&self, running: bool) -> io::Result<()> {
        self.write(SET_RUNNING, &c_int::from(running))
    }

    fn send(&self, message: &[u8; MESSAGE_SIZE]) -> io::Result<()> {
        match (&self.0).write(message)? {
            MESSAGE_SIZE => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    fn receive(&self, message: &mut [u8; MESSAGE_SIZE]) -> io::Result<Option<usize>> {
        match (&self.0).read(message) {
            Ok(filled) => Ok(Some(filled)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `linux/vhost.h` has them on every architecture with the generic encoding.
    #[test]
    fn request_numbers_are_the_kernels() {
        let table = [
            (GET_FEATURES, 0x8008_af00),
            (SET_FEATURES, 0x4008_af00),
            (SET_OWNER, 0x0000_af01),
            (SET_MEM_TABLE, 0x4008_af03),
            (SET_VRING_NUM, 0x4008_af10),
            (SET_VRING_ADDR, 0x4028_af11),
            (SET_VRING_BASE, 0x4008_af12),
            (GET_VRING_BASE, 0xc008_af12),
            (SET_VRING_KICK, 0x4008_af20),
            (SET_VRING_CALL, 0x4008_af21),
            (SET_VRING_ERR, 0x4008_af22),
            (SET_BACKEND_FEATURES, 0x4008_af25),
            (GET_BACKEND_FEATURES, 0x8008_af26),
            (SET_GUEST_CID, 0x4008_af60),
            (SET_RUNNING, 0x4004_af61),
        ];
        for (ours, kernels) in table {
            assert_eq!(ours, kernels, "{ours:#x} is not {kernels:#x}");
        }
    }

    #[test]
    fn an_adopted_descriptor_does_not_block() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd = VhostFd::adopt(ours.into()).unwrap();
        assert!(fd.receive(&mut [0; MESSAGE_SIZE]).unwrap().is_none());
    }
}
