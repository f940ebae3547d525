// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether all that Cargo builds, tests or keeps has a module of Android.bp.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::cargo::{Package, Target};
use super::rules::Rules;
use super::soong::WITHOUT_MODULE;
use super::unit::{Complaint, Product, Unit};

impl Rules<'_> {
    /// Every target of the packages that have modules has one, or a reason.
    pub(super) fn targets(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        for package in &self.workspace.packages {
            if !package.targets.iter().any(|target| self.has_root(target)) {
                continue;
            }
            for target in &package.targets {
                let what = product(target).and_then(|what| self.target(package, target, what));
                complaints.extend(what.map(|what| Complaint {
                    file: PathBuf::from("Android.bp"),
                    line: None,
                    module: String::new(),
                    what,
                }));
            }
        }
        complaints
    }

    fn target(&self, package: &Package, target: &Target, product: Product) -> Option<String> {
        let (name, package) = (&target.name, &package.name);
        let reason = WITHOUT_MODULE
            .iter()
            .any(|(of, without, _)| of == package && without == name);
        match (self.makes(target, product), reason) {
            (false, false) => Some(format!(
                "the target `{name}` of {package} has no module here, and no reason for that in \
                 xtask/src/android/soong.rs"
            )),
            (true, true) => Some(format!(
                "the target `{name}` of {package} has a module, and a reason to have none in \
                 xtask/src/android/soong.rs"
            )),
            (true, false) if self.has_tests(target) && !self.makes(target, Product::Test) => {
                Some(format!(
                    "the target `{name}` of {package} has unit tests, but no rust_test has its root"
                ))
            }
            _ => None,
        }
    }

    /// Whether a module has a target's root.
    fn has_root(&self, target: &Target) -> bool {
        self.of_root(target).next().is_some()
    }

    /// Whether a module makes this product of a target's root.
    fn makes(&self, target: &Target, product: Product) -> bool {
        self.of_root(target).any(|unit| unit.product == product)
    }

    fn of_root<'a>(&'a self, target: &'a Target) -> impl Iterator<Item = &'a Unit> {
        self.units.iter().filter(|unit| {
            let root = unit.crate_root().map(|path| self.root.join(path));
            root.as_ref() == Some(&target.src_path)
        })
    }

    fn has_tests(&self, target: &Target) -> bool {
        let root = target.src_path.strip_prefix(self.root);
        let found = root.map(|root| self.sources.follow(root, None));
        matches!(found, Ok(Ok(found)) if found.tests)
    }

    /// Every source file of a crate with a module belongs to a crate.
    pub(super) fn orphans(&self) -> Vec<Complaint> {
        let mut reached = BTreeSet::new();
        let mut places = BTreeSet::new();
        let crates = self
            .units
            .iter()
            .filter(|unit| unit.product != Product::Test);
        for root in crates.filter_map(Unit::crate_root) {
            if let Ok(found) = self.sources.follow(&root, None) {
                reached.extend(found.files);
            }
            places.extend(root.parent().map(Path::to_owned));
        }
        let mut files = Vec::new();
        for place in places {
            rust_files(self.root, &place, &mut files);
        }
        let orphans = files.into_iter().filter(|file| !reached.contains(file));
        orphans
            .map(|file| Complaint {
                file,
                line: None,
                module: String::new(),
                what: "no module of Android.bp reaches this file: remove it, or add its `mod`"
                    .to_owned(),
            })
            .collect()
    }
}

/// What a module would make of a target; `None`: no module is wanted.
fn product(target: &Target) -> Option<Product> {
    [
        ("lib", Product::Library),
        ("bin", Product::Binary),
        ("test", Product::Test),
    ]
    .into_iter()
    .find_map(|(kind, product)| target.is(kind).then_some(product))
}

fn rust_files(root: &Path, place: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(root.join(place)) else {
        return;
    };
    for entry in entries.flatten() {
        let path = place.join(entry.file_name());
        if entry.path().is_dir() {
            rust_files(root, &path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
}
