// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's life: every state and every call, every way to fail and what is
//! left afterwards, and every number from outside that is refused.

mod failures;
mod refusals;
mod resume;
mod states;

use crosvm_vsock::compat::KernelKind;
use crosvm_vsock::kernel::QueueIndex;
use model_kernel::{Bench, ModelKernel};

const QUEUES: [QueueIndex; 2] = QueueIndex::ALL;

fn overloaded() -> Bench {
    Bench::new(ModelKernel::new(KernelKind::Overloaded))
}
