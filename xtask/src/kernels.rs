// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernels of the lab, one line each.
//!
//! A new kernel is one more line in [`KERNELS`]; everything else follows from
//! it. A line names no exact version: the newest package of the pattern in the
//! suites is taken, so the lab tests what Debian ships today.
//!
//! Only the *cloud* flavour: it is small and has `vhost_vsock`.

use std::fmt;

use anyhow::{bail, Result};

/// What the kernel's vhost-vsock makes of bit 33, as the device tells it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Does not know bit 33.
    NoIotlb,
    /// Takes bit 33 for "translate through the IOTLB".
    Overloaded,
    /// Bits 33 and 63; only 63 starts the IOTLB.
    Split,
    /// Bits 33 and 63; 33 starts the IOTLB as ever, 63 alone does not.
    SplitCompat,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Where the kernel's `vhost_vsock` module comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// From the kernel's own package.
    Stock,
    /// Built from the kernel's source with the bits set apart (`split.rs`).
    Rebuilt,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// The name in options, tables and files.
    pub name: &'static str,
    /// Debian suites to look in; the newest package of all of them is taken.
    pub suites: &'static [&'static str],
    /// The image package, with one `*`.
    pub package: &'static str,
    /// What the device must find by behaviour.
    pub kind: Kind,
    /// Whose module is loaded.
    pub module: Module,
}

const fn kernel(
    name: &'static str,
    suites: &'static [&'static str],
    package: &'static str,
    kind: Kind,
    module: Module,
) -> Kernel {
    Kernel {
        name,
        suites,
        package,
        kind,
        module,
    }
}

const OLD: &[&str] = &["bullseye-security"];
const STABLE: &[&str] = &["bookworm-security"];
const NEW: &[&str] = &["trixie-backports", "forky", "sid"];

/// Every kernel of the lab, oldest first.
#[rustfmt::skip]
pub const KERNELS: &[Kernel] = &[
    kernel("5.10",             OLD,    "linux-image-5.10.*-cloud-amd64", Kind::NoIotlb,     Module::Stock),
    kernel("6.1",              STABLE, "linux-image-6.1.*-cloud-amd64",  Kind::Overloaded,  Module::Stock),
    kernel("6.12",             STABLE, "linux-image-6.12.*-cloud-amd64", Kind::Overloaded,  Module::Stock),
    kernel("7",                NEW,    "linux-image-7.*-cloud-amd64",    Kind::Overloaded,  Module::Stock),
    kernel("6.1-split",        STABLE, "linux-image-6.1.*-cloud-amd64",  Kind::Split,       Module::Rebuilt),
    kernel("6.12-split",       STABLE, "linux-image-6.12.*-cloud-amd64", Kind::Split,       Module::Rebuilt),
    kernel("6.1-splitcompat",  STABLE, "linux-image-6.1.*-cloud-amd64",  Kind::SplitCompat, Module::Rebuilt),
];

/// The newest stock kernel, the demo's stage.
pub const NEWEST: &str = "7";

/// The kernels of these names, in the table's order; no names means all.
///
/// # Errors
/// A name that is not in the table; the error lists those that are.
pub fn select(names: &[String]) -> Result<Vec<Kernel>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| !KERNELS.iter().any(|kernel| kernel.name == *name))
    {
        let known: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
        bail!(
            "the lab has no kernel {unknown:?}; it has: {}",
            known.join(", ")
        );
    }
    let wanted = |kernel: &&Kernel| names.is_empty() || names.iter().any(|n| n == kernel.name);
    Ok(KERNELS.iter().filter(wanted).copied().collect())
}

/// The table for people, for `--list`.
pub fn list() -> String {
    let mut text = format!(
        "{:<16} {:<12} {:<8} {:<32} suites\n",
        "name", "kind", "module", "package"
    );
    for kernel in KERNELS {
        text += &format!(
            "{:<16} {:<12} {:<8} {:<32} {}\n",
            kernel.name,
            kernel.kind.to_string(),
            match kernel.module {
                Module::Stock => "stock",
                Module::Rebuilt => "rebuilt",
            },
            kernel.package,
            kernel.suites.join(" "),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_patterns_have_one_star() {
        for (index, kernel) in KERNELS.iter().enumerate() {
            assert!(KERNELS[..index].iter().all(|k| k.name != kernel.name));
            assert_eq!(kernel.package.matches('*').count(), 1, "{}", kernel.name);
        }
        assert!(KERNELS.iter().any(|kernel| kernel.name == NEWEST));
    }

    #[test]
    fn selection_keeps_the_order_and_names_what_is_unknown() {
        let names = ["6.12".to_owned(), "5.10".to_owned()];
        let selected: Vec<&str> = select(&names).unwrap().iter().map(|k| k.name).collect();
        assert_eq!(selected, ["5.10", "6.12"]);
        assert_eq!(select(&[]).unwrap().len(), KERNELS.len());
        let error = select(&["4.19".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("4.19") && error.contains("6.12"), "{error}");
    }
}
