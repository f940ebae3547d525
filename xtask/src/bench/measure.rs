// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs measurements, contenders in turn, and takes medians.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::results::{CostResult, CurveResult, Idle, Machine, Point, Results, RowResult, Side};
use super::rows::{Cost, Curve, Figure, Row, Selection};
use super::Programs;
use crate::process;

/// Length of one measurement in milliseconds, where a row says nothing else.
const WINDOW: &str = "400";
/// Seconds after which a measurement has failed.
const PATIENCE: &str = "40";
/// Repetitions of a curve's points at most: a curve shows a shape.
const CURVE_REPS: u32 = 3;

/// One line of `vsock_bench measure`.
#[derive(Clone, Debug, Deserialize)]
struct Measured {
    seconds: f64,
    count: u64,
    cpu: f64,
    packets: u64,
    calls: u64,
    memory: u64,
    #[serde(default)]
    latencies: Vec<u32>,
}

impl Measured {
    /// The latency in microseconds that this share of all is faster than.
    fn percentile(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let place = (sorted.len() as f64 * share) as usize;
        let value = sorted.get(place.min(sorted.len().saturating_sub(1)));
        value.map_or(f64::NAN, |nanoseconds| f64::from(*nanoseconds) / 1e3)
    }

    fn value(&self, figure: Figure) -> f64 {
        match figure {
            Figure::Throughput => self.count as f64 / self.seconds / 1e6,
            Figure::Rate => self.count as f64 / self.seconds,
            Figure::Latency => self.percentile(0.5),
        }
    }

    fn cpu(&self, figure: Figure) -> f64 {
        figure.cpu(self.cpu / (self.count.max(1)) as f64)
    }
}

/// A contender's runs of one row.
#[derive(Debug, Default)]
struct Runs {
    good: Vec<Measured>,
    failures: u32,
}

impl Runs {
    fn median(&self, of: impl Fn(&Measured) -> f64) -> Option<f64> {
        median(self.good.iter().map(of).collect())
    }

    fn side(&self, figure: Figure, plain: Option<f64>) -> Side {
        let value = self.median(|m| m.value(figure));
        Side {
            value,
            ratio: value.zip(plain).map(|(value, plain)| value / plain),
            cpu: self.median(|m| m.cpu(figure)),
            p99: (figure == Figure::Latency)
                .then(|| self.median(|m| m.percentile(0.99)))
                .flatten(),
            calls: None,
            failures: self.failures,
        }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values.get(middle).copied(),
        _ => Some((values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0),
    }
}

/// The contenders, in the order of their turns.
const CONTENDERS: [&str; 3] = ["socket", "theirs", "ours"];

/// A run under way.
#[derive(Debug)]
pub struct Bench {
    bench: PathBuf,
    programs: [Option<PathBuf>; 3],
    reps: u32,
}

impl Bench {
    /// With our programs, our rival's, and this many repetitions of each row.
    pub fn new(programs: Programs, rival: PathBuf, reps: u32) -> Self {
        Self {
            bench: programs.bench,
            programs: [None, Some(rival), Some(programs.daemon)],
            reps,
        }
    }

    /// Measures what is selected.
    ///
    /// # Errors
    /// When the machine's facts cannot be read. A measurement that fails is a figure
    /// that is missing.
    pub fn run(&self, selection: &Selection) -> Result<Results> {
        let began = Instant::now();
        let mut machine = machine()?;
        eprintln!(
            "{} processors, load {:.2}: figures of a busy machine are only indicative",
            machine.cores, machine.load_before
        );
        let rows = self.rows(&selection.rows);
        let curves = selection.curves.iter().map(|c| self.curve(c)).collect();
        let costs = selection.costs.iter().map(|c| self.cost(c)).collect();
        machine.seconds = began.elapsed().as_secs();
        Ok(Results {
            machine,
            reps: self.reps,
            rows,
            curves,
            costs,
        })
    }

    /// One measurement. `None`, and a line that says why: it failed.
    fn measure(&self, program: Option<&Path>, arguments: &[&str]) -> Option<Measured> {
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", PATIENCE])
            .arg(&self.bench)
            .arg("measure")
            .args(arguments);
        if !arguments.contains(&"--window") {
            command.args(["--window", WINDOW]);
        }
        if let Some(program) = program {
            command.arg("--program").arg(program);
        }
        let measured = process::output(&mut command)
            .and_then(|line| serde_json::from_str(&line).context("not a measurement"));
        measured
            .map_err(|error| {
                let error = format!("{error:#}");
                let last = error.lines().last().unwrap_or_default();
                eprintln!("    failed: {last}");
            })
            .ok()
    }

    /// Has every contender take its turn, save for those that have failed `most_failures`
    /// times; adds to `runs`.
    fn turn(&self, runs: &mut [Runs; 3], arguments: &[&str], plain: bool, most_failures: u32) {
        for (index, program) in self.programs.iter().enumerate() {
            if (program.is_none() && !plain) || runs[index].failures == most_failures {
                continue;
            }
            match self.measure(program.as_deref(), arguments) {
                Some(measured) => runs[index].good.push(measured),
                None => runs[index].failures += 1,
            }
        }
    }

    fn rows(&self, rows: &[&Row]) -> Vec<RowResult> {
        let mut runs: Vec<[Runs; 3]> = rows.iter().map(|_| Default::default()).collect();
        for rep in 1..=self.reps {
            for (row, runs) in rows.iter().zip(&mut runs) {
                self.turn(runs, row.arguments, true, u32::MAX);
                let last = runs.iter().map(|runs| runs.good.last());
                let figures: Vec<String> = CONTENDERS
                    .iter()
                    .zip(last)
                    .map(|(name, last)| match last {
                        Some(last) => format!("{name} {:.3e}", last.value(row.figure)),
                        None => format!("{name} -"),
                    })
                    .collect();
                eprintln!(
                    "{rep} of {}: {} ({}): {}",
                    self.reps,
                    row.title,
                    row.figure.unit(),
                    figures.join(", ")
                );
            }
        }
        rows.iter()
            .zip(&runs)
            .map(|(row, [plain, theirs, ours])| {
                eprintln!("counting system calls: {}", row.title);
                let plain = plain.median(|m| m.value(row.figure));
                let [_, their_program, our_program] = &self.programs;
                let side = |runs: &Runs, program: &Option<PathBuf>| Side {
                    calls: self.calls(program.as_deref(), row),
                    ..runs.side(row.figure, plain)
                };
                RowResult {
                    name: row.name.to_owned(),
                    plain,
                    theirs: side(theirs, their_program),
                    ours: side(ours, our_program),
                }
            })
            .collect()
    }

    fn calls(&self, program: Option<&Path>, row: &Row) -> Option<f64> {
        let counting = [row.arguments, &["--strace"]].concat();
        let measured = self.measure(program, &counting)?;
        (measured.packets > 0).then(|| measured.calls as f64 / measured.packets as f64)
    }

    fn curve(&self, curve: &Curve) -> CurveResult {
        let point = |at: &u64| {
            eprintln!("{}: {at} {}", curve.title, curve.grows);
            let number = at.to_string();
            let arguments = [curve.arguments, &[number.as_str()]].concat();
            let mut runs: [Runs; 3] = Default::default();
            for _ in 0..self.reps.min(CURVE_REPS) {
                self.turn(&mut runs, &arguments, curve.plain, 1);
            }
            let [plain, theirs, ours] = runs.map(|runs| runs.median(|m| m.value(curve.figure)));
            Point {
                at: *at,
                plain,
                theirs,
                ours,
            }
        };
        CurveResult {
            name: curve.name.to_owned(),
            points: curve.steps.iter().map(point).collect(),
        }
    }

    fn cost(&self, cost: &Cost) -> CostResult {
        eprintln!("{}", cost.title);
        let [_, theirs, ours] = &self.programs;
        let idle = |program: &Option<PathBuf>| {
            let measured = self.measure(program.as_deref(), cost.arguments)?;
            Some(Idle {
                memory: measured.memory as f64 / measured.count.max(1) as f64,
                cpu: measured.cpu / measured.seconds,
            })
        };
        CostResult {
            name: cost.name.to_owned(),
            theirs: idle(theirs),
            ours: idle(ours),
        }
    }
}

fn machine() -> Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let processors = read("/proc/cpuinfo")?;
    let processor = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name);
    let load = read("/proc/loadavg")?;
    Ok(Machine {
        date: process::today()?,
        processor: processor.to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: process::kernel_version(&read("/proc/sys/kernel/osrelease")?).to_owned(),
        load_before: load
            .split_whitespace()
            .next()
            .and_then(|load| load.parse().ok())
            .context("no load in /proc/loadavg")?,
        seconds: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let measured = Measured {
            seconds: 1.0,
            count: 100,
            cpu: 0.5,
            packets: 0,
            calls: 0,
            memory: 0,
            latencies: (1..=100).rev().map(|n| n * 1000).collect(),
        };
        assert_eq!(measured.percentile(0.99), 100.0);
        assert_eq!(measured.value(Figure::Latency), 51.0);
        assert_eq!(measured.cpu(Figure::Rate), 5000.0);
    }
}
