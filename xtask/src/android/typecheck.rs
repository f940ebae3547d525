// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Type-checks for `aarch64-linux-android` what Android.bp says: each module's
//! sources with its features, its edition and its libraries, those libraries in
//! AOSP's versions with AOSP's features, and AOSP's lints.
//!
//! For that it writes a Cargo workspace of its own below `target/`, with one
//! package for each module. A library that is missing in Android.bp is missing
//! there, too.
//!
//! Limits: crosvm's libraries are the stand-ins of this repository, and features
//! with a part of Android that is on no registry ([`OF_ANDROID`]) are off. Nothing
//! is linked. What the crates of crates.io depend on is as Cargo resolves it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cargo::Workspace;
use super::soong::{Origin, LIBRARIES, OF_ANDROID};
use super::toolchain::Toolchain;
use super::unit::{Product, Unit};
use crate::process;

const TARGET: &str = "aarch64-linux-android";

/// AOSP's rustc lints of the set "android" (build/soong/rust/config/lints.go).
/// Soong tells rustc no list of `cfg`s to expect.
const LINTS: &str = "\
[lints.rust]
deprecated = \"allow\"
unknown_lints = \"allow\"
unexpected_cfgs = \"allow\"
missing_docs = \"deny\"
unsafe_op_in_unsafe_fn = \"deny\"
warnings = { level = \"deny\", priority = -1 }
";

/// Checks all units that are for devices.
///
/// # Errors
/// When a unit does not compile: the compiler has said why.
pub fn run(
    root: &Path,
    target: &Path,
    units: &[Unit],
    workspace: &Workspace,
    toolchain: &Toolchain,
) -> Result<()> {
    let place = target.join("android/workspace");
    let checked: Vec<&Unit> = units.iter().filter(|unit| unit.on_device).collect();
    for feature in OF_ANDROID {
        if checked
            .iter()
            .any(|unit| features(unit).len() < unit.list("features").len())
        {
            eprintln!("  without the feature {feature}, whose crates only an Android tree has");
        }
    }
    write_workspace(root, &place, &checked, workspace)?;
    eprintln!(
        "  {} modules for {TARGET}; the first run builds the standard library",
        checked.len()
    );
    process::show(
        Command::new("cargo")
            .args([
                "check",
                "--quiet",
                "--workspace",
                "--lib",
                "--bins",
                "--tests",
            ])
            .args(["--target", TARGET])
            .arg("-Zbuild-std=std,panic_abort,test")
            .arg("--target-dir")
            .arg(target.join("android/target"))
            .current_dir(&place)
            .env("RUSTC", toolchain.rustc())
            .env("LD_LIBRARY_PATH", toolchain.libraries()?)
            // Building the standard library is not stable.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", "--cfg=soong")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )
    .context("Soong would not build this")
}

/// The features of a unit that can be checked.
fn features(unit: &Unit) -> Vec<&str> {
    let all = unit.list("features").iter().map(String::as_str);
    all.filter(|feature| !OF_ANDROID.contains(feature))
        .collect()
}

/// The libraries of a unit that can be had: its own, and those of the table.
fn libraries<'a>(unit: &'a Unit, units: &[&Unit]) -> Vec<&'a str> {
    let can_be_had = |name: &&str| {
        let mut known = LIBRARIES.iter();
        units.iter().any(|unit| unit.name == *name)
            || known.any(|library| library.module == *name && library.origin != Origin::Platform)
    };
    let all = unit.libraries("android").into_iter();
    all.filter(can_be_had).collect()
}

fn write_workspace(
    root: &Path,
    place: &Path,
    units: &[&Unit],
    workspace: &Workspace,
) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    let members: BTreeSet<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
    let members = members.into_iter().map(quote).collect::<Vec<_>>();
    let text = format!(
        "[workspace]\nresolver = \"2\"\nmembers = [{}]\n",
        members.join(", ")
    );
    write(&place.join("Cargo.toml"), &text)?;
    for unit in units {
        let directory = place.join(&unit.name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        write(
            &directory.join("Cargo.toml"),
            &manifest(root, unit, units, workspace)?,
        )?;
    }
    Ok(())
}

/// Leaves a file alone that is right: Cargo looks at the time.
fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn manifest(root: &Path, unit: &Unit, units: &[&Unit], workspace: &Workspace) -> Result<String> {
    let crate_root = unit
        .crate_root()
        .with_context(|| format!("{} has no crate_root", unit.name))?;
    let crate_root = root.join(crate_root);
    let mut text = format!(
        "[package]\nname = {}\nversion = {}\nedition = {}\n\n",
        quote(&unit.name),
        quote(unit.text("cargo_pkg_version").unwrap_or("0.0.0")),
        quote(unit.text("edition").unwrap_or("2021")),
    );
    text += match unit.product {
        Product::Library => "[lib]\ntest = false\n",
        Product::Binary => "[[bin]]\ntest = false\n",
        Product::Test => "[[test]]\n",
    };
    let _ = writeln!(text, "name = {}", quote(&unit.crate_name()));
    let _ = writeln!(
        text,
        "path = {}\n",
        quote(&crate_root.display().to_string())
    );
    text += "[features]\n";
    let on: Vec<String> = features(unit).into_iter().map(quote).collect();
    let _ = writeln!(text, "default = [{}]", on.join(", "));
    if let Some((package, _)) = workspace.target(&crate_root) {
        for feature in package.features.keys().filter(|name| *name != "default") {
            let _ = writeln!(text, "{feature} = []");
        }
    }
    text += "\n[dependencies]\n";
    for name in libraries(unit, units) {
        let _ = writeln!(text, "{}", dependency(root, name, units)?);
    }
    Ok(text + "\n" + LINTS)
}

/// A line of `[dependencies]`.
fn dependency(root: &Path, name: &str, units: &[&Unit]) -> Result<String> {
    if let Some(unit) = units.iter().find(|unit| unit.name == name) {
        return Ok(format!(
            "{} = {{ package = {}, path = {} }}",
            unit.crate_name(),
            quote(name),
            quote(&format!("../{name}"))
        ));
    }
    let library = LIBRARIES
        .iter()
        .find(|library| library.module == name)
        .with_context(|| format!("no library is called {name}"))?;
    let crate_name = library.crate_name;
    Ok(match library.origin {
        Origin::CratesIo {
            package,
            version,
            features,
        } => {
            let features: Vec<String> = features.iter().copied().map(quote).collect();
            format!(
                "{crate_name} = {{ package = {}, version = {}, default-features = false, \
                 features = [{}] }}",
                quote(package),
                quote(&format!("={version}")),
                features.join(", ")
            )
        }
        Origin::Crosvm | Origin::Platform => {
            let path: PathBuf = root.join("crosvm/stand-ins").join(crate_name);
            format!(
                "{crate_name} = {{ path = {} }}",
                quote(&path.display().to_string())
            )
        }
    })
}

/// A string of TOML.
fn quote(text: &str) -> String {
    format!("{text:?}")
}
