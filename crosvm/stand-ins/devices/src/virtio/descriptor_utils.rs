// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! [`Reader`] and [`Writer`]: the two halves of a descriptor chain as streams.

use std::collections::VecDeque;
use std::io;

use vm_memory::{GuestAddress, GuestMemory};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What is left of a chain's buffers.
struct Buffers {
    mem: GuestMemory,
    /// Address and length; none is empty.
    left: VecDeque<(GuestAddress, usize)>,
    consumed: usize,
}

impl Buffers {
    fn new(mem: &GuestMemory, buffers: Vec<(GuestAddress, usize)>) -> Self {
        Self {
            mem: mem.clone(),
            left: buffers.into(),
            consumed: 0,
        }
    }

    fn available(&self) -> usize {
        self.left.iter().map(|(_, length)| length).sum()
    }

    fn consume(&mut self, mut count: usize) {
        while let Some((addr, length)) = self.left.pop_front() {
            let taken = length.min(count);
            self.consumed += taken;
            count -= taken;
            if taken < length {
                let rest = addr.unchecked_add(taken as u64);
                self.left.push_front((rest, length - taken));
                return;
            }
        }
    }
}

/// What the driver wrote.
pub struct Reader(Buffers);

impl Reader {
    pub(super) fn new(mem: &GuestMemory, buffers: Vec<(GuestAddress, usize)>) -> Self {
        Self(Buffers::new(mem, buffers))
    }

    /// The bytes left to read.
    pub fn available_bytes(&self) -> usize {
        self.0.available()
    }

    /// The bytes read.
    pub fn bytes_read(&self) -> usize {
        self.0.consumed
    }

    /// Reads a value.
    pub fn read_obj<T: FromBytes>(&mut self) -> io::Result<T> {
        let mut bytes = vec![0; size_of::<T>()];
        io::Read::read_exact(self, &mut bytes)?;
        T::read_from_bytes(&bytes).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

impl io::Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(&(addr, length)) = self.0.left.front() else {
            return Ok(0);
        };
        let length = length.min(buf.len());
        let read = self.0.mem.read_at_addr(&mut buf[..length], addr);
        let read = read.map_err(io::Error::other)?;
        self.0.consume(read);
        Ok(read)
    }
}

/// What the device writes.
pub struct Writer(Buffers);

impl Writer {
    pub(super) fn new(mem: &GuestMemory, buffers: Vec<(GuestAddress, usize)>) -> Self {
        Self(Buffers::new(mem, buffers))
    }

    /// The bytes left to write.
    pub fn available_bytes(&self) -> usize {
        self.0.available()
    }

    /// The bytes written.
    pub fn bytes_written(&self) -> usize {
        self.0.consumed
    }

    /// Writes a value.
    pub fn write_obj<T: Immutable + IntoBytes>(&mut self, val: T) -> io::Result<()> {
        io::Write::write_all(self, val.as_bytes())
    }
}

impl io::Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(&(addr, length)) = self.0.left.front() else {
            return Ok(0);
        };
        let length = length.min(buf.len());
        let written = self.0.mem.write_at_addr(&buf[..length], addr);
        let written = written.map_err(io::Error::other)?;
        self.0.consume(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
