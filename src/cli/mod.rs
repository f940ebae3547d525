// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line: without a command, the vhost-user daemon, as
//! `vhost-device-vsock` is called.

#[cfg(feature = "control")]
pub mod asking;
#[cfg(feature = "control")]
pub mod connect;
#[cfg(feature = "control")]
pub mod connections;
pub mod daemon;
#[cfg(feature = "control")]
mod date;
#[cfg(feature = "generate")]
pub mod generate;
mod keys;
pub mod probe;
#[cfg(feature = "control")]
mod prometheus;
#[cfg(feature = "control")]
pub mod reset;
mod sockets;
#[cfg(feature = "control")]
pub mod status;
pub mod vm;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  Sockets in a directory of the user's own (only root can create them in /run itself):
    cd $XDG_RUNTIME_DIR

  One VM; host programs at vm3.vsock and vm3.vsock_PORT:
    crosvm-vsock --guest-cid 3 --socket vhost3.socket --uds-path vm3.vsock

  Several VMs, the first two of which can reach each other:
    crosvm-vsock --vm guest-cid=3,socket=vhost3.socket,uds-path=vm3.vsock,groups=a \\
                 --vm guest-cid=4,socket=vhost4.socket,uds-path=vm4.vsock,groups=a+b \\
                 --vm guest-cid=5,socket=vhost5.socket,forward-cid=1,forward-listen=9001+9002

  The same from a file:
    crosvm-vsock --config /etc/crosvm-vsock.yaml

  The VMM, then a client on the host that reaches port 5000 of the guest:
    crosvm run --vhost-user type=vsock,socket=vhost3.socket,max-queue-size=256 ...
    (echo 'CONNECT 5000'; cat) | nc -U vm3.vsock

Exit codes:
  0  ended by SIGTERM or SIGINT
  1  failed while running
  2  wrong usage, or an invalid configuration

Environment:
  RUST_LOG              what to log: a level, or MODULE=LEVEL,..; --log-level overrides it
  NOTIFY_SOCKET         where READY=1 is sent once all sockets are there (systemd sets it)
  CROSVM_VSOCK_CONTROL  the control socket for the commands that ask a running daemon";

/// A virtio-vsock device for crosvm, Android and any VMM that speaks vhost-user.
///
/// Without a command, serves one virtual machine for each --vm (or the one that
/// --guest-cid, --socket and the others describe) until SIGTERM.
#[derive(Debug, Parser)]
#[command(
    name = "crosvm-vsock",
    version,
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = EXAMPLES
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    #[command(flatten)]
    pub daemon: daemon::Arguments,
}

impl Cli {
    /// What is logged when nobody says it.
    #[cfg(feature = "control")]
    pub fn log(&self) -> String {
        use crosvm_vsock::control::binder::LOG_TARGET;
        // A client hears what it does wrong, and a command says what went wrong itself.
        let level = match self.command {
            Some(_) => "off",
            None => "error",
        };
        format!("info,{LOG_TARGET}={level}")
    }

    /// What is logged when nobody says it.
    #[cfg(not(feature = "control"))]
    pub fn log(&self) -> String {
        "info".to_owned()
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Probe(probe::Arguments),
    #[cfg(feature = "control")]
    Status(status::Arguments),
    #[cfg(feature = "control")]
    Connections(connections::Arguments),
    #[cfg(feature = "control")]
    Connect(connect::Arguments),
    #[cfg(feature = "control")]
    Reset(reset::Arguments),
    #[cfg(feature = "generate")]
    Generate(generate::Arguments),
}
