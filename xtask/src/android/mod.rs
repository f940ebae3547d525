// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask android`: whether the Android.bp files are right, as far as that
//! can be known without an Android tree.
//!
//! | step | what it holds against what |
//! |---|---|
//! | [`format`](bpfmt) | the files against AOSP's formatter |
//! | modules ([`form`], [`rules`]) | the files against Soong's properties, Cargo.toml, the sources, AOSP's libraries ([`soong`]) |
//! | [`typecheck`] | the sources against a compiler for Android, as the files say |
//!
//! AOSP's clippy lints are among those of `cargo xtask test`, which knows more.

mod blueprint;
mod cargo;
mod cfg;
mod form;
mod rules;
mod soong;
mod sources;
mod toolchain;
mod typecheck;
mod unit;

#[cfg(test)]
mod mutation_test;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};
use serde::Deserialize;

use self::blueprint::parse;
use self::cargo::Workspace;
use self::rules::Rules;
use self::sources::Sources;
use self::toolchain::Toolchain;
use self::unit::{generated, units, Complaint, File, Product};
use crate::cache::Cache;
use crate::lab::{target_directory, workspace};
use crate::process;

/// The files, from the repository's root.
const FILES: &[&str] = &["Android.bp", "crosvm/Android.bp"];
const TEST_MAPPING: &str = "TEST_MAPPING";

/// A check with its name.
pub type Step = (&'static str, fn() -> Result<()>);

/// All checks.
pub const STEPS: &[Step] = &[
    ("Android.bp: format", bpfmt),
    ("Android.bp: modules", modules),
    ("type-check for Android", type_check),
];

/// Runs all steps. Returns whether they passed.
///
/// # Errors
/// Never by itself: a step that cannot run counts as failed.
pub fn run() -> Result<bool> {
    let mut failed = 0;
    for (name, step) in STEPS {
        println!("== {name}");
        if let Err(error) = step() {
            println!("{name} FAILED: {error:#}");
            failed += 1;
        }
    }
    println!("{} passed, {failed} failed", STEPS.len() - failed);
    Ok(failed == 0)
}

/// `bpfmt -l` names the files that it would change.
fn bpfmt() -> Result<()> {
    let program = toolchain::bpfmt(&Cache::open()?)?;
    let mut command = Command::new(&program);
    command.arg("-l").args(FILES).current_dir(workspace());
    let files = process::output(&mut command)?;
    if !files.trim().is_empty() {
        bail!(
            "not as AOSP formats: {}; run `{} -w` on it",
            files.trim().replace('\n', ", "),
            program.display()
        );
    }
    Ok(())
}

fn modules() -> Result<()> {
    let root = workspace();
    let mapping = read(&root, TEST_MAPPING)?;
    let files = FILES
        .iter()
        .map(|path| Ok((*path, read(&root, path)?)))
        .collect::<Result<Vec<_>>>()?;
    let sources = Sources::new(&root);
    let complaints = check(&root, &files, &mapping, &Workspace::read(&root)?, &sources)?;
    for complaint in &complaints {
        println!("{complaint}");
    }
    match complaints.len() {
        0 => Ok(()),
        count => bail!("{count} complaint(s)"),
    }
}

fn type_check() -> Result<()> {
    let root = workspace();
    let files = FILES
        .iter()
        .map(|path| parse_file(path, &read(&root, path)?))
        .collect::<Result<Vec<_>>>()?;
    let (units, _) = units(&files);
    typecheck::run(
        &root,
        &target_directory(),
        &units,
        &generated(&files),
        &Workspace::read(&root)?,
        &Toolchain::prepare(&Cache::open()?)?,
    )
}

fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
}

fn parse_file(path: &str, text: &str) -> Result<File> {
    Ok(File {
        path: PathBuf::from(path),
        modules: parse(text).with_context(|| path.to_owned())?,
    })
}

/// All that is wrong with these files in the tree below `root`.
///
/// # Errors
/// When a file is not Blueprint, or the test mapping not JSON.
fn check(
    root: &Path,
    files: &[(&str, String)],
    mapping: &str,
    workspace: &Workspace,
    sources: &Sources,
) -> Result<Vec<Complaint>> {
    let files = files
        .iter()
        .map(|(path, text)| parse_file(path, text))
        .collect::<Result<Vec<_>>>()?;
    let (units, mut complaints) = units(&files);
    complaints.extend(form::check(root, &files));
    let rules = Rules {
        root,
        units: &units,
        generated: &generated(&files),
        workspace,
        sources,
    };
    complaints.extend(rules.check());
    let tests = units.iter().filter(|unit| unit.product == Product::Test);
    let tests = tests.map(|unit| unit.name.as_str()).collect();
    complaints.extend(compare_mapping(mapping, &tests)?);
    complaints.sort();
    Ok(complaints)
}

#[derive(Deserialize)]
struct Mapping {
    presubmit: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
}

/// The mapping names every test, and nothing else.
fn compare_mapping(text: &str, tests: &BTreeSet<&str>) -> Result<Vec<Complaint>> {
    let mapping: Mapping = serde_json::from_str(text).context(TEST_MAPPING)?;
    let mapped: BTreeSet<&str> = mapping.presubmit.iter().map(|e| e.name.as_str()).collect();
    let missing = tests.difference(&mapped).map(|name| (name, "is missing"));
    let extra = mapped
        .difference(tests)
        .map(|name| (name, "is no rust_test of Android.bp"));
    Ok(missing
        .chain(extra)
        .map(|(name, what)| Complaint {
            file: PathBuf::from(TEST_MAPPING),
            line: None,
            module: String::new(),
            what: format!("`{name}` {what}"),
        })
        .collect())
}
