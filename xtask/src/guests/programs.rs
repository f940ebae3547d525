// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs as Debian's packages have them, for a guest and for this machine.
//!
//! They are unpacked, never installed. In a guest they lie where they belong, with the
//! libraries that their loader names; on this machine they run through that loader, in
//! the tree they were unpacked to, whatever release the machine has.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::workshop::{library, Cargo};
use crate::apt::{self, Suite};
use crate::cache::Cache;
use crate::interrupt::Unfinished;
use crate::mirror::Mirror;
use crate::modules::walk;
use crate::process;

/// socat 1.8, which knows `VSOCK-LISTEN` and `VSOCK-CONNECT`.
pub const SOCAT: &str = "/usr/bin/socat1";
/// OpenBSD's netcat, for Unix sockets.
pub const NETCAT: &str = "/usr/bin/nc.openbsd";
/// Python, with its own `socket` module.
pub const PYTHON: &str = "/usr/bin/python3.13";
/// From systemd 257, which closes its sending half over vsock and waits for the other side.
const NOTIFY: &str = "/usr/bin/systemd-notify";

/// The release that they are from.
const SUITE: &str = "trixie";
/// Their packages, and those of their libraries.
const PACKAGES: &[&str] = &[
    "libacl1",
    "libaudit1",
    "libblkid1",
    "libbsd0",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcrypt1",
    "libexpat1",
    "libmd0",
    "libmount1",
    "libpam0g",
    "libpcre2-8-0",
    "libpython3.13-minimal",
    "libseccomp2",
    "libselinux1",
    "libssl3t64",
    "libsystemd-shared",
    "libwrap0",
    "libzstd1",
    "netcat-openbsd",
    "python3.13-minimal",
    "socat",
    "systemd",
    "zlib1g",
];
/// What of them a guest gets.
const IN_THE_GUEST: [&str; 3] = [SOCAT, PYTHON, NOTIFY];

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const PYTHON_LIBRARY: &str = "/usr/lib/python3.13";
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu/systemd",
];

/// The programs, unpacked; removed when dropped.
#[derive(Debug)]
pub struct Programs {
    tree: Unfinished,
}

impl Programs {
    /// Downloads what is missing, and unpacks all.
    ///
    /// # Errors
    /// When a package cannot be had.
    pub fn unpack(cache: &Cache, refresh: bool) -> Result<Self> {
        let suite = Suite::open(cache, &Mirror::of_system()?, SUITE, refresh)?;
        let debs: Vec<PathBuf> = PACKAGES
            .iter()
            .map(|name| suite.download(&suite.package(name, None)?))
            .collect::<Result<_>>()?;
        let tree = cache.temporary()?;
        apt::unpack(&debs, tree.path())?;
        Ok(Self { tree })
    }

    /// Adds the programs, their libraries and their loader to an initramfs.
    ///
    /// # Errors
    /// When a library is in none of the packages.
    pub fn load(&self, cargo: &mut Cargo) -> Result<()> {
        let mut libraries = Vec::new();
        for program in IN_THE_GUEST {
            cargo.program(program, &self.at(program))?;
            let listed = process::output(&mut self.through_loader(["--list"], program))
                .with_context(|| format!("a library of {program} is in none of its packages"))?;
            libraries.extend(listed.lines().filter_map(library).map(PathBuf::from));
        }
        libraries.sort();
        libraries.dedup();
        for from in libraries {
            // The loader's own line names it by the path it was called by.
            if let Ok(name) = from.strip_prefix(self.tree.path()) {
                cargo.program(&format!("/{}", name.display()), &from)?;
            }
        }
        cargo.program(LOADER, &self.loader())?;
        let mut modules = Vec::new();
        walk(&self.at(PYTHON_LIBRARY), &mut |path| {
            modules.push(path.to_owned())
        })?;
        for from in modules {
            let name = from.strip_prefix(self.tree.path())?;
            cargo.file(&format!("/{}", name.display()), &from)?;
        }
        Ok(())
    }

    /// A program of these on this machine, that ends with this process.
    pub fn command(&self, program: &str) -> Command {
        let inner = self.through_loader([] as [&str; 0], program);
        let mut command = process::bound(inner.get_program());
        command
            .args(inner.get_args())
            .env("PYTHONHOME", self.at("/usr"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// Where a file of theirs is on this machine.
    pub fn file(&self, path: &str) -> PathBuf {
        self.at(path)
    }

    fn through_loader(
        &self,
        options: impl IntoIterator<Item = impl AsRef<OsStr>>,
        program: &str,
    ) -> Command {
        let places = LIBRARIES.map(|place| self.at(place).display().to_string());
        let mut command = Command::new(self.loader());
        command
            .arg("--library-path")
            .arg(places.join(":"))
            .args(options)
            .arg(self.at(program));
        command
    }

    /// The package has it below `/usr`, where `/lib64` leads on an installed system.
    fn loader(&self) -> PathBuf {
        self.at("/usr").join(LOADER.trim_start_matches('/'))
    }

    fn at(&self, path: &str) -> PathBuf {
        self.tree
            .path()
            .join(Path::new(path.trim_start_matches('/')))
    }
}
