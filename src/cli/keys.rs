// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings of a VM by name: the keys of `--vm` and of the file, and the flags for a
//! single VM.

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};

use super::vm::Spec;

/// Which backends a setting means something to.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    Both,
    Userspace,
    Kernel,
}

/// A setting.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub scope: Scope,
    /// What stands for its value in the help.
    value: &'static str,
    meaning: &'static str,
}

const fn key(name: &'static str, scope: Scope, value: &'static str, meaning: &'static str) -> Key {
    Key {
        name,
        scope,
        value,
        meaning,
    }
}

/// All of them: the help and the errors list them.
pub const KEYS: &[Key] = &[
    key("guest-cid", Scope::Both, "CID", "CID of the guest [default: 3]"),
    key("socket", Scope::Both, "PATH", "vhost-user socket to create for the VMM"),
    key(
        "uds-path",
        Scope::Userspace,
        "PATH",
        "Unix socket to create for host programs; those that the guest reaches listen at PATH_PORT",
    ),
    key(
        "backend",
        Scope::Both,
        "BACKEND",
        "userspace, kernel (host programs use AF_VSOCK), or auto: userspace where uds-path or forward-cid is given, else kernel if the device opens",
    ),
    key("device", Scope::Kernel, "PATH", "The kernel's device file for the backend kernel"),
    key(
        "iotlb-mode",
        Scope::Kernel,
        "MODE",
        "What the backend kernel can reach: off or identity (all guest memory), restricted (what is shared by --control)",
    ),
    key(
        "forward-cid",
        Scope::Userspace,
        "CID",
        "vsock CID that the guest's connections are forwarded to, instead of uds-path",
    ),
    key(
        "forward-listen",
        Scope::Userspace,
        "PORT+PORT..",
        "vsock ports of the host that are forwarded to the guest",
    ),
    key(
        "groups",
        Scope::Userspace,
        "NAME+NAME..",
        "Groups of VMs that reach each other [default: default]",
    ),
    key(
        "queue-size",
        Scope::Both,
        "ENTRIES",
        "Largest queue that the driver may set up [default: 32768]",
    ),
    key(
        "tx-buffer-size",
        Scope::Userspace,
        "BYTES",
        "Bytes that a connection of the guest's may have under way to the host [default: 1048576]",
    ),
    key(
        "reply",
        Scope::Userspace,
        "DIALECT",
        "Port that a host client is told: guest-port or host-port [default: guest-port]",
    ),
    key("max-connections", Scope::Userspace, "NUMBER", "Connections at once"),
    key(
        "max-half-open",
        Scope::Userspace,
        "NUMBER",
        "Connections that wait for the guest, for host programs, for siblings, and silent clients, each",
    ),
    key(
        "max-pending-bytes",
        Scope::Userspace,
        "BYTES",
        "Bytes that wait for host programs to read them, over all connections",
    ),
    key(
        "max-pending-resets",
        Scope::Userspace,
        "NUMBER",
        "Refusals that wait for the guest to post buffers",
    ),
    key(
        "max-sibling-requests",
        Scope::Userspace,
        "NUMBER",
        "Connections that siblings may have asked for at once",
    ),
    key(
        "handshake-timeout-ms",
        Scope::Userspace,
        "MILLISECONDS",
        "Time that a host client has to say CONNECT, and the guest to answer",
    ),
    key(
        "poll-us",
        Scope::Userspace,
        "MICROSECONDS",
        "Microseconds to poll for the next packet before sleeping, where one is expected soon (at most 1000); 0: never [default: 60]",
    ),
];

/// Those whose flags are for all VMs.
const FOR_ALL: [&str; 2] = ["backend", "poll-us"];

/// The names, for errors.
pub fn names() -> String {
    let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
    names.join(", ")
}

/// What `--vm` takes, for its help.
pub fn help() -> String {
    let mut text =
        String::from("A VM to serve, as comma-separated settings. Repeat for more VMs.\n\n");
    for Key { name, meaning, .. } in KEYS {
        text.push_str(&format!("  {name:<21} {meaning}\n"));
    }
    text
}

/// The one VM of a command line without `--vm`: a flag for each setting.
#[derive(Clone, Debug)]
pub struct Single(pub Spec);

fn flags() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| !FOR_ALL.contains(&key.name))
}

impl Args for Single {
    fn augment_args(command: Command) -> Command {
        command.args(flags().map(|key| {
            Arg::new(key.name)
                .long(key.name)
                .value_name(key.value)
                .help(key.meaning)
                .help_heading("A single VM")
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Single {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut spec = Spec::default();
        for key in flags() {
            if let Some(value) = matches.get_one::<String>(key.name) {
                let set = spec.set(key.name, value);
                set.map_err(|error| Error::raw(ErrorKind::ValueValidation, error))?;
            }
        }
        Ok(Self(spec))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
