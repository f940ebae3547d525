// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `docs/checks.md` names the test of each check. A name that is in no source would be a
//! promise that nobody keeps, so it fails here.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Where tests are.
const SOURCES: [&str; 5] = ["src", "tests", "crosvm/tests", "crosvm/src", "lab/src"];

/// Every test of a file, as `module::name`; the module is the file's, or its directory's
/// where the file is `mod.rs` or `lib.rs`. Cells of the lab count by their name.
fn tests_below(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = match path.file_stem().unwrap().to_str().unwrap() {
                "mod" | "lib" => path.parent().unwrap().file_name().unwrap(),
                _ => path.file_stem().unwrap(),
            };
            let module = module.to_str().unwrap();
            let text = fs::read_to_string(&path).unwrap();
            let mut lines = text.lines().map(str::trim);
            while let Some(line) = lines.next() {
                if line == "#[test]" {
                    let name = lines.find_map(|line| line.strip_prefix("fn ")).unwrap();
                    let name = name.split('(').next().unwrap();
                    found.insert(format!("{module}::{name}"));
                }
                if let Some((_, name)) = line.split_once("_mode(\"") {
                    found.insert(format!("lab: {}", name.split('"').next().unwrap()));
                }
            }
        }
    }
}

/// What stands between backticks in the second column.
fn names(page: &str) -> Vec<&str> {
    page.lines()
        .filter(|line| line.starts_with('|'))
        .filter_map(|line| line.split('|').nth(2))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn every_test_that_the_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for directory in SOURCES {
        tests_below(&root.join(directory), &mut found);
    }
    let page = fs::read_to_string(root.join("docs/checks.md")).unwrap();
    let names = names(&page);
    assert!(
        names.len() > 80,
        "{} names: the page is not read",
        names.len()
    );
    let missing: Vec<_> = names
        .iter()
        .filter(|name| !found.contains(**name))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/checks.md names tests that do not exist: {missing:#?}"
    );
}

#[test]
fn every_check_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/checks.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| "));
    for row in rows.filter(|row| !row.starts_with("| check ")) {
        assert!(row.matches('`').count() >= 2, "no test: {row}");
    }
}
