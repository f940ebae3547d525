// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control socket in the file system.
//!
//! It appears at its path with mode 0600, complete: it is bound in a directory that nobody
//! else can enter, and moved. So there is no moment in which others could connect, whatever
//! the umask. A socket that a process before this one has left is replaced; one that is in
//! use is not.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::binder::{service, Server};
use super::Service;
use crate::userspace::listener::remove_stale_socket;
use crate::userspace::packet::SocketType;

/// A service at a path. The socket file goes when this is dropped.
pub struct ControlSocket {
    path: PathBuf,
    /// Device and inode of our file.
    file: (u64, u64),
    _server: Server,
}

/// Names tried for a directory of ours.
const MOST_TRIES: u32 = 100;

/// A directory of ours; it goes when this is dropped.
struct Private(PathBuf);

impl Private {
    fn beside(path: &Path) -> io::Result<Self> {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        for number in 0..MOST_TRIES {
            // Short: the path of a socket has 107 bytes.
            let place = parent.join(format!(".v{number}"));
            match DirBuilder::new().mode(0o700).create(&place) {
                Ok(()) => return Ok(Self(place)),
                // Another daemon starts, or has crashed while it did.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // Whatever is left of a failed start.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl ControlSocket {
    /// Serves `devices` at `path`.
    pub fn open(path: &Path, devices: Service) -> io::Result<Self> {
        let name = |error: io::Error| {
            let why = format!("cannot listen at {}: {error}", path.display());
            io::Error::new(error.kind(), why)
        };
        remove_stale_socket(path, SocketType::Stream)?;
        let private = Private::beside(path).map_err(name)?;
        let bound = private.0.join("s");
        let mut server = Server::bind(&bound, &service(devices)).map_err(name)?;
        fs::set_permissions(&bound, Permissions::from_mode(0o600)).map_err(name)?;
        let metadata = fs::symlink_metadata(&bound).map_err(name)?;
        fs::rename(&bound, path).map_err(name)?;
        server.start();
        Ok(Self {
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
            _server: server,
        })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours {
            // It may have been removed by somebody else.
            let _ = fs::remove_file(&self.path);
        }
    }
}
