// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line.

pub mod probe;

use clap::{Parser, Subcommand};

/// A virtio-vsock device for crosvm, Android and any VMM that speaks vhost-user.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Probe(probe::Arguments),
}
