// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's packages that the check needs, unpacked in the cache and not
//! installed: `bpfmt`, and a compiler with its library's sources.
//!
//! Rust's own toolchain for Android would do as well; but a machine that runs
//! this project's tests has Debian's archive, and perhaps nothing else. Debian's
//! `rustc-web`, which it keeps new enough for browsers, comes with the sources
//! of the standard library, so that Cargo can build that for Android.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::{self, Package, Suite};
use crate::cache::Cache;
use crate::mirror::Mirror;
use crate::process;

/// The suite with `rustc-web`.
const RUST_SUITE: &str = "bookworm-security";
/// The suite with the libraries that its compiler loads and a machine may lack.
const LIBRARY_SUITE: &str = "bookworm";
const LIBRARIES: &[&str] = &[
    "libbsd0", "libedit2", "libffi8", "libicu72", "libmd0", "libxml2", "libz3-4",
];
/// What of the compiler's own sources is not the library's, and large.
const NOT_NEEDED: &[&str] = &["compiler", "src"];

/// A compiler, with the library's sources.
#[derive(Clone, Debug)]
pub struct Toolchain {
    root: PathBuf,
}

impl Toolchain {
    /// Finds the toolchain in the cache, or unpacks it there.
    ///
    /// # Errors
    /// When a package is not to be had.
    pub fn prepare(cache: &Cache) -> Result<Self> {
        const PLACE: &str = "android/rust";
        if let Some(root) = cache.verified_directory(PLACE) {
            return Ok(Self { root });
        }
        eprintln!("  getting Debian's rustc-web, to type-check for Android (140 MiB)");
        let mirror = Mirror::of_system()?;
        let suite = Suite::open(cache, &mirror, RUST_SUITE, false)?;
        let compiler = suite.package("rustc-web", None)?;
        let sources = suite.package("rust-web-src", Some(&compiler.version))?;
        let mut packages = vec![compiler, sources];
        // The library for build scripts, then what the compiler itself loads.
        for prefix in ["libstd-rust-web-dev", "libstd-rust-web-", "libllvm"] {
            let package = required(&suite, &packages, prefix)?;
            packages.push(package);
        }
        let mut debs = download(&suite, &packages)?;
        let suite = Suite::open(cache, &mirror, LIBRARY_SUITE, false)?;
        for name in LIBRARIES {
            debs.push(suite.download(&suite.package(name, None)?)?);
        }
        let unfinished = cache.temporary()?;
        apt::unpack(&debs, unfinished.path())?;
        drop_sources(&unfinished.path().join("usr/src"))?;
        let root = cache.keep_directory(unfinished, PLACE)?;
        Ok(Self { root })
    }

    /// The compiler.
    pub fn rustc(&self) -> PathBuf {
        self.root.join("usr/bin/rustc")
    }

    /// Where the compiler's own libraries are, for `LD_LIBRARY_PATH`.
    ///
    /// # Errors
    /// When the directory is not there.
    pub fn libraries(&self) -> Result<PathBuf> {
        let directory = self.root.join("usr/lib");
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if holds_compiler(&path) {
                return Ok(path);
            }
        }
        anyhow::bail!("{} has no compiler library", directory.display())
    }
}

fn holds_compiler(directory: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(directory) else {
        return false;
    };
    entries.any(|entry| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with("librustc_driver-")
        })
    })
}

/// `bpfmt`: the machine's, or Debian's in the cache.
///
/// # Errors
/// When the package is not to be had.
pub fn bpfmt(cache: &Cache) -> Result<PathBuf> {
    const PLACE: &str = "android/blueprint";
    if process::in_path("bpfmt") {
        return Ok(PathBuf::from("bpfmt"));
    }
    let root = match cache.verified_directory(PLACE) {
        Some(root) => root,
        None => {
            eprintln!("  getting Debian's blueprint-tools, for bpfmt");
            let mirror = Mirror::of_system()?;
            let suite = Suite::open(cache, &mirror, &mirror.codename, false)?;
            let package = suite.package("blueprint-tools", None)?;
            let unfinished = cache.temporary()?;
            apt::unpack(&download(&suite, &[package])?, unfinished.path())?;
            cache.keep_directory(unfinished, PLACE)?
        }
    };
    Ok(root.join("usr/bin/bpfmt"))
}

/// What one of the packages depends on and whose name begins so.
fn required(suite: &Suite<'_>, packages: &[Package], prefix: &str) -> Result<Package> {
    let have: Vec<&str> = packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let dependency = packages
        .iter()
        .flat_map(|package| package.dependencies(prefix))
        .find(|dependency| !have.contains(&dependency.name.as_str()))
        .with_context(|| format!("no package of {have:?} depends on one called {prefix}..."))?;
    suite.dependency(&dependency)
}

fn download(suite: &Suite<'_>, packages: &[Package]) -> Result<Vec<PathBuf>> {
    let each = packages.iter().map(|package| suite.download(package));
    each.collect()
}

/// Removes from `usr/src/rustc-VERSION` what the library does not need.
fn drop_sources(place: &Path) -> Result<()> {
    let entries =
        fs::read_dir(place).with_context(|| format!("cannot read {}", place.display()))?;
    for entry in entries {
        let sources = entry?.path();
        for name in NOT_NEEDED {
            let directory = sources.join(name);
            if directory.is_dir() {
                fs::remove_dir_all(&directory)
                    .with_context(|| format!("cannot remove {}", directory.display()))?;
            }
        }
    }
    Ok(())
}
