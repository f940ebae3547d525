// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A private apt: looks into Debian suites and downloads packages without
//! touching the machine's own apt state, and without root.
//!
//! Every suite has its own lists in the cache. apt checks signatures and
//! hashes; the machine's apt.conf (proxies and the like) stays in force, its
//! pins do not.
//!
//! Limits: packages are downloaded and unpacked, never installed; that is
//! `packages.rs`.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::cache::{sha256, Cache};
use crate::mirror::Mirror;
use crate::process;

/// One version of a package, from the suite's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The binary package's name.
    pub name: String,
    /// Debian's version, with epoch and revision.
    pub version: String,
    /// The `Depends` field as it is.
    pub depends: String,
    sha256: String,
    size: u64,
    filename: String,
}

/// What a package depends on: a name, and the version if it must be that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// The binary package's name.
    pub name: String,
    /// The version of `(= VERSION)`. Any other relation asks for at least
    /// some version, which the newest in a suite is.
    pub exactly: Option<String>,
}

impl Dependency {
    fn parse(text: &str) -> Option<Self> {
        let (name, relation) = match text.split_once('(') {
            Some((name, relation)) => (name, relation.trim_end().strip_suffix(')')?),
            None => (text, ""),
        };
        Some(Self {
            name: name.split_whitespace().next()?.to_owned(),
            exactly: relation
                .trim_start()
                .strip_prefix('=')
                .map(|version| version.trim().to_owned()),
        })
    }
}

impl Package {
    /// What this package depends on and whose name begins so.
    pub fn dependencies(&self, prefix: &str) -> Vec<Dependency> {
        self.depends
            .split([',', '|'])
            .filter_map(Dependency::parse)
            .filter(|dependency| dependency.name.starts_with(prefix))
            .collect()
    }

    /// Where the cache keeps the downloaded package.
    fn cached_as(&self) -> String {
        let name = self.filename.rsplit('/').next().unwrap_or(&self.filename);
        format!("debs/{name}")
    }
}

/// A suite of the mirror, seen through lists in the cache.
#[derive(Debug)]
pub struct Suite<'a> {
    cache: &'a Cache,
    name: String,
    root: PathBuf,
}

impl<'a> Suite<'a> {
    /// Opens a suite; its index is fetched if the cache has none yet, or when
    /// `refresh` asks for today's.
    ///
    /// # Errors
    /// When the index cannot be fetched: no network, no such suite, no key.
    pub fn open(cache: &'a Cache, mirror: &Mirror, name: &str, refresh: bool) -> Result<Self> {
        let root = cache.directory(&format!("apt/{name}"))?;
        let suite = Self {
            cache,
            name: name.to_owned(),
            root,
        };
        for directory in ["state/lists/partial", "cache/archives/partial"] {
            cache.directory(&format!("apt/{name}/{directory}"))?;
        }
        cache.write(&format!("apt/{name}/sources.list"), &mirror.entry(name))?;
        if refresh || !suite.has_lists()? {
            suite.update()?;
        }
        Ok(suite)
    }

    /// The newest package whose name fits a pattern with one `*`.
    ///
    /// # Errors
    /// When apt fails. No such package is `None`.
    pub fn newest(&self, pattern: &str) -> Result<Option<Package>> {
        let names = process::output(self.apt("apt-cache").arg("pkgnames"))?;
        let names: Vec<&str> = names.lines().filter(|name| fits(name, pattern)).collect();
        newest(self.show(&names)?)
    }

    /// A package of this name in this version; without a version the newest.
    ///
    /// # Errors
    /// When the suite does not have it.
    pub fn package(&self, name: &str, version: Option<&str>) -> Result<Package> {
        let found = self.show(&[name])?;
        let found = found
            .into_iter()
            .filter(|package| version.is_none_or(|version| package.version == version))
            .collect();
        newest(found)?.with_context(|| {
            let version = version.unwrap_or("any version");
            format!("{} has no package {name} in {version}", self.name)
        })
    }

    /// The package that a dependency asks for.
    ///
    /// # Errors
    /// When the suite does not have it.
    pub fn dependency(&self, dependency: &Dependency) -> Result<Package> {
        self.package(&dependency.name, dependency.exactly.as_deref())
    }

    /// Downloads a package, or finds it in the cache. Its hash is verified
    /// both times, so a corrupted one is downloaded again.
    ///
    /// # Errors
    /// When the download fails or is not what the index says.
    pub fn download(&self, package: &Package) -> Result<PathBuf> {
        let cached_as = package.cached_as();
        if let Some(path) = self.cache.file(&cached_as)? {
            return Ok(path);
        }
        eprintln!(
            "  downloading {} {} ({} MiB) from {}",
            package.name,
            package.version,
            package.size.div_ceil(1 << 20),
            self.name
        );
        let unfinished = self.cache.temporary()?;
        let download = || {
            let mut apt_get = self.apt("apt-get");
            if !io::stderr().is_terminal() {
                apt_get.arg("-qq");
            }
            process::show(
                apt_get
                    .arg("download")
                    .arg(format!("{}={}", package.name, package.version))
                    .current_dir(unfinished.path()),
            )
        };
        if let Err(error) = download() {
            // The mirror may have moved on since the lists were fetched.
            eprintln!("  ... refreshing the list of packages and trying again");
            self.update().context(error)?;
            download()?;
        }
        let file = only_file(unfinished.path())?;
        let sum = sha256(&file)?;
        if sum != package.sha256 {
            bail!(
                "{} {} has SHA-256 {sum}, but the index of {} says {}; try again",
                package.name,
                package.version,
                self.name,
                package.sha256
            );
        }
        self.cache.keep_file(&file, &cached_as)
    }

    fn has_lists(&self) -> Result<bool> {
        let lists = self.root.join("state/lists");
        let entries =
            fs::read_dir(&lists).with_context(|| format!("cannot read {}", lists.display()))?;
        for entry in entries {
            let name = entry?.file_name();
            if name.to_string_lossy().contains("_Packages") {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn update(&self) -> Result<()> {
        eprintln!("  fetching the list of packages of {}", self.name);
        process::run(self.apt("apt-get").args(["-q", "--error-on=any", "update"])).with_context(
            || {
                format!(
                    "cannot fetch the package list of {}; is there a network, and space in the cache?",
                    self.name
                )
            },
        )
    }

    fn show(&self, names: &[&str]) -> Result<Vec<Package>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let text = process::output(self.apt("apt-cache").arg("show").args(names))?;
        Ok(text.split("\n\n").filter_map(parse_stanza).collect())
    }

    fn apt(&self, program: &str) -> Command {
        let root = self.root.display();
        let mut command = process::bound(program);
        for option in [
            format!("Dir::State={root}/state"),
            format!("Dir::Cache={root}/cache"),
            format!("Dir::Etc::SourceList={root}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            // Nothing counts as installed: what the machine has must not
            // change what is found.
            "Dir::State::status=/dev/null".to_owned(),
            // Suites of old releases are no longer signed anew.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // The cache may be in a home that apt's own user cannot enter.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// Unpacks packages over each other into a directory; runs no script of theirs.
///
/// # Errors
/// When dpkg-deb fails.
pub fn unpack(debs: &[PathBuf], into: &Path) -> Result<()> {
    debs.iter()
        .try_for_each(|deb| process::run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into)))
}

fn newest(packages: Vec<Package>) -> Result<Option<Package>> {
    let mut newest: Option<Package> = None;
    for package in packages {
        let newer = match &newest {
            None => true,
            Some(other) => is_newer(&package.version, &other.version)?,
        };
        if newer {
            newest = Some(package);
        }
    }
    Ok(newest)
}

/// Whether a version is newer than another, by Debian's order.
///
/// # Errors
/// When dpkg cannot be run.
pub fn is_newer(version: &str, than: &str) -> Result<bool> {
    let status = Command::new("dpkg")
        .args(["--compare-versions", version, "gt", than])
        .status()
        .context("cannot start dpkg")?;
    Ok(status.success())
}

fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
    }
}

fn parse_stanza(text: &str) -> Option<Package> {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            (key == name).then(|| value.to_owned())
        })
    };
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        depends: field("Depends").unwrap_or_default(),
        sha256: field("SHA256")?,
        size: field("Size")?.parse().ok()?,
        filename: field("Filename")?,
    })
}

fn only_file(directory: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .next()
        .context("apt-get download ended well but left no file")??;
    Ok(entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZA: &str = "\
Package: linux-image-7.9.1-cloud-amd64
Version: 7.9.1-1
Depends: dracut | linux-initramfs-tool, linux-binary-7.9.1-cloud-amd64 (= 7.9.1-1), linux-modules-7.9.1-cloud-amd64 (= 7.9.1-1)
Filename: pool/main/l/linux/linux-image_7.9.1-1_amd64.deb
Size: 1234
SHA256: abcd
Description: a kernel
 with: continuation";

    fn version(version: &str) -> Package {
        Package {
            version: version.to_owned(),
            ..parse_stanza(STANZA).unwrap()
        }
    }

    #[test]
    fn stanza_is_read() {
        let package = parse_stanza(STANZA).unwrap();
        assert_eq!(package.version, "7.9.1-1");
        assert_eq!(package.size, 1234);
        assert_eq!(package.cached_as(), "debs/linux-image_7.9.1-1_amd64.deb");
        let names: Vec<String> = package
            .dependencies("linux-")
            .into_iter()
            .map(|dependency| dependency.name)
            .collect();
        assert_eq!(
            names,
            [
                "linux-initramfs-tool",
                "linux-binary-7.9.1-cloud-amd64",
                "linux-modules-7.9.1-cloud-amd64"
            ]
        );
        assert_eq!(parse_stanza("Package: x"), None);
    }

    #[test]
    fn only_an_exact_relation_asks_for_its_version() {
        // Debian's headers go with any later kbuild of their series, and the
        // archive keeps only the latest.
        let depends = "linux-headers-6.1.0-56-common (= 6.1.192-2), linux-kbuild-6.1 \
                       (>= 6.1.192-2), linux-compiler-gcc-12-x86";
        let package = Package {
            depends: depends.to_owned(),
            ..parse_stanza(STANZA).unwrap()
        };
        let exactly: Vec<Option<String>> = package
            .dependencies("linux-")
            .into_iter()
            .map(|dependency| dependency.exactly)
            .collect();
        assert_eq!(exactly, [Some("6.1.192-2".to_owned()), None, None]);
    }

    #[test]
    fn newest_is_by_debian_order() {
        let all = ["6.1.9-1", "6.1.192-2~bpo1", "6.1.192-2", "6.1.100-1"];
        let newest = newest(all.map(version).to_vec()).unwrap().unwrap();
        assert_eq!(newest.version, "6.1.192-2");
    }

    #[test]
    fn patterns_have_one_star() {
        assert!(fits(
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.*-cloud-amd64"
        ));
        assert!(!fits(
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.*-cloud-amd64"
        ));
        assert!(!fits(
            "linux-image-6.12.1-cloud-amd64",
            "linux-image-6.1.*-cloud-amd64"
        ));
        assert!(!fits("ab", "ab*b"));
    }
}
