// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `crosvm-vsock generate`: the man page and shell completions, for packagers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Write man pages and shell completions into a directory.
#[derive(Args, Debug)]
#[command(hide = true)]
pub struct Arguments {
    /// The directory, which must exist.
    directory: PathBuf,
}

/// Writes everything.
pub fn run(arguments: &Arguments) -> ExitCode {
    match write(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crosvm-vsock: {}: {error}", arguments.directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write(arguments: &Arguments) -> std::io::Result<()> {
    let directory = &arguments.directory;
    let mut command = super::Cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "crosvm-vsock", directory)?;
    }
    clap_mangen::generate_to(command, directory)
}
