// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rule 6: what the kernel asks for.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crosvm_vsock::address::{Address, BusAddr, Iova, Range};
use crosvm_vsock::compat::Mode;
use crosvm_vsock::event::EventFd;
use crosvm_vsock::kernel::{Access, Addressing, Failure, QueueIndex};
use crosvm_vsock::memory::PAGE;
use model_kernel::bench::{LOW, REGION_SIZE};
use model_kernel::{Bench, Outcome};

use crate::{host_of, overloaded, page, page_table, readable, virtual_page, QUEUES};

#[test]
fn rule_6_a_miss_is_answered_and_wakes_its_queue() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let table = page_table(&bench);
        let mut monitor = bench
            .activate(Addressing::Translated(table.clone()))
            .unwrap();
        let at = virtual_page(100);
        assert!(!readable(&bench));
        let first = bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
        assert_eq!(first, Outcome::Missed);
        assert!(readable(&bench), "{kernel}");
        assert!(monitor.handle().is_empty());
        assert!(!readable(&bench), "{kernel}");
        assert_eq!(bench.kernel.wakeups(QueueIndex::Tx), 1, "{kernel}");
        assert_eq!(bench.kernel.wakeups(QueueIndex::Rx), 0, "{kernel}");
        let gpa = table.gpa(Iova(at.raw())).unwrap();
        let host = Range::new(host_of(&bench.memory, gpa), PAGE).unwrap();
        let again = bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
        assert_eq!(again, Outcome::Done(vec![host]), "{kernel}");
        assert_eq!(bench.device.iotlb().unwrap().stats().misses, 1);
    }
}

/// An update wakes only misses that were read before it: a queue that asked for a
/// page while it was being mapped for the other one sleeps until it is answered
/// itself.
#[test]
fn rule_6_a_miss_for_what_is_mapped_already_is_answered_again() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let mut monitor = bench.activate(Addressing::Translated(table)).unwrap();
    let at = virtual_page(100);
    for queue in QUEUES {
        let outcome = bench.kernel.access(queue, at, PAGE, Access::Read);
        assert_eq!(outcome, Outcome::Missed);
    }
    assert!(monitor.handle().is_empty());
    for queue in QUEUES {
        assert_eq!(bench.kernel.wakeups(queue), 1, "queue {queue} sleeps on");
    }
    let stats = bench.device.iotlb().unwrap().stats();
    assert_eq!((stats.misses, stats.repeats), (2, 1));
}

#[test]
fn rule_6_the_access_that_is_missing_is_the_one_that_is_checked() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let mut monitor = bench
        .activate(Addressing::Translated(table.clone()))
        .unwrap();
    let at = virtual_page(100);
    let gpa = table.gpa(Iova(at.raw())).unwrap();
    table.map(Iova(at.raw()), gpa, Access::Read);
    let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");

    let at = virtual_page(101);
    let gpa = table.gpa(Iova(at.raw())).unwrap();
    table.map(Iova(at.raw()), gpa, Access::Read);
    let outcome = bench.kernel.access(QueueIndex::Rx, at, PAGE, Access::Write);
    assert_eq!(outcome, Outcome::Missed);
    let failures = monitor.handle();
    let [Failure::Denied(denial)] = &failures[..] else {
        panic!("{failures:?}");
    };
    assert_eq!(
        (denial.iova, denial.access),
        (Iova(at.raw()), Access::Write)
    );
    assert!(!bench.kernel.holds(page(at.raw())));
    bench.assert_halted(Mode::Translated);
}

#[test]
fn rule_6_the_loop_serves_misses_and_ends_when_told() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let monitor = bench.activate(Addressing::Translated(table)).unwrap();
    let stop = EventFd::new().unwrap();
    std::thread::scope(|scope| {
        let stopped = stop.try_clone().unwrap();
        let serving =
            scope.spawn(move || monitor.run(stopped.as_fd(), |failure| panic!("{failure}")));
        let deadline = Instant::now() + Duration::from_secs(20);
        let reach = |n| {
            let at = virtual_page(n);
            let access = || bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
            while access() == Outcome::Missed {
                if Instant::now() > deadline {
                    return false;
                }
                std::thread::yield_now();
            }
            true
        };
        let served = (100..400).all(reach);
        stop.signal().unwrap();
        serving.join().unwrap().unwrap();
        assert!(served);
    });
}

/// A miss that nobody read is still there after a reset, on kernels that keep
/// their lists. It is about a world that is gone.
#[test]
fn rule_6_a_miss_from_before_the_activation_fails_nothing() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let window = bench.window();
        drop(
            bench
                .activate(Addressing::Restricted(window.clone()))
                .unwrap(),
        );
        let outside = BusAddr(LOW.raw() + REGION_SIZE - PAGE);
        for queue in QUEUES {
            let outcome = bench.kernel.access(queue, outside, PAGE, Access::Read);
            assert_eq!(outcome, Outcome::Missed, "{kernel}");
        }
        bench.device.reset().unwrap();

        let mut monitor = bench.activate(Addressing::Restricted(window)).unwrap();
        let failures = monitor.handle();
        assert!(failures.is_empty(), "{kernel}: {failures:?}");
        bench.assert_flows(&mut monitor, Mode::Restricted);
    }
}
