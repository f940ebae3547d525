// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Type-checks for `aarch64-linux-android` what Android.bp says: each module's
//! sources with its features, its edition and its libraries, those libraries in
//! AOSP's versions with AOSP's features, and AOSP's lints.
//!
//! For that it writes a Cargo workspace of its own below `target/`, with one
//! package for each module. A library that is missing in Android.bp is missing
//! there, too.
//!
//! Limits: crosvm's libraries, the binder's, and what Soong makes of AIDL are the
//! stand-ins of this repository. Nothing is linked. What the crates of crates.io
//! depend on is as Cargo resolves it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::cargo::Workspace;
use super::soong::{Origin, LIBRARIES};
use super::toolchain::Toolchain;
use super::unit::{Generated, Product, Unit};
use crate::process;

const TARGET: &str = "aarch64-linux-android";

/// Where the stand-ins are: of crosvm's crates, and of Android's.
const OF_CROSVM: &str = "crosvm/stand-ins";
const OF_ANDROID: &str = "aidl/stand-ins";

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
    generated: &[Generated],
    workspace: &Workspace,
    toolchain: &Toolchain,
) -> Result<()> {
    let place = target.join("android/workspace");
    let modules = Modules {
        root,
        units: units.iter().filter(|unit| unit.on_device).collect(),
        generated,
        workspace,
    };
    modules.write(&place)?;
    eprintln!(
        "  {} modules for {TARGET}; the first run builds the standard library",
        modules.units.len()
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

/// What is checked, and all that it is made from.
struct Modules<'a> {
    root: &'a Path,
    units: Vec<&'a Unit>,
    generated: &'a [Generated],
    workspace: &'a Workspace,
}

impl Modules<'_> {
    fn write(&self, place: &Path) -> Result<()> {
        make_directory(place)?;
        let members: BTreeSet<&str> = self.units.iter().map(|unit| unit.name.as_str()).collect();
        let members = members.into_iter().map(quote).collect::<Vec<_>>();
        let text = format!(
            "[workspace]\nresolver = \"2\"\nmembers = [{}]\n",
            members.join(", ")
        );
        write(&place.join("Cargo.toml"), &text)?;
        for unit in &self.units {
            let directory = place.join(&unit.name);
            make_directory(&directory)?;
            write(&directory.join("Cargo.toml"), &self.manifest(unit)?)?;
        }
        Ok(())
    }

    fn manifest(&self, unit: &Unit) -> Result<String> {
        let crate_root = unit
            .crate_root()
            .with_context(|| format!("{} has no crate_root", unit.name))?;
        let crate_root = self.root.join(crate_root);
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
        let _ = writeln!(text, "path = {}\n", quote_path(&crate_root));
        text += "[features]\n";
        let on = unit.list("features").iter().map(|feature| quote(feature));
        let _ = writeln!(text, "default = [{}]", on.collect::<Vec<_>>().join(", "));
        if let Some((package, _)) = self.workspace.target(&crate_root) {
            for feature in package.features.keys().filter(|name| *name != "default") {
                let _ = writeln!(text, "{feature} = []");
            }
        }
        text += "\n[dependencies]\n";
        for name in unit.libraries("android") {
            let _ = writeln!(text, "{}", self.dependency(name)?);
        }
        Ok(text + "\n" + LINTS)
    }

    /// A line of `[dependencies]`.
    fn dependency(&self, name: &str) -> Result<String> {
        if let Some(unit) = self.units.iter().find(|unit| unit.name == name) {
            return Ok(format!(
                "{} = {{ package = {}, path = {} }}",
                unit.crate_name(),
                quote(name),
                quote(&format!("../{name}"))
            ));
        }
        let mut generated = self.generated.iter();
        if let Some(library) = generated.find(|library| library.module == name) {
            return Ok(self.stand_in(OF_ANDROID, &library.crate_name));
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
            Origin::Crosvm => self.stand_in(OF_CROSVM, crate_name),
            Origin::Platform => self.stand_in(OF_ANDROID, crate_name),
        })
    }

    fn stand_in(&self, place: &str, crate_name: &str) -> String {
        let path = self.root.join(place).join(crate_name);
        format!("{crate_name} = {{ path = {} }}", quote_path(&path))
    }
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

/// Leaves a file alone that is right: Cargo looks at the time.
fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A string of TOML.
fn quote(text: &str) -> String {
    format!("{text:?}")
}

fn quote_path(path: &Path) -> String {
    quote(&path.display().to_string())
}
