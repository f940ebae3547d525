// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The life of a device that a denial or a failure of its IOTLB has halted: it is
//! stopped or reset as ever, and runs again only from scratch.

use crosvm_vsock::address::BusAddr;
use crosvm_vsock::compat::{KernelKind, Mode};
use crosvm_vsock::kernel::{Access, Addressing, Failure, Monitor, QueueIndex};
use crosvm_vsock::memory::PAGE;
use model_kernel::{name, Bench, ModelKernel, Outcome};

fn overloaded() -> Bench {
    Bench::new(ModelKernel::new(KernelKind::Overloaded))
}

/// Goes on from where `bases` says.
fn resume(bench: &mut Bench, addressing: Addressing, bases: [u16; 2]) -> Monitor {
    let activated = bench.activate_with(addressing, |activation| {
        for (queue, base) in activation.queues.iter_mut().zip(bases) {
            queue.base = base;
        }
    });
    activated.unwrap()
}

/// Halts a device that runs in an IOTLB mode: by a denial, or by a descriptor that
/// cannot be read.
fn halt(bench: &Bench, monitor: &mut Monitor, mode: Mode, denied: bool) {
    if !denied {
        bench.kernel.fail(name::READ, 0, libc::EBADFD);
    }
    let outside = BusAddr(8 * PAGE);
    let outcome = bench
        .kernel
        .access(QueueIndex::Tx, outside, PAGE, Access::Read);
    assert_eq!(outcome, Outcome::Missed, "{mode}");
    match monitor.handle()[..] {
        [Failure::Denied(_)] => assert!(denied, "{mode}"),
        [Failure::Service(_)] => assert!(!denied, "{mode}"),
        ref other => panic!("{mode}: {other:?}"),
    }
    bench.assert_halted(mode);
    assert!(bench.device.is_running(), "{mode}: it was not stopped yet");
}

#[test]
fn a_halted_device_stops_where_it_was_and_starts_anew() {
    for denied in [true, false] {
        for (kernel, model) in Bench::kernels() {
            let mut bench = Bench::new(model);
            for addressing in bench.addressings().into_iter().skip(1) {
                let mode = addressing.mode();
                let mut monitor = bench.activate(addressing.clone()).unwrap();
                bench.assert_flows(&mut monitor, mode);
                halt(&bench, &mut monitor, mode, denied);
                let bases = bench.device.stop().unwrap();
                assert_eq!(bases, [1, 1], "{kernel} {mode}");
                assert!(bench.kernel.is_quiet(), "{kernel} {mode}");
                assert!(monitor.handle().is_empty(), "{kernel} {mode}");

                bench.kernel.forget_calls();
                let mut monitor = resume(&mut bench, addressing, bases);
                let told = bench.kernel.calls();
                for anew in [name::SET_FEATURES, name::SET_VRING_BASE, name::SET_RUNNING] {
                    let found = told.iter().any(|call| call.name() == anew);
                    assert!(found, "{kernel} {mode}: no {anew} in {told:?}");
                }
                assert!(bench.kernel.is_running(), "{kernel} {mode}");
                bench.assert_flows(&mut monitor, mode);
                assert_eq!(bench.device.stop().unwrap(), [2, 2], "{kernel} {mode}");
                bench.device.reset().unwrap();
            }
        }
    }
}

/// The queues are stopped even if the kernel neither stops them at once nor takes
/// a message any more.
#[test]
fn a_device_that_could_not_be_halted_is_stopped_all_the_same() {
    for addressing in overloaded().addressings().into_iter().skip(1) {
        let mode = addressing.mode();
        let mut bench = overloaded();
        let addressing = match addressing {
            Addressing::Restricted(_) => Addressing::Restricted(bench.window()),
            other => other,
        };
        let mut monitor = bench.activate(addressing.clone()).unwrap();
        bench.kernel.fail(name::SET_RUNNING, 0, libc::EPERM);
        let outside = BusAddr(8 * PAGE);
        bench
            .kernel
            .access(QueueIndex::Tx, outside, PAGE, Access::Read);
        assert_eq!(monitor.handle().len(), 1, "{mode}");
        assert!(bench.kernel.is_running(), "{mode}");
        bench.kernel.fail_always(name::WRITE, libc::EFAULT);
        assert_eq!(bench.device.stop().unwrap(), [0, 0], "{mode}");
        assert!(bench.kernel.is_quiet(), "{mode}");
        bench.kernel.heal();
        let mut monitor = bench.activate(addressing).unwrap();
        bench.assert_flows(&mut monitor, mode);
    }
}

/// The next activation is none of a monitor's business that lingers.
#[test]
fn a_halted_devices_lingering_monitor_leaves_the_next_activation_alone() {
    for stop in [false, true] {
        let mut bench = overloaded();
        let addressing = Addressing::Restricted(bench.window());
        let mut old = bench.activate(addressing.clone()).unwrap();
        halt(&bench, &mut old, Mode::Restricted, true);
        match stop {
            true => drop(bench.device.stop().unwrap()),
            false => bench.device.reset().unwrap(),
        }
        let mut monitor = bench.activate(addressing).unwrap();
        let outside = BusAddr(8 * PAGE);
        bench
            .kernel
            .access(QueueIndex::Tx, outside, PAGE, Access::Read);
        assert!(old.handle().is_empty());
        assert!(bench.kernel.is_running());
        assert_eq!(monitor.handle().len(), 1);
        bench.assert_halted(Mode::Restricted);
    }
}
