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
    logging::init(&cli.log(), cli.daemon.log_level.as_deref());
    match cli.command {
        Some(cli::Command::Probe(arguments)) => cli::probe::run(&arguments),
        #[cfg(feature = "generate")]
        Some(cli::Command::Generate(arguments)) => cli::generate::run(&arguments),
        #[cfg(feature = "control")]
        Some(cli::Command::Status(arguments)) => cli::status::run(&arguments),
        #[cfg(feature = "control")]
        Some(cli::Command::Connections(arguments)) => cli::connections::run(&arguments),
        #[cfg(feature = "control")]
        Some(cli::Command::Connect(arguments)) => cli::connect::run(&arguments),
        #[cfg(feature = "control")]
        Some(cli::Command::Reset(arguments)) => cli::reset::run(&arguments),
        None => match cli.daemon.vms() {
            Ok(vms) => daemon::run(vms, cli.daemon.control()),
            Err(error) => {
                logging::tell(&error);
                ExitCode::from(USAGE)
            }
        },
    }
}
