// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which kernel modules to load and in which order.
//!
//! Reads the `depends` field that every module carries in its `.modinfo`
//! section, so no `depmod` and no module index is needed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use object::{Object, ObjectSection};

use crate::process;

/// The modules that a machine is to load, with all that they depend on.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The machine is of no use without them.
    pub required: &'static [&'static str],
    /// Where the kernel has them as modules: they may be built in, or newer.
    pub where_present: &'static [&'static str],
    /// Those that may find no hardware of theirs, which is no failure.
    pub where_useful: &'static [&'static str],
}

/// The modules of an unpacked kernel package, by name.
#[derive(Debug)]
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Finds every module below a directory.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn below(directory: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        walk(directory, &mut |path| {
            if let Some(name) = module_name(path) {
                files.insert(name, path.to_owned());
            }
        })?;
        Ok(Self { files })
    }

    /// Puts another file in a module's place.
    pub fn replace(&mut self, name: &str, file: PathBuf) {
        self.files.insert(name.to_owned(), file);
    }

    /// Copies modules, uncompressed, into a directory and returns their names in
    /// load order, those after a `-` that may fail to load.
    ///
    /// # Errors
    /// When one that must be there is missing, or one is not a module.
    pub fn collect(&self, wanted: &Wanted, into: &Path) -> Result<Vec<String>> {
        let mut order = Vec::new();
        for name in wanted.required {
            self.files
                .get(*name)
                .with_context(|| format!("the kernel package has no module {name}"))?;
            self.collect_one(name, into, &mut order)?;
        }
        for name in wanted.where_present {
            self.collect_one(name, into, &mut order)?;
        }
        let required = order.len();
        for name in wanted.where_useful {
            self.collect_one(name, into, &mut order)?;
        }
        for name in &mut order[required..] {
            name.insert(0, '-');
        }
        Ok(order)
    }

    /// Dependencies first. A dependency without a file is built in.
    fn collect_one(&self, name: &str, into: &Path, order: &mut Vec<String>) -> Result<()> {
        let Some(file) = self.files.get(name) else {
            return Ok(());
        };
        if order.iter().any(|done| done == name) {
            return Ok(());
        }
        let copy = into.join(format!("{name}.ko"));
        uncompress(file, &copy)?;
        let contents =
            fs::read(&copy).with_context(|| format!("cannot read {}", copy.display()))?;
        let depends = dependencies(&contents)
            .with_context(|| format!("{} is not a kernel module", file.display()))?;
        for dependency in depends {
            self.collect_one(&dependency, into, order)?;
        }
        order.push(name.to_owned());
        Ok(())
    }
}

/// Calls a function with every file below a directory; links are not followed.
///
/// # Errors
/// When a directory cannot be read.
pub fn walk(directory: &Path, found: &mut dyn FnMut(&Path)) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), found)?;
        } else if kind.is_file() {
            found(&entry.path());
        }
    }
    Ok(())
}

/// `vhost_vsock` of `vhost-vsock.ko.xz`; the kernel knows names with
/// underscores only.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = name
        .strip_suffix(".ko")
        .or_else(|| name.strip_suffix(".ko.xz"))?;
    Some(stem.replace('-', "_"))
}

fn uncompress(file: &Path, to: &Path) -> Result<()> {
    fs::copy(file, to).with_context(|| format!("cannot copy {}", file.display()))?;
    if file.extension().is_some_and(|extension| extension == "xz") {
        let compressed = to.with_extension("ko.xz");
        fs::rename(to, &compressed)?;
        process::run(Command::new("xz").arg("-d").arg(&compressed))?;
    }
    Ok(())
}

fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file
        .section_by_name(".modinfo")
        .context("it has no .modinfo section")?;
    let data = section.data()?;
    Ok(parse_depends(data))
}

/// `.modinfo` is a row of NUL-terminated `key=value`.
fn parse_depends(modinfo: &[u8]) -> Vec<String> {
    let depends = modinfo
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok())
        .find_map(|entry| entry.strip_prefix("depends="))
        .unwrap_or_default();
    depends
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_is_found_among_other_fields() {
        let modinfo = b"license=GPL v2\0\0depends=vhost,vsock-core\0retpoline=Y\0";
        assert_eq!(parse_depends(modinfo), ["vhost", "vsock_core"]);
        assert!(parse_depends(b"license=GPL\0depends=\0").is_empty());
        assert!(parse_depends(b"").is_empty());
    }

    #[test]
    fn module_names_have_underscores() {
        let name = |path| module_name(Path::new(path));
        assert_eq!(name("a/vhost-vsock.ko").as_deref(), Some("vhost_vsock"));
        assert_eq!(name("a/vsock.ko.xz").as_deref(), Some("vsock"));
        assert_eq!(name("a/modules.builtin"), None);
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert!(dependencies(b"not an ELF file").is_err());
    }
}
