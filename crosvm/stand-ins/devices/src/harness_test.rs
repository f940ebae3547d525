// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The transport against a device that writes down what it is asked.

use std::sync::mpsc::{channel, Receiver, Sender};

use base::RawDescriptor;
use vm_memory::GuestAddress;

use super::*;
use crate::virtio::DeviceType;

#[derive(Debug, PartialEq)]
enum Asked {
    Ack(u64),
    Activate(Vec<usize>),
    Reset,
    Notify(MsixStatus),
    Sleep,
    Wake(bool),
    Restore(u8),
}

struct Diary {
    asked: Sender<Asked>,
    fails: bool,
    queues: Option<BTreeMap<usize, Queue>>,
    state: u8,
}

impl VirtioDevice for Diary {
    fn keep_rds(&self) -> Vec<RawDescriptor> {
        Vec::new()
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[4, 4, 4]
    }

    fn features(&self) -> u64 {
        1 << 32
    }

    fn ack_features(&mut self, value: u64) {
        self.asked.send(Asked::Ack(value)).unwrap();
    }

    fn activate(
        &mut self,
        _mem: GuestMemory,
        _interrupt: Interrupt,
        queues: BTreeMap<usize, Queue>,
    ) -> Result<()> {
        let indices = queues.keys().copied().collect();
        self.asked.send(Asked::Activate(indices)).unwrap();
        ensure!(!self.fails, "as told");
        self.queues = Some(queues);
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        self.asked.send(Asked::Reset).unwrap();
        self.queues = None;
        Ok(())
    }

    fn control_notify(&self, behavior: MsixStatus) {
        self.asked.send(Asked::Notify(behavior)).unwrap();
    }

    fn virtio_sleep(&mut self) -> Result<Option<BTreeMap<usize, Queue>>> {
        self.asked.send(Asked::Sleep).unwrap();
        Ok(self.queues.take())
    }

    fn virtio_wake(
        &mut self,
        state: Option<(GuestMemory, Interrupt, BTreeMap<usize, Queue>)>,
    ) -> Result<()> {
        self.asked.send(Asked::Wake(state.is_some())).unwrap();
        self.queues = state.map(|(_, _, queues)| queues);
        Ok(())
    }

    fn virtio_snapshot(&mut self) -> Result<AnySnapshot> {
        AnySnapshot::to_any(self.state)
    }

    fn virtio_restore(&mut self, data: AnySnapshot) -> Result<()> {
        self.state = AnySnapshot::from_any(data)?;
        self.asked.send(Asked::Restore(self.state)).unwrap();
        Ok(())
    }
}

fn transport(fails: bool, state: u8) -> (Transport, Receiver<Asked>) {
    let (asked, diary) = channel();
    let mem = GuestMemory::new(&[(GuestAddress(0), 0x1000)]).unwrap();
    let device = Diary {
        asked,
        fails,
        queues: None,
        state,
    };
    (Transport::new(mem, Box::new(device)).unwrap(), diary)
}

fn ready(transport: &mut Transport) {
    for index in [0, 2] {
        transport.queue(index).set_vector(index as u16);
        transport.queue(index).set_ready(true);
    }
    transport.write_status(status::READY);
}

fn asked(diary: &Receiver<Asked>) -> Vec<Asked> {
    diary.try_iter().collect()
}

#[test]
fn from_power_on_to_reset_and_again() {
    let (mut transport, diary) = transport(false, 0);
    transport.ack_features(1 << 32 | 1);
    assert_eq!(asked(&diary), [Asked::Ack(1), Asked::Ack(1 << 32)]);
    transport.write_status(status::READY & !status::DRIVER_OK);
    assert_eq!(asked(&diary), []);
    for _ in 0..2 {
        ready(&mut transport);
        assert_eq!(asked(&diary), [Asked::Activate(vec![0, 2])]);
        assert_eq!(transport.status(), status::READY);
        transport.write_status(0);
        assert_eq!(asked(&diary), [Asked::Reset]);
        assert!(!transport.queue(0).ready());
    }
}

#[test]
fn a_failed_activation_is_final() {
    let (mut transport, diary) = transport(true, 0);
    ready(&mut transport);
    assert_eq!(asked(&diary), [Asked::Activate(vec![0, 2])]);
    assert_eq!(transport.status(), status::READY | status::NEEDS_RESET);
    transport.write_status(0);
    assert!(transport.queue(0).ready());
    ready(&mut transport);
    assert_eq!(asked(&diary), []);
    assert_eq!(transport.status(), status::READY);
}

#[test]
fn interrupts_follow_the_masks() {
    let (mut transport, diary) = transport(false, 0);
    transport.set_config_vector(3);
    transport.enable_msix();
    ready(&mut transport);
    let now = Duration::ZERO;
    let interrupt = transport.interrupt().unwrap().clone();
    interrupt.signal_used_queue(2);
    interrupt.signal_config_changed();
    assert!(transport.interrupted(2, now) && transport.interrupted(3, now));
    assert!(!transport.interrupted(2, now) && !transport.interrupted(0, now));
    asked(&diary);
    transport.mask_vector(2, true);
    assert_eq!(asked(&diary), [Asked::Notify(MsixStatus::EntryChanged(2))]);
    interrupt.signal_used_queue(2);
    assert!(transport.pending(2) && !transport.interrupted(2, now));
    transport.mask_vector(2, false);
    assert!(transport.interrupted(2, now));
    transport.write_status(status::READY | status::SUSPEND);
    interrupt.signal_used_queue(0);
    assert!(!transport.interrupted(0, now));
    transport.write_status(status::READY);
    assert!(transport.interrupted(0, now));
}

#[test]
fn a_snapshot_moves_to_another_device() {
    let (mut old, diary) = transport(false, 42);
    old.enable_msix();
    ready(&mut old);
    assert!(old.snapshot().is_err());
    old.sleep().unwrap();
    old.sleep().unwrap();
    let snapshot = old.snapshot().unwrap();
    old.wake().unwrap();
    old.wake().unwrap();
    let mut life = asked(&diary);
    life.retain(|asked| !matches!(asked, Asked::Notify(_)));
    let expected = [Asked::Activate(vec![0, 2]), Asked::Sleep, Asked::Wake(true)];
    assert_eq!(life, expected);

    let (mut new, diary) = transport(false, 0);
    assert!(new.restore(snapshot.clone()).is_err());
    new.sleep().unwrap();
    new.restore(snapshot.clone()).unwrap();
    assert!(new.restore(snapshot).is_err());
    new.wake().unwrap();
    let expected = [Asked::Sleep, Asked::Restore(42), Asked::Wake(true)];
    assert_eq!(asked(&diary), expected);
    assert_eq!(new.status(), status::READY);
    assert!(new.kick(0).wait_timeout(Duration::ZERO) == Ok(EventWaitResult::Signaled));
    new.interrupt().unwrap().signal_used_queue(2);
    assert!(new.interrupted(2, Duration::ZERO));
    new.write_status(0);
    assert_eq!(asked(&diary), [Asked::Reset]);
}
