// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Paths of sockets: which there can be, and which get in each other's way.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crosvm_vsock::userspace::socket::LONGEST_PATH;

/// A path that no socket can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The kernel would choose a name instead.
    #[error("the path is empty: a socket needs one")]
    Empty,
    #[error("{} has {} bytes, {over} more than the path of a socket may have", path.display(), path.as_os_str().len())]
    Long { path: PathBuf, over: usize },
}

/// Checks a path at which to create a socket.
pub fn check(path: &Path) -> Result<(), PathError> {
    match path.as_os_str().len() {
        0 => Err(PathError::Empty),
        len if len > LONGEST_PATH => Err(PathError::Long {
            path: path.to_owned(),
            over: len - LONGEST_PATH,
        }),
        _ => Ok(()),
    }
}

/// A path for a socket, as a flag has it.
#[cfg(feature = "control")]
pub fn parse(text: &str) -> Result<PathBuf, PathError> {
    let path = PathBuf::from(text);
    check(&path)?;
    Ok(path)
}

/// A path that two sockets would have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the path {} is used twice: each socket needs its own, and `uds-path` takes PATH_seqpacket, too",
    .0.display()
)]
pub struct Shared(PathBuf);

/// Checks that no path is there twice.
pub fn check_apart(paths: &[PathBuf]) -> Result<(), Shared> {
    let mut seen = HashSet::new();
    match paths.iter().find(|path| !seen.insert(*path)) {
        Some(path) => Err(Shared(path.clone())),
        None => Ok(()),
    }
}

/// The port of the host that a guest looks for at `path`, if its host programs are around
/// `base`.
pub fn port_at(path: &Path, base: &Path) -> Option<u32> {
    let after = path.as_os_str().as_bytes();
    let after = after.strip_prefix(base.as_os_str().as_bytes())?;
    let digits = std::str::from_utf8(after.strip_prefix(b"_")?).ok()?;
    let port = digits.parse().ok()?;
    // Not `_007`, nor `_+7`.
    (u32::to_string(&port) == digits).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_long_as_the_kernel_takes_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = |len: usize| {
            let parent = dir.path().display().to_string();
            PathBuf::from(format!("{parent}/{}", "x".repeat(len - parent.len() - 1)))
        };
        for len in [LONGEST_PATH - 1, LONGEST_PATH, LONGEST_PATH + 1] {
            let path = path(len);
            let bound = std::os::unix::net::UnixListener::bind(&path);
            assert_eq!(check(&path).is_ok(), bound.is_ok(), "{len} bytes");
        }
    }
}
