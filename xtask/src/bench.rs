// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench`: the daemon's speed beside that of `vhost-device-vsock` and beside a
//! plain Unix socket.
//!
//! One measurement is one run of the program `vsock_bench`, so that nothing of it
//! outlives it and a daemon that hangs costs that one figure. All contenders take turns
//! within each repetition, since a machine's speed changes from one minute to the next;
//! what counts are ratios of medians of one run. [`rows`] says what is measured,
//! [`measure`] does it, [`results`] is what came of it, [`table`], [`chart`] and
//! [`page`] show it; [`kernel_path`] shows what `kernels --bench` measures.

mod chart;
mod grid;
pub mod kernel_path;
mod measure;
mod page;
mod results;
mod rows;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::cache::Cache;
use crate::lab::{target_directory, workspace};
use crate::packages::{self, Need};
use crate::process;
use crate::rival;
use measure::Bench;
use results::Results;

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// Only these rows, separated by commas; `--list` says which there are.
    #[arg(long, value_name = "ROW,..", value_delimiter = ',')]
    rows: Vec<String>,
    /// Repetitions of each row.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = repetitions)]
    reps: u32,
    /// Writes all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Shows the figures of such a file in place of measuring.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rows", "reps", "json"])]
    from: Option<PathBuf>,
    /// Writes the tables of docs/performance.md and its charts anew; needs all rows.
    #[arg(long, conflicts_with = "rows")]
    docs: bool,
    /// Lists the rows and ends.
    #[arg(long)]
    list: bool,
    /// Installs vhost-device-vsock into the cache, prints the path of its program and ends.
    #[arg(long)]
    install: bool,
}

fn repetitions(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(reps) if reps > 0 => Ok(reps),
        _ => Err(format!("at least 1 repetition, up to {}", u32::MAX)),
    }
}

/// Returns whether all was measured.
pub fn run(options: &Options) -> Result<bool> {
    if options.list {
        print!("{}", rows::list());
        return Ok(true);
    }
    let results = match &options.from {
        Some(file) => Results::read(file)?,
        None => {
            // Before anything is downloaded.
            let selection = rows::select(&options.rows)?;
            let rival = rival::program(&Cache::open()?)?;
            if options.install {
                println!("{}", rival.display());
                return Ok(true);
            }
            packages::ensure(&[Need::new("strace", "strace")])?;
            Bench::new(build()?, rival, options.reps).run(&selection)?
        }
    };
    println!("\n{}", table::terminal(&results));
    if let Some(file) = &options.json {
        results.write(file)?;
    }
    let charts = target_directory().join("bench");
    fs::create_dir_all(&charts).with_context(|| format!("cannot make {}", charts.display()))?;
    page::write_charts(&results, &charts)?;
    results.write(&charts.join("results.json"))?;
    println!("kept in {}", charts.display());
    if options.docs {
        page::update(&results, &workspace().join("docs"))?;
    }
    Ok(results.is_complete())
}

/// The programs of this workspace that take part.
#[derive(Debug)]
struct Programs {
    daemon: PathBuf,
    bench: PathBuf,
}

fn build() -> Result<Programs> {
    eprintln!("building the daemon and the guest driver");
    process::show(Command::new("cargo").current_dir(workspace()).args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "crosvm_vsock",
        "--package",
        "vsock_bench",
    ]))?;
    let release = target_directory().join("release");
    Ok(Programs {
        daemon: release.join("crosvm-vsock"),
        bench: release.join("vsock_bench"),
    })
}
