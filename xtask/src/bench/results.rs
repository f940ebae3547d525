// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What came of a run, as it is kept in JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// When and where.
    pub machine: Machine,
    /// Repetitions of each row.
    pub reps: u32,
    /// Rows by name.
    pub rows: Vec<RowResult>,
    /// Curves by name.
    pub curves: Vec<CurveResult>,
    /// Costs by name.
    pub costs: Vec<CostResult>,
}

/// When and where a run was.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// The day, as `2026-11-23`.
    pub date: String,
    /// The processor's name.
    pub processor: String,
    /// Processors that the run could use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The load average of the minute before.
    pub load_before: f64,
    /// The length of the run in seconds.
    pub seconds: u64,
}

/// A row: medians.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RowResult {
    /// As in [`super::rows::ROWS`].
    pub name: String,
    /// The plain socket's figure.
    pub plain: Option<f64>,
    /// Our rival.
    pub theirs: Side,
    /// This daemon.
    pub ours: Side,
}

/// A daemon's part of a row: medians.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Side {
    /// The figure. `None`: every repetition failed.
    pub value: Option<f64>,
    /// Its figure over the plain socket's.
    pub ratio: Option<f64>,
    /// CPU time, in the figure's unit for it.
    pub cpu: Option<f64>,
    /// For latencies, what 99 of 100 are faster than.
    pub p99: Option<f64>,
    /// System calls a packet.
    pub calls: Option<f64>,
    /// Repetitions that came to nothing: hung, or ended.
    pub failures: u32,
}

/// A curve.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CurveResult {
    /// As in [`super::rows::CURVES`].
    pub name: String,
    /// Points, the first value is what grows.
    pub points: Vec<Point>,
}

/// A point of a curve: medians; `None` where every repetition failed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Point {
    /// What grows.
    pub at: u64,
    /// The plain socket.
    pub plain: Option<f64>,
    /// Our rival.
    pub theirs: Option<f64>,
    /// This daemon.
    pub ours: Option<f64>,
}

/// What something costs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CostResult {
    /// As in [`super::rows::COSTS`].
    pub name: String,
    /// Our rival.
    pub theirs: Option<Idle>,
    /// This daemon.
    pub ours: Option<Idle>,
}

/// A daemon that does nothing.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Idle {
    /// Bytes of memory of its own each.
    pub memory: f64,
    /// CPU time of all over time.
    pub cpu: f64,
}

impl Results {
    /// Reads a file that [`write`](Self::write) has written.
    ///
    /// # Errors
    /// When it cannot be read or is something else.
    pub fn read(file: &Path) -> Result<Self> {
        let name = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
        serde_json::from_str(&text).with_context(|| format!("{name} is not what --json writes"))
    }

    /// Writes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Whether our daemon has a figure everywhere.
    pub fn is_complete(&self) -> bool {
        let rows = self.rows.iter().all(|row| row.ours.value.is_some());
        let mut points = self.curves.iter().flat_map(|curve| &curve.points);
        rows && points.all(|point| point.ours.is_some())
            && self.costs.iter().all(|cost| cost.ours.is_some())
    }
}
