// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`: every check of the project, counted in one line.
//!
//! Format, lints, documentation, Android's checks, the cargo tests, the kernel lab, real
//! guests. A step that fails does not stop the others. The last line is
//! `N passed, N failed`.

use std::io::{BufRead, BufReader};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::android;
use crate::guests;
use crate::kernels::KERNELS;
use crate::lab::{workspace, Lab, Wish};
use crate::process;
use crate::table::{self, Report};

/// What passes or fails as a whole: cargo's arguments.
const STEPS: [(&str, &str); 5] = [
    ("format", "fmt --all --check"),
    ("lints", "clippy --workspace --all-targets -- -D warnings"),
    (
        "lints, direct interrupts",
        "clippy -p device_virtio_vsock --features msix-status --all-targets -- -D warnings",
    ),
    (
        "the library as crosvm links it",
        "clippy -p crosvm_vsock --lib --no-default-features -- -D warnings",
    ),
    ("documentation", "doc --workspace --no-deps"),
];

/// What is counted test by test.
const TESTS: [(&str, &str); 3] = [
    ("cargo test", "test --workspace --no-fail-fast"),
    (
        "cargo test, direct interrupts",
        "test -p device_virtio_vsock --features msix-status --no-fail-fast",
    ),
    (
        "cargo test, man page and completions",
        "test -p crosvm_vsock --features generate --test generate",
    ),
];

/// How many checks came out how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
}

impl Count {
    fn one(passed: bool) -> Self {
        Self {
            passed: usize::from(passed),
            failed: usize::from(!passed),
        }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs everything. Returns whether all of it passed.
///
/// # Errors
/// Never by itself: what cannot be run counts as failed.
pub fn run() -> Result<bool> {
    let mut count = Count::default();
    for (name, command) in STEPS {
        println!("== {name}");
        let arguments: Vec<&str> = command.split(' ').collect();
        let result = process::show(cargo(&arguments).env("RUSTDOCFLAGS", "-D warnings"));
        count += judge(name, result.map(|()| Count::one(true)));
    }
    for (name, step) in android::STEPS {
        println!("== {name}");
        count += judge(name, step().map(|()| Count::one(true)));
    }
    for (name, command) in TESTS {
        println!("== {name}");
        let arguments: Vec<&str> = command.split(' ').collect();
        count += judge(name, cargo_test(&arguments));
    }
    println!("== kernel lab");
    count += judge("kernel lab", kernel_lab());
    println!("== guests");
    count += judge("guests", guests());
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(count.failed == 0)
}

/// A step that could not be counted is one failure.
fn judge(name: &str, result: Result<Count>) -> Count {
    result.unwrap_or_else(|error| {
        println!("{name} FAILED: {error:#}");
        Count::one(false)
    })
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(workspace()).args(arguments);
    command
}

/// Shows the tests as they run and adds their results up.
fn cargo_test(arguments: &[&str]) -> Result<Count> {
    let mut child = cargo(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut count = Count::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cannot read what cargo test says")?;
            println!("{line}");
            if let Some(result) = parse_result(&line) {
                count += result;
            }
        }
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    if !status.success() && count.failed == 0 {
        // A test program that did not build or died has no result line.
        println!("cargo test FAILED: {status}");
        count += Count::one(false);
    }
    Ok(count)
}

/// `test result: ok. 12 passed; 0 failed; ...`
fn parse_result(line: &str) -> Option<Count> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| -> Option<usize> {
        let part = numbers
            .split("; ")
            .find_map(|part| part.strip_suffix(what))?;
        part.trim().parse().ok()
    };
    Some(Count {
        passed: number("passed")?,
        failed: number("failed")?,
    })
}

fn kernel_lab() -> Result<Count> {
    let mut lab = Lab::open()?;
    let reports: Vec<Report> = KERNELS
        .iter()
        .map(|kernel| lab.run(kernel, &Wish::default()))
        .collect();
    println!("\n{}", table::render(&reports));
    let mut count = Count::default();
    for row in reports.iter().flat_map(Report::rows) {
        count += Count::one(row.ok);
    }
    Ok(count)
}

fn guests() -> Result<Count> {
    let mut count = Count::default();
    for found in guests::short_set()? {
        count += Count::one(found.ok);
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_test_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; \
                    0 filtered out; finished in 0.03s";
        let expected = Count {
            passed: 12,
            failed: 3,
        };
        assert_eq!(parse_result(line), Some(expected));
        assert_eq!(parse_result("test result: odd"), None);
        assert_eq!(parse_result("test a::b ... ok"), None);
    }

    #[test]
    fn a_step_that_cannot_run_is_a_failure() {
        let broken = judge("step", Err(anyhow::anyhow!("no cargo")));
        assert_eq!(broken, Count::one(false));
        let mut count = Count::one(true);
        count += broken;
        assert_eq!((count.passed, count.failed), (1, 1));
    }
}
