// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stop and resume: nothing is lost, nothing is touched meanwhile.

use std::sync::Arc;

use crosvm_vsock::address::{Address, BusAddr, Gpa, Iova};
use crosvm_vsock::compat::Mode;
use crosvm_vsock::kernel::{Access, Addressing, Error, Monitor, QueueIndex};
use crosvm_vsock::memory::PAGE;
use model_kernel::bench::{iovas, pages, LOW};
use model_kernel::{name, Bench, Call, Outcome, PageTable, Place};

use crate::{overloaded, QUEUES};

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
