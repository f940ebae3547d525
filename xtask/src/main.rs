// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The project's tasks: `cargo xtask kernels`, `guests`, `demo`, `compare` and `test`.
//!
//! `kernels` is the kernel lab: it boots stock kernels under QEMU and runs the
//! device against the real `/dev/vhost-vsock` in each. Data flows like this:
//! [`kernels`] names them, [`image`] makes files that boot ([`mirror`], [`apt`],
//! [`modules`], [`split`]; kept in [`cache`]), [`qemu`] runs them under what
//! [`accel`] found, [`protocol`] is what they say and [`table`] what it means.
//!
//! [`guests`] boots the same kernels as guests, whose own drivers talk to the
//! daemon; [`demo`] does it once, for somebody who looks on.
//! [`mod@bench`] measures the daemon against the [`rival`] that it replaces.

#![forbid(unsafe_code)]

mod accel;
mod android;
mod apt;
mod bench;
mod cache;
mod compare;
mod demo;
mod generated;
mod guests;
mod image;
mod initramfs;
mod interrupt;
mod kernels;
mod lab;
mod mirror;
mod modules;
mod packages;
mod process;
mod protocol;
mod qemu;
mod rival;
mod split;
mod table;
mod test;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

use bench::kernel_path::{self, Measurements};
use lab::{Lab, Wish};
use protocol::Row;
use table::Report;

/// Tests, the kernel lab and the demo of this project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Runs the device on real kernels, under QEMU.
    Kernels(Kernels),
    /// Runs real Linux guests against the daemon, under QEMU.
    Guests(guests::Options),
    /// Boots a guest, talks with it from both sides, and says what happens.
    Demo(demo::Options),
    /// Checks the Android.bp files, and the sources with a compiler for Android.
    Android,
    /// Runs every check of the project, the lab included.
    Test,
    /// Compares how this daemon and vhost-device-vsock keep the protocol; writes docs/compared.md.
    Compare,
    /// Measures this daemon's speed beside that of vhost-device-vsock.
    Bench(bench::Options),
}

#[derive(Debug, Args)]
struct Kernels {
    /// Only this kernel; may be repeated.
    #[arg(long = "kernel", value_name = "NAME")]
    kernels: Vec<String>,
    /// Only this mode; may be repeated.
    #[arg(long = "mode", value_name = "MODE")]
    modes: Vec<Mode>,
    /// Writes the rows to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Lists the kernels and ends.
    #[arg(long)]
    list: bool,
    /// Measures in place of testing.
    #[arg(long)]
    bench: bool,
    /// Writes what was measured to docs/performance.md; needs all kernels and modes.
    #[arg(long, requires = "bench", conflicts_with_all = ["kernels", "modes"])]
    docs: bool,
    /// Tells the story of one bit with two meanings in place of testing; in the
    /// newest kernel, unless another is named.
    #[arg(long, conflicts_with_all = ["bench", "modes"])]
    demo: bool,
    /// Looks for newer kernel packages than the cached ones.
    #[arg(long)]
    refresh: bool,
}

/// How the device addresses memory.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// No IOTLB.
    Off,
    /// All guest memory.
    Identity,
    /// Only what the guest shared.
    Restricted,
    /// Behind a vIOMMU.
    Translated,
}

fn main() -> ExitCode {
    let task = Cli::parse().task;
    let done = interrupt::install().and_then(|()| match task {
        Task::Kernels(options) => run_kernels(&options),
        Task::Guests(options) => guests::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Android => android::run(),
        Task::Test => test::run(),
        Task::Compare => compare::run(),
        Task::Bench(options) => bench::run(&options),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every row is as expected.
fn run_kernels(options: &Kernels) -> Result<bool> {
    if options.list {
        print!("{}", kernels::list());
        return Ok(true);
    }
    let newest = [kernels::NEWEST.to_owned()];
    let selected = match options.kernels.as_slice() {
        [] if options.demo => kernels::select(&newest)?,
        names => kernels::select(names)?,
    };
    let mode_name = |mode: &Mode| match mode {
        Mode::Off => "off".to_owned(),
        Mode::Identity => "identity".to_owned(),
        Mode::Restricted => "restricted".to_owned(),
        Mode::Translated => "translated".to_owned(),
    };
    let wish = Wish {
        modes: options.modes.iter().map(mode_name).collect(),
        bench: options.bench,
        demo: options.demo,
        refresh: options.refresh,
    };
    let mut lab = Lab::open()?;
    let reports: Vec<Report> = selected
        .iter()
        .map(|kernel| lab.run(kernel, &wish))
        .collect();
    println!("\n{}", table::render(&reports));
    let rows: Vec<&Row> = reports.iter().flat_map(Report::rows).collect();
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if options.bench {
        write_measurements(&reports, options.docs)?;
    }
    Ok(rows.iter().all(|row| row.ok))
}

/// Measurements have a file of their own: they are shown and kept, never
/// judged.
fn write_measurements(reports: &[Report], docs: bool) -> Result<()> {
    let all: Measurements<'_> = reports
        .iter()
        .map(|report| (report.kernel().name, report.bench.as_slice()))
        .collect();
    println!("{}", kernel_path::terminal(&all));
    let file = lab::target_directory().join("lab/bench.json");
    fs::write(&file, serde_json::to_string_pretty(&all)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("kept in {}", file.display());
    if docs {
        let page = lab::workspace().join("docs/performance.md");
        let table = kernel_path::markdown(&all, &process::today()?);
        generated::update(&page, "kernels --bench", &table)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn is_accepted(line: &str) -> bool {
        Cli::try_parse_from(format!("xtask {line}").split(' ')).is_ok()
    }

    #[test]
    fn a_page_is_written_from_a_whole_run_only() {
        Cli::command().debug_assert();
        for line in [
            "guests --docs",
            "guests --docs --from rows.json",
            "kernels --bench --docs",
            "bench --docs --reps 3",
            "bench --docs --from figures.json",
        ] {
            assert!(is_accepted(line), "{line}");
        }
        for line in [
            "guests --docs --guest 6.1",
            "guests --docs --host here",
            "guests --docs --row echo",
            "kernels --bench --docs --kernel 6.1",
            "kernels --bench --docs --mode off",
            "bench --docs --rows to-host-64",
            "bench --reps 0",
            "bench --reps x",
        ] {
            assert!(!is_accepted(line), "{line}");
        }
    }
}
