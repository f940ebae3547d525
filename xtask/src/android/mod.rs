// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask android`: whether the Android.bp files are right, as far as that
//! can be known without an Android tree.
//!
//! | step | what it holds against what |
//! |---|---|
//! | [`format`](bpfmt) | the files against AOSP's formatter |
//! | modules ([`form`], [`references`], [`shipped`], [`rules`]) | the files against Soong's properties, each other, what others rely on, Cargo.toml, the sources, AOSP's libraries ([`soong`]) |
//! | [`typecheck`] | the sources against a compiler for Android, as the files say |
//!
//! AOSP's clippy lints are among those of `cargo xtask test`, which knows more.

mod blueprint;
mod cargo;
mod cfg;
mod coverage;
mod form;
mod references;
mod rules;
mod shipped;
mod soong;
mod sources;
mod toolchain;
mod typecheck;
mod unit;

#[cfg(test)]
mod mutation_test;
#[cfg(test)]
mod shipped_test;

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
use self::unit::{generated, units, Complaint, File, Product, Unit};
use crate::cache::Cache;
use crate::lab::{target_directory, workspace};
use crate::process;

/// The files, from the repository's root.
const FILES: &[&str] = &["Android.bp", "crosvm/Android.bp"];
/// Beside each of them, what names its tests: a tree may leave one place out.
const MAPPINGS: &[&str] = &["TEST_MAPPING", "crosvm/TEST_MAPPING"];

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
    let files = read_all(&root, FILES)?;
    let mappings = read_all(&root, MAPPINGS)?;
    let sources = Sources::new(&root);
    let workspace = Workspace::read(&root)?;
    let complaints = check(&root, &files, &mappings, &workspace, &sources)?;
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

fn read_all<'a>(root: &Path, paths: &[&'a str]) -> Result<Vec<(&'a str, String)>> {
    let texts = paths.iter().map(|path| Ok((*path, read(root, path)?)));
    texts.collect()
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
    mappings: &[(&str, String)],
    workspace: &Workspace,
    sources: &Sources,
) -> Result<Vec<Complaint>> {
    let files = files
        .iter()
        .map(|(path, text)| parse_file(path, text))
        .collect::<Result<Vec<_>>>()?;
    let (units, mut complaints) = units(&files);
    complaints.extend(form::check(root, &files));
    complaints.extend(references::check(&files));
    complaints.extend(shipped::check(&files, &units));
    let rules = Rules {
        root,
        units: &units,
        generated: &generated(&files),
        workspace,
        sources,
    };
    complaints.extend(rules.check());
    for (path, text) in mappings {
        complaints.extend(compare_mapping(Path::new(path), text, &units)?);
    }
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

/// The mapping names every test of its directory, and nothing else.
fn compare_mapping(path: &Path, text: &str, units: &[Unit]) -> Result<Vec<Complaint>> {
    let mapping: Mapping =
        serde_json::from_str(text).with_context(|| path.display().to_string())?;
    let mapped: BTreeSet<&str> = mapping.presubmit.iter().map(|e| e.name.as_str()).collect();
    let tests: BTreeSet<&str> = units
        .iter()
        .filter(|unit| unit.product == Product::Test && unit.file.parent() == path.parent())
        .map(|unit| unit.name.as_str())
        .collect();
    let missing = tests.difference(&mapped).map(|name| (name, "is missing"));
    let extra = mapped
        .difference(&tests)
        .map(|name| (name, "is no rust_test of the Android.bp beside it"));
    Ok(missing
        .chain(extra)
        .map(|(name, what)| Complaint {
            file: path.to_owned(),
            line: None,
            module: String::new(),
            what: format!("`{name}` {what}"),
        })
        .collect())
}
