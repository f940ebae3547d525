// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What machines are made from: programs that were built, kernels, initramfs.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};

use super::programs::Programs;
use super::setting::Setting;
use crate::accel;
use crate::cache::Cache;
use crate::image::{Image, Purpose};
use crate::initramfs::Archive;
use crate::interrupt::Unfinished;
use crate::kernels::Kernel;
use crate::lab::{build_static, target_directory};
use crate::packages::{self, Need};
use crate::process;
use crate::qemu::{self, Accel};

/// Where things are inside a nested host.
pub const INNER: Inner = Inner {
    daemon: "/bin/crosvm-vsock",
    qemu: "/bin/qemu-system-x86_64",
    vmlinuz: "/guest/vmlinuz",
    initramfs: "/guest/initramfs",
    console: "/tmp/guest-console",
    // The third serial port of the nested host is the second one of its guest.
    control: "serial,path=/dev/ttyS2",
    // KVM where the nested host has it.
    accel: [
        "-accel",
        "kvm",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max,la57=off",
    ],
};

/// Paths and options inside a nested host.
#[derive(Clone, Copy, Debug)]
pub struct Inner {
    /// The daemon.
    pub daemon: &'static str,
    /// The VMM.
    pub qemu: &'static str,
    /// The guest's kernel.
    pub vmlinuz: &'static str,
    /// The guest's initramfs.
    pub initramfs: &'static str,
    /// Where the guest's console goes.
    pub console: &'static str,
    /// The character device of the guest's agent.
    pub control: &'static str,
    /// What executes it.
    pub accel: [&'static str; 6],
}

/// The firmware that QEMU's q35 machine loads, below one of these directories.
const FIRMWARE: [&str; 3] = ["bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin"];
const FIRMWARE_PLACES: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];

/// A kernel and an initramfs that are ready to boot.
#[derive(Clone, Debug)]
pub struct Files {
    /// The kernel.
    pub vmlinuz: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

/// What was built and found out, for all machines.
#[derive(Debug)]
pub struct Workshop {
    cache: Cache,
    agent: Vec<u8>,
    daemon: PathBuf,
    directory: PathBuf,
    accel: Option<Accel>,
    refresh: bool,
    versions: BTreeMap<&'static str, String>,
}

impl Workshop {
    /// Installs what is missing and builds the programs.
    ///
    /// # Errors
    /// When a program cannot be installed or the build fails.
    pub fn open(refresh: bool) -> Result<Self> {
        if env::consts::ARCH != "x86_64" {
            bail!(
                "the kernels are x86-64; this machine is {}",
                env::consts::ARCH
            );
        }
        packages::ensure(&[
            Need::new(qemu::PROGRAM, "qemu-system-x86"),
            Need::new("xz", "xz-utils"),
        ])?;
        let cache = Cache::open()?;
        let directory = target_directory().join("guests");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let agent = read(&build_static("guest_agent", "guest_agent")?)?;
        let daemon = build_static("crosvm_vsock", "crosvm-vsock")?;
        Ok(Self {
            cache,
            agent,
            daemon,
            directory,
            accel: None,
            refresh,
            versions: BTreeMap::new(),
        })
    }

    /// Where logs and initramfs go.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The daemon's program.
    pub fn daemon(&self) -> &Path {
        &self.daemon
    }

    /// Debian's version of a kernel that was used.
    pub fn version(&self, kernel: &Kernel) -> String {
        let known = self.versions.get(kernel.name);
        known.map_or("?", String::as_str).to_owned()
    }

    /// A directory with a short path, for sockets.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn sockets(&self) -> Result<Unfinished> {
        tempfile::Builder::new()
            .prefix("crosvm-vsock-")
            .tempdir()
            .map(Unfinished::new)
            .context("cannot make a directory for sockets")
    }

    /// Whether machines are emulated, once one was started.
    pub fn emulates(&self) -> bool {
        self.accel == Some(Accel::Emulation)
    }

    /// What executes machines here, found out with the first of them.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn accel(&mut self, files: &Files) -> Result<Accel> {
        let accel = match self.accel {
            Some(accel) => accel,
            None => {
                let console = self.directory.join("probe.log");
                accel::choose(&self.cache, &files.vmlinuz, &files.initramfs, &console)?
            }
        };
        self.accel = Some(accel);
        Ok(accel)
    }

    /// A guest's kernel and initramfs.
    ///
    /// # Errors
    /// When the kernel cannot be had.
    pub fn guest(&mut self, kernel: &Kernel) -> Result<Files> {
        let image = self.image(kernel, Purpose::Guest)?;
        let archive = image.archive(&self.agent)?;
        self.files(&format!("{}-guest", kernel.name), &image, archive)
    }

    /// The same with programs of Debian's.
    ///
    /// # Errors
    /// When the kernel or a library of theirs cannot be had.
    pub fn guest_with(&mut self, kernel: &Kernel, programs: &Programs) -> Result<Files> {
        let image = self.image(kernel, Purpose::Guest)?;
        let mut cargo = Cargo::into(image.archive(&self.agent)?);
        programs.load(&mut cargo)?;
        let name = format!("{}-guest-with-programs", kernel.name);
        self.files(&name, &image, cargo.archive)
    }

    /// Programs of Debian's.
    ///
    /// # Errors
    /// When a package cannot be had.
    pub fn programs(&self) -> Result<Programs> {
        Programs::unpack(&self.cache, self.refresh)
    }

    /// A nested host's kernel and initramfs, with its guest, the daemon and a VMM inside.
    ///
    /// # Errors
    /// When a kernel cannot be had, or the machine's QEMU cannot be taken along.
    pub fn nested_host(&mut self, setting: &Setting) -> Result<Files> {
        let kernel = setting.host.context("this machine is no nested host")?;
        let guest = self.guest(&setting.guest)?;
        let image = self.image(&kernel, Purpose::Host)?;
        let mut cargo = Cargo::into(image.archive(&self.agent)?);
        cargo.program(INNER.daemon, &self.daemon)?;
        cargo.program_with_libraries(INNER.qemu, &in_path(qemu::PROGRAM)?)?;
        for name in FIRMWARE {
            let place = FIRMWARE_PLACES
                .iter()
                .map(|place| format!("{place}/{name}"))
                .find(|path| Path::new(path).is_file())
                .with_context(|| format!("QEMU's firmware {name} is not installed"))?;
            cargo.file(&place, Path::new(&place))?;
        }
        cargo.file(INNER.vmlinuz, &guest.vmlinuz)?;
        cargo.file(INNER.initramfs, &guest.initramfs)?;
        self.files(&format!("{}-host", kernel.name), &image, cargo.archive)
    }

    fn image(&mut self, kernel: &Kernel, purpose: Purpose) -> Result<Image> {
        let image = Image::prepare(kernel, purpose, &self.cache, self.refresh)?;
        let version = image.version().to_owned();
        self.versions.insert(kernel.name, version);
        Ok(image)
    }

    fn files(&self, name: &str, image: &Image, archive: Archive) -> Result<Files> {
        let initramfs = self.directory.join(format!("{name}.cpio"));
        fs::write(&initramfs, archive.finish()?)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        Ok(Files {
            vmlinuz: image.vmlinuz(),
            initramfs,
        })
    }
}

/// An archive that takes files by absolute paths, with their directories.
#[derive(Debug)]
pub struct Cargo {
    archive: Archive,
    directories: BTreeSet<PathBuf>,
}

impl Cargo {
    fn into(archive: Archive) -> Self {
        Self {
            archive,
            directories: BTreeSet::new(),
        }
    }

    /// Adds a program.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        let name = self.make_way(path)?;
        self.archive.program(&name, &read(from)?)
    }

    /// A program of this machine, with the libraries it needs where it looks for them.
    fn program_with_libraries(&mut self, path: &str, from: &Path) -> Result<()> {
        self.program(path, from)?;
        for library in libraries(from)? {
            self.program(&library, Path::new(&library))?;
        }
        Ok(())
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn file(&mut self, path: &str, from: &Path) -> Result<()> {
        let name = self.make_way(path)?;
        self.archive.file(&name, &read(from)?)
    }

    /// Adds the directories above, and returns the name in the archive.
    fn make_way(&mut self, path: &str) -> Result<String> {
        let name = path.trim_start_matches('/');
        let mut above: Vec<&Path> = Path::new(name).ancestors().skip(1).collect();
        above.reverse();
        for directory in above {
            let text = directory.display().to_string();
            if !text.is_empty() && self.directories.insert(directory.to_owned()) {
                self.archive.directory(&text)?;
            }
        }
        Ok(name.to_owned())
    }
}

/// The libraries of a program and its loader, as `ldd` lists them.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let text = process::output(Command::new("ldd").arg(program))?;
    let libraries: Vec<String> = text
        .lines()
        .filter_map(library)
        .map(str::to_owned)
        .collect();
    if libraries.is_empty() {
        bail!("ldd names no library of {}", program.display());
    }
    Ok(libraries)
}

/// `libz.so.1 => /lib/libz.so.1 (0x7f..)`, `/lib64/ld-linux-x86-64.so.2 (0x7f..)`.
pub fn library(line: &str) -> Option<&str> {
    let rest = line.split_once("=>").map_or(line, |(_, rest)| rest);
    let path = rest.split_whitespace().next()?;
    path.starts_with('/').then_some(path)
}

fn in_path(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut found = env::split_paths(&path).map(|directory| directory.join(program));
    found
        .find(|path| path.is_file())
        .with_context(|| format!("no program {program} in PATH"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007ffd)"), None);
        let line = "\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)";
        assert_eq!(library(line), Some("/lib/x86_64-linux-gnu/libz.so.1"));
        let loader = "\t/lib64/ld-linux-x86-64.so.2 (0x00007f)";
        assert_eq!(library(loader), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(library("\tlibnot.so => not found"), None);
    }
}
