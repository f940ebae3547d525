// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Holds the units of Android.bp against Cargo.toml, the sources and the table
//! of AOSP's libraries: what Soong would build is what Cargo builds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use semver::{Version, VersionReq};

use super::cargo::{Dependency, Package, Target, Workspace};
use super::cfg::Setting;
use super::soong::{Library, Origin, Place, LIBRARIES};
use super::sources::Sources;
use super::unit::{Complaint, Generated, Product, Unit};

/// What Cargo sets at build time and Soong does not.
const CARGO_ONLY: &[&str] = &["CARGO_MANIFEST_DIR", "CARGO_BIN_EXE_"];

/// The units and all they are compared with.
pub struct Rules<'a> {
    /// The repository's root.
    pub root: &'a Path,
    /// All units.
    pub units: &'a [Unit],
    /// What is made of AIDL.
    pub generated: &'a [Generated],
    /// Cargo's view.
    pub workspace: &'a Workspace,
    /// The source files.
    pub sources: &'a Sources,
}

/// What a library's name in a list stands for.
#[derive(Clone, Copy)]
enum Named<'a> {
    Own(&'a Unit),
    Generated(&'a Generated),
    Other(&'static Library),
}

impl Named<'_> {
    fn crate_name(self) -> String {
        match self {
            Self::Own(unit) => unit.crate_name(),
            Self::Generated(generated) => generated.crate_name.clone(),
            Self::Other(library) => library.crate_name.to_owned(),
        }
    }

    fn module(&self) -> &str {
        match self {
            Self::Own(unit) => &unit.name,
            Self::Generated(generated) => &generated.module,
            Self::Other(library) => library.module,
        }
    }
}

impl Rules<'_> {
    /// Everything that is wrong.
    pub fn check(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        for unit in self.units {
            let mut said = BTreeSet::new();
            self.unit(unit, &mut |what: String| {
                said.insert(what);
            });
            complaints.extend(said.into_iter().map(|what| Complaint {
                file: unit.file.clone(),
                line: Some(unit.line),
                module: unit.name.clone(),
                what,
            }));
        }
        complaints.extend(self.targets());
        complaints.extend(self.orphans());
        complaints
    }

    fn unit(&self, unit: &Unit, complain: &mut impl FnMut(String)) {
        let crate_name = unit.crate_name();
        if unit.product == Product::Library && !unit.name.starts_with(&format!("lib{crate_name}")) {
            complain(format!(
                "a library of the crate `{crate_name}` must be called `lib{crate_name}`"
            ));
        }
        for (list, place) in [
            ("rustlibs", None),
            ("target.android.rustlibs", Some("android")),
            ("target.host.rustlibs", Some("linux")),
        ] {
            for name in unit.list(list) {
                self.named_library(unit, name, place, complain);
            }
        }
        self.one_crate_each(unit, complain);
        let Some(crate_root) = unit.crate_root() else {
            complain("it has no `crate_root`".to_owned());
            return;
        };
        let path = self.root.join(&crate_root);
        if !path.is_file() {
            // Said by the check of the form.
            return;
        }
        let Some((package, target)) = self.workspace.target(&path) else {
            complain(format!(
                "Cargo has no target with the root `{}`",
                crate_root.display()
            ));
            return;
        };
        self.as_cargo_has_it(unit, package, target, complain);
        for os in unit.systems() {
            self.libraries(unit, package, &crate_root, os, complain);
        }
    }

    /// A name in a list must be a library that can be linked there.
    fn named_library(
        &self,
        unit: &Unit,
        name: &str,
        place: Option<&str>,
        complain: &mut impl FnMut(String),
    ) {
        match self.find(name) {
            None => complain(format!(
                "no library is called `{name}`; if AOSP has it, add it to the table in \
                 xtask/src/android/soong.rs"
            )),
            Some(Named::Other(library)) => {
                if library.place == Place::Device && place != Some("android") {
                    complain(format!(
                        "`{name}` is for devices only: it goes under target.android.rustlibs"
                    ));
                }
                if library.origin == Origin::Crosvm && !unit.of_crosvm {
                    complain(format!(
                        "`{name}` is crosvm's, and visible only with crosvm_defaults"
                    ));
                }
            }
            Some(Named::Own(library)) => {
                if library.product != Product::Library {
                    complain(format!("`{name}` is no library"));
                }
                available(unit, name, library.list("apex_available"), complain);
            }
            Some(Named::Generated(library)) => {
                available(unit, name, &library.apex_available, complain);
            }
        }
    }

    /// Soong cannot rename: two libraries of one crate name do not go together,
    /// whether named here or by a library of ours.
    fn one_crate_each(&self, unit: &Unit, complain: &mut impl FnMut(String)) {
        for os in unit.systems() {
            let mut by_crate: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
            let mut open: Vec<&str> = unit.libraries(os).into_iter().collect();
            let mut seen = BTreeSet::new();
            while let Some(name) = open.pop() {
                let Some(named) = self.find(name).filter(|_| seen.insert(name)) else {
                    continue;
                };
                by_crate.entry(named.crate_name()).or_default().insert(name);
                if let Named::Own(library) = named {
                    open.extend(library.libraries(os));
                }
            }
            for (name, modules) in by_crate.iter().filter(|(_, modules)| modules.len() > 1) {
                let modules: Vec<&str> = modules.iter().copied().collect();
                complain(format!(
                    "{} are all the crate `{name}`, of which one module can have only one",
                    modules.join(" and ")
                ));
            }
        }
    }

    /// Edition, version, features.
    fn as_cargo_has_it(
        &self,
        unit: &Unit,
        package: &Package,
        target: &Target,
        complain: &mut impl FnMut(String),
    ) {
        let edition = unit.text("edition").unwrap_or("none");
        if edition != target.edition {
            complain(format!(
                "the edition is {edition}, but Cargo's is {}",
                target.edition
            ));
        }
        let version = unit.text("cargo_pkg_version").unwrap_or("none");
        if version != package.version || !unit.is_true("cargo_env_compat") {
            complain(format!(
                "cargo_pkg_version is {version}, but Cargo's version is {}; and \
                 cargo_env_compat must be true",
                package.version
            ));
        }
        let name = target.name.replace('-', "_");
        if unit.crate_name() != name {
            complain(format!(
                "the crate is called {}, but Cargo's {name}",
                unit.crate_name()
            ));
        }
        let features = unit.list("features");
        for feature in features {
            if !package.features.contains_key(feature) {
                complain(format!("{} has no feature `{feature}`", package.name));
            }
        }
        for feature in package.closure(features) {
            if !features.contains(&feature) {
                complain(format!(
                    "the feature `{feature}` is missing: Cargo turns it on with the others, \
                     Soong does not"
                ));
            }
        }
    }

    /// The libraries that the sources name, no more and no less.
    fn libraries(
        &self,
        unit: &Unit,
        package: &Package,
        crate_root: &Path,
        os: &'static str,
        complain: &mut impl FnMut(String),
    ) {
        let setting = Setting {
            features: unit.list("features"),
            test: unit.product == Product::Test,
            os,
        };
        let found = match self.sources.follow(crate_root, Some(&setting)) {
            Ok(found) => found,
            Err(error) => return complain(format!("{error:#}")),
        };
        for variable in &found.names.variables {
            if CARGO_ONLY.iter().any(|own| variable.starts_with(own)) {
                complain(format!(
                    "the sources use {variable}, which Soong does not set"
                ));
            }
        }
        let active = package.active(unit.list("features"), os, setting.test);
        let linked: BTreeMap<String, Named<'_>> = unit
            .libraries(os)
            .into_iter()
            .filter_map(|name| self.find(name))
            .map(|named| (named.crate_name(), named))
            .collect();
        let wanted = active
            .iter()
            .map(|dependency| dependency.crate_name())
            .chain(own_library(package, crate_root, self.root))
            .chain(self.of_android());
        let wanted: BTreeSet<String> = wanted
            .filter(|name| found.names.first.contains(name))
            .collect();
        let whose = if os == "android" {
            "the device"
        } else {
            "the host"
        };
        for name in wanted.iter().filter(|name| !linked.contains_key(*name)) {
            let modules = self.modules_of(name);
            complain(format!(
                "the sources use `{name}`, but rustlibs for {whose} has no {modules}"
            ));
        }
        for (name, named) in &linked {
            if !wanted.contains(name) {
                complain(format!(
                    "rustlibs for {whose} has {}, but the sources do not use `{name}`",
                    named.module()
                ));
            }
        }
        for dependency in active {
            if let Some(Named::Other(library)) = linked.get(&dependency.crate_name()) {
                version_and_features(dependency, library, complain);
            }
        }
        self.features_of_library(unit, &linked, complain);
    }

    /// A library of the same package must be built with every feature that its
    /// own sources ask for and that its user has.
    fn features_of_library(
        &self,
        unit: &Unit,
        linked: &BTreeMap<String, Named<'_>>,
        complain: &mut impl FnMut(String),
    ) {
        for named in linked.values() {
            let Named::Own(library) = named else { continue };
            let (Some(own), Some(root)) = (unit.crate_root(), library.crate_root()) else {
                continue;
            };
            let package = |path: PathBuf| {
                let found = self.workspace.target(&self.root.join(path));
                found.map(|(package, _)| package.name.as_str())
            };
            if package(own) != package(root.clone()) {
                continue;
            }
            let Ok(sources) = self.sources.follow(&root, None) else {
                continue;
            };
            for feature in unit.list("features") {
                let asks = sources.names.features.contains(feature);
                if asks && !library.list("features").contains(feature) {
                    complain(format!(
                        "it has the feature `{feature}`, but its library {} does not",
                        library.name
                    ));
                }
            }
        }
    }

    fn find(&self, name: &str) -> Option<Named<'_>> {
        let own = self.units.iter().find(|unit| unit.name == name);
        let generated = || self.generated.iter().find(|library| library.module == name);
        let other = || LIBRARIES.iter().find(|library| library.module == name);
        own.map(Named::Own)
            .or_else(|| generated().map(Named::Generated))
            .or_else(|| other().map(Named::Other))
    }

    /// The crates that only Android has: Cargo.toml does not know them.
    fn of_android(&self) -> impl Iterator<Item = String> + '_ {
        let generated = self
            .generated
            .iter()
            .map(|library| library.crate_name.clone());
        let platform = LIBRARIES
            .iter()
            .filter(|library| library.origin == Origin::Platform)
            .map(|library| library.crate_name.to_owned());
        generated.chain(platform)
    }

    /// The modules of a crate, for messages.
    fn modules_of(&self, crate_name: &str) -> String {
        let own = self
            .units
            .iter()
            .filter(|unit| unit.product == Product::Library && unit.crate_name() == crate_name)
            .map(|unit| unit.name.as_str());
        let others = LIBRARIES
            .iter()
            .filter(|library| library.crate_name == crate_name)
            .map(|library| library.module);
        let generated = self
            .generated
            .iter()
            .filter(|library| library.crate_name == crate_name)
            .map(|library| library.module.as_str());
        let all: Vec<&str> = own.chain(generated).chain(others).collect();
        if all.is_empty() {
            return "module for it, nor has AOSP one".to_owned();
        }
        all.join(" or ")
    }
}

/// Whatever holds a unit must be able to hold its libraries.
fn available(unit: &Unit, name: &str, places: &[String], complain: &mut impl FnMut(String)) {
    for apex in unit.list("apex_available") {
        if !places.contains(apex) {
            complain(format!("`{name}` is not available in `{apex}`"));
        }
    }
}

/// The crate name of the package's library, for its other targets.
fn own_library(package: &Package, crate_root: &Path, root: &Path) -> Option<String> {
    let library = package.targets.iter().find(|target| target.is("lib"))?;
    (library.src_path != root.join(crate_root)).then(|| library.name.replace('-', "_"))
}

fn version_and_features(
    dependency: &Dependency,
    library: &Library,
    complain: &mut impl FnMut(String),
) {
    let Origin::CratesIo {
        version, features, ..
    } = library.origin
    else {
        return;
    };
    let fits = VersionReq::parse(&dependency.req)
        .and_then(|wanted| Ok(wanted.matches(&Version::parse(version)?)));
    match fits {
        Ok(true) => {}
        Ok(false) => complain(format!(
            "Cargo wants {} in {}, but {} is {version}",
            dependency.name, dependency.req, library.module
        )),
        Err(error) => complain(format!("{}: {error}", library.module)),
    }
    for feature in &dependency.features {
        if !features.contains(&feature.as_str()) {
            complain(format!(
                "Cargo wants {} with `{feature}`, but {} is built without",
                dependency.name, library.module
            ));
        }
    }
}
