// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The form of each module: known types, known properties of the right kind in
//! AOSP's order, known values, sorted lists, names once, paths that exist.

use std::collections::BTreeSet;
use std::path::Path;

use super::blueprint::{Module, Property, Value};
use super::soong::{self, Kind, Properties, OF_TESTS, RUST_TYPES};
use super::unit::{own_types, Complaint, File};

/// Lists that AOSP keeps in order.
const SORTED: &[&str] = &["features", "rustlibs", "proc_macros"];
/// Lists of files.
const PATHS: &[&str] = &["license_text", "data", "srcs"];

/// What is wrong with the form of these files, which lie below `root`.
pub fn check(root: &Path, files: &[File]) -> Vec<Complaint> {
    let own_types = own_types(files);
    let mut names = BTreeSet::new();
    let mut complaints = Vec::new();
    for file in files {
        for module in &file.modules {
            let mut complain = |what: String| {
                complaints.push(Complaint::about(file, module, what));
            };
            let known = own_types
                .get(module.kind.as_str())
                .copied()
                .unwrap_or(&module.kind);
            let Some(properties) = soong::properties(known) else {
                complain(format!("`{}` is no module type", module.kind));
                continue;
            };
            if known != "package" && !names.insert(module.name()) {
                complain(format!("a second module is called `{}`", module.name()));
            }
            check_properties(&module.properties, properties, "", &mut complain);
            check_place(module, known, module.kind != known, &mut complain);
            check_paths(root, file, module, &mut complain);
        }
    }
    complaints
}

/// `inside` is the path of the map that holds them, with a dot at its end.
fn check_properties(
    own: &[Property],
    known: Properties,
    inside: &str,
    complain: &mut impl FnMut(String),
) {
    let mut last: Option<(usize, &str)> = None;
    for property in own {
        let name = &property.name;
        let shown = format!("{inside}{name}");
        let place = known.iter().position(|(known, _)| known == name);
        let Some(place) = place else {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            complain(format!(
                "line {}: `{shown}` is no property here; there are: {}",
                property.line,
                names.join(", ")
            ));
            continue;
        };
        if let Some((_, previous)) = last.filter(|(before, _)| *before > place) {
            complain(format!(
                "line {}: `{shown}` stands before `{inside}{previous}` in AOSP's order",
                property.line
            ));
        } else {
            last = Some((place, name));
        }
        check_values(property, &shown, complain);
        match (known[place].1, &property.value) {
            (Kind::Text, Value::Text(_)) | (Kind::Bool, Value::Bool(_)) => {}
            (Kind::List, Value::List(list)) => {
                let sorted = list.windows(2).all(|pair| pair[0] < pair[1]);
                if SORTED.contains(&name.as_str()) && !sorted {
                    complain(format!(
                        "line {}: `{shown}` is not sorted, or names something twice",
                        property.line
                    ));
                }
            }
            (Kind::Map(inner), Value::Map(own)) => {
                check_properties(own, inner, &format!("{shown}."), complain);
            }
            (wanted, found) => complain(format!(
                "line {}: `{shown}` takes {}, not {}",
                property.line,
                wanted.name(),
                found.kind()
            )),
        }
    }
}

/// Whether a property of which Soong knows all values has one of them.
fn check_values(property: &Property, shown: &str, complain: &mut impl FnMut(String)) {
    let values = match &property.value {
        Value::Text(text) => std::slice::from_ref(text),
        Value::List(list) => list,
        _ => return,
    };
    let known = soong::VALUES
        .iter()
        .find(|(name, _)| *name == property.name);
    let Some((_, known)) = known else { return };
    for value in values
        .iter()
        .filter(|value| !known.contains(&value.as_str()))
    {
        complain(format!(
            "line {}: `{shown}` cannot be \"{value}\"; there are: {}",
            property.line,
            known.join(", ")
        ));
    }
}

/// Properties that only some Rust modules have.
fn check_place(module: &Module, known: &str, is_own_type: bool, complain: &mut impl FnMut(String)) {
    if !RUST_TYPES.contains(&known) {
        return;
    }
    if !matches!(known, "rust_test" | "rust_defaults") {
        for name in OF_TESTS {
            if module.get(name).is_some() {
                complain(format!("`{name}` is for rust_test, not for {known}"));
            }
        }
    }
    if module.get("soong_config_variables").is_some() && !is_own_type {
        complain(format!(
            "`soong_config_variables` is for types that a soong_config_module_type \
             defines, not for {known}"
        ));
    }
    if known == "rust_binary_host" && module.get("host_supported").is_some() {
        complain("`host_supported` says nothing on a rust_binary_host".to_owned());
    }
}

fn check_paths(root: &Path, file: &File, module: &Module, complain: &mut impl FnMut(String)) {
    let directory = file.path.parent().unwrap_or(Path::new(""));
    let lists = PATHS.iter().flat_map(|list| module.list(list));
    let lists = lists.map(String::as_str);
    for path in lists.chain(module.text("crate_root")) {
        if path.starts_with(':') {
            continue;
        }
        let exists = match path.split_once("*.") {
            None => root.join(directory).join(path).is_file(),
            Some((place, ending)) => has_file(&root.join(directory).join(place), ending),
        };
        if !exists {
            complain(format!("there is no file `{path}`"));
        }
    }
    if let Some(path) = module.text("local_include_dir") {
        if !root.join(directory).join(path).is_dir() {
            complain(format!("there is no directory `{path}`"));
        }
    }
}

/// Whether a directory, or one below it for `**/`, has a file that ends so.
fn has_file(place: &Path, ending: &str) -> bool {
    let deep = place.ends_with("**");
    let directory = if deep { place.parent() } else { Some(place) };
    let Some(entries) = directory.and_then(|directory| std::fs::read_dir(directory).ok()) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            deep && has_file(&path.join("**"), ending)
        } else {
            path.extension().is_some_and(|own| own == ending)
        }
    })
}
