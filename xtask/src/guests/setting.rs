// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which guest runs where, and behind what: the columns of the matrix.

use std::fmt;

use anyhow::{bail, Result};
use clap::ValueEnum;

use crate::kernels::{Kernel, Module, KERNELS};

/// What moves the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The daemon's own path, between guest memory and Unix sockets.
    Userspace,
    /// The host kernel's vhost-vsock.
    Kernel,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Userspace => "userspace",
            Self::Kernel => "kernel",
        })
    }
}

/// The name of this machine among hosts.
pub const HERE: &str = "here";

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The guest's kernel.
    pub guest: Kernel,
    /// The nested host's kernel; `None` is this machine.
    pub host: Option<Kernel>,
    /// What the daemon is told to use.
    pub backend: Backend,
    /// Whether bit 33 is offered.
    pub platform_access: bool,
}

impl Setting {
    /// The host's name.
    pub fn host_name(&self) -> &'static str {
        self.host.map_or(HERE, |host| host.name)
    }

    /// Whether both kernels have `SOCK_SEQPACKET` over virtio, which came with Linux 5.14.
    pub fn has_seqpacket(&self) -> bool {
        const WITHOUT: &str = "5.10";
        self.guest.name != WITHOUT && self.host_name() != WITHOUT
    }

    /// Whether its guest gets programs of Debian's. One does: they do not depend on the
    /// kernel, and make the initramfs large.
    pub fn has_programs(&self) -> bool {
        const WITH: &str = "6.12";
        self.guest.name == WITH && self.host.is_none() && !self.platform_access
    }

    /// A name for files.
    pub fn file_name(&self) -> String {
        let platform = if self.platform_access { "-33" } else { "" };
        format!("{}-on-{}{platform}", self.guest.name, self.host_name())
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let platform = if self.platform_access { "" } else { " not" };
        write!(
            f,
            "guest {}, host {}, backend {}, bit 33{platform} offered",
            self.guest.name,
            self.host_name(),
            self.backend
        )
    }
}

/// The stock kernels of the table: a guest has no use for a rebuilt `vhost_vsock`.
pub fn stock() -> impl Iterator<Item = &'static Kernel> {
    KERNELS.iter().filter(|k| k.module == Module::Stock)
}

/// The stock kernel of this name.
///
/// # Errors
/// When there is none; the error lists those there are.
pub fn stock_kernel(name: &str) -> Result<Kernel> {
    if let Some(kernel) = stock().find(|kernel| kernel.name == name) {
        return Ok(*kernel);
    }
    let known: Vec<&str> = stock().map(|kernel| kernel.name).collect();
    bail!("no stock kernel {name:?}; there are: {}", known.join(", "));
}

/// The guest inside nested hosts, unless another is asked for: there the host is what is
/// tested.
const NESTED_GUEST: &str = "6.12";

/// The columns for these guests and hosts. Without names: every guest on this machine, and
/// one guest on every nested host.
///
/// # Errors
/// A name that is no kernel's.
pub fn select(guests: &[String], hosts: &[String]) -> Result<Vec<Setting>> {
    let named = |names: &[String]| -> Result<Vec<Kernel>> {
        names.iter().map(|name| stock_kernel(name)).collect()
    };
    let here = hosts.is_empty() || hosts.iter().any(|host| host == HERE);
    let nested: Vec<String> = hosts.iter().filter(|host| *host != HERE).cloned().collect();
    let nested = match hosts {
        [] => stock().copied().collect(),
        _ => named(&nested)?,
    };
    let mut settings = Vec::new();
    let mut add = |guest: Kernel, host: Option<Kernel>, backend: Backend| {
        for platform_access in [false, true] {
            settings.push(Setting {
                guest,
                host,
                backend,
                platform_access,
            });
        }
    };
    if here {
        let all = stock().copied().collect();
        let guests = if guests.is_empty() {
            all
        } else {
            named(guests)?
        };
        for guest in guests {
            add(guest, None, Backend::Userspace);
        }
    }
    let guests = match guests {
        [] => vec![stock_kernel(NESTED_GUEST)?],
        names => named(names)?,
    };
    for host in nested {
        for guest in &guests {
            add(*guest, Some(host), Backend::Kernel);
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(guests: &[&str], hosts: &[&str]) -> Vec<String> {
        let own = |names: &[&str]| -> Vec<String> { names.iter().map(|&n| n.to_owned()).collect() };
        let settings = select(&own(guests), &own(hosts)).unwrap();
        settings.iter().map(Setting::file_name).collect()
    }

    #[test]
    fn all_is_every_guest_here_and_every_nested_host() {
        let all = names(&[], &[]);
        assert_eq!(all.len(), 16, "{all:?}");
        for expected in [
            "5.10-on-here",
            "7-on-here-33",
            "6.12-on-5.10",
            "6.12-on-7-33",
        ] {
            assert!(all.iter().any(|name| name == expected), "{expected}");
        }
    }

    #[test]
    fn names_select() {
        assert_eq!(
            names(&["6.1"], &["here"]),
            ["6.1-on-here", "6.1-on-here-33"]
        );
        assert_eq!(names(&["7"], &["6.1"]), ["7-on-6.1", "7-on-6.1-33"]);
        let unknown = select(&["6.1-split".to_owned()], &[]).unwrap_err();
        assert!(unknown.to_string().contains("6.12"), "{unknown}");
    }

    #[test]
    fn seqpacket_needs_both_kernels() {
        let has = |guest, host| {
            let settings = select(&[String::from(guest)], &[String::from(host)]).unwrap();
            settings[0].has_seqpacket()
        };
        assert!(has("6.1", HERE) && has("6.1", "7"));
        assert!(!has("5.10", HERE) && !has("6.1", "5.10"));
    }
}
