// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon that ours is measured and compared against: `vhost-device-vsock`,
//! installed by name and version from crates.io into the cache.
//!
//! Cargo verifies what it downloads against the registry's checksums, and
//! `--locked` takes the versions of dependencies that its authors have tested.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{bail, Result};

use crate::cache::Cache;
use crate::process;

/// Its name on crates.io, and its program's.
pub const NAME: &str = "vhost-device-vsock";
/// The version that is measured.
pub const VERSION: &str = "0.3.0";

/// Its program; built first if the cache does not have it, with cargo's progress
/// to be seen.
///
/// # Errors
/// When it cannot be downloaded or built; the error says what to type.
pub fn program(cache: &Cache) -> Result<PathBuf> {
    let place = format!("rivals/{NAME}-{VERSION}");
    let program = format!("bin/{NAME}");
    if let Some(directory) = cache.verified_directory(&place) {
        return Ok(directory.join(program));
    }
    eprintln!("installing {NAME} {VERSION} from crates.io into the cache: a minute or two");
    let unfinished = cache.temporary()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    process::show(
        Command::new(cargo)
            .args(["install", "--locked", "--no-track", "--root"])
            .arg(unfinished.path())
            .arg(format!("{NAME}@{VERSION}"))
            // Not where this workspace's own `.cargo` or a build under way has its say.
            .current_dir(unfinished.path())
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    if !unfinished.path().join(&program).is_file() {
        bail!("{NAME} {VERSION} was installed but brought no program {NAME}");
    }
    Ok(cache.keep_directory(unfinished, &place)?.join(program))
}
