// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The binary `crosvm-vsock`.

mod cli;
mod daemon;

use std::process::ExitCode;

use clap::Parser;

/// Wrong usage, as clap has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let mut logger =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"));
    if let Some(level) = &cli.daemon.log_level {
        logger.parse_filters(level);
    }
    logger.init();
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
