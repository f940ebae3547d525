// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which Debian mirror this machine uses, from its own apt configuration.
//!
//! Reads `/etc/apt/sources.list` and `/etc/apt/sources.list.d`, both the
//! one-line form and the deb822 form (sources.list(5)). No host name is known
//! here: what the machine's owner configured is what the lab uses.
//!
//! Limits: the first matching entry counts; `Signed-By` with an embedded key is
//! skipped in favour of the archive keyring.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

const APT: &str = "/etc/apt";
const KEYRINGS: &str = "/usr/share/keyrings";

/// One archive: where it is and whose signatures count.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
    components: Vec<String>,
    signed_by: Option<PathBuf>,
}

/// The machine's Debian mirror.
#[derive(Clone, Debug)]
pub struct Mirror {
    main: Source,
    security: Source,
    /// The release that the machine runs, such as `bookworm`.
    pub codename: String,
}

impl Mirror {
    /// Finds the mirror of the running system.
    ///
    /// # Errors
    /// When the system is not Debian or names no Debian mirror.
    pub fn of_system() -> Result<Self> {
        let release =
            fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        let codename = debian_codename(&release)
            .context("the lab takes its kernels from Debian's archive: run it on Debian")?;
        let mut sources = Vec::new();
        for path in source_files(Path::new(APT))? {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            if path.extension().is_some_and(|e| e == "sources") {
                sources.extend(parse_deb822(&text));
            } else {
                sources.extend(text.lines().filter_map(parse_one_line));
            }
        }
        Self::choose(&sources, codename)
    }

    fn choose(sources: &[Source], codename: String) -> Result<Self> {
        let is_debian = |source: &&Source| source.components.iter().any(|c| c == "main");
        let suites = [codename.as_str(), "stable", "testing", "unstable", "sid"];
        let Some(main) = sources
            .iter()
            .filter(is_debian)
            .find(|source| suites.contains(&source.suite.as_str()))
        else {
            bail!(
                "{APT} names no Debian mirror for {codename}: add \
                 `deb <mirror> {codename} main` to {APT}/sources.list"
            );
        };
        let security = sources
            .iter()
            .filter(is_debian)
            .find(|source| source.suite.ends_with("-security"))
            .cloned()
            .unwrap_or_else(|| Source {
                // testing and sid have no security archive of their own; a
                // mirror carries it beside the main one.
                uri: format!("{}-security", main.uri.trim_end_matches('/')),
                ..main.clone()
            });
        Ok(Self {
            main: main.clone(),
            security,
            codename,
        })
    }

    /// The one-line entry for a suite of this mirror. Only package indices
    /// are asked for, whatever else the machine's apt fetches.
    pub fn entry(&self, suite: &str) -> String {
        let source = if suite.ends_with("-security") {
            &self.security
        } else {
            &self.main
        };
        let mut keys: Vec<PathBuf> = ["debian-archive-keyring.gpg"]
            .iter()
            // Archives outlive their keys: those of the oldest suites retire
            // to a keyring of their own.
            .chain(
                suite
                    .starts_with("bullseye")
                    .then_some(&"debian-archive-removed-keys.gpg"),
            )
            .map(|name| Path::new(KEYRINGS).join(name))
            .collect();
        keys.extend(source.signed_by.clone());
        keys.retain(|key| key.is_file());
        keys.dedup();
        let keys: Vec<String> = keys.iter().map(|key| key.display().to_string()).collect();
        let signed_by = match keys.as_slice() {
            [] => String::new(),
            keys => format!(" signed-by={}", keys.join(",")),
        };
        format!(
            "deb [target=Packages{signed_by}] {} {suite} main\n",
            source.uri
        )
    }
}

fn debian_codename(os_release: &str) -> Option<String> {
    let value = |name: &str| {
        os_release.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key == name).then(|| value.trim_matches('"').to_owned())
        })
    };
    if value("ID")? != "debian" {
        return None;
    }
    value("VERSION_CODENAME")
}

fn source_files(apt: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let list = apt.join("sources.list");
    if list.is_file() {
        files.push(list);
    }
    let parts = apt.join("sources.list.d");
    if parts.is_dir() {
        let mut more = Vec::new();
        for entry in
            fs::read_dir(&parts).with_context(|| format!("cannot read {}", parts.display()))?
        {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|e| e == "list" || e == "sources")
            {
                more.push(path);
            }
        }
        more.sort();
        files.append(&mut more);
    }
    Ok(files)
}

/// `deb [options] uri suite component...`
fn parse_one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    let mut rest = rest.trim_start();
    let mut signed_by = None;
    if let Some(inner) = rest.strip_prefix('[') {
        let (options, after) = inner.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(PathBuf::from);
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uri: words.next()?,
        suite: words.next()?,
        components: words.collect(),
        signed_by,
    })
}

/// Stanzas of fields; one stanza may name several suites.
fn parse_deb822(text: &str) -> Vec<Source> {
    // A comment line is dropped before stanzas are told apart, so that it
    // separates nothing.
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .flat_map(parse_stanza)
        .collect()
}

fn parse_stanza(lines: &[&str]) -> Vec<Source> {
    let field = |name: &str| -> Option<&str> {
        lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let words = |name: &str| -> Vec<String> {
        let value = field(name).unwrap_or_default();
        value.split_whitespace().map(str::to_owned).collect()
    };
    let enabled = field("Enabled").is_none_or(|value| value != "no");
    if !enabled || !words("Types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let Some(uri) = words("URIs").into_iter().next() else {
        return Vec::new();
    };
    // An embedded key follows on continuation lines and leaves this empty.
    let signed_by = field("Signed-By")
        .filter(|value| value.starts_with('/'))
        .map(PathBuf::from);
    let source = |suite| Source {
        uri: uri.clone(),
        suite,
        components: words("Components"),
        signed_by: signed_by.clone(),
    };
    words("Suites").into_iter().map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "\
Types: deb
# a remark
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /keys/archive.gpg

Types: deb
URIs: http://mirror.invalid/other
Suites: bookworm-security
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://mirror.invalid/off
Suites: sid
Components: main

Types: deb-src
URIs: http://mirror.invalid/source
Suites: sid
Components: main
";

    #[test]
    fn deb822_stanzas_are_read() {
        let sources = parse_deb822(STANZAS);
        let suites: Vec<&str> = sources.iter().map(|s| s.suite.as_str()).collect();
        assert_eq!(
            suites,
            ["bookworm", "bookworm-updates", "bookworm-security"]
        );
        assert_eq!(
            sources[0].signed_by,
            Some(PathBuf::from("/keys/archive.gpg"))
        );
        assert_eq!(sources[2].signed_by, None);
    }

    #[test]
    fn one_line_entries_are_read() {
        let source =
            parse_one_line("deb [arch=amd64 signed-by=/k.gpg] http://m/debian sid main # x");
        let source = source.unwrap();
        assert_eq!(source.uri, "http://m/debian");
        assert_eq!(source.suite, "sid");
        assert_eq!(source.components, ["main"]);
        assert_eq!(source.signed_by, Some(PathBuf::from("/k.gpg")));
        assert_eq!(parse_one_line("# deb http://m/debian sid main"), None);
        assert_eq!(parse_one_line("deb-src http://m/debian sid main"), None);
        assert!(parse_one_line("deb http://m/debian sid main").is_some());
    }

    #[test]
    fn main_and_security_are_told_apart() {
        let mirror = Mirror::choose(&parse_deb822(STANZAS), "bookworm".to_owned()).unwrap();
        assert!(mirror
            .entry("sid")
            .contains(" http://mirror.invalid/debian sid main"));
        let security = mirror.entry("bullseye-security");
        assert!(security.contains(" http://mirror.invalid/other bullseye-security main"));
    }

    #[test]
    fn security_archive_is_looked_for_beside_the_main_one() {
        let sources: Vec<Source> = parse_one_line("deb http://m/debian/ sid main")
            .into_iter()
            .collect();
        let mirror = Mirror::choose(&sources, "forky".to_owned()).unwrap();
        assert!(mirror
            .entry("bookworm-security")
            .contains(" http://m/debian-security "));
    }

    #[test]
    fn strangers_are_no_mirror() {
        let sources: Vec<Source> = parse_one_line("deb http://m/packages nodistro main")
            .into_iter()
            .collect();
        assert!(Mirror::choose(&sources, "bookworm".to_owned()).is_err());
        assert_eq!(debian_codename("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(
            debian_codename("VERSION_CODENAME=trixie\nID=debian\n").as_deref(),
            Some("trixie")
        );
    }
}
