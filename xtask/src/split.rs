// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernels that do not exist yet: `vhost_vsock` with the two bits apart.
//!
//! No released kernel separates "platform access" (bit 33) from "translate
//! through the IOTLB". This rebuilds the module of a stock kernel from
//! Debian's own source package with one or two places edited, against the
//! kernel's headers, with the compiler that built the kernel.
//!
//! The edits are described here; the kernel's sources stay in the cache and
//! are never part of this project. An edit that does not fit exactly once is
//! an error, so a kernel that changed cannot slip through unedited.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::apt::{unpack, Package, Suite};
use crate::cache::Cache;
use crate::kernels::Kind;
use crate::modules::walk;
use crate::packages::{self, Need};
use crate::process;

/// A place in `drivers/vhost/vsock.c` and what stands there afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Edit {
    find: &'static str,
    replace: &'static str,
}

/// Offers bit 63 beside 33; a guest's ack of it is accepted, as every offered
/// bit is.
const OFFER: Edit = Edit {
    find: "(1ULL << VIRTIO_F_ACCESS_PLATFORM) |",
    replace: "(1ULL << VIRTIO_F_ACCESS_PLATFORM) | (1ULL << 63) |",
};

/// Starts the IOTLB by bit 63 in place of 33.
const START: Edit = Edit {
    find: "(features & (1ULL << VIRTIO_F_ACCESS_PLATFORM))",
    replace: "(features & (1ULL << 63))",
};

fn edits(kind: Kind) -> Result<&'static [Edit]> {
    Ok(match kind {
        Kind::Split => &[OFFER, START],
        Kind::SplitCompat => &[OFFER],
        Kind::NoIotlb | Kind::Overloaded => {
            bail!("{kind} is what stock kernels are; there is nothing to rebuild")
        }
    })
}

/// The edits of a kind as text, to tell whether a cached module is of today's.
///
/// # Errors
/// A kind that is not made by rebuilding.
pub fn describe(kind: Kind) -> Result<String> {
    let lines: Vec<String> = edits(kind)?
        .iter()
        .map(|edit| format!("{} => {}", edit.find, edit.replace))
        .collect();
    Ok(lines.join("; "))
}

/// Builds the edited `vhost_vsock.ko` for a kernel package.
///
/// # Errors
/// When a package is missing, an edit does not fit, or the build fails.
pub fn rebuild(kind: Kind, cache: &Cache, suite: &Suite<'_>, image: &Package) -> Result<Vec<u8>> {
    let work = cache.temporary()?;
    let tree = work.path();
    unpack(&headers(suite, image)?, tree)?;
    let configured = retarget_makefiles(tree)?;
    let compiler = compiler(&configured)?;
    packages::ensure(&[
        Need::new("make", "make"),
        Need::new(&compiler, &compiler),
        Need::new("bc", "bc"),
        Need::new("tar", "tar"),
        Need::new("xz", "xz-utils"),
    ])?;

    let module = tree.join("module");
    take_source(suite, image, tree, &module)?;
    let source = module.join("vsock.c");
    let text = fs::read_to_string(&source).context("the kernel has no drivers/vhost/vsock.c")?;
    let edited = apply(&text, edits(kind)?)
        .with_context(|| format!("cannot edit vsock.c of {}", image.version))?;
    fs::write(&source, edited)?;
    fs::write(
        module.join("Kbuild"),
        "obj-m := vhost_vsock.o\nvhost_vsock-y := vsock.o\n",
    )?;

    eprintln!("  building vhost_vsock ({kind}) with {compiler}");
    process::run(
        Command::new("make")
            .arg("-C")
            .arg(&configured)
            .arg(format!("M={}", module.display()))
            // Type data of modules needs a vmlinux that no package ships.
            .arg("CONFIG_DEBUG_INFO_BTF_MODULES=")
            .arg("modules"),
    )
    .context("cannot build the edited vhost_vsock")?;
    let built = module.join("vhost_vsock.ko");
    // Debian strips its modules too; this one is loaded over an initramfs.
    process::run(Command::new("strip").arg("--strip-debug").arg(&built))?;
    fs::read(&built).with_context(|| format!("cannot read {}", built.display()))
}

/// The packages that an out-of-tree build needs, downloaded.
fn headers(suite: &Suite<'_>, image: &Package) -> Result<Vec<PathBuf>> {
    let name = image.name.replacen("linux-image-", "linux-headers-", 1);
    let headers = suite.package(&name, Some(&image.version))?;
    let mut debs = vec![suite.download(&headers)?];
    let mut others = headers.dependencies("linux-headers-");
    others.extend(headers.dependencies("linux-kbuild-"));
    for other in others {
        debs.push(suite.download(&suite.dependency(&other)?)?);
    }
    Ok(debs)
}

/// Debian's headers include each other by absolute path; points them into the
/// unpacked tree, and returns the directory that carries the configuration.
fn retarget_makefiles(tree: &Path) -> Result<PathBuf> {
    let mut configured = None;
    let headers = tree.join("usr/src");
    for entry in fs::read_dir(&headers).context("the headers package has no usr/src")? {
        let directory = entry?.path();
        let makefile = directory.join("Makefile");
        if directory.join("include/config/auto.conf").is_file() {
            let text = fs::read_to_string(&makefile)
                .with_context(|| format!("cannot read {}", makefile.display()))?;
            let moved = text.replace("/usr/src/", &format!("{}/", headers.display()));
            fs::write(&makefile, moved)?;
            configured = Some(directory);
        }
    }
    configured.context("the headers package has no configured kernel")
}

/// The compiler that built the kernel, by the name of its Debian package.
fn compiler(configured: &Path) -> Result<String> {
    let file = configured.join("include/config/auto.conf");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    compiler_name(&text).with_context(|| format!("{} does not name gcc", file.display()))
}

fn compiler_name(auto_conf: &str) -> Option<String> {
    let value = auto_conf
        .lines()
        .find_map(|line| line.strip_prefix("CONFIG_CC_VERSION_TEXT="))?;
    let program = value.trim_matches('"').split_whitespace().next()?;
    let start = program.find("gcc-")?;
    Some(program[start..].to_owned())
}

/// Unpacks the two files of `drivers/vhost` that the module is made of.
fn take_source(suite: &Suite<'_>, image: &Package, tree: &Path, to: &Path) -> Result<()> {
    let series = series(&image.version)
        .with_context(|| format!("{} is not a kernel version", image.version))?;
    let name = format!("linux-source-{series}");
    let deb = suite.download(&suite.package(&name, Some(&image.version))?)?;
    let source = tree.join("source");
    unpack(&[deb], &source)?;
    let mut archive = None;
    walk(&source, &mut |path| {
        if path.file_name().unwrap_or_default().to_string_lossy() == format!("{name}.tar.xz") {
            archive = Some(path.to_owned());
        }
    })?;
    let archive = archive.with_context(|| format!("{name} has no {name}.tar.xz"))?;
    fs::create_dir_all(to)?;
    eprintln!("  taking drivers/vhost out of {name}");
    process::run(
        Command::new("tar")
            .arg("-xJf")
            .arg(&archive)
            .arg("-C")
            .arg(to)
            .args(["--strip-components=3", "--occurrence=1"])
            .args(["vsock.c", "vhost.h"].map(|file| format!("{name}/drivers/vhost/{file}"))),
    )
}

/// `6.12` of `6.12.117-1~deb12u1`.
fn series(version: &str) -> Option<String> {
    let mut numbers = version.split('.');
    Some(format!("{}.{}", numbers.next()?, numbers.next()?))
}

fn apply(text: &str, edits: &[Edit]) -> Result<String> {
    let mut text = text.to_owned();
    for edit in edits {
        match text.matches(edit.find).count() {
            1 => text = text.replacen(edit.find, edit.replace, 1),
            count => bail!(
                "{:?} stands there {count} times, not once: this kernel has changed, \
                 look at its vsock.c and adapt the edit",
                edit.find
            ),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDIT: Edit = Edit {
        find: "if (a)",
        replace: "if (b)",
    };

    #[test]
    fn edit_fits_once_or_fails() {
        assert_eq!(apply("x; if (a) y;", &[EDIT]).unwrap(), "x; if (b) y;");
        for text in ["x;", "if (a) if (a)"] {
            let error = apply(text, &[EDIT]).unwrap_err().to_string();
            assert!(error.contains("if (a)"), "{error}");
        }
    }

    #[test]
    fn kinds_differ_in_what_starts_the_iotlb() {
        let split = describe(Kind::Split).unwrap();
        let compat = describe(Kind::SplitCompat).unwrap();
        assert_ne!(split, compat);
        assert!(split.starts_with(&compat));
        assert!(describe(Kind::Overloaded).is_err());
    }

    #[test]
    fn compiler_is_named_as_its_package() {
        let conf = "CONFIG_A=y\nCONFIG_CC_VERSION_TEXT=x86_64-linux-gnu-gcc-12 (Debian 12.2.0)\n";
        assert_eq!(compiler_name(conf).as_deref(), Some("gcc-12"));
        let conf = "CONFIG_CC_VERSION_TEXT=\"gcc-14 (Debian)\"\n";
        assert_eq!(compiler_name(conf).as_deref(), Some("gcc-14"));
        assert_eq!(compiler_name("CONFIG_CC_VERSION_TEXT=clang 20"), None);
    }

    #[test]
    fn series_is_two_numbers() {
        assert_eq!(series("6.12.117-1~deb12u1").as_deref(), Some("6.12"));
        assert_eq!(series("6"), None);
    }
}
