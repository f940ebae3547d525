// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The init of the kernel lab's machines.
//!
//! Boots as PID 1 of a stock kernel under QEMU, shows that vhost-vsock is
//! there and what it offers, reports and switches off.

mod boot;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use boot::{Reporter, Request, Row};

/// `_IOR(VHOST_VIRTIO, 0x00, __u64)` of linux/vhost.h.
const VHOST_GET_FEATURES: libc::c_ulong = 0x8008_af00;

fn main() {
    let reporter = match boot::start() {
        Ok((request, reporter)) => {
            if let Err(error) = run(&request, &reporter) {
                eprintln!("lab: {error:#}");
            }
            Some(reporter)
        }
        Err(error) => {
            eprintln!("lab: {error:#}");
            None
        }
    };
    if std::process::id() == 1 {
        boot::power_off(reporter.as_ref());
    }
    std::process::exit(1);
}

fn run(request: &Request, reporter: &Reporter) -> Result<()> {
    if !request.probe {
        reporter.plan(&["features"])?;
        let start = Instant::now();
        let row = features(request);
        if request.demo {
            reporter.say(&format!("This kernel's vhost-vsock offers {}.", row.got))?;
        }
        if request.bench {
            let micros = start.elapsed().as_micros();
            reporter.bench(&json!({ "open_and_get_features_us": micros }))?;
        }
        reporter.row(&row)?;
    }
    reporter.done()
}

/// The cell that reads the feature bits and holds them against the kernel
/// kind that the lab's table expects.
fn features(request: &Request) -> Row {
    let expected: u64 = match request.kind.as_str() {
        "NoIotlb" => 0x1_3d00_0000,
        "Overloaded" => 0x3_3d00_0002,
        _ => 1 << 63 | 0x3_3d00_0002,
    };
    let (got, detail) = match read_features() {
        Ok(features) => (format!("{features:#x}"), String::new()),
        Err(error) => ("error".to_owned(), format!("{error:#}")),
    };
    let expected = format!("{expected:#x}");
    Row {
        kernel: request.kernel.clone(),
        kind: request.kind.clone(),
        cell: "features".to_owned(),
        ok: got == expected,
        expected,
        got,
        detail,
    }
}

fn read_features() -> Result<u64> {
    let device = File::open("/dev/vhost-vsock").context("cannot open /dev/vhost-vsock")?;
    let mut features = 0_u64;
    // SAFETY: the ioctl writes one u64, for which `features` has room.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), VHOST_GET_FEATURES, &mut features) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("VHOST_GET_FEATURES failed");
    }
    Ok(features)
}
