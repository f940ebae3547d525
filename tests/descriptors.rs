// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The process' descriptors: none is lost, and having none left is survived.
//! A file of its own, since they are counted and limited by the process.
//!
//! `unsafe` is here for setrlimit(2), which the standard library lacks.

use std::fs::File;
use std::sync::{Mutex, PoisonError};

use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::kernel::{Addressing, Error};
use model_kernel::{name, Bench, ModelKernel};

fn limit_descriptors(to: u64) {
    let limit = libc::rlimit {
        rlim_cur: to,
        rlim_max: to,
    };
    // SAFETY: limit is valid for the time of the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    assert_eq!(result, 0);
}

/// One test at a time.
static PROCESS: Mutex<()> = Mutex::new(());

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_thousand_cycles_lose_no_descriptor() {
    let _alone = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bench = Bench::new(ModelKernel::new(KernelKind::Overloaded));
    let addressings = bench.addressings();
    let before = open_descriptors();
    for turn in 0..1000 {
        let addressing = addressings[turn % addressings.len()].clone();
        // Every tenth fails half-way.
        if turn % 10 == 9 {
            bench.kernel.fail(name::SET_RUNNING, 0, libc::EIO);
            bench.activate(addressing).unwrap_err();
            continue;
        }
        let monitor = bench.activate(addressing).unwrap();
        bench.device.stop().unwrap();
        drop(monitor);
        bench.kernel.forget_calls();
    }
    assert_eq!(open_descriptors(), before);
    assert!(bench.kernel.is_quiet());
}

#[test]
fn a_start_that_runs_out_of_descriptors_leaves_nothing_running() {
    let _alone = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bench = Bench::new(ModelKernel::new(KernelKind::Overloaded));
    limit_descriptors(64);
    // From the moment that the queues run, there is no descriptor left.
    let (hold, held) = std::sync::mpsc::channel();
    bench.kernel.before(name::SET_RUNNING, 0, move || {
        while let Ok(file) = File::open("/dev/null") {
            hold.send(file).unwrap();
        }
    });
    let error = bench.activate(Addressing::Identity).unwrap_err();
    assert!(matches!(error, Error::Event(_)), "{error}");
    assert!(!bench.device.is_running());
    assert!(bench.kernel.is_quiet());

    drop(held);
    drop(bench.activate(Addressing::Identity).unwrap());
    assert!(bench.kernel.is_running());
}
