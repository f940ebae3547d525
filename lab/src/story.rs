// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The demo: what happened in 2022, and what this device does about it, told on
//! the kernel that is running.

use std::time::Instant;

use anyhow::Result;
use crosvm_vsock::compat::Mode;
use crosvm_vsock::kernel::probe::Report;

use crate::boot::{Reporter, Request};
use crate::cells::{raw, Host, WORKS};
use crate::rig::Rig;
use crate::{conversation, row};

/// Bytes each way in each mode.
const VOLUME: u64 = 16 << 20;

/// Tells the story; each chapter is a row as well, so that the host can tell a
/// story that went wrong.
pub fn tell(report: &Report, host: &Host, request: &Request, reporter: &Reporter) -> Result<()> {
    let chapters = ["raw", "off", "identity", "restricted", "translated"];
    reporter.plan(&chapters)?;
    reporter.say(&format!(
        "This kernel's vhost-vsock offers {:?}.\n\
         Its kind, found by trying: {}.\n",
        report.features, report.kind
    ))?;

    reporter.say(
        "1. As in 2022: a protected guest acknowledges bit 33, and the device hands the bit down.",
    )?;
    let got = raw::run().unwrap_or("failed");
    let expected = raw::expected(host.kind);
    reporter.say(&format!(
        "   VHOST_VSOCK_SET_RUNNING: {got}. No vsock for this guest.\n"
    ))?;
    reporter.row(&row(
        request,
        report,
        "raw",
        expected,
        got.into(),
        String::new(),
    ))?;

    reporter.say(
        "2. This device, the same guest: 16 MiB each way over 16 connections, every byte checked.",
    )?;
    let mut table =
        String::from("\n   mode        what the kernel can reach               result\n");
    for mode in Mode::ALL {
        let start = Instant::now();
        let result = chapter(mode);
        let took = start.elapsed().as_secs_f32();
        let (got, detail) = match &result {
            Ok(told) => (WORKS, told.clone()),
            Err(error) => ("failed", format!("{error:#}")),
        };
        reporter.say(&format!("   {mode}: {got} ({took:.1} s). {detail}"))?;
        let name = mode.to_string();
        table += &format!("   {name:<12}{:<40}{got}\n", reach(mode));
        reporter.row(&row(request, report, &name, WORKS, got.into(), detail))?;
    }
    reporter.say(&table)
}

fn reach(mode: Mode) -> &'static str {
    match mode {
        Mode::Off => "all of guest memory, no IOTLB",
        Mode::Identity => "all of guest memory, through the IOTLB",
        Mode::Restricted => "16 MiB that the guest has shared",
        Mode::Translated => "the pages that a vIOMMU maps",
    }
}

fn chapter(mode: Mode) -> Result<String> {
    let (mut rig, addressing) = Rig::in_mode(mode)?;
    rig.activate(addressing)?;
    conversation::volume(&rig.guest, VOLUME, 1)?;
    rig.check_quiet()?;
    Ok(match rig.device.iotlb() {
        None => "Neither bit goes down to the kernel.".into(),
        Some(iotlb) => {
            let stats = iotlb.stats();
            format!(
                "Bit 33 goes down, and the IOTLB is served: {} entries, {} misses, {} denials.",
                stats.entries, stats.misses, stats.denials
            )
        }
    })
}
