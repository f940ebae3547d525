// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rule 7: updates add, invalidations take whole entries, both are barriers.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosvm_vsock::address::{Address, BusAddr, Gpa, Iova, Range};
use crosvm_vsock::compat::Mode;
use crosvm_vsock::event::EventFd;
use crosvm_vsock::kernel::{
    Access, Addressing, Error, QueueIndex, ShareError, Translation, Translator,
};
use crosvm_vsock::memory::PAGE;
use model_kernel::bench::{iovas, pages, HIGH, LOW};
use model_kernel::{name, Bench, Outcome, PageTable};

use crate::{everything, host_of, overloaded, page, page_table, virtual_page, Blocks, QUEUES};

#[test]
fn rule_7_a_remap_invalidates_before_it_updates() {
    let mut bench = overloaded();
    let table = page_table(&bench);
    let mut monitor = bench
        .activate(Addressing::Translated(table.clone()))
        .unwrap();
    let at = virtual_page(100);
    let old = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
    let elsewhere = Gpa(HIGH.raw() + 200 * PAGE);
    table.map(Iova(at.raw()), elsewhere, Access::ReadWrite);
    bench
        .device
        .iotlb()
        .unwrap()
        .changed(page(at.raw()))
        .unwrap();
    let new = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
    let host = Range::new(host_of(&bench.memory, elsewhere), PAGE).unwrap();
    assert_eq!(new, Outcome::Done(vec![host]));
    assert_ne!(old, new);
}

/// Forgets to tell that a page has moved: its second answer differs.
struct Forgetful(Arc<PageTable>, AtomicBool);

impl Forgetful {
    const MOVED: u64 = 200;
    const TO: Gpa = Gpa(HIGH.0 + 250 * PAGE);
}

impl Translator for Forgetful {
    fn translate(&self, iova: Iova) -> Option<Translation> {
        let translation = self.0.translate(iova)?;
        let here = translation.range.first().raw() == virtual_page(Self::MOVED).raw();
        match here && self.1.swap(true, Ordering::Relaxed) {
            true => Some(Translation {
                gpa: Self::TO,
                ..translation
            }),
            false => Some(translation),
        }
    }
}

#[test]
fn rule_7_an_answer_that_differs_from_what_was_mapped_replaces_it() {
    let mut bench = overloaded();
    let translator = Forgetful(page_table(&bench), AtomicBool::new(false));
    let mut monitor = bench
        .activate(Addressing::Translated(Arc::new(translator)))
        .unwrap();
    let at = virtual_page(Forgetful::MOVED);
    for queue in QUEUES {
        let outcome = bench.kernel.access(queue, at, PAGE, Access::Read);
        assert_eq!(outcome, Outcome::Missed);
    }
    assert!(monitor.handle().is_empty());
    let outcome = bench.transfer(&mut monitor, QueueIndex::Tx, at, PAGE);
    let host = Range::new(host_of(&bench.memory, Forgetful::TO), PAGE).unwrap();
    assert_eq!(outcome, Outcome::Done(vec![host]));
}

#[test]
fn rule_7_what_an_invalidation_takes_too_much_is_given_back() {
    let mut bench = overloaded();
    let window = bench.window();
    drop(
        bench
            .activate(Addressing::Restricted(window.clone()))
            .unwrap(),
    );
    let hole = pages(Gpa(LOW.raw() + 8 * PAGE), 1);
    window.unshare(hole).unwrap();
    let entries = bench.kernel.entries().unwrap();
    let held = |iova: u64| {
        entries
            .iter()
            .any(|entry| entry.range.contains(Iova(iova)) && entry.perm == 3)
    };
    for n in 0..16 {
        assert_eq!(held(LOW.raw() + n * PAGE), n != 8, "page {n}");
        assert!(held(HIGH.raw() + n * PAGE), "page {n} of the other region");
    }
    // Also when only a miss could bring it back.
    bench.device.stop().unwrap();
    let table = Arc::new(Blocks);
    let mut monitor = bench.activate(Addressing::Translated(table)).unwrap();
    bench.assert_flows(&mut monitor, Mode::Translated);
    let block = PageTable::BASE.raw();
    bench
        .device
        .iotlb()
        .unwrap()
        .changed(page(block + 20 * PAGE))
        .unwrap();
    assert!(!bench.kernel.holds(page(block + 20 * PAGE)));
    assert!(bench.kernel.holds(page(block + 19 * PAGE)));
    assert!(bench.kernel.holds(page(block + 21 * PAGE)));
}

#[test]
fn rule_7_unshared_memory_is_out_of_reach_when_unshare_returns() {
    for (kernel, model) in Bench::kernels() {
        let mut bench = Bench::new(model);
        let window = bench.window();
        let addressing = Addressing::Restricted(window.clone());
        let mut monitor = bench.activate(addressing.clone()).unwrap();
        let (model, memory) = (&*bench.kernel.clone(), &bench.memory.clone());
        let (done, reached) = (&AtomicBool::new(false), &AtomicUsize::new(0));
        let stop = &EventFd::new().unwrap();
        let bench = &mut bench;
        std::thread::scope(|scope| {
            // Denials are expected, since queues reach for what is not shared, and
            // each halts the device.
            scope.spawn(move || loop {
                let halted = |_| stop.signal().unwrap();
                monitor.run(stop.as_fd(), halted).unwrap();
                stop.take().unwrap();
                if done.load(Ordering::Relaxed) {
                    break;
                }
                bench.device.stop().unwrap();
                monitor = bench.activate(addressing.clone()).unwrap();
            });
            for (queue, access) in [
                (QueueIndex::Rx, Access::Write),
                (QueueIndex::Tx, Access::Read),
            ] {
                scope.spawn(move || {
                    for n in (0..32).cycle() {
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        let at = BusAddr(LOW.raw() + (32 + n) * PAGE);
                        let outcome = model.access(queue, at, PAGE, access);
                        if let Outcome::Done(pieces) = outcome {
                            let gpa = Gpa(at.raw());
                            assert_eq!(pieces[0].first(), host_of(memory, gpa));
                            reached.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            let turns: Vec<_> = (0..2u64)
                .map(|turn| {
                    let window = window.clone();
                    scope.spawn(move || {
                        // Each has pages of its own, among the other's.
                        let rounds =
                            |round: &u64| *round < 300 || reached.load(Ordering::Relaxed) < 300;
                        let deadline = Instant::now() + Duration::from_secs(60);
                        for round in (0u64..).take_while(rounds) {
                            assert!(Instant::now() < deadline, "{kernel}: nothing flows");
                            let n = 32 + 2 * (round * 7 % 16) + turn;
                            let range = pages(Gpa(LOW.raw() + n * PAGE), 1);
                            window.share(range).unwrap();
                            window.unshare(range).unwrap();
                            assert!(
                                !model.holds(iovas(range)),
                                "{kernel}: the kernel still reaches {range}"
                            );
                        }
                    })
                })
                .collect();
            let results: Vec<_> = turns.into_iter().map(|turn| turn.join()).collect();
            done.store(true, Ordering::Relaxed);
            stop.signal().unwrap();
            assert!(results.iter().all(Result::is_ok));
        });
        for n in 32..64 {
            assert!(!model.holds(page(LOW.raw() + n * PAGE)), "{kernel}");
        }
    }
}

/// A change that comes while the service preloads must not fall between reading
/// the window and hearing of its changes.
#[test]
fn rule_7_an_unshare_during_activation_is_not_lost() {
    let mut bench = overloaded();
    let window = bench.window();
    let extra = pages(Gpa(LOW.raw() + 100 * PAGE), 4);
    window.share(extra).unwrap();
    let unsharing = window.clone();
    let (started, start) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        start.recv().unwrap();
        unsharing.unshare(extra).unwrap();
    });
    let seen = window.clone();
    bench.kernel.before(name::WRITE, 0, move || {
        started.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while seen.shared().iter().any(|range| range.overlaps(&extra)) {
            assert!(Instant::now() < deadline, "the unshare does not begin");
            std::thread::yield_now();
        }
        // The set has changed; give the follow-up the time to overtake.
        std::thread::sleep(Duration::from_millis(20));
    });
    drop(bench.activate(Addressing::Restricted(window)).unwrap());
    thread.join().unwrap();
    assert!(!bench.kernel.holds(iovas(extra)));
}

#[test]
fn rule_7_a_refused_invalidation_is_an_error_and_can_be_repeated() {
    let mut bench = overloaded();
    let window = bench.window();
    drop(
        bench
            .activate(Addressing::Restricted(window.clone()))
            .unwrap(),
    );
    let hole = pages(Gpa(LOW.raw() + 8 * PAGE), 1);
    bench.kernel.fail(name::WRITE, 0, libc::EFAULT);
    let error = window.unshare(hole).unwrap_err();
    assert!(matches!(error, ShareError::Kernel { .. }), "{error}");
    assert!(error.to_string().contains("did not follow"), "{error}");
    assert!(bench.kernel.holds(iovas(hole)));
    window.unshare(hole).unwrap();
    assert!(!bench.kernel.holds(iovas(hole)));
}

/// A monitor may outlive its activation by a moment; a window outlives many.
#[test]
fn rule_7_the_service_of_an_ended_activation_leaves_the_next_one_alone() {
    let mut bench = overloaded();
    let old = bench.window();
    let mut old_monitor = bench.activate(Addressing::Restricted(old.clone())).unwrap();
    let old_service = bench.device.iotlb().unwrap().clone();
    bench.device.stop().unwrap();

    let new = bench.window();
    let mut monitor = bench.activate(Addressing::Restricted(new)).unwrap();
    let foreign = pages(Gpa(HIGH.raw() + 100 * PAGE), 1);
    old.share(foreign).unwrap();
    assert!(!bench.kernel.holds(iovas(foreign)));
    old.unshare(pages(LOW, 1)).unwrap();
    old_service.changed(everything()).unwrap();
    assert!(bench.kernel.holds(iovas(pages(LOW, 1))));

    // A miss of the new activation is not the old translator's to answer.
    old.share(pages(LOW, 256)).unwrap();
    let outside = BusAddr(LOW.raw() + 128 * PAGE);
    let outcome = bench
        .kernel
        .access(QueueIndex::Tx, outside, PAGE, Access::Read);
    assert_eq!(outcome, Outcome::Missed);
    assert!(old_monitor.handle().is_empty());
    assert!(!bench.kernel.holds(page(outside.raw())));
    assert_eq!(monitor.handle().len(), 1);
    bench.assert_halted(Mode::Restricted);
}

/// Else the first device would no longer hear of an unshare, and keep its access.
#[test]
fn rule_7_a_window_serves_one_running_device() {
    let (mut first, mut second) = (overloaded(), overloaded());
    let window = first.window();
    let addressing = Addressing::Restricted(window.clone());
    let monitor = first.activate(addressing.clone()).unwrap();
    let error = second.activate(addressing.clone()).unwrap_err();
    assert!(matches!(error, Error::Share(ShareError::InUse)), "{error}");
    let hole = pages(LOW, 1);
    window.unshare(hole).unwrap();
    assert!(!first.kernel.holds(iovas(hole)));
    // Once the first is reset it is free, though its monitor lingers.
    window.share(hole).unwrap();
    first.device.reset().unwrap();
    drop(second.activate(addressing).unwrap());
    drop(monitor);
}
