// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The cells: one thing each that must be so on a kernel, and what is expected.

mod daemon;
mod iotlb;
mod life;
mod modes;
mod plugin;
pub mod raw;

use std::panic::{catch_unwind, AssertUnwindSafe};

use anyhow::Result;
use crosvm_vsock::compat::{CompatError, KernelKind, Mode};
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::Error;

/// The kernel that the cells run on.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Found by the probe.
    pub kind: KernelKind,
    /// `VHOST_GET_FEATURES`.
    pub features: FeatureSet,
}

impl Host {
    /// Whether sequenced packets can be had.
    pub fn seqpacket(&self) -> bool {
        self.features.has(Feature::SEQPACKET)
    }

    /// A cell of `mode`, with what is expected of it here.
    fn cell(&self, name: &'static str, mode: Mode, run: Run) -> Cell {
        Cell {
            name,
            mode: Some(mode),
            expected: self.expected(mode),
            run,
        }
    }

    /// A cell of no mode in particular, which is expected to work everywhere.
    fn any_mode(&self, name: &'static str, run: Run) -> Cell {
        Cell {
            name,
            mode: None,
            expected: WORKS,
            run,
        }
    }

    /// What a cell of this mode comes to here.
    fn expected(&self, mode: Mode) -> &'static str {
        match (mode.wants_iotlb(), self.kind) {
            (true, KernelKind::NoIotlb) => UNAVAILABLE,
            _ => WORKS,
        }
    }
}

/// The cell carried data, and all of it was right.
pub const WORKS: &str = "works";
/// The device refused the mode before anything was touched.
pub const UNAVAILABLE: &str = "IotlbUnavailable";

/// Finds out; what it returns is held against the expectation.
type Run = fn(&Host) -> Result<&'static str>;

/// One cell: its name, the IOTLB mode that it is about, what is expected, and how
/// to find out.
pub struct Cell {
    /// Unique within a kernel.
    pub name: &'static str,
    /// For `--mode`; a cell without one always runs.
    pub mode: Option<Mode>,
    /// What `run` must return.
    pub expected: &'static str,
    run: Run,
}

/// What came out of a cell.
#[derive(Debug)]
pub struct Outcome {
    /// To be held against the expectation.
    pub got: String,
    /// For a person who looks into a failure.
    pub detail: String,
}

impl Cell {
    /// Runs it; a panic is an outcome as well.
    pub fn run(&self, host: &Host) -> Outcome {
        let failed = |detail: String| Outcome {
            got: "failed".into(),
            detail,
        };
        match catch_unwind(AssertUnwindSafe(|| (self.run)(host))) {
            Ok(Ok(got)) => Outcome {
                got: got.into(),
                detail: String::new(),
            },
            Ok(Err(error)) => failed(format!("{error:#}")),
            Err(_) => failed("the cell panicked; see the console".into()),
        }
    }
}

/// Every cell, in the order in which they run.
pub fn all(host: &Host) -> Vec<Cell> {
    [
        raw::cells(host),
        modes::cells(host),
        life::cells(host),
        iotlb::cells(host),
        plugin::cells(host),
        daemon::cells(host),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether an activation was refused for want of an IOTLB.
fn unavailable(error: &Error) -> bool {
    matches!(error, Error::Compat(CompatError::IotlbUnavailable { .. }))
}
