// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finds out whether KVM boots the lab's kernels here.
//!
//! `/dev/kvm` alone proves nothing: inside some virtual machines it opens and
//! then runs stock kernels for ever. So one short boot decides, and the
//! verdict holds until the host reboots or changes its kernel.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::qemu::{Accel, Boot, Machine};

const VERDICT: &str = "accel.json";
/// A stock kernel reaches init in about two seconds under a KVM that works.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    boot_id: String,
    kernel: String,
    kvm: bool,
}

/// Picks KVM where it boots this kernel, else software emulation.
///
/// # Errors
/// When QEMU cannot be started at all.
pub fn choose(cache: &Cache, vmlinuz: &Path, initramfs: &Path, console: &Path) -> Result<Accel> {
    let is_open = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if !is_open {
        eprintln!("/dev/kvm cannot be used here: software emulation");
        return Ok(Accel::Emulation);
    }
    let verdict = |kvm| -> Result<Verdict> {
        Ok(Verdict {
            boot_id: proc("sys/kernel/random/boot_id")?,
            kernel: proc("sys/kernel/osrelease")?,
            kvm,
        })
    };
    let known = fs::read_to_string(cache.path(VERDICT)).ok();
    let known: Option<Verdict> = known.and_then(|text| serde_json::from_str(&text).ok());
    for kvm in [true, false] {
        if known == Some(verdict(kvm)?) {
            return Ok(accel(kvm));
        }
    }
    eprintln!(
        "trying whether KVM boots a stock kernel here (up to {} s)",
        PATIENCE.as_secs()
    );
    let mut machine = Machine::start(&Boot {
        vmlinuz,
        initramfs,
        request: "lab.probe=1",
        console,
        accel: Accel::Kvm,
        silence: PATIENCE,
        life: PATIENCE,
    })?;
    // Init says something, whichever it is, as soon as it runs.
    let kvm = machine.next_line().is_ok();
    drop(machine);
    cache.write(VERDICT, &serde_json::to_string(&verdict(kvm)?)?)?;
    eprintln!(
        "  {}",
        if kvm {
            "it does"
        } else {
            "it does not: software emulation"
        }
    );
    Ok(accel(kvm))
}

fn accel(kvm: bool) -> Accel {
    if kvm {
        Accel::Kvm
    } else {
        Accel::Emulation
    }
}

fn proc(name: &str) -> Result<String> {
    let path = format!("/proc/{name}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().to_owned())
}
