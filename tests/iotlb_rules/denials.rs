// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rule 11: what the guest may not reach, and queues that give up.

use crosvm_vsock::address::{Address, BusAddr, Gpa, Iova};
use crosvm_vsock::compat::Mode;
use crosvm_vsock::kernel::{Access, Addressing, Failure, QueueIndex};
use crosvm_vsock::memory::PAGE;
use model_kernel::bench::{pages, HIGH};
use model_kernel::{Bench, Outcome};

use crate::{overloaded, page_table, readable, virtual_page, QUEUES};

#[test]
fn rule_11_a_denied_miss_is_counted_reported_and_not_answered() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let window = bench.window();
        let addressing = Addressing::Restricted(window.clone());
        let mut monitor = bench.activate(addressing).unwrap();
        bench.kernel.forget_calls();
        let outside = BusAddr(HIGH.raw() + 16 * PAGE);
        let outcome = bench
            .kernel
            .access(QueueIndex::Tx, outside, PAGE, Access::Read);
        assert_eq!(outcome, Outcome::Missed, "{kernel}");
        let failures = monitor.handle();
        let [Failure::Denied(denial)] = &failures[..] else {
            panic!("{kernel}: {failures:?}");
        };
        assert_eq!(denial.iova, Iova(outside.raw()));
        let text = failures[0].to_string();
        assert!(text.contains(&outside.to_string()), "{text}");
        assert_eq!(bench.kernel.messages(), [], "{kernel}");
        assert_eq!(bench.kernel.wakeups(QueueIndex::Tx), 0);
        assert_eq!(bench.device.iotlb().unwrap().stats().denials, 1);
        // Nothing is left to do, and the kernel does not ask again, whatever is
        // shared meanwhile.
        window.share(pages(Gpa(outside.raw()), 1)).unwrap();
        bench.assert_halted(Mode::Restricted);
        assert!(!readable(&bench), "{kernel}");
        assert!(monitor.handle().is_empty());

        // After a reset the device works again.
        bench.device.reset().unwrap();
        let window = bench.window();
        let mut monitor = bench.activate(Addressing::Restricted(window)).unwrap();
        bench.assert_flows(&mut monitor, Mode::Restricted);
    }
}

/// Since 7.x a queue asks for nothing more before its last miss is answered, which
/// a denied one never is.
#[test]
fn rule_11_a_denied_queue_asks_again_after_a_reset() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let table = page_table(&bench);
        let addressing = Addressing::Translated(table);
        let mut monitor = bench.activate(addressing.clone()).unwrap();
        let nowhere = BusAddr(8 * PAGE);
        for stop in [false, true] {
            for queue in QUEUES {
                let outcome = bench.kernel.access(queue, nowhere, PAGE, Access::Read);
                assert_eq!(outcome, Outcome::Missed, "{kernel}");
            }
            assert_eq!(monitor.handle().len(), 2, "{kernel}");
            bench.assert_halted(Mode::Translated);
            if stop {
                bench.device.stop().unwrap();
            }
            bench.device.reset().unwrap();
            monitor = bench.activate(addressing.clone()).unwrap();
            bench.assert_flows(&mut monitor, Mode::Translated);
        }
    }
}

/// Before 7.x each notification of a denied queue would make the kernel keep one
/// more miss: the guest would decide how much memory of the host it takes.
#[test]
fn rule_11_notifications_after_a_denial_make_the_kernel_keep_nothing() {
    for denied in QUEUES {
        for (kernel, model) in Bench::kernels() {
            let mut bench = Bench::new(model);
            let window = bench.window();
            let mut monitor = bench.activate(Addressing::Restricted(window)).unwrap();
            let outside = BusAddr(HIGH.raw() + 16 * PAGE);
            let outcome = bench.kernel.access(denied, outside, PAGE, Access::Read);
            assert_eq!(outcome, Outcome::Missed, "{kernel}");
            assert_eq!(monitor.handle().len(), 1, "{kernel}");
            let kept = bench.kernel.misses_kept();
            for n in 0..500 {
                for queue in QUEUES {
                    let outcome = bench.kernel.access(queue, outside, PAGE, Access::Read);
                    assert_eq!(outcome, Outcome::Stopped, "{kernel}");
                }
                // Whether or not the monitor still looks.
                if n % 2 == 0 {
                    assert!(monitor.handle().is_empty(), "{kernel}");
                }
            }
            assert_eq!(bench.kernel.misses_kept(), kept, "{kernel}");
            assert_eq!(bench.kernel.unread(), 0, "{kernel}");
        }
    }
}

#[test]
fn rule_11_a_flood_of_denied_misses_yields_to_the_callers_loop() {
    let mut bench = overloaded();
    let window = bench.window();
    let mut monitor = bench.activate(Addressing::Restricted(window)).unwrap();
    for n in 0..200 {
        let at = BusAddr(HIGH.raw() + (16 + n) * PAGE);
        bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
    }
    let first = monitor.handle().len();
    assert!(first > 0 && first < 200, "{first} in one go");
    bench.assert_halted(Mode::Restricted);
    // What was asked before the first denial is read all the same: else whoever
    // polls for it never sleeps.
    assert!(readable(&bench));
    while readable(&bench) {
        monitor.handle();
    }
    assert_eq!(bench.device.iotlb().unwrap().stats().denials, 200);
}

#[test]
fn rule_11_an_error_event_that_comes_with_a_miss_is_no_failure_and_one_without_is() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let mut monitor = bench.activate(Addressing::Translated(table)).unwrap();
    for kick in &bench.kicks {
        kick.take().unwrap();
    }
    bench
        .kernel
        .access(QueueIndex::Tx, virtual_page(100), PAGE, Access::Read);
    bench.kernel.break_queue(QueueIndex::Tx);
    assert!(monitor.handle().is_empty());
    // The queue is woken by us as well; if it is broken it says so again.
    assert!(bench.kicks[1].take().unwrap());
    assert!(!bench.kicks[0].take().unwrap());
    bench.kernel.break_queue(QueueIndex::Tx);
    let failures = monitor.handle();
    assert!(
        matches!(failures[..], [Failure::Queue(QueueIndex::Tx)]),
        "{failures:?}"
    );
    assert!(!bench.kicks[1].take().unwrap());
    assert!(monitor.handle().is_empty());
}

#[test]
fn rule_11_a_queue_that_the_kernel_gives_up_on_fails_visibly() {
    for addressing in overloaded().addressings() {
        let mode = addressing.mode();
        let mut bench = overloaded();
        let table = page_table(&bench);
        let addressing = match addressing {
            Addressing::Translated(_) => Addressing::Translated(table.clone()),
            other => other,
        };
        let mut monitor = bench.activate(addressing).unwrap();
        let (at, errno) = match mode {
            // Read-only, and told to the kernel as such.
            Mode::Translated => {
                let at = virtual_page(100);
                let gpa = table.gpa(Iova(at.raw())).unwrap();
                table.map(Iova(at.raw()), gpa, Access::Read);
                bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
                (at, libc::EPERM)
            }
            Mode::Off => (BusAddr(0), libc::EFAULT),
            Mode::Identity | Mode::Restricted => (BusAddr(u64::MAX), libc::EFAULT),
        };
        let mut outcome = bench.kernel.access(QueueIndex::Rx, at, PAGE, Access::Write);
        assert_eq!(outcome, Outcome::Refused(errno), "{mode}");
        let mut failures = monitor.handle();
        if failures.is_empty() {
            // A miss had come before it: the queue was kicked and says it again.
            assert!(bench.kicks[0].take().unwrap(), "{mode}");
            outcome = bench.kernel.access(QueueIndex::Rx, at, PAGE, Access::Write);
            failures = monitor.handle();
        }
        assert_eq!(outcome, Outcome::Refused(errno), "{mode}");
        assert!(
            matches!(failures[..], [Failure::Queue(QueueIndex::Rx)]),
            "{mode}: {failures:?}"
        );
    }
}

/// A queue that waits for what it is denied would be woken for nothing, over and over.
#[test]
fn rule_11_after_a_denial_no_queue_is_kicked() {
    let mut bench = overloaded();
    let window = bench.window();
    let mut monitor = bench.activate(Addressing::Restricted(window)).unwrap();
    for kick in &bench.kicks {
        kick.take().unwrap();
    }
    let outside = BusAddr(HIGH.raw() + 16 * PAGE);
    for _ in 0..3 {
        bench
            .kernel
            .access(QueueIndex::Tx, outside, PAGE, Access::Read);
    }
    for denied in [3, 0, 0] {
        bench.kernel.break_queue(QueueIndex::Tx);
        let failures = monitor.handle();
        assert_eq!(failures.len(), denied, "{failures:?}");
        let denials = |failure| matches!(failure, &Failure::Denied(_));
        assert!(failures.iter().all(denials), "{failures:?}");
        bench.assert_halted(Mode::Restricted);
        for kick in &bench.kicks {
            assert!(!kick.take().unwrap());
        }
    }
}

/// What an earlier activation left behind says nothing of this one.
#[test]
fn rule_11_an_error_event_from_before_the_activation_is_no_failure() {
    let mut bench = overloaded();
    let monitor = bench.activate(Addressing::Identity).unwrap();
    bench.kernel.break_queue(QueueIndex::Rx);
    drop(monitor);
    bench.device.stop().unwrap();
    let mut monitor = bench.activate(Addressing::Identity).unwrap();
    assert!(monitor.handle().is_empty());
}
