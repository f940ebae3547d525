// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a line of the kernel table to files that boot.
//!
//! An image is a verified directory of the cache with `vmlinuz`, the modules
//! uncompressed, `modules.list` in load order and `recipe.json`, which says
//! what it was made from. A complete image needs neither network nor compiler.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};

use crate::apt::{self, Package, Suite};
use crate::cache::Cache;
use crate::initramfs::Archive;
use crate::kernels::{Kernel, Module};
use crate::mirror::Mirror;
use crate::modules::{walk, Modules, Wanted};
use crate::split;

const MODULE_LIST: &str = "modules.list";
const RECIPE: &str = "recipe.json";

/// What a kernel is booted for. Images of one purpose do not touch those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The lab: the device under test runs in it, its guest is a driver in the
    /// test process.
    Lab,
    /// A guest whose own driver talks to the device.
    Guest,
    /// A host that runs the daemon and a guest of its own.
    Host,
}

impl Purpose {
    fn directory(self) -> &'static str {
        match self {
            Self::Lab => "images",
            Self::Guest => "guests",
            Self::Host => "hosts",
        }
    }

    fn wanted(self) -> Wanted {
        match self {
            Self::Lab => Wanted {
                required: &["vhost_vsock"],
                where_present: &["vsock_loopback"],
                where_useful: &[],
            },
            Self::Guest => Wanted {
                required: &["vmw_vsock_virtio_transport"],
                where_present: &["virtio_pci"],
                where_useful: &[],
            },
            Self::Host => Wanted {
                required: &["vhost_vsock"],
                where_present: &[],
                where_useful: &["kvm_amd", "kvm_intel"],
            },
        }
    }
}

/// What an image was made from; another recipe makes the image anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The image package's name.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The edit of `vhost_vsock`'s source; empty for the stock module.
    pub edit: String,
}

/// A kernel that is ready to boot.
#[derive(Clone, Debug)]
pub struct Image {
    directory: PathBuf,
    /// What it was made from.
    pub recipe: Recipe,
}

impl Image {
    /// Finds the image of a kernel in the cache or makes it.
    ///
    /// `refresh` looks for a newer package than the cached one.
    ///
    /// # Errors
    /// When the package cannot be found, downloaded or unpacked, or the module
    /// cannot be rebuilt.
    pub fn prepare(
        kernel: &Kernel,
        purpose: Purpose,
        cache: &Cache,
        refresh: bool,
    ) -> Result<Self> {
        let edit = match kernel.module {
            Module::Stock => String::new(),
            Module::Rebuilt => split::describe(kernel.kind)?,
        };
        let place = format!("{}/{}", purpose.directory(), kernel.name);
        let cached = Self::cached(cache, &place).filter(|image| image.recipe.edit == edit);
        match cached {
            Some(image) if !refresh => Ok(image),
            cached => {
                let mirror = Mirror::of_system()?;
                let (suite, package) = newest(kernel, cache, &mirror, refresh)?;
                let recipe = Recipe {
                    package: package.name.clone(),
                    version: package.version.clone(),
                    edit,
                };
                match cached {
                    Some(image) if image.recipe == recipe => Ok(image),
                    _ => make(kernel, purpose, cache, &place, &suite, &package, recipe),
                }
            }
        }
    }

    fn cached(cache: &Cache, place: &str) -> Option<Self> {
        let directory = cache.verified_directory(place)?;
        let recipe = fs::read_to_string(directory.join(RECIPE)).ok()?;
        let recipe = serde_json::from_str(&recipe).ok()?;
        Some(Self { directory, recipe })
    }

    /// The kernel to give to QEMU.
    pub fn vmlinuz(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// The initramfs of this kernel, still open for more: `init`, the modules and
    /// their list.
    ///
    /// # Errors
    /// When a file of the image cannot be read.
    pub fn archive(&self, init: &[u8]) -> Result<Archive> {
        let mut archive = Archive::default();
        for directory in ["dev", "proc", "sys", "tmp", "modules"] {
            archive.directory(directory)?;
        }
        archive.program("init", init)?;
        let mut list = String::new();
        for line in read(&self.directory.join(MODULE_LIST))?.lines() {
            let (mark, name) = match line.strip_prefix('-') {
                Some(name) => ("-", name),
                None => ("", line),
            };
            let file = self.directory.join(format!("{name}.ko"));
            let contents =
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            archive.file(&format!("modules/{name}.ko"), &contents)?;
            list += &format!("{mark}/modules/{name}.ko\n");
        }
        archive.file("modules.list", list.as_bytes())?;
        Ok(archive)
    }

    /// Which kernel this is, for people: the version of its package.
    pub fn version(&self) -> &str {
        &self.recipe.version
    }
}

/// The newest package over all suites of the kernel. A suite that is not to be
/// had is only mentioned as long as another has the kernel.
fn newest<'a>(
    kernel: &Kernel,
    cache: &'a Cache,
    mirror: &Mirror,
    refresh: bool,
) -> Result<(Suite<'a>, Package)> {
    let mut found: Option<(Suite<'a>, Package)> = None;
    let mut troubles = Vec::new();
    for name in kernel.suites {
        let looked = Suite::open(cache, mirror, name, refresh)
            .and_then(|suite| suite.newest(kernel.package).map(|newest| (suite, newest)));
        match looked {
            Err(error) => {
                eprintln!("  {name}: {error}");
                troubles.push(format!("{name}: {error:#}"));
            }
            Ok((_, None)) => troubles.push(format!("{name}: no package {}", kernel.package)),
            Ok((suite, Some(package))) => {
                let newer = match &found {
                    None => true,
                    Some((_, other)) => apt::is_newer(&package.version, &other.version)?,
                };
                if newer {
                    found = Some((suite, package));
                }
            }
        }
    }
    match found {
        Some(found) => Ok(found),
        None => bail!("no kernel {}:\n{}", kernel.name, troubles.join("\n")),
    }
}

fn make(
    kernel: &Kernel,
    purpose: Purpose,
    cache: &Cache,
    place: &str,
    suite: &Suite<'_>,
    package: &Package,
    recipe: Recipe,
) -> Result<Image> {
    eprintln!("  preparing {} {}", package.name, package.version);
    let tree = cache.temporary()?;
    let mut debs = vec![suite.download(package)?];
    // Newer packagings spread the kernel over several packages.
    for part in ["linux-binary-", "linux-modules-"] {
        for dependency in package.dependencies(part) {
            debs.push(suite.download(&suite.dependency(&dependency)?)?);
        }
    }
    apt::unpack(&debs, tree.path())?;

    let mut modules = Modules::below(tree.path())?;
    if kernel.module == Module::Rebuilt {
        let rebuilt = split::rebuild(kernel.kind, cache, suite, package)?;
        let file = tree.path().join("rebuilt.ko");
        fs::write(&file, rebuilt).with_context(|| format!("cannot write {}", file.display()))?;
        modules.replace("vhost_vsock", file);
    }

    let image = cache.temporary()?;
    let vmlinuz = find_vmlinuz(tree.path())?;
    fs::copy(&vmlinuz, image.path().join("vmlinuz"))
        .with_context(|| format!("cannot copy {}", vmlinuz.display()))?;
    let order = modules.collect(&purpose.wanted(), image.path())?;
    fs::write(image.path().join(MODULE_LIST), order.join("\n") + "\n")?;
    fs::write(
        image.path().join(RECIPE),
        serde_json::to_string_pretty(&recipe)?,
    )?;
    let directory = cache.keep_directory(image, place)?;
    Ok(Image { directory, recipe })
}

/// `boot/vmlinuz-RELEASE`, or `usr/lib/modules/RELEASE/vmlinuz` as of 7.2.
fn find_vmlinuz(tree: &Path) -> Result<PathBuf> {
    let mut found = None;
    walk(tree, &mut |path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == "vmlinuz" || name.starts_with("vmlinuz-") {
            found = Some(path.to_owned());
        }
    })?;
    found.context("the kernel package has no vmlinuz")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
