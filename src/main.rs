// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The binary `crosvm-vsock`.

mod cli;
mod daemon;
mod logging;

use std::process::ExitCode;

use clap::Parser;

/// Wrong usage, as clap has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    logging::init(cli.daemon.log_level.as_deref());
    match cli.command {
        Some(cli::Command::Probe(arguments)) => cli::probe::run(&arguments),
        #[cfg(feature = "generate")]
        Some(cli::Command::Generate(arguments)) => cli::generate::run(&arguments),
        None => match cli.daemon.vms() {
            Ok(vms) => daemon::run(vms),
            Err(error) => {
                eprintln!("crosvm-vsock: {error:#}");
                ExitCode::from(USAGE)
            }
        },
    }
}
