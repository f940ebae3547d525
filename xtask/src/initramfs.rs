// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first file system of a lab machine: one program and a few modules.
//!
//! Writes the *newc* cpio format (kernel: Documentation/driver-api/early-
//! userspace/buffer-format.rst) in memory, uncompressed.
//!
//! Limits: regular files and directories only, owned by root, under 4 GiB.

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const TRAILER: &str = "TRAILER!!!";

/// A cpio archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds an empty directory. Parents must be added before.
    ///
    /// # Errors
    /// When the name does not fit the format.
    pub fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, DIRECTORY, &[])
    }

    /// Adds an executable file.
    ///
    /// # Errors
    /// When name or contents do not fit the format.
    pub fn program(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        self.entry(name, PROGRAM, contents)
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When name or contents do not fit the format.
    pub fn file(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        self.entry(name, FILE, contents)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Never for an archive that took its entries.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.inode = 0;
        self.entry(TRAILER, 0, &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<()> {
        let size = u32::try_from(contents.len())
            .with_context(|| format!("{name} is too large for an initramfs"))?;
        let name_size = u32::try_from(name.len() + 1).context("file name too long")?;
        self.inode += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let fields = [
            self.inode, mode, 0, 0, links, 0, // ino, mode, uid, gid, nlink, mtime
            size, 0, 0, 0, 0, // filesize, devmajor, devminor, rdevmajor, rdevminor
            name_size, 0, // namesize, check
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back by the format's rules: (name, mode, contents).
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * index..14 + 8 * index]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let start = (110 + name_size).next_multiple_of(4);
            let contents = bytes[start..start + size].to_vec();
            if name == TRAILER {
                return entries;
            }
            entries.push((name, mode, contents));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn every_length_is_padded_right() {
        for length in 0..9 {
            let contents = vec![b'x'; length];
            let mut archive = Archive::default();
            archive.directory("d").unwrap();
            archive.program("init", &contents).unwrap();
            archive.file(&"n".repeat(length + 1), b"end").unwrap();
            let entries = read(&archive.finish().unwrap());
            assert_eq!(entries[0], ("d".to_owned(), DIRECTORY, Vec::new()));
            assert_eq!(entries[1], ("init".to_owned(), PROGRAM, contents));
            assert_eq!(entries[2], ("n".repeat(length + 1), FILE, b"end".to_vec()));
        }
    }
}
