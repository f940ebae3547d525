// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ctrl-C, and SIGTERM: nothing stays behind.
//!
//! Directories for what is unfinished are removed here, since nothing is dropped then.
//! Machines and daemons end with this process (`setpriv --pdeathsig`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// The exit code of a shell for what SIGINT ended.
const INTERRUPTED: i32 = 130;

static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on an interruption cleans up.
///
/// # Errors
/// When signals cannot be waited for.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        remove_below(Path::new("/"));
        eprintln!("\ninterrupted: nothing is left running");
        process::exit(INTERRUPTED);
    })
    .context("cannot wait for Ctrl-C")
}

/// Removes what is unfinished below a directory.
fn remove_below(place: &Path) {
    for path in unfinished().iter().filter(|path| path.starts_with(place)) {
        // What cannot be removed now is swept by a later run.
        let _ = fs::remove_dir_all(path);
    }
}

/// A directory that is removed when dropped, and when this process is interrupted.
#[derive(Debug)]
pub struct Unfinished {
    directory: Option<TempDir>,
    path: PathBuf,
}

impl Unfinished {
    /// Takes care of a directory.
    pub fn new(directory: TempDir) -> Self {
        let path = directory.path().to_owned();
        unfinished().insert(path.clone());
        Self {
            directory: Some(directory),
            path,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It is finished: from here on nobody removes it.
    pub fn keep(mut self) -> PathBuf {
        match self.directory.take() {
            Some(directory) => directory.keep(),
            None => self.path.clone(),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        unfinished().remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_removes_what_is_unfinished_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let make = || Unfinished::new(tempfile::tempdir_in(place.path()).unwrap());
        let (kept, dropped, open) = (make().keep(), make(), make());
        let was = dropped.path().to_owned();
        drop(dropped);
        assert!(!was.exists());
        fs::write(open.path().join("half"), "x").unwrap();
        remove_below(place.path());
        assert!(kept.exists());
        assert!(!open.path().exists());
    }
}
