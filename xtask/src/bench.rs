// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench`: the daemon's speed beside its rival's.

use anyhow::Result;
use clap::Args;

use crate::cache::Cache;
use crate::rival;

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// Installs the daemon that ours is compared with, prints its program and ends.
    #[arg(long)]
    install: bool,
}

/// Returns whether all was measured.
pub fn run(options: &Options) -> Result<bool> {
    let rival = rival::program(&Cache::open()?)?;
    if options.install {
        println!("{}", rival.display());
    }
    Ok(true)
}
