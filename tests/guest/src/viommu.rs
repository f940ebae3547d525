// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM's vIOMMU as a vhost-user device sees it: it answers misses from the guest's page
//! table, page by page, and takes translations back.
//!
//! Written from the vhost-user specification ("IOMMU support") and QEMU's
//! `vhost_device_iotlb_miss`. Limits: it asks for no replies, so that its messages can go
//! out between any two requests of the front end.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::bus::{AddressSpace, BusAddr};
use crate::memory::PAGE_SIZE;

/// VHOST_USER_IOTLB_MSG.
const IOTLB_MSG: u32 = 22;
/// VHOST_USER_BACKEND_IOTLB_MSG.
const BACKEND_IOTLB_MSG: u32 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;
const HEADER: usize = 12;
const BODY: usize = 32;

/// An address that the device has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// Where.
    pub iova: u64,
    /// 1 read, 2 write, 3 both.
    pub access: u8,
}

#[derive(Debug, Default)]
struct State {
    misses: Vec<Miss>,
    /// Misses that are not answered for now.
    held: Option<Vec<Miss>>,
    failure: Option<String>,
}

#[derive(Debug)]
struct Shared {
    socket: UnixStream,
    space: Arc<AddressSpace>,
    state: Mutex<State>,
}

/// Answers the device's misses on a thread of its own, until it is dropped.
#[derive(Debug)]
pub struct Viommu {
    shared: Arc<Shared>,
    /// The VMM's end of the channel; shut down, it ends the thread.
    channel: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, iova: u64, size: u64, host: u64, access: u8, kind: u8) -> io::Result<()> {
        let mut message = [IOTLB_MSG, 1, BODY as u32].map(u32::to_ne_bytes).concat();
        message.extend([iova, size, host].map(u64::to_ne_bytes).concat());
        message.extend([access, kind, 0, 0, 0, 0, 0, 0]);
        // One call, so that it never lands inside another request.
        match (&self.socket).write(&message)? {
            len if len == message.len() => Ok(()),
            len => Err(io::Error::other(format!("{len} bytes of a message sent"))),
        }
    }

    /// Tells the device where a page leads; not a word if it leads nowhere, as in QEMU.
    fn answer(&self, miss: Miss) -> io::Result<()> {
        let page = miss.iova - miss.iova % PAGE_SIZE;
        let Some(gpa) = self.space.lookup(BusAddr(page)) else {
            return Ok(());
        };
        let host = self.space.memory().hva(gpa, PAGE_SIZE);
        let host = host.map_err(io::Error::other)?;
        self.send(page, PAGE_SIZE, host, 3, UPDATE)
    }

    fn miss(&self, miss: Miss) -> io::Result<()> {
        let mut state = self.state();
        state.misses.push(miss);
        if let Some(held) = &mut state.held {
            held.push(miss);
            return Ok(());
        }
        drop(state);
        self.answer(miss)
    }

    fn serve(&self, mut channel: UnixStream) {
        let mut message = [0; HEADER + BODY];
        while channel.read_exact(&mut message).is_ok() {
            let request = u32::from_ne_bytes(std::array::from_fn(|i| message[i]));
            let iova = u64::from_ne_bytes(std::array::from_fn(|i| message[HEADER + i]));
            let (access, kind) = (message[HEADER + 24], message[HEADER + 25]);
            let result = match (request, kind) {
                (BACKEND_IOTLB_MSG, 1) => self.miss(Miss { iova, access }),
                other => Err(io::Error::other(format!("request and type {other:?}"))),
            };
            if let Err(error) = result {
                self.state().failure.get_or_insert(error.to_string());
            }
        }
    }
}

impl Viommu {
    /// Serves `channel`, whose other end the device has; `socket` is the front end's.
    pub(crate) fn new(
        channel: UnixStream,
        socket: UnixStream,
        space: Arc<AddressSpace>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            socket,
            space,
            state: Mutex::default(),
        });
        let (copy, server) = (channel.try_clone()?, shared.clone());
        let thread = std::thread::spawn(move || server.serve(copy));
        Ok(Self {
            shared,
            channel,
            thread: Some(thread),
        })
    }

    /// All misses so far.
    pub fn misses(&self) -> Vec<Miss> {
        self.shared.state().misses.clone()
    }

    /// What went wrong in answering, if anything did.
    pub fn failure(&self) -> Option<String> {
        self.shared.state().failure.clone()
    }

    /// Answers no miss from now on.
    pub fn hold(&self) {
        self.shared.state().held.get_or_insert_default();
    }

    /// Answers those that were held, and all that follow.
    pub fn release(&self) -> io::Result<()> {
        let held = self.shared.state().held.take().unwrap_or_default();
        held.into_iter()
            .try_for_each(|miss| self.shared.answer(miss))
    }

    /// Tells the device that `size` bytes at `iova` lead nowhere any more.
    pub fn invalidate(&self, iova: u64, size: u64) -> io::Result<()> {
        self.shared.send(iova, size, 0, 0, INVALIDATE)
    }
}

impl Drop for Viommu {
    fn drop(&mut self) {
        let _ = self.channel.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
