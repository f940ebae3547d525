// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Cargo knows of the workspace, from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::cfg::{Condition, Setting};
use crate::process;

/// The workspace's packages.
#[derive(Clone, Debug, Deserialize)]
pub struct Workspace {
    /// In no order.
    pub packages: Vec<Package>,
}

/// A package of the workspace.
#[derive(Clone, Debug, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What each feature turns on.
    pub features: BTreeMap<String, Vec<String>>,
    /// Of all kinds and targets.
    pub dependencies: Vec<Dependency>,
    /// Libraries, binaries, tests.
    pub targets: Vec<Target>,
}

/// One dependency.
#[derive(Clone, Debug, Deserialize)]
pub struct Dependency {
    /// The package's name.
    pub name: String,
    /// What it is called here, if not that.
    pub rename: Option<String>,
    /// The versions that will do.
    pub req: String,
    /// `dev`, `build`, or none.
    pub kind: Option<String>,
    /// Whether a feature turns it on.
    pub optional: bool,
    /// What is asked of it.
    pub features: Vec<String>,
    /// The `cfg` that it is for.
    pub target: Option<String>,
}

/// A crate that Cargo builds.
#[derive(Clone, Debug, Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `lib`, `bin`, `test`, ...
    pub kind: Vec<String>,
    /// Its root source file.
    pub src_path: PathBuf,
    /// Its edition.
    pub edition: String,
}

impl Target {
    /// Whether it is of this kind.
    pub fn is(&self, kind: &str) -> bool {
        self.kind.iter().any(|own| own == kind)
    }
}

impl Dependency {
    /// Its name in Rust.
    pub fn crate_name(&self) -> String {
        self.rename.as_ref().unwrap_or(&self.name).replace('-', "_")
    }
}

impl Package {
    /// The features that these turn on, and they themselves.
    pub fn closure(&self, features: &[String]) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let mut open: Vec<&String> = features.iter().collect();
        while let Some(feature) = open.pop() {
            if let Some(turns_on) = self.features.get(feature) {
                if all.insert(feature.clone()) {
                    open.extend(turns_on);
                }
            }
        }
        all
    }

    /// The dependencies that these features turn on for an operating system.
    pub fn active(&self, features: &[String], os: &str, tests: bool) -> Vec<&Dependency> {
        let closure = self.closure(features);
        let turned_on: BTreeSet<&str> = closure
            .iter()
            .filter_map(|feature| self.features.get(feature))
            .flatten()
            .filter_map(|name| match name.strip_prefix("dep:") {
                Some(name) => Some(name),
                None => name.split_once('/').map(|(name, _)| name),
            })
            .collect();
        let is_active = |dependency: &&Dependency| {
            let kind = match dependency.kind.as_deref() {
                None => true,
                Some("dev") => tests,
                Some(_) => false,
            };
            let setting = Setting {
                features: &[],
                test: tests,
                os,
            };
            let here = dependency.target.as_deref();
            let here = here.is_none_or(|text| Condition::of_text(text).holds(&setting));
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name);
            kind && here && (!dependency.optional || turned_on.contains(name.as_str()))
        };
        self.dependencies.iter().filter(is_active).collect()
    }
}

impl Workspace {
    /// Asks Cargo. Needs no network.
    ///
    /// # Errors
    /// When Cargo fails.
    pub fn read(root: &Path) -> Result<Self> {
        let text = process::output(
            Command::new("cargo")
                .args(["metadata", "--no-deps", "--format-version=1"])
                .current_dir(root),
        )?;
        serde_json::from_str(&text).context("cargo metadata says something else than expected")
    }

    /// The package and the target with this root source file.
    pub fn target(&self, path: &Path) -> Option<(&Package, &Target)> {
        self.packages.iter().find_map(|package| {
            let mut targets = package.targets.iter();
            let target = targets.find(|target| target.src_path == path)?;
            Some((package, target))
        })
    }
}
