// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's life: every state and every call, every way to fail and what is
//! left afterwards, and every number from outside that is refused.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use crosvm_vsock::address::{Address, BusAddr, Gpa, GuestCid, Hva, Iova, Range};
use crosvm_vsock::compat::{CompatError, IotlbBit, KernelKind, Mode};
use crosvm_vsock::event::EventFd;
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::{
    Access, Activation, Addressing, Error, Monitor, QueueIndex, ShareError, VhostVsock, Window,
};
use crosvm_vsock::memory::{MemoryMap, Region, PAGE};
use model_kernel::bench::{iovas, pages, HIGH, LOW, REGION_SIZE};
use model_kernel::{name, Bench, Call, Host, ModelKernel, Outcome, PageTable, Place};

const QUEUES: [QueueIndex; 2] = QueueIndex::ALL;

fn overloaded() -> Bench {
    Bench::new(ModelKernel::new(KernelKind::Overloaded))
}

// States and calls.

#[test]
fn a_new_device_can_only_be_owned() {
    let mut bench = Bench::unowned(ModelKernel::new(KernelKind::Overloaded));
    for _ in 0..2 {
        let activate = bench.activate(Addressing::Off).unwrap_err().to_string();
        assert!(activate.contains("activate is refused"), "{activate}");
        assert!(activate.contains("call own() first"), "{activate}");
        let stop = bench.device.stop().unwrap_err().to_string();
        assert!(stop.contains("stop is refused"), "{stop}");
        bench.device.reset().unwrap();
        assert!(!bench.device.is_running());
    }
    bench.device.own().unwrap();
    drop(bench.activate(Addressing::Off).unwrap());
    assert!(bench.device.is_running());
}

#[test]
fn an_idle_device_can_be_owned_again_reset_and_activated_but_not_stopped() {
    let mut bench = overloaded();
    bench.device.own().unwrap();
    bench.device.reset().unwrap();
    let stop = bench.device.stop().unwrap_err().to_string();
    assert!(stop.contains("the device is idle"), "{stop}");
    assert!(!bench.device.is_running());
    drop(bench.activate(Addressing::Off).unwrap());
}

#[test]
fn a_running_device_can_be_owned_again_stopped_and_reset_but_not_activated() {
    let mut bench = overloaded();
    let mut monitor = bench.activate(Addressing::Identity).unwrap();
    let again = bench.activate(Addressing::Off).unwrap_err().to_string();
    assert!(again.contains("the device is running"), "{again}");
    bench.device.own().unwrap();
    assert!(bench.device.is_running() && bench.kernel.is_running());
    bench.assert_flows(&mut monitor, Mode::Identity);

    bench.device.stop().unwrap();
    assert!(!bench.device.is_running() && bench.kernel.is_cut_off());
    assert!(bench.device.iotlb().is_none());
    drop(bench.activate(Addressing::Identity).unwrap());
    bench.device.reset().unwrap();
    assert!(!bench.device.is_running() && bench.kernel.is_quiet());
}

#[test]
fn the_iotlb_service_is_there_exactly_while_a_mode_that_has_one_runs() {
    let mut bench = overloaded();
    for addressing in bench.addressings() {
        let mode = addressing.mode();
        assert!(bench.device.iotlb().is_none());
        let monitor = bench.activate(addressing).unwrap();
        assert_eq!(bench.device.iotlb().is_some(), mode.wants_iotlb());
        let watched = if mode.wants_iotlb() { 3 } else { 2 };
        assert_eq!(monitor.descriptors().len(), watched, "{mode}");
        bench.device.stop().unwrap();
    }
}

#[test]
fn a_dropped_device_runs_no_more_while_its_monitor_lingers() {
    let mut bench = overloaded();
    let kernel = bench.kernel.clone();
    let monitor = bench.activate(Addressing::Identity).unwrap();
    assert!(kernel.is_running());
    drop(bench);
    assert!(!kernel.is_running());
    drop(monitor);
}

// The owner.

#[test]
fn a_descriptor_of_another_process_is_refused() {
    let mut bench = Bench::unowned(ModelKernel::new(KernelKind::Overloaded).owned_elsewhere());
    let error = bench.device.own().unwrap_err();
    assert!(matches!(error, Error::OwnedElsewhere), "{error}");
    assert!(error.to_string().contains("another process"), "{error}");
    assert!(bench.activate(Addressing::Off).is_err());
}

#[test]
fn a_failed_own_can_be_repeated() {
    let mut bench = Bench::unowned(ModelKernel::new(KernelKind::Overloaded));
    bench.kernel.fail(name::SET_OWNER, 0, libc::ENOMEM);
    let error = bench.device.own().unwrap_err().to_string();
    assert!(error.contains("VHOST_SET_OWNER"), "{error}");
    assert!(error.contains("out of memory"), "{error}");
    assert!(bench.activate(Addressing::Off).is_err());
    bench.device.own().unwrap();
    drop(bench.activate(Addressing::Off).unwrap());
}

// Failures half-way.

/// One call fails, whichever: the activation fails, or it did not need the call.
/// Then nothing runs, nothing is bound, and the next activation works.
#[test]
fn an_activation_that_fails_at_any_call_can_be_repeated() {
    for (kernel, sticky) in [("6.1", true), ("6.12", false)] {
        let model = || match sticky {
            true => ModelKernel::new(KernelKind::Overloaded).sticky(),
            false => ModelKernel::new(KernelKind::Overloaded),
        };
        for at in 0..4 {
            for failing in 0.. {
                // After another mode, so that a sticky IOTLB is on already.
                let mut bench = Bench::new(model());
                drop(bench.activate(Addressing::Identity).unwrap());
                bench.device.reset().unwrap();
                bench.kernel.forget_calls();

                let addressing = bench.addressings()[at].clone();
                let mode = addressing.mode();
                bench.kernel.fail_any(failing, libc::ENOMEM);
                let result = bench.activate(addressing.clone());
                if bench.kernel.has_faults() {
                    assert!(failing > 15, "{kernel} {mode}: {failing} calls in all");
                    break;
                }
                let failed = bench.kernel.calls()[failing].clone();
                let when = format!("{kernel} {mode}: {failed:?} failed");
                match result {
                    Ok(_) => {
                        // Only the question whether the IOTLB stayed on may fail.
                        let asked = mode == Mode::Off && failed.name() == name::WRITE;
                        assert!(asked, "{when}, and nobody noticed");
                        bench.device.reset().unwrap();
                    }
                    Err(error) => {
                        let text = error.to_string();
                        let named = text.contains(failed.name()) || text.contains("IOTLB");
                        assert!(named, "{when}: {text}");
                    }
                }
                assert!(!bench.device.is_running(), "{when}");
                assert!(bench.kernel.is_quiet(), "{when}");

                let mut monitor = bench
                    .activate(addressing)
                    .unwrap_or_else(|error| panic!("{when}, then {error}"));
                bench.assert_flows(&mut monitor, mode);
            }
        }
    }
}

#[test]
fn a_start_that_cannot_even_be_undone_can_be_repeated() {
    let mut bench = overloaded();
    for call in [
        name::SET_RUNNING,
        name::SET_VRING_KICK,
        name::SET_VRING_ERR,
        name::WRITE,
    ] {
        bench.kernel.fail_always(call, libc::EFAULT);
        bench.activate(Addressing::Identity).unwrap_err();
        assert!(!bench.device.is_running(), "{call}");
        bench.kernel.heal();
        let mut monitor = bench.activate(Addressing::Identity).unwrap();
        bench.assert_flows(&mut monitor, Mode::Identity);
        bench.device.stop().unwrap();
    }
}

/// One call fails, whichever: then the queues are stopped for good, or the call
/// did not matter and the device goes on.
#[test]
fn a_stop_that_fails_at_any_call_leaves_no_queue_on_guest_memory() {
    for at in 0..4 {
        for failing in 0.. {
            let mut bench = overloaded();
            let addressing = bench.addressings()[at].clone();
            let mode = addressing.mode();
            let mut monitor = bench.activate(addressing.clone()).unwrap();
            bench.assert_flows(&mut monitor, mode);
            bench.kernel.forget_calls();
            bench.kernel.fail_any(failing, libc::EFAULT);
            let result = bench.device.stop();
            if bench.kernel.has_faults() {
                assert!(failing > 3, "{mode}: {failing} calls in all");
                break;
            }
            let failed = bench.kernel.calls()[failing].clone();
            let when = format!("{mode}: {failed:?} failed");
            assert!(!bench.device.is_running(), "{when}");
            match result {
                Ok(bases) => {
                    let unbound = matches!(
                        failed,
                        Call::SetVringKick(..) | Call::SetVringCall(..) | Call::SetVringErr(..)
                    );
                    assert!(unbound, "{when}, and nobody noticed");
                    assert_eq!(bases, [1, 1], "{when}");
                }
                Err(_) => assert!(bench.kernel.is_quiet(), "{when}"),
            }
            let mut monitor = bench.activate(addressing).unwrap();
            bench.assert_flows(&mut monitor, mode);
        }
    }
}

#[test]
fn a_refused_start_says_what_the_errno_means_here() {
    let mut bench = overloaded();
    let mut text = |addressing: Addressing| {
        bench.kernel.fail(name::SET_RUNNING, 0, libc::EFAULT);
        bench.activate(addressing).unwrap_err().to_string()
    };
    let on = text(Addressing::Identity);
    assert!(
        on.contains("the IOTLB is on and the used ring is not mapped"),
        "{on}"
    );
    let off = text(Addressing::Off);
    assert!(
        off.contains("VHOST_VSOCK_SET_RUNNING") && off.contains("a used ring"),
        "{off}"
    );
    bench.kernel.fail(name::SET_MEM_TABLE, 0, libc::E2BIG);
    let regions = bench.activate(Addressing::Off).unwrap_err().to_string();
    assert!(regions.contains("max_mem_regions"), "{regions}");
}

// The CID.

#[test]
fn a_cid_in_use_is_refused_by_number_and_free_again_afterwards() {
    let host = Host::default();
    let model = || ModelKernel::new(KernelKind::Overloaded).on(&host);
    let (mut first, mut second) = (Bench::new(model()), Bench::new(model()));
    let mut monitor = first.activate(Addressing::Identity).unwrap();
    let error = second.activate(Addressing::Identity).unwrap_err();
    assert!(matches!(error, Error::CidInUse(_)), "{error}");
    assert!(error.to_string().contains("CID 42 is in use"), "{error}");
    assert!(second.kernel.is_quiet());
    first.assert_flows(&mut monitor, Mode::Identity);

    // Two devices side by side, and the number free again.
    let other = |activation: &mut Activation<'_>| activation.cid = GuestCid::new(43).unwrap();
    let mut beside = second.activate_with(Addressing::Off, other).unwrap();
    second.assert_flows(&mut beside, Mode::Off);
    first.assert_flows(&mut monitor, Mode::Identity);
    second.device.stop().unwrap();
    drop((first, monitor));
    drop(second.activate(Addressing::Identity).unwrap());
    assert_eq!(second.kernel.cid(), Some(42));
}

// Stop and resume.

/// Goes on from where `bases` says.
fn resume(bench: &mut Bench, addressing: Addressing, bases: [u16; 2]) -> Result<Monitor, Error> {
    bench.activate_with(addressing, |activation| {
        for (queue, base) in activation.queues.iter_mut().zip(bases) {
            queue.base = base;
        }
    })
}

#[test]
fn a_stopped_device_touches_nothing_and_goes_on_where_it_was() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        for addressing in bench.addressings() {
            let mode = addressing.mode();
            let mut monitor = bench.activate(addressing.clone()).unwrap();
            bench.assert_flows(&mut monitor, mode);
            let [rx, tx] = Place::of(mode);
            bench.transfer(&mut monitor, QueueIndex::Tx, tx.buffer, PAGE);
            let bases = bench.device.stop().unwrap();
            assert_eq!(bases, [1, 2], "{kernel} {mode}");
            assert!(bench.kernel.is_cut_off(), "{kernel} {mode}");
            for (queue, place) in QUEUES.into_iter().zip([rx, tx]) {
                let outcome = bench.kernel.access(queue, place.buffer, PAGE, Access::Read);
                assert!(!matches!(outcome, Outcome::Done(_)), "{kernel} {mode}");
            }
            // The lingering monitor answers nothing.
            monitor.handle();
            assert!(bench.kernel.is_cut_off(), "{kernel} {mode}");

            bench.kernel.forget_calls();
            let mut monitor = resume(&mut bench, addressing.clone(), bases).unwrap();
            let told = bench.kernel.calls();
            let anew = [name::SET_FEATURES, name::SET_RUNNING, name::SET_GUEST_CID];
            assert!(
                told.iter().all(|call| !anew.contains(&call.name())),
                "{kernel} {mode}: the host's programs would notice {told:?}"
            );
            for queue in QUEUES {
                let mapped = bench.kernel.caches_rings(queue);
                assert_eq!(mapped, bench.kernel.entries().is_some(), "{kernel} {mode}");
            }
            bench.assert_flows(&mut monitor, mode);
            assert_eq!(bench.device.stop().unwrap(), [2, 3], "{kernel} {mode}");
            bench.device.reset().unwrap();
        }
    }
}

/// As after a snapshot: the bases come from elsewhere.
#[test]
fn a_fresh_device_goes_on_where_another_was() {
    for addressing in overloaded().addressings() {
        let mode = addressing.mode();
        let mut bench = overloaded();
        let addressing = match addressing {
            // A window follows one device.
            Addressing::Restricted(_) => Addressing::Restricted(bench.window()),
            other => other,
        };
        let mut monitor = resume(&mut bench, addressing, [5, 6]).unwrap();
        let calls = bench.kernel.calls();
        for (queue, base) in QUEUES.into_iter().zip([5, 6]) {
            assert!(calls.contains(&Call::SetVringBase(queue, base)), "{mode}");
        }
        bench.assert_flows(&mut monitor, mode);
        assert_eq!(bench.device.stop().unwrap(), [6, 7], "{mode}");
    }
}

#[test]
fn a_resume_that_fails_at_any_call_can_be_repeated() {
    for at in 0..4 {
        for failing in 0.. {
            let mut bench = overloaded();
            let addressing = bench.addressings()[at].clone();
            let mode = addressing.mode();
            drop(bench.activate(addressing.clone()).unwrap());
            let bases = bench.device.stop().unwrap();
            bench.kernel.forget_calls();
            bench.kernel.fail_any(failing, libc::EFAULT);
            let result = resume(&mut bench, addressing.clone(), bases);
            if bench.kernel.has_faults() {
                assert!(failing > 7, "{mode}: {failing} calls in all");
                break;
            }
            let when = format!("{mode}: {:?} failed", bench.kernel.calls()[failing]);
            assert!(result.is_err(), "{when}, and nobody noticed");
            assert!(!bench.device.is_running(), "{when}");
            assert!(bench.kernel.is_quiet(), "{when}");
            let mut monitor = resume(&mut bench, addressing, bases).unwrap();
            bench.assert_flows(&mut monitor, mode);
        }
    }
}

/// A monitor may read a miss just after the stop. Its queue is woken by the resume.
#[test]
fn what_was_asked_around_a_stop_is_answered_by_the_resume() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let table = PageTable::scattered(&bench.memory);
        let addressing = Addressing::Translated(Arc::new(table));
        let mut monitor = bench.activate(addressing.clone()).unwrap();
        let at = BusAddr(PageTable::BASE.raw() + 100 * PAGE);
        let outcome = bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
        assert_eq!(outcome, Outcome::Missed);
        let bases = bench.device.stop().unwrap();
        assert!(monitor.handle().is_empty());
        assert_eq!(bench.kernel.wakeups(QueueIndex::Tx), 0, "{kernel}");
        let mut monitor = resume(&mut bench, addressing, bases).unwrap();
        assert_eq!(bench.kernel.wakeups(QueueIndex::Tx), 1, "{kernel}");
        let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
        assert!(matches!(outcome, Outcome::Done(_)), "{kernel}: {outcome:?}");
    }
}

/// What is asked around a stop and may not be had when the device goes on.
#[test]
fn a_resume_that_is_denied_fails_and_a_start_works() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let table = Arc::new(PageTable::scattered(&bench.memory));
        let addressing = Addressing::Translated(table.clone());
        let mut monitor = bench.activate(addressing.clone()).unwrap();
        let at = BusAddr(PageTable::BASE.raw() + 100 * PAGE);
        bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
        let bases = bench.device.stop().unwrap();
        assert!(monitor.handle().is_empty(), "{kernel}");
        table.unmap(Iova(at.raw()));
        let error = resume(&mut bench, addressing.clone(), bases).unwrap_err();
        assert!(matches!(error, Error::Denied(_)), "{kernel}: {error}");
        assert!(error.to_string().contains(&at.to_string()), "{error}");
        assert!(!bench.device.is_running(), "{kernel}");
        assert!(bench.kernel.is_quiet(), "{kernel}");
        let mut monitor = resume(&mut bench, addressing, bases).unwrap();
        bench.assert_flows(&mut monitor, Mode::Translated);
    }
}

#[test]
fn a_stopped_device_can_go_on_elsewhere_than_it_was() {
    for addressing in overloaded().addressings() {
        let mode = addressing.mode();
        let mut bench = overloaded();
        let addressing = match addressing {
            Addressing::Restricted(_) => Addressing::Restricted(bench.window()),
            other => other,
        };
        drop(bench.activate(addressing.clone()).unwrap());
        bench.device.stop().unwrap();
        let mut monitor = resume(&mut bench, addressing, [9, 11]).unwrap();
        bench.assert_flows(&mut monitor, mode);
        assert_eq!(bench.device.stop().unwrap(), [10, 12], "{mode}");
    }
}

/// What was unshared while the device was stopped stays out of reach, what was
/// shared is there.
#[test]
fn a_window_that_changed_while_stopped_is_followed_on_resume() {
    let mut bench = overloaded();
    let window = bench.window();
    let addressing = Addressing::Restricted(window.clone());
    drop(bench.activate(addressing.clone()).unwrap());
    let bases = bench.device.stop().unwrap();
    let (closed, opened) = (
        pages(Gpa(LOW.raw() + 8 * PAGE), 1),
        pages(Gpa(LOW.raw() + 40 * PAGE), 1),
    );
    window.unshare(closed).unwrap();
    window.share(opened).unwrap();
    assert!(bench.kernel.is_cut_off());
    let mut monitor = resume(&mut bench, addressing, bases).unwrap();
    assert!(!bench.kernel.holds(iovas(closed)));
    let at = BusAddr(opened.first().raw());
    let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

/// Whatever differs from before the stop, the device starts from scratch.
#[test]
fn a_stopped_device_starts_anew_in_another_mode() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        for first in bench.addressings() {
            for second in bench.addressings() {
                drop(bench.activate(first.clone()).unwrap());
                let bases = bench.device.stop().unwrap();
                let mode = second.mode();
                let mut monitor = resume(&mut bench, second, bases)
                    .unwrap_or_else(|error| panic!("{kernel} {first:?} {mode}: {error}"));
                bench.assert_flows(&mut monitor, mode);
                bench.device.reset().unwrap();
            }
        }
    }
}

#[test]
fn the_index_runs_past_65535() {
    let mut bench = overloaded();
    let mut monitor = bench
        .activate_with(Addressing::Identity, |activation| {
            activation.queues[1].base = u16::MAX;
        })
        .unwrap();
    bench.assert_flows(&mut monitor, Mode::Identity);
    assert_eq!(bench.device.stop().unwrap(), [1, 0]);
}

/// A notification may have come before the queue ran, or while it was stopped.
#[test]
fn queues_are_kicked_once_they_run_and_the_driver_is_called_on_resume() {
    for base in [0, 7] {
        let mut bench = overloaded();
        let early: Vec<_> = bench
            .kicks
            .iter()
            .map(|kick| kick.try_clone().unwrap())
            .collect();
        bench.kernel.before(name::SET_RUNNING, 0, move || {
            let kicked = early.iter().any(|kick| kick.take().unwrap());
            assert!(!kicked, "a kick before the start is lost");
        });
        drop(
            bench
                .activate_with(Addressing::Identity, |activation| {
                    activation.queues[0].base = base;
                })
                .unwrap(),
        );
        for kick in &bench.kicks {
            assert!(kick.take().unwrap());
        }
        assert_eq!(bench.calls[0].take().unwrap(), base != 0);
        assert!(!bench.calls[1].take().unwrap());
    }
}

#[test]
fn after_a_reset_another_mode_runs_on_the_same_descriptor() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let opened = bench.kernel.clone();
        for addressing in bench.addressings().into_iter().chain(bench.addressings()) {
            let mode = addressing.mode();
            let mut monitor = bench.activate(addressing).unwrap();
            bench.assert_flows(&mut monitor, mode);
            bench.device.reset().unwrap();
            assert!(opened.is_quiet(), "{kernel} {mode}");
            assert_eq!(opened.cid(), Some(Bench::CID), "{kernel} {mode}");
        }
    }
}

// Kernels that cannot do what is asked.

#[test]
fn without_an_iotlb_the_modes_that_want_one_end_before_anything_is_touched() {
    let mut bench = Bench::new(ModelKernel::new(KernelKind::NoIotlb));
    for addressing in bench.addressings() {
        let mode = addressing.mode();
        bench.kernel.forget_calls();
        match bench.activate(addressing) {
            Ok(mut monitor) => {
                assert_eq!(mode, Mode::Off);
                bench.assert_flows(&mut monitor, mode);
                bench.device.stop().unwrap();
            }
            Err(error) => {
                assert!(
                    matches!(error, Error::Compat(CompatError::IotlbUnavailable { .. })),
                    "{mode}: {error}"
                );
                let text = error.to_string();
                assert!(text.contains(&mode.to_string()), "{text}");
                assert!(text.contains("NoIotlb"), "{text}");
                assert_eq!(bench.kernel.calls(), [], "{mode}");
            }
        }
    }
}

#[test]
fn the_wrong_separate_bit_is_found_out_by_behaviour() {
    let mut bench = Bench::new(ModelKernel::new(KernelKind::Split));
    for addressing in bench.addressings() {
        let mode = addressing.mode();
        if !mode.wants_iotlb() {
            continue;
        }
        for wrong in [IotlbBit::new(50).unwrap(), IotlbBit::NONE] {
            let error = bench
                .activate_with(addressing.clone(), |activation| {
                    activation.iotlb_bit = wrong;
                })
                .unwrap_err();
            assert!(matches!(error, Error::IotlbOff { .. }), "{mode}: {error}");
            let text = error.to_string();
            assert!(text.contains("ACCESS_PLATFORM"), "{text}");
            assert!(text.contains("crosvm-vsock probe"), "{text}");
            assert!(bench.kernel.is_quiet());
        }
        let mut monitor = bench.activate(addressing).unwrap();
        bench.assert_flows(&mut monitor, mode);
        bench.device.stop().unwrap();
    }
}

// Bad input.

/// Refused with a text that holds all of `named`, and before the kernel hears.
fn assert_refused(
    addressing: Addressing,
    named: &[&str],
    change: impl FnOnce(&mut Activation<'_>),
) {
    let mut bench = overloaded();
    bench.kernel.forget_calls();
    let text = bench
        .activate_with(addressing, change)
        .unwrap_err()
        .to_string();
    for part in named {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    assert_eq!(bench.kernel.calls(), [], "{text}");
    drop(bench.activate(Addressing::Off).unwrap());
}

#[test]
fn reserved_and_oversized_cids_are_refused() {
    for cid in [0, 1, 2, 0xffff_ffff, 0x1_0000_0000, u64::MAX] {
        let text = GuestCid::new(cid).unwrap_err().to_string();
        assert!(text.contains(&format!("CID {cid} ")), "{text}");
        assert!(text.contains("from 3 to 4294967294"), "{text}");
    }
}

#[test]
fn queue_sizes_that_cannot_be_are_refused() {
    for size in [0, 3, 255, 0x8001, u16::MAX] {
        for (i, queue) in QUEUES.into_iter().enumerate() {
            let named = [&*format!("queue {queue}"), &*format!("size {size} ")];
            assert_refused(Addressing::Off, &named, |activation| {
                activation.queues[i].size = size;
            });
        }
    }
}

#[test]
fn rings_outside_of_memory_wrapping_or_unaligned_are_refused() {
    let end = BusAddr(LOW.raw() + REGION_SIZE);
    // The last used ring that fits is 2056 bytes before the end.
    let bad = [
        ("descriptor table", BusAddr(0), "region"),
        ("descriptor table", BusAddr(end.raw() - 0xff0), "region"),
        ("descriptor table", BusAddr(LOW.raw() + 8), "16"),
        (
            "descriptor table",
            BusAddr(0u64.wrapping_sub(16)),
            "last 64-bit address",
        ),
        ("available ring", end, "region"),
        ("available ring", BusAddr(LOW.raw() + 1), "2 bytes"),
        (
            "available ring",
            BusAddr(u64::MAX - 1),
            "last 64-bit address",
        ),
        ("used ring", BusAddr(end.raw() - 2052), "region"),
        ("used ring", BusAddr(LOW.raw() + 2), "4 bytes"),
        (
            "used ring",
            BusAddr(0u64.wrapping_sub(4)),
            "last 64-bit address",
        ),
    ];
    for addressing in [Addressing::Off, Addressing::Identity] {
        for (ring, at, reason) in bad {
            let named = ["queue 1", ring, &at.to_string(), reason];
            assert_refused(addressing.clone(), &named, |activation| {
                let queue = &mut activation.queues[1];
                match ring {
                    "descriptor table" => queue.desc = at,
                    "available ring" => queue.avail = at,
                    _ => queue.used = at,
                }
            });
        }
    }
}

#[test]
fn the_largest_and_the_smallest_queue_run() {
    for size in [1, 32768] {
        for addressing in overloaded().addressings() {
            let mode = addressing.mode();
            let mut bench = overloaded();
            let addressing = match addressing {
                Addressing::Restricted(_) => {
                    let window = Window::new();
                    window.share(pages(HIGH, REGION_SIZE / PAGE)).unwrap();
                    window.share(pages(LOW, REGION_SIZE / PAGE)).unwrap();
                    Addressing::Restricted(Arc::new(window))
                }
                other => other,
            };
            let result = bench.activate_with(addressing, |activation| {
                for (queue, place) in activation.queues.iter_mut().zip(Place::of(mode)) {
                    queue.size = size;
                    let at = |page: u64| BusAddr(place.desc.raw() + page * PAGE);
                    if mode != Mode::Translated {
                        (queue.avail, queue.used) = (at(128), at(150));
                    } else {
                        // The places lie 64 pages apart, the rings across pages.
                        queue.size = size.min(1024);
                        (queue.avail, queue.used) = (at(8), at(16));
                    }
                }
            });
            let mut monitor = result.unwrap_or_else(|error| panic!("{mode} {size}: {error}"));
            let at = Place::of(mode)[0].buffer;
            let outcome = bench.transfer(&mut monitor, QueueIndex::Rx, at, PAGE);
            assert!(matches!(outcome, Outcome::Done(_)), "{mode} {size}");
        }
    }
}

#[test]
fn memory_that_overlaps_or_has_too_many_regions_is_refused() {
    let region = |gpa: u64, hva: u64| Region::new(Gpa(gpa), Hva(hva), PAGE).unwrap();
    let many = |count: u64| {
        (0..count)
            .map(|n| region(2 * n * PAGE, 2 * n * PAGE))
            .collect()
    };
    let text = |regions| MemoryMap::new(regions).unwrap_err().to_string();
    assert!(text(many(65)).contains("65 memory regions"));
    assert!(text(many(0)).contains("0 memory regions"));
    assert!(MemoryMap::new(many(64)).is_ok());
    let overlap = text(vec![region(0x5000, 0), region(0x5000, 0x9000)]);
    assert!(overlap.contains("0x5000"), "{overlap}");
    let size = Region::new(Gpa(0x5000), Hva(0), 0).unwrap_err().to_string();
    assert!(size.contains("size is 0"), "{size}");
}

#[test]
fn all_of_64_regions_are_mapped() {
    let mut bench = overloaded();
    let mut regions: Vec<_> = bench.memory.regions().to_vec();
    for n in 0..62u64 {
        let gpa = Gpa(0x1_0000_0000 + 2 * n * PAGE);
        regions.push(Region::new(gpa, Hva(0x7d00_0000_0000 - 2 * n * PAGE), PAGE).unwrap());
    }
    bench.memory = MemoryMap::new(regions).unwrap();
    let mut monitor = bench.activate(Addressing::Identity).unwrap();
    for region in bench.memory.regions() {
        let at = BusAddr(region.gpa().first().raw());
        let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
        let expected = Range::new(region.hva().first(), PAGE).unwrap();
        assert_eq!(outcome, Outcome::Done(vec![expected]));
    }
    assert_eq!(bench.device.iotlb().unwrap().stats().misses, 0);
}

#[test]
fn ranges_that_cannot_be_shared_are_refused_and_change_nothing() {
    let text = |first: u64, size| Range::new(Gpa(first), size).unwrap_err().to_string();
    assert!(text(0x5000, 0).contains("0x5000: its") || text(0x5000, 0).contains("size is 0"));
    assert!(text(u64::MAX, 2).contains("past the last 64-bit address"));

    let mut bench = overloaded();
    let window = bench.window();
    let mut monitor = bench
        .activate(Addressing::Restricted(window.clone()))
        .unwrap();
    let (shared, entries) = (window.shared(), bench.kernel.entries());
    let gap = pages(Gpa(LOW.raw() + REGION_SIZE - PAGE), 2);
    let crooked = Range::new(Gpa(LOW.raw() + 1), PAGE).unwrap();
    let outside = window.share(gap).unwrap_err();
    assert!(matches!(outside, ShareError::OutsideMemory(range) if range == gap));
    assert!(outside.to_string().contains(&gap.to_string()), "{outside}");
    for result in [window.share(crooked), window.unshare(crooked)] {
        let error = result.unwrap_err();
        assert!(matches!(error, ShareError::Alignment(_)), "{error}");
        assert!(error.to_string().contains(&crooked.to_string()), "{error}");
    }
    assert_eq!((window.shared(), bench.kernel.entries()), (shared, entries));
    bench.assert_flows(&mut monitor, Mode::Restricted);
}

#[test]
fn a_window_over_what_is_not_memory_is_refused_at_activation() {
    let mut bench = overloaded();
    let window = bench.window();
    let gap = pages(Gpa(0x10_0000_0000), 1);
    window.share(gap).unwrap();
    let addressing = Addressing::Restricted(window.clone());
    let error = bench.activate(addressing.clone()).unwrap_err().to_string();
    assert!(error.contains(&gap.to_string()), "{error}");
    assert!(bench.kernel.is_quiet());
    window.unshare(gap).unwrap();
    drop(bench.activate(addressing).unwrap());
}

#[test]
fn an_event_that_is_no_eventfd_is_refused_with_the_queue() {
    let mut bench = overloaded();
    let null = File::open("/dev/null").unwrap();
    let error = bench
        .activate_with(Addressing::Off, |activation| {
            activation.queues[1].kick = null.as_fd();
        })
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("VHOST_SET_VRING_KICK for queue 1"),
        "{error}"
    );
    assert!(bench.kernel.is_quiet());
}

#[test]
fn a_descriptor_that_is_no_vhost_vsock_is_refused() {
    let (socket, _peer) = UnixStream::pair().unwrap();
    let others: [OwnedFd; 4] = [
        File::open("/dev/null").unwrap().into(),
        File::open("/proc/self/exe").unwrap().into(),
        socket.into(),
        EventFd::new()
            .unwrap()
            .as_fd()
            .try_clone_to_owned()
            .unwrap(),
    ];
    for fd in others {
        let error = VhostVsock::adopt(fd).unwrap_err();
        assert!(matches!(error, Error::NotVhostVsock(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains("/dev/vhost-vsock"), "{text}");
    }
}

#[test]
fn a_vhost_device_of_another_type_is_refused() {
    let kernel = ModelKernel::new(KernelKind::Overloaded);
    kernel.fail(name::SET_GUEST_CID, 0, libc::ENOTTY);
    let error = VhostVsock::with_kernel(Arc::new(kernel)).unwrap_err();
    assert!(error.to_string().contains("another type"), "{error}");
}

#[test]
fn a_missing_device_says_what_to_type() {
    let missing = VhostVsock::open(Path::new("/dev/no-such-vhost-vsock")).unwrap_err();
    let text = missing.to_string();
    assert!(text.contains("/dev/no-such-vhost-vsock"), "{text}");
    assert!(text.contains("modprobe vhost_vsock"), "{text}");
    let other = VhostVsock::open(Path::new("/dev/null")).unwrap_err();
    assert!(matches!(other, Error::NotVhostVsock(_)), "{other}");
}

// What a guest cannot widen.

#[test]
fn a_guest_that_acknowledges_what_it_was_not_offered_changes_nothing() {
    let mut bench = overloaded();
    let all = FeatureSet::from_bits(u64::MAX);
    drop(
        bench
            .activate_with(Addressing::Off, |activation| activation.acked = all)
            .unwrap(),
    );
    let told = bench.kernel.acked();
    assert!(!told.has(Feature::ACCESS_PLATFORM), "{told}");
    assert!(bench.kernel.entries().is_none());
    // A buffer outside of memory is the queue's failure and nobody else's.
    let outcome = bench
        .kernel
        .access(QueueIndex::Tx, BusAddr(0), PAGE, Access::Read);
    assert_eq!(outcome, Outcome::Refused(libc::EFAULT));
}
