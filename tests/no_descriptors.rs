// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process without a free descriptor. Alone in its file, since the limit is the
//! whole process'.
//!
//! `unsafe` is here for setrlimit(2), which the standard library lacks.

use std::fs::File;

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

#[test]
fn a_start_that_runs_out_of_descriptors_leaves_nothing_running() {
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
