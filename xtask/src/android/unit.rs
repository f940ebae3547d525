// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From modules to units: what Soong gives to rustc, once defaults are applied.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::blueprint::{Module, Value};
use super::soong::{CROSVM_DEFAULTS, RUST_TYPES};

/// An Android.bp file.
#[derive(Clone, Debug)]
pub struct File {
    /// Its path from the repository's root.
    pub path: PathBuf,
    /// What it defines.
    pub modules: Vec<Module>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Complaint {
    /// The file.
    pub file: PathBuf,
    /// The line, if it has to do with one.
    pub line: Option<usize>,
    /// The module, if it has to do with one.
    pub module: String,
    /// What is wrong, and what to do.
    pub what: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.module.is_empty() {
            write!(f, " {}:", self.module)?;
        }
        write!(f, " {}", self.what)
    }
}

impl Complaint {
    /// About a module of a file.
    pub fn about(file: &File, module: &Module, what: impl Into<String>) -> Self {
        Self {
            file: file.path.clone(),
            line: Some(module.line),
            module: module.name().to_owned(),
            what: what.into(),
        }
    }
}

/// What a unit becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// A library.
    Library,
    /// A program.
    Binary,
    /// A test program.
    Test,
}

/// A module that makes a crate, its defaults applied.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The module's name.
    pub name: String,
    /// Where it is defined.
    pub file: PathBuf,
    /// The line there.
    pub line: usize,
    /// What it becomes.
    pub product: Product,
    /// For devices, or for the host only.
    pub on_device: bool,
    /// Also for the host.
    pub on_host: bool,
    /// Whether it has crosvm's defaults.
    pub of_crosvm: bool,
    /// By their paths, as `rustlibs` or `target.host.rustlibs`.
    properties: BTreeMap<String, Value>,
}

impl Unit {
    /// A property, if it is set.
    pub fn get(&self, path: &str) -> Option<&Value> {
        self.properties.get(path)
    }

    /// A list; empty if it is not set.
    pub fn list(&self, path: &str) -> &[String] {
        match self.get(path) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }

    /// A string, if it is set.
    pub fn text(&self, path: &str) -> Option<&str> {
        match self.get(path)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether a boolean is set and true.
    pub fn is_true(&self, path: &str) -> bool {
        self.get(path) == Some(&Value::Bool(true))
    }

    /// The crate's name, as Soong gives it to rustc.
    pub fn crate_name(&self) -> String {
        self.text("crate_name")
            .map_or_else(|| self.name.replace('-', "_"), str::to_owned)
    }

    /// The root source file, from the repository's root.
    pub fn crate_root(&self) -> Option<PathBuf> {
        let directory = self.file.parent().unwrap_or(Path::new(""));
        Some(directory.join(self.text("crate_root")?))
    }

    /// The libraries for an operating system: `android` or `linux`.
    pub fn libraries(&self, os: &str) -> BTreeSet<&str> {
        let target = if os == "android" {
            "target.android.rustlibs"
        } else {
            "target.host.rustlibs"
        };
        let lists = ["rustlibs", "proc_macros", target];
        let all = lists.iter().flat_map(|list| self.list(list));
        all.map(String::as_str).collect()
    }

    /// The operating systems it is built for.
    pub fn systems(&self) -> Vec<&'static str> {
        let mut systems = Vec::new();
        if self.on_device {
            systems.push("android");
        }
        if self.on_host {
            systems.push("linux");
        }
        systems
    }

    /// A list is added to what defaults have; anything else replaces it.
    fn add(&mut self, path: &str, value: &Value) {
        if let Value::Map(properties) = value {
            for property in properties {
                self.add(&format!("{path}.{}", property.name), &property.value);
            }
            return;
        }
        match (self.properties.get_mut(path), value) {
            (Some(Value::List(own)), Value::List(list)) => own.extend(list.iter().cloned()),
            _ => {
                self.properties.insert(path.to_owned(), value.clone());
            }
        }
    }
}

/// A library that Soong's AIDL compiler makes of an `aidl_interface`.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Its name, as rustlibs has it.
    pub module: String,
    /// The crate's name.
    pub crate_name: String,
    /// Where it may be installed.
    pub apex_available: Vec<String>,
}

/// The Rust libraries of all interfaces that have one and no frozen version.
pub fn generated(files: &[File]) -> Vec<Generated> {
    let modules = files.iter().flat_map(|file| &file.modules);
    modules
        .filter(|module| module.kind == "aidl_interface")
        .filter(|module| module.get("unstable") == Some(&Value::Bool(true)))
        .filter(|module| module.get("backend.rust.enabled") == Some(&Value::Bool(true)))
        .map(|module| Generated {
            module: format!("{}-rust", module.name()),
            crate_name: module.name().replace(['.', '-'], "_"),
            apex_available: module.list("backend.rust.apex_available").to_vec(),
        })
        .collect()
}

/// The module types that files define themselves, with what they stand for.
pub fn own_types(files: &[File]) -> BTreeMap<&str, &str> {
    let modules = files.iter().flat_map(|file| &file.modules);
    modules
        .filter(|module| module.kind == "soong_config_module_type")
        .filter_map(|module| Some((module.name(), module.text("module_type")?)))
        .collect()
}

/// All units, and what is wrong with their defaults.
pub fn units(files: &[File]) -> (Vec<Unit>, Vec<Complaint>) {
    let own_types = own_types(files);
    let defaults: BTreeMap<&str, &Module> = files
        .iter()
        .flat_map(|file| &file.modules)
        .filter(|module| module.kind == "rust_defaults")
        .map(|module| (module.name(), module))
        .collect();
    let mut units = Vec::new();
    let mut complaints = Vec::new();
    for file in files {
        for module in &file.modules {
            let kind = own_types
                .get(module.kind.as_str())
                .copied()
                .unwrap_or(&module.kind);
            if !RUST_TYPES.contains(&kind) || kind == "rust_defaults" {
                continue;
            }
            let mut unit = Unit {
                name: module.name().to_owned(),
                file: file.path.clone(),
                line: module.line,
                product: match kind {
                    "rust_library" => Product::Library,
                    "rust_test" => Product::Test,
                    _ => Product::Binary,
                },
                on_device: kind != "rust_binary_host",
                on_host: false,
                of_crosvm: false,
                properties: BTreeMap::new(),
            };
            let mut seen = BTreeSet::new();
            if let Err(name) = apply(module, &defaults, &mut unit, &mut seen) {
                let what = format!("no rust_defaults is called `{name}`");
                complaints.push(Complaint::about(file, module, what));
            }
            unit.on_host = kind == "rust_binary_host" || unit.is_true("host_supported");
            units.push(unit);
        }
    }
    (units, complaints)
}

/// Defaults first, so that the module's own strings and booleans count.
fn apply<'a>(
    module: &'a Module,
    defaults: &BTreeMap<&str, &'a Module>,
    unit: &mut Unit,
    seen: &mut BTreeSet<&'a str>,
) -> Result<(), String> {
    for name in module.list("defaults") {
        if name == CROSVM_DEFAULTS {
            unit.of_crosvm = true;
        } else if seen.insert(name) {
            let found = defaults.get(name.as_str()).ok_or_else(|| name.clone())?;
            apply(found, defaults, unit, seen)?;
        }
    }
    for property in &module.properties {
        unit.add(&property.name, &property.value);
    }
    Ok(())
}
