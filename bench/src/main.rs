// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One measurement of a vhost-user socket device, or of a plain Unix socket beside it:
//! `vsock_bench measure` prints one line of JSON. `cargo xtask bench` runs many of them
//! and makes tables.
//!
//! - [`device`] starts the daemon; [`guest`] plays the guest, over [`ring`] and
//!   [`front_end`]; [`peer`] is the host's program, in a process of its own;
//! - [`through`] measures through a device, [`plain`] without one; [`window`] is when.

#![forbid(unsafe_code)]

mod device;
mod front_end;
mod guest;
mod peer;
mod plain;
mod ring;
mod strace;
mod through;
mod window;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

use crate::peer::Part;
use crate::plain::Plain;
use crate::through::Through;
use crate::window::Measured;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measures once, and prints what came of it as a line of JSON.
    Measure(Measure),
    /// Plays a host's program; started by `measure`.
    #[command(hide = true)]
    Peer(Part),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Messages from the guest to the host.
    ToHost,
    /// Messages from the host to the guest.
    ToGuest,
    /// A byte from the guest and back.
    Ping,
    /// Connections from the guest.
    ConnectFromGuest,
    /// Connections from the host.
    ConnectFromHost,
    /// Messages from the guest and back on many connections.
    Many,
    /// Many connections that say nothing.
    Idle,
    /// Many VMs that do nothing.
    Vms,
}

#[derive(Args)]
struct Measure {
    #[arg(value_enum)]
    workload: Workload,
    /// The daemon; without it, a plain Unix socket is measured.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Bytes of a message.
    #[arg(long, default_value_t = 64)]
    size: u32,
    /// Bytes of a guest's receive buffer, header included.
    #[arg(long, default_value_t = 4096)]
    buffer: u32,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// VMs in the daemon, of which one is measured.
    #[arg(long, default_value_t = 1)]
    vms: usize,
    /// Length of the measurement in milliseconds.
    #[arg(long, default_value_t = 300)]
    window: u64,
    /// Counts the daemon's system calls.
    #[arg(long)]
    strace: bool,
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Peer(part) => part.play(),
        Task::Measure(measure) => {
            // For 15,000 connections; children inherit it.
            let limit = getrlimit(Resource::Nofile);
            setrlimit(
                Resource::Nofile,
                Rlimit {
                    current: limit.maximum,
                    ..limit
                },
            )?;
            println!("{}", serde_json::to_string(&measure.run()?)?);
            Ok(())
        }
    }
}

impl Measure {
    fn run(&self) -> Result<Measured> {
        let window = Duration::from_millis(self.window);
        let (size, count) = (self.size, self.connections);
        match &self.program {
            None => {
                let plain = Plain::new(window)?;
                match self.workload {
                    Workload::ToHost => plain.to_host(size as usize),
                    Workload::ToGuest => plain.to_guest(size as usize),
                    Workload::Ping => plain.ping(),
                    Workload::ConnectFromGuest => plain.connect_from_guest(),
                    Workload::ConnectFromHost => plain.connect_from_host(),
                    Workload::Many => plain.many(count, size as usize),
                    Workload::Idle | Workload::Vms => bail!("say --program: what is idle?"),
                }
            }
            Some(program) => {
                let through = Through::new(program, window, self.buffer)
                    .among(self.vms)
                    .counting(self.strace);
                match self.workload {
                    Workload::ToHost => through.to_host(size as usize),
                    Workload::ToGuest => through.to_guest(size as usize),
                    Workload::Ping => through.ping(),
                    Workload::ConnectFromGuest => through.connect_from_guest(),
                    Workload::ConnectFromHost => through.connect_from_host(),
                    Workload::Many => through.many(count, size),
                    Workload::Idle => through.idle(count),
                    Workload::Vms => through.vms(),
                }
            }
        }
    }
}
