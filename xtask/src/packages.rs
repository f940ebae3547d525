// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Installs the Debian packages whose programs the lab calls.
//!
//! Says what it installs and why it must; takes nothing away from the machine
//! (`--no-remove`). Uses `sudo` where it is not root.
//!
//! Where the machine's own suites cannot provide a package without a removal,
//! as bookworm's QEMU beside a `qemu-utils` from backports, the packages are
//! taken from backports, seen through lists in the cache: the machine's apt
//! sources stay as they are.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::cache::Cache;
use crate::mirror::Mirror;
use crate::process;

/// A program that must be there, and the package that brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    program: String,
    package: String,
}

impl Need {
    /// A program and its package.
    pub fn new(program: &str, package: &str) -> Self {
        Self {
            program: program.to_owned(),
            package: package.to_owned(),
        }
    }
}

/// Makes sure that the programs are there.
///
/// # Errors
/// When a package cannot be installed; the error says what to type.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<&str> = needs
        .iter()
        .filter(|need| !process::in_path(&need.program))
        .map(|need| need.package.as_str())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    eprintln!("installing {list} with apt-get: the lab needs it and does not find it");
    install(&missing).with_context(|| {
        format!("cannot install {list}; install it yourself: sudo apt-get install {list}")
    })?;
    for need in needs {
        if !process::in_path(&need.program) {
            bail!(
                "{} was installed but brought no program {}",
                need.package,
                need.program
            );
        }
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    let plain: Vec<String> = Vec::new();
    if simulate(&plain, packages).is_err() {
        // Lists may never have been fetched, as in a fresh container.
        process::run(privileged("apt-get")?.args(["-q", "update"]))?;
    }
    let options = match simulate(&plain, packages) {
        Ok(()) => plain,
        Err(error) => {
            eprintln!("  not to be had without removing something; looking into backports");
            let options = backports()?;
            simulate(&options, packages).context(error)?;
            options
        }
    };
    process::run(
        privileged("apt-get")?
            .args(&options)
            .args(["-q", "-y", "--no-remove", "--no-install-recommends"])
            .args(["-o", "DPkg::Lock::Timeout=300", "install"])
            .args(packages),
    )
}

/// Whether apt sees a way that removes nothing. Needs no rights.
fn simulate(options: &[String], packages: &[&str]) -> Result<()> {
    process::run(
        Command::new("apt-get")
            .args(options)
            .args([
                "-q",
                "-s",
                "--no-remove",
                "--no-install-recommends",
                "install",
            ])
            .args(packages),
    )
}

/// Options that let apt see the release with its backports, through lists of
/// the lab's own.
fn backports() -> Result<Vec<String>> {
    let cache = Cache::open()?;
    let mirror = Mirror::of_system()?;
    let release = &mirror.codename;
    let backports = format!("{release}-backports");
    let sources: String = [release, &format!("{release}-security"), &backports]
        .iter()
        .map(|suite| mirror.entry(suite))
        .collect();
    cache.directory("apt/install/lists/partial")?;
    cache.write("apt/install/sources.list", &sources)?;
    let root = cache.path("apt/install");
    let root = root.display();
    let options = [
        format!("Dir::State::Lists={root}/lists"),
        format!("Dir::Etc::SourceList={root}/sources.list"),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        "Dir::Cache::pkgcache=".to_owned(),
        "Dir::Cache::srcpkgcache=".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        format!("APT::Default-Release={backports}"),
    ];
    let options: Vec<String> = options
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect();
    process::run(
        Command::new("apt-get")
            .args(&options)
            // The lists do not exist yet, so no release can be the default.
            .args(["-o", "APT::Default-Release=", "-q", "update"]),
    )
    .with_context(|| format!("cannot fetch the package list of {backports}"))?;
    Ok(options)
}

/// A command with root's rights; asks for a password only at a terminal.
fn privileged(program: &str) -> Result<Command> {
    let user = fs::metadata("/proc/self")
        .context("cannot read /proc/self")?
        .uid();
    let mut command = if user == 0 {
        Command::new(program)
    } else {
        let mut command = Command::new("sudo");
        if !io::stdin().is_terminal() {
            command.arg("-n");
        }
        command.arg("--preserve-env=DEBIAN_FRONTEND").arg(program);
        command
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}
