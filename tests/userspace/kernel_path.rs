// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel path behind vhost-user, on a kernel that writes down what it is told. It
//! reads bit 33 as Linux does since 5.12: with it, and without mappings, the device does
//! not start.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use crosvm_vsock::address::GuestCid;
use crosvm_vsock::epoll::Epoll;
use crosvm_vsock::event::EventFd;
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::ioctl::VringAddresses;
use crosvm_vsock::kernel::iotlb::message::MESSAGE_SIZE;
use crosvm_vsock::kernel::{QueueIndex, Vhost, VhostVsock};
use crosvm_vsock::memory::MemoryMap;
use crosvm_vsock::vhost_user::kernel_path::KernelPath;
use crosvm_vsock::vhost_user::worker::Worker;
use guest_driver::packet::Event;
use guest_driver::queues::Queue;
use guest_driver::{Guest, GuestConfig};

use crate::front_ends::leave_traces;
use crate::harness::{wait_until, Vmm, ACCESS_PLATFORM, PATIENCE, VERSION_1};

const OFFERED: FeatureSet = FeatureSet::of(&[
    Feature::VERSION_1,
    Feature::ACCESS_PLATFORM,
    Feature::EVENT_IDX,
    Feature::INDIRECT_DESC,
    Feature::SEQPACKET,
    Feature::LOG_ALL,
]);

/// What one opened device has been told.
#[derive(Default)]
struct Told {
    features: FeatureSet,
    cid: u64,
    running: bool,
    starts: u32,
    bases: [u16; 2],
    regions: usize,
    /// What is signalled for each queue's used buffers.
    calls: [Option<OwnedFd>; 2],
    /// What is signalled when a queue cannot be served any more.
    errors: [Option<OwnedFd>; 2],
    closed: bool,
}

struct Kernel {
    told: Arc<Mutex<Told>>,
    event: EventFd,
}

impl Kernel {
    fn tell<T>(&self, act: impl FnOnce(&mut Told) -> T) -> io::Result<T> {
        Ok(act(&mut self.told.lock().unwrap()))
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.told.lock().unwrap().closed = true;
    }
}

impl Vhost for Kernel {
    fn features(&self) -> io::Result<FeatureSet> {
        Ok(OFFERED)
    }

    fn set_owner(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_features(&self, features: FeatureSet) -> io::Result<()> {
        if !OFFERED.contains(features) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        self.tell(|told| told.features = features)
    }

    fn backend_features(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn set_backend_features(&self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_mem_table(&self, memory: &MemoryMap) -> io::Result<()> {
        self.tell(|told| told.regions = memory.regions().len())
    }

    fn set_vring_num(&self, _queue: QueueIndex, _size: u16) -> io::Result<()> {
        Ok(())
    }

    fn set_vring_base(&self, queue: QueueIndex, base: u16) -> io::Result<()> {
        self.tell(|told| told.bases[queue.number() as usize] = base)
    }

    fn vring_base(&self, queue: QueueIndex) -> io::Result<u16> {
        self.tell(|told| told.bases[queue.number() as usize])
    }

    fn set_vring_addr(&self, _queue: QueueIndex, _addresses: VringAddresses) -> io::Result<()> {
        Ok(())
    }

    fn set_vring_kick(&self, _queue: QueueIndex, _event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        Ok(())
    }

    fn set_vring_call(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let event = event.map(|event| event.try_clone_to_owned()).transpose()?;
        self.tell(|told| told.calls[queue.number() as usize] = event)
    }

    fn set_vring_err(&self, queue: QueueIndex, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let event = event.map(|event| event.try_clone_to_owned()).transpose()?;
        self.tell(|told| told.errors[queue.number() as usize] = event)
    }

    fn set_guest_cid(&self, cid: u64) -> io::Result<()> {
        if cid <= 2 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.tell(|told| told.cid = cid)
    }

    fn set_running(&self, running: bool) -> io::Result<()> {
        let mut told = self.told.lock().unwrap();
        if running && told.features.has(Feature::ACCESS_PLATFORM) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        told.starts += u32::from(running);
        told.running = running;
        Ok(())
    }

    fn send(&self, _message: &[u8; MESSAGE_SIZE]) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }

    fn receive(&self, _message: &mut [u8; MESSAGE_SIZE]) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Each device that was opened, in order.
type Opened = Arc<Mutex<Vec<Arc<Mutex<Told>>>>>;

fn start(dir: &tempfile::TempDir) -> (Opened, impl Drop) {
    let opened = Opened::default();
    let list = opened.clone();
    let open = Box::new(move || {
        let told = Arc::<Mutex<Told>>::default();
        list.lock().unwrap().push(told.clone());
        let event = EventFd::new().unwrap();
        VhostVsock::with_kernel(Arc::new(Kernel { told, event }))
    });
    let epoll = Arc::new(Epoll::new().unwrap());
    let path = KernelPath::new(GuestCid::new(7).unwrap(), 32768, open, epoll).unwrap();
    let worker = Worker::new(&dir.path().join("vhost.socket"), path).unwrap();
    let stop = worker.stop_event();
    let thread = std::thread::spawn(move || worker.run());
    struct Running(
        Arc<EventFd>,
        Option<std::thread::JoinHandle<io::Result<()>>>,
    );
    impl Drop for Running {
        fn drop(&mut self) {
            self.0.signal().unwrap();
            self.1.take().unwrap().join().unwrap().unwrap();
        }
    }
    (opened, Running(stop, Some(thread)))
}

fn config() -> GuestConfig {
    GuestConfig {
        cid: 7,
        ..GuestConfig::default()
    }
}

/// A front end that has not started anything yet.
fn connect(dir: &tempfile::TempDir) -> Vmm {
    Vmm::connect(dir.path().join("vhost.socket")).unwrap()
}

/// A front end that has started `guest`.
fn boot(dir: &tempfile::TempDir, guest: &Guest) -> Vmm {
    let mut vmm = connect(dir);
    vmm.start(guest, &config()).unwrap();
    vmm
}

/// How many events the guest has been told of.
fn events(guest: &Guest) -> u16 {
    let used_index = guest.queues()[Queue::Event as usize].addresses.used.at(2);
    let space = guest.space();
    space.load_u16(used_index, Ordering::Acquire).unwrap()
}

#[test]
fn bit_33_is_offered_and_goes_no_further() {
    let dir = tempfile::TempDir::new().unwrap();
    let (opened, _running) = start(&dir);
    let guest = Guest::new(config()).unwrap();
    let mut vmm = connect(&dir);
    let offered = vmm.features().unwrap();
    assert_eq!(offered & ACCESS_PLATFORM, ACCESS_PLATFORM);
    assert_eq!(
        offered & (1 << 26),
        0,
        "dirty logging is vhost's, not the guest's"
    );
    vmm.extra_features |= ACCESS_PLATFORM;
    vmm.queues = 2;
    vmm.start(&guest, &config()).unwrap();
    let device = opened.lock().unwrap()[0].clone();
    wait_until("the device runs", || device.lock().unwrap().running);
    let told = device.lock().unwrap();
    assert!(
        !told.features.has(Feature::ACCESS_PLATFORM),
        "{}",
        told.features
    );
    assert_eq!(told.features.bits() & VERSION_1, VERSION_1);
    assert_eq!((told.cid, told.regions, told.starts), (7, 2, 1));
}

#[test]
fn every_guest_gets_a_device_of_its_own() {
    let dir = tempfile::TempDir::new().unwrap();
    let (opened, _running) = start(&dir);
    for round in 0..3 {
        let guest = Guest::new(config()).unwrap();
        let vmm = boot(&dir, &guest);
        let device = opened.lock().unwrap()[round].clone();
        assert!(device.lock().unwrap().running);
        drop(vmm);
        // Its connections end with it: vhost-vsock resets them when it is closed.
        wait_until("it is closed", || device.lock().unwrap().closed);
    }
}

#[test]
fn only_a_guest_that_outlives_its_front_end_is_told_of_a_reset() {
    let dir = tempfile::TempDir::new().unwrap();
    let (_opened, _running) = start(&dir);
    let guest = Guest::new(config()).unwrap();
    let vmm = boot(&dir, &guest);
    assert_eq!(events(&guest), 0, "a guest that has just booted");
    drop(vmm);
    // The rings of a guest that has been running for a while.
    guest.reset(9).unwrap();
    let mut vmm = boot(&dir, &guest);
    let event = guest.wait_event(PATIENCE).unwrap();
    assert_eq!(event, Event::TRANSPORT_RESET);
    vmm.stop().unwrap();
    vmm.start_rings(&guest).unwrap();
    assert_eq!(events(&guest), 10, "once is enough");
}

#[test]
fn a_vm_that_pauses_keeps_its_device() {
    let dir = tempfile::TempDir::new().unwrap();
    let (opened, _running) = start(&dir);
    let guest = Guest::new(config()).unwrap();
    let mut vmm = boot(&dir, &guest);
    for _ in 0..3 {
        assert_eq!(vmm.stop().unwrap()[..2], [0, 0]);
        vmm.start_rings(&guest).unwrap();
    }
    assert_eq!(opened.lock().unwrap().len(), 1);
}

#[test]
fn a_masked_interrupt_is_neither_lost_nor_a_reason_to_start_again() {
    let dir = tempfile::TempDir::new().unwrap();
    let (opened, _running) = start(&dir);
    let guest = Guest::new(config()).unwrap();
    let vmm = boot(&dir, &guest);
    let device = opened.lock().unwrap()[0].clone();
    let call_from_the_kernel = || {
        let told = device.lock().unwrap();
        let call = told.calls[Queue::Tx as usize].as_ref().unwrap();
        EventFd::from(call.try_clone().unwrap()).signal().unwrap();
    };
    let masked = EventFd::new().unwrap();
    for _ in 0..3 {
        vmm.set_call(Queue::Tx, &masked).unwrap();
        assert!(masked.take().unwrap(), "what the old one said is not lost");
        call_from_the_kernel();
        assert!(masked.take().unwrap());
        vmm.set_call(Queue::Tx, &guest.queues()[Queue::Tx as usize].call)
            .unwrap();
        call_from_the_kernel();
        assert!(!masked.take().unwrap(), "the guest's own event again");
    }
    let told = device.lock().unwrap();
    assert_eq!((told.starts, told.running), (1, true));
}

#[test]
fn a_pause_after_a_mask_goes_on_with_the_new_event() {
    let dir = tempfile::TempDir::new().unwrap();
    let (opened, _running) = start(&dir);
    let guest = Guest::new(config()).unwrap();
    let vmm = boot(&dir, &guest);
    let device = opened.lock().unwrap()[0].clone();
    let masked = EventFd::new().unwrap();
    vmm.set_call(Queue::Rx, &masked).unwrap();
    masked.take().unwrap();
    // Memory that is shared again stops the device and starts it.
    vmm.share_memory(&guest).unwrap();
    let told = device.lock().unwrap();
    let call = told.calls[Queue::Rx as usize].as_ref().unwrap();
    EventFd::from(call.try_clone().unwrap()).signal().unwrap();
    assert!(masked.take().unwrap());
}

#[test]
fn a_guest_whose_queue_the_kernel_gives_up_on_is_told_of_a_reset() {
    let dir = tempfile::TempDir::new().unwrap();
    let (opened, _running) = start(&dir);
    let guest = Guest::new(config()).unwrap();
    let _vmm = boot(&dir, &guest);
    assert_eq!(events(&guest), 0);
    let device = opened.lock().unwrap()[0].clone();
    let told = device.lock().unwrap();
    let error = told.errors[Queue::Tx as usize].as_ref().unwrap();
    EventFd::from(error.try_clone().unwrap()).signal().unwrap();
    drop(told);
    let event = guest.wait_event(PATIENCE).unwrap();
    assert_eq!(event, Event::TRANSPORT_RESET);
}

#[test]
fn a_guest_whose_indices_have_wrapped_to_0_is_told_of_a_reset() {
    let dir = tempfile::TempDir::new().unwrap();
    let (_opened, _running) = start(&dir);
    let guest = Guest::new(config()).unwrap();
    leave_traces(&guest);
    let _vmm = boot(&dir, &guest);
    let event = guest.wait_event(PATIENCE).unwrap();
    assert_eq!(event, Event::TRANSPORT_RESET);
}
