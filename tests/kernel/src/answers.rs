// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the descriptor answers to ioctl, read, write and poll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crosvm_vsock::address::{Address, Hva, Range};
use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::kernel::ioctl::VringAddresses;
use crosvm_vsock::kernel::{QueueIndex, Vhost};
use crosvm_vsock::memory::MemoryMap;

use crate::call::Call;
use crate::iotlb::Table;
use crate::kernel::{lock, ModelKernel};
use crate::message::{Message, MESSAGE_SIZE};
use crate::state::{fail, index, Owner, MSG_V2, USER_SPACE};
use crate::vring::eventfd;

impl Vhost for ModelKernel {
    fn features(&self) -> io::Result<FeatureSet> {
        Ok(self.enter(Call::GetFeatures)?.offered())
    }

    fn set_owner(&self) -> io::Result<()> {
        let mut state = self.enter(Call::SetOwner)?;
        match state.owner {
            Some(_) => fail(libc::EBUSY),
            None => {
                state.owner = Some(Owner::ThisProcess);
                Ok(())
            }
        }
    }

    fn set_features(&self, features: FeatureSet) -> io::Result<()> {
        let mut state = self.enter(Call::SetFeatures(features))?;
        let result = state.set_features(features);
        self.update_waiting(&state);
        result
    }

    fn backend_features(&self) -> io::Result<u64> {
        let state = self.enter(Call::GetBackendFeatures)?;
        match (state.has_message_interface(), state.owner) {
            (true, _) => Ok(MSG_V2),
            (false, Some(Owner::ThisProcess)) => fail(libc::ENOTTY),
            (false, _) => fail(libc::EPERM),
        }
    }

    fn set_backend_features(&self, features: u64) -> io::Result<()> {
        let mut state = self.enter(Call::SetBackendFeatures(features))?;
        match (state.has_message_interface(), state.owner) {
            (true, _) if features & !MSG_V2 != 0 => fail(libc::EOPNOTSUPP),
            (true, _) => {
                state.backend_features = features;
                Ok(())
            }
            // Taken for a vring request whose index is the mask's low half.
            (false, Some(Owner::ThisProcess)) if features != 0 => fail(libc::ENOBUFS),
            (false, Some(Owner::ThisProcess)) => fail(libc::ENOTTY),
            (false, _) => fail(libc::EPERM),
        }
    }

    fn set_mem_table(&self, memory: &MemoryMap) -> io::Result<()> {
        let mut state = self.enter_owned(Call::SetMemTable(memory.clone()))?;
        if memory.regions().len() > MemoryMap::MAX_REGIONS {
            return fail(libc::E2BIG);
        }
        let beyond = |hva: Range<Hva>| hva.last().raw() >= USER_SPACE;
        if state.running() && memory.regions().iter().any(|region| beyond(region.hva())) {
            return fail(libc::EFAULT);
        }
        state.memory = Some(memory.clone());
        Ok(())
    }

    fn set_vring_num(&self, queue: QueueIndex, size: u16) -> io::Result<()> {
        let mut state = self.enter_owned(Call::SetVringNum(queue, size))?;
        let vring = &mut state.vrings[index(queue)];
        if vring.backend {
            return fail(libc::EBUSY);
        }
        if !size.is_power_of_two() {
            return fail(libc::EINVAL);
        }
        vring.num = size;
        Ok(())
    }

    fn set_vring_base(&self, queue: QueueIndex, base: u16) -> io::Result<()> {
        let mut state = self.enter_owned(Call::SetVringBase(queue, base))?;
        let vring = &mut state.vrings[index(queue)];
        if vring.backend {
            return fail(libc::EBUSY);
        }
        vring.next_avail = base;
        Ok(())
    }

    fn vring_base(&self, queue: QueueIndex) -> io::Result<u16> {
        let state = self.enter_owned(Call::GetVringBase(queue))?;
        Ok(state.vrings[index(queue)].next_avail)
    }

    fn set_vring_addr(&self, queue: QueueIndex, addresses: VringAddresses) -> io::Result<()> {
        let mut state = self.enter_owned(Call::SetVringAddr(queue, addresses))?;
        if addresses.avail % 2 != 0 || addresses.used % 4 != 0 {
            return fail(libc::EINVAL);
        }
        state.vrings[index(queue)].addresses = addresses;
        Ok(())
    }

    fn set_vring_kick(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut state = self.enter_owned(Call::SetVringKick(queue, event.is_some()))?;
        state.vrings[index(queue)].kick = eventfd(event)?;
        Ok(())
    }

    fn set_vring_call(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut state = self.enter_owned(Call::SetVringCall(queue, event.is_some()))?;
        state.vrings[index(queue)].call = eventfd(event)?;
        Ok(())
    }

    fn set_vring_err(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut state = self.enter_owned(Call::SetVringErr(queue, event.is_some()))?;
        state.vrings[index(queue)].error = eventfd(event)?;
        Ok(())
    }

    fn set_guest_cid(&self, cid: u64) -> io::Result<()> {
        let mut state = self.enter(Call::SetGuestCid(cid))?;
        if cid <= 2 || cid >= u64::from(u32::MAX) {
            return fail(libc::EINVAL);
        }
        let mut cids = lock(&self.host.0);
        let this = std::ptr::from_ref(self).addr();
        if cids.get(&cid).is_some_and(|holder| *holder != this) {
            return fail(libc::EADDRINUSE);
        }
        if let Some(old) = state.cid.replace(cid) {
            cids.remove(&old);
        }
        cids.insert(cid, this);
        Ok(())
    }

    fn set_running(&self, running: bool) -> io::Result<()> {
        let mut state = self.enter_owned(Call::SetRunning(running))?;
        if running {
            if let Some((a, b)) = state.iotlb.as_ref().and_then(Table::overlap) {
                state.violated(format!("{a:?} and {b:?} overlap at the start"));
            }
        }
        let result = match running {
            true => QueueIndex::ALL
                .into_iter()
                .try_for_each(|queue| state.start(queue)),
            false => Ok(()),
        };
        if !running || result.is_err() {
            for vring in &mut state.vrings {
                vring.backend = false;
            }
        }
        self.update_waiting(&state);
        result
    }

    fn send(&self, bytes: &[u8; MESSAGE_SIZE]) -> io::Result<()> {
        let message = Message::decode(bytes);
        let mut state = self.enter(Call::Write(message))?;
        if !state.has_message_interface() || !matches!(message.version, 1 | 2) {
            return fail(libc::EINVAL);
        }
        state.process(message)
    }

    fn receive(&self, bytes: &mut [u8; MESSAGE_SIZE]) -> io::Result<Option<usize>> {
        let mut state = self.enter(Call::Read)?;
        if !state.has_message_interface() {
            return fail(libc::EINVAL);
        }
        let Some(unread) = state.unread.pop_front() else {
            return Ok(None);
        };
        self.update_waiting(&state);
        state.pending.extend(unread.queue);
        let filled = unread.bytes.len().min(MESSAGE_SIZE);
        bytes[..filled].copy_from_slice(&unread.bytes[..filled]);
        Ok(Some(filled))
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.waiting.as_fd()
    }
}
