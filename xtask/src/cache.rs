// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab's cache outside the clone: nothing half-written, nothing rotten.
//!
//! Whatever enters is made under a temporary name on the same file system and
//! renamed when it is whole, so an interruption leaves at most a temporary
//! that no one reads. Directories carry a `SHA256SUMS` file, single files a
//! `NAME.sha256`; both are verified at every use, and what does not match
//! counts as absent.
//!
//! Limits: one writer at a time is expected; two only waste work, since the
//! rename decides.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::interrupt::Unfinished;
use crate::process;
use anyhow::{bail, Context, Result};

const SUMS: &str = "SHA256SUMS";
const UNFINISHED: &str = ".unfinished-";
/// No download or build takes this long; whoever made it was interrupted.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// The directory that holds what the lab downloaded and built.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache: `$CROSVM_VSOCK_CACHE`, else `crosvm-vsock` below
    /// `$XDG_CACHE_HOME` or `~/.cache`; created where it does not exist.
    ///
    /// # Errors
    /// When none of the three variables tells a place, or it cannot be made.
    pub fn open() -> Result<Self> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let root = if let Some(path) = set("CROSVM_VSOCK_CACHE") {
            PathBuf::from(path)
        } else if let Some(path) = set("XDG_CACHE_HOME") {
            Path::new(&path).join("crosvm-vsock")
        } else if let Some(path) = set("HOME") {
            Path::new(&path).join(".cache/crosvm-vsock")
        } else {
            bail!("no place for the cache: set CROSVM_VSOCK_CACHE to a directory");
        };
        Self::at(root)
    }

    fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot make the cache directory {}", root.display()))?;
        let root = root
            .canonicalize()
            .with_context(|| format!("cannot resolve {}", root.display()))?;
        sweep(&root)?;
        Ok(Self { root })
    }

    /// A path in the cache; may or may not exist.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A directory in the cache, made if it does not exist.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn directory(&self, relative: &str) -> Result<PathBuf> {
        let path = self.path(relative);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// A fresh directory on the cache's file system, removed when dropped or
    /// interrupted.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn temporary(&self) -> Result<Unfinished> {
        tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&self.root)
            .map(Unfinished::new)
            .with_context(|| format!("cannot write to the cache {}", self.root.display()))
    }

    /// Writes a small file in one step.
    ///
    /// # Errors
    /// When writing or renaming fails.
    pub fn write(&self, relative: &str, contents: &str) -> Result<()> {
        let unfinished = self.temporary()?;
        let file = unfinished.path().join("file");
        fs::write(&file, contents).with_context(|| format!("cannot write {}", file.display()))?;
        self.take_in(&file, relative)
    }

    /// Moves a finished file in under its name and its sum beside it.
    ///
    /// # Errors
    /// When the sum cannot be made or a rename fails.
    pub fn keep_file(&self, file: &Path, relative: &str) -> Result<PathBuf> {
        let sum = sha256(file)?;
        self.take_in(file, relative)?;
        self.write(&format!("{relative}.sha256"), &sum)?;
        Ok(self.path(relative))
    }

    /// The file of this name, if it is there and matches its sum.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn file(&self, relative: &str) -> Result<Option<PathBuf>> {
        let path = self.path(relative);
        let Ok(expected) = fs::read_to_string(self.path(&format!("{relative}.sha256"))) else {
            return Ok(None);
        };
        if !path.is_file() {
            return Ok(None);
        }
        if sha256(&path)? == expected.trim() {
            return Ok(Some(path));
        }
        eprintln!("{} does not match its checksum; redone", path.display());
        Ok(None)
    }

    /// Moves a finished directory in, with the sums of all files in it, in
    /// place of any earlier one.
    ///
    /// # Errors
    /// When the sums cannot be made or a rename fails.
    pub fn keep_directory(&self, directory: Unfinished, relative: &str) -> Result<PathBuf> {
        let sums = process::output(
            Command::new("sh")
                .args([
                    "-c",
                    "find . -type f -print0 | sort -z | xargs -0 sha256sum",
                ])
                .current_dir(directory.path()),
        )?;
        fs::write(directory.path().join(SUMS), sums).context("cannot write checksums")?;
        let target = self.path(relative);
        if target.exists() {
            fs::remove_dir_all(&target)
                .with_context(|| format!("cannot remove {}", target.display()))?;
        }
        let directory = directory.keep();
        self.take_in(&directory, relative)?;
        Ok(target)
    }

    /// The directory of this name, if it is there and every file matches.
    pub fn verified_directory(&self, relative: &str) -> Option<PathBuf> {
        let path = self.path(relative);
        if !path.join(SUMS).is_file() {
            return None;
        }
        let check = Command::new("sha256sum")
            .args(["--check", "--strict", "--quiet", SUMS])
            .current_dir(&path)
            .output();
        if check.is_ok_and(|check| check.status.success()) {
            return Some(path);
        }
        eprintln!("{} does not match its checksums; redone", path.display());
        None
    }

    fn take_in(&self, from: &Path, relative: &str) -> Result<()> {
        let target = self.path(relative);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot make {}", parent.display()))?;
        }
        fs::rename(from, &target)
            .with_context(|| format!("cannot rename {} to {}", from.display(), target.display()))
    }
}

/// Removes what interrupted runs left.
fn sweep(root: &Path) -> Result<()> {
    let entries = fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))?;
    for entry in entries {
        let entry = entry?;
        let age = entry.metadata().and_then(|m| m.modified()).ok();
        let age = age.and_then(|time| time.elapsed().ok()).unwrap_or_default();
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) && age > ABANDONED {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256(file: &Path) -> Result<String> {
    let line = process::output(Command::new("sha256sum").arg("--").arg(file))?;
    // GNU's sha256sum begins the line with a backslash if the name needs one.
    let sum = line.trim_start_matches('\\').split_whitespace().next();
    sum.map(str::to_owned)
        .with_context(|| format!("sha256sum said nothing about {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn cache() -> (TempDir, Cache) {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::at(place.path().join("cache")).unwrap();
        (place, cache)
    }

    #[test]
    fn a_corrupted_file_counts_as_absent() {
        let (_place, cache) = cache();
        let unfinished = cache.temporary().unwrap();
        let file = unfinished.path().join("x");
        fs::write(&file, "whole").unwrap();
        let kept = cache.keep_file(&file, "debs/x").unwrap();
        assert_eq!(cache.file("debs/x").unwrap().as_ref(), Some(&kept));
        fs::write(&kept, "whele").unwrap();
        assert_eq!(cache.file("debs/x").unwrap(), None);
        assert_eq!(cache.file("debs/y").unwrap(), None);
    }

    #[test]
    fn a_corrupted_or_incomplete_directory_counts_as_absent() {
        let (_place, cache) = cache();
        for damage in ["change", "remove"] {
            let unfinished = cache.temporary().unwrap();
            fs::write(unfinished.path().join("a"), "1").unwrap();
            fs::write(unfinished.path().join("b"), "2").unwrap();
            let kept = cache.keep_directory(unfinished, "images/k").unwrap();
            assert_eq!(cache.verified_directory("images/k"), Some(kept.clone()));
            match damage {
                "change" => fs::write(kept.join("a"), "3").unwrap(),
                _ => fs::remove_file(kept.join("b")).unwrap(),
            }
            assert_eq!(cache.verified_directory("images/k"), None, "{damage}");
        }
    }

    #[test]
    fn what_an_interrupted_run_left_is_swept_later() {
        let (_place, cache) = cache();
        let fresh = cache.temporary().unwrap().keep();
        let old = cache.temporary().unwrap().keep();
        fs::write(old.join("half"), "x").unwrap();
        process::run(Command::new("touch").args(["-d", "2 days ago"]).arg(&old)).unwrap();
        Cache::at(cache.path("")).unwrap();
        assert!(fresh.exists());
        assert!(!old.exists());
    }

    #[test]
    fn an_unfinished_directory_leaves_nothing() {
        let (_place, cache) = cache();
        drop(cache.temporary().unwrap());
        assert_eq!(fs::read_dir(cache.path("")).unwrap().count(), 0);
    }
}
