// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `crosvm-vsock probe`: what bit 33 means on the kernel in front of you.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::{json, Value};

use crosvm_vsock::compat::{IotlbBit, KernelKind, Mode};
use crosvm_vsock::features::{Feature, FeatureSet};
use crosvm_vsock::kernel::ioctl::{VhostFd, BACKEND_F_IOTLB_MSG_V2};
use crosvm_vsock::kernel::probe::{probe, Report};
use crosvm_vsock::kernel::{Error, Vhost, VhostVsock};

const EXIT_CODES: &str = "\
Exit codes:
  0  probed
  1  failed, or not a vhost-vsock device
  2  wrong usage
  3  no such device; for /dev/vhost-vsock: the module vhost_vsock is not loaded
  4  no permission to open the device

Examples:
  crosvm-vsock probe
  crosvm-vsock probe --json | jq -r .kind
  crosvm-vsock probe --iotlb-bit 62";

/// Tell what this host's vhost-vsock does with the platform-access and IOTLB bits.
///
/// Asks the kernel by behaviour, never by version number. Takes no CID and starts
/// no queue: running virtual machines do not notice.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct Arguments {
    /// The device file.
    #[arg(long, value_name = "PATH", default_value = VhostVsock::PATH)]
    device: PathBuf,

    /// The bit that stands for the IOTLB on a kernel that splits bit 33: a number
    /// without another meaning, or "none".
    #[arg(long, value_name = "N|none", default_value_t)]
    iotlb_bit: IotlbBit,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the report and returns the exit code.
pub fn run(arguments: &Arguments) -> ExitCode {
    let open = || {
        VhostFd::open(&arguments.device)
            .map(|fd| Arc::new(fd) as Arc<dyn Vhost>)
            .map_err(|source| Error::Open {
                path: arguments.device.clone(),
                source,
            })
    };
    let (output, code) = match probe(open, arguments.iotlb_bit) {
        Ok(report) if arguments.json => (pretty(&report_json(arguments, &report)), 0),
        Ok(report) => (report_text(arguments, &report), 0),
        Err(error) => {
            eprintln!("crosvm-vsock probe: {error}");
            let failed = json!({ "device": arguments.device, "error": error.to_string() });
            let output = if arguments.json {
                pretty(&failed)
            } else {
                String::new()
            };
            (output, exit_code(&error))
        }
    };
    match std::io::stdout().write_all(output.as_bytes()) {
        Ok(()) => ExitCode::from(code),
        Err(error) => {
            eprintln!("crosvm-vsock probe: cannot write the report: {error}");
            ExitCode::from(1)
        }
    }
}

fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Open { source, .. } => match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => 3,
            Some(libc::EACCES | libc::EPERM) => 4,
            _ => 1,
        },
        _ => 1,
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn describe(kind: KernelKind) -> &'static str {
    match kind {
        KernelKind::NoIotlb => "no IOTLB to be had (Linux 5.11 and older)",
        KernelKind::Overloaded => "bit 33 turns the IOTLB on (every Linux release since 5.12)",
        KernelKind::Split => "the separate bit turns the IOTLB on, bit 33 does not",
        KernelKind::SplitCompat => "bit 33 turns the IOTLB on, the separate bit is known as well",
    }
}

/// What a VMM that passed a protected guest's bits straight down would see.
fn raw_outcome(report: &Report) -> &'static str {
    match (
        report.platform_alone,
        report.features.has(Feature::ACCESS_PLATFORM),
    ) {
        (true, _) => "fails: VHOST_VSOCK_SET_RUNNING answers EFAULT, as in 2022",
        (false, true) => "works: the bit does not touch the IOTLB",
        (false, false) => "is refused: VHOST_SET_FEATURES answers EOPNOTSUPP",
    }
}

fn report_text(arguments: &Arguments, report: &Report) -> String {
    let mut text = format!("{}\n", arguments.device.display());
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<18}{value}");
    };
    line("features", &format!("{:?}", report.features));
    line("IOTLB messages", &messages(report));
    line(
        "bit 33",
        &bit_outcome(
            report.features,
            Some(Feature::ACCESS_PLATFORM),
            report.platform_alone,
        ),
    );
    line(
        &format!("bit {}", report.iotlb_bit),
        &bit_outcome(
            report.features,
            report.iotlb_bit.feature(),
            report.separate_alone,
        ),
    );
    line(
        "kind",
        &format!("{}: {}", report.kind, describe(report.kind)),
    );
    line("33 passed raw", &raw_outcome(report));
    text += "\n  mode        here\n";
    for mode in Mode::ALL {
        let outcome = match report.mode(mode) {
            Ok(plan) => format!("works; the kernel is told {}", plan.features),
            Err(error) => error.to_string(),
        };
        let _ = writeln!(text, "  {:<12}{outcome}", mode.to_string());
    }
    text
}

fn messages(report: &Report) -> &'static str {
    match report.backend_features & BACKEND_F_IOTLB_MSG_V2 {
        0 => "version 1",
        _ => "versions 1 and 2",
    }
}

fn bit_outcome(offered: FeatureSet, bit: Option<Feature>, turns_on: bool) -> &'static str {
    match bit {
        None => "not looked for",
        Some(bit) if !offered.has(bit) => "not offered",
        Some(_) if turns_on => "offered; alone it turns the IOTLB on",
        Some(_) => "offered; alone it leaves the IOTLB off",
    }
}

fn report_json(arguments: &Arguments, report: &Report) -> Value {
    let modes: serde_json::Map<_, _> = Mode::ALL
        .into_iter()
        .map(|mode| {
            let outcome = match report.mode(mode) {
                Ok(plan) => json!({ "works": true, "kernel_is_told": set_json(plan.features) }),
                Err(error) => json!({ "works": false, "error": error.to_string() }),
            };
            (mode.to_string(), outcome)
        })
        .collect();
    json!({
        "device": arguments.device,
        "features": set_json(report.features),
        "backend_features": format!("{:#x}", report.backend_features),
        "kind": report.kind.to_string(),
        "iotlb_bit": report.iotlb_bit.feature().map(Feature::number),
        "bit_33_alone_turns_iotlb_on": report.platform_alone,
        "iotlb_bit_alone_turns_iotlb_on": report.separate_alone,
        "raw": raw_outcome(report),
        "modes": modes,
    })
}

fn set_json(set: FeatureSet) -> Value {
    let names: Vec<_> = set.iter().map(|feature| feature.to_string()).collect();
    json!({ "bits": format!("{:#x}", set.bits()), "names": names })
}
