// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The binary `crosvm-vsock`.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match cli::Cli::parse().command {
        cli::Command::Probe(arguments) => cli::probe::run(&arguments),
    }
}
