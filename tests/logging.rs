// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest cannot fill the host's log: whatever it repeats is logged a few times.
//! A file of its own, since a process has one logger.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use crosvm_vsock::address::{Address, BusAddr, Gpa, Iova};
use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::kernel::{Access, Addressing, Monitor, QueueIndex};
use crosvm_vsock::memory::PAGE;
use crosvm_vsock::rate_limit::RateLimit;
use log::{LevelFilter, Log, Metadata, Record};
use model_kernel::bench::HIGH;
use model_kernel::{Bench, ModelKernel, Outcome, PageTable};

/// Counts what is logged as a warning or worse.
struct Counter;

static LINES: AtomicUsize = AtomicUsize::new(0);

impl Log for Counter {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &Record<'_>) {
        LINES.fetch_add(1, Ordering::Relaxed);
    }

    fn flush(&self) {}
}

/// How many lines `run` logs. One test at a time.
fn lines(run: impl FnOnce()) -> usize {
    static ONE: Mutex<()> = Mutex::new(());
    static LOGGER: Once = Once::new();
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    LOGGER.call_once(|| {
        log::set_logger(&Counter).unwrap();
        log::set_max_level(LevelFilter::Warn);
    });
    let before = LINES.load(Ordering::Relaxed);
    run();
    LINES.load(Ordering::Relaxed) - before
}

const TIMES: u64 = 200;
const BURST: usize = RateLimit::BURST as usize;

/// How many failures a monitor reports until it has nothing left to do. The first
/// halts the device: the kernel must have asked for all before.
fn failures(monitor: &mut Monitor) -> u64 {
    let each = std::iter::repeat_with(|| monitor.handle().len() as u64);
    each.take_while(|count| *count > 0).sum()
}

#[test]
fn denied_misses_are_logged_a_few_times() {
    let mut bench = Bench::new(ModelKernel::new(KernelKind::Overloaded));
    let window = bench.window();
    let mut monitor = bench.activate(Addressing::Restricted(window)).unwrap();
    let logged = lines(|| {
        for n in 0..TIMES {
            let at = BusAddr(HIGH.raw() + (16 + n % 100) * PAGE);
            let outcome = bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
            assert_eq!(outcome, Outcome::Missed);
        }
        assert_eq!(failures(&mut monitor), TIMES);
    });
    // The service says what it denied, the monitor what has to be done.
    assert!(logged > 0 && logged <= 2 * BURST, "{logged} lines");
}

/// A guest writes the tables that its vIOMMU reads.
#[test]
fn translations_to_nowhere_are_logged_a_few_times() {
    let mut bench = Bench::new(ModelKernel::new(KernelKind::Overloaded));
    let table = Arc::new(PageTable::scattered(&bench.memory));
    let at = BusAddr(PageTable::BASE.raw() + 100 * PAGE);
    table.map(Iova(at.raw()), Gpa(0x7000_0000_0000), Access::ReadWrite);
    let mut monitor = bench.activate(Addressing::Translated(table)).unwrap();
    let logged = lines(|| {
        for _ in 0..TIMES {
            let outcome = bench.kernel.access(QueueIndex::Tx, at, PAGE, Access::Read);
            assert_eq!(outcome, Outcome::Missed);
        }
        assert_eq!(failures(&mut monitor), TIMES);
    });
    assert!(logged > 0 && logged <= 2 * BURST, "{logged} lines");
}

#[test]
fn a_queue_that_breaks_again_and_again_is_logged_a_few_times() {
    let mut bench = Bench::new(ModelKernel::new(KernelKind::Overloaded));
    let mut monitor = bench.activate(Addressing::Off).unwrap();
    let logged = lines(|| {
        for _ in 0..TIMES {
            let nowhere = BusAddr(0);
            bench
                .kernel
                .access(QueueIndex::Tx, nowhere, PAGE, Access::Read);
            assert_eq!(monitor.handle().len(), 1);
        }
    });
    assert!(logged > 0 && logged <= BURST, "{logged} lines");
}

#[test]
fn messages_that_make_no_sense_are_logged_a_few_times() {
    let mut bench = Bench::new(ModelKernel::new(KernelKind::Overloaded));
    let mut monitor = bench.activate(Addressing::Identity).unwrap();
    let logged = lines(|| {
        for _ in 0..TIMES {
            bench.kernel.say(&[0xff; 72]);
            monitor.handle();
        }
    });
    assert!(logged > 0 && logged <= BURST, "{logged} lines");
}
